//! A `redis-server` for a bench.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A server on a free port of the loopback interface that writes nothing to disk. Dropping it ends the process.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    port: u16,
}

impl RedisServer {
    /// Starts a server and waits until it listens. Returns `None` without a `redis-server`.
    #[must_use]
    pub fn start() -> Option<Self> {
        // Limited, because misses would store gigabytes.
        Self::with_args(&["--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"])
    }

    /// Starts a server without a memory limit, with options as on the command line of `redis-server`.
    #[must_use]
    pub fn with_args(args: &[&str]) -> Option<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?.local_addr().ok()?.port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Self { child, port };
        (0..100).find_map(|_| {
            sleep(Duration::from_millis(20));
            TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok()
        })?;
        Some(server)
    }

    /// Returns the id of its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the URL that it listens on.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
