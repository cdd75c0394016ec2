//! A real `redis-server` for one test, which can be killed, stopped and restarted.

use larder_core::RedisOptions;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

/// A server on a free port of the loopback interface, in its own directory, that writes to disk only on `SAVE`. Dropping it ends
/// the process, so don't keep it in a `static`, which is never dropped.
#[derive(Debug)]
pub struct RedisServer {
    args: Vec<String>,
    dir: TempDir,
    port: u16,
    child: Child,
}

impl RedisServer {
    /// Starts a server and waits until it answers. Blocks for some milliseconds.
    #[must_use]
    pub fn start() -> Self {
        Self::with_args(&[])
    }

    /// Starts a server with options as on the command line of `redis-server`.
    #[must_use]
    pub fn with_args(args: &[&str]) -> Self {
        Self::with_args_below(args, u16::MAX)
    }

    /// Starts a server on a port no higher than `highest`: a cluster node also needs the port 10,000 above its own.
    #[must_use]
    pub fn with_args_below(args: &[&str], highest: u16) -> Self {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let dir = TempDir::new().expect("a temporary directory");
        // Another test may take the free port before the server does.
        for _ in 0..10 {
            let port =
                (0..1000).map(|_| free_port()).find(|port| *port <= highest).expect("a free port below");
            let mut child = spawn(port, &dir, &args);
            if answers(port, &mut child) {
                return Self { args, dir, port, child };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("redis-server does not start; is it installed?");
    }

    /// Returns the port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL that it listens on.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Returns the id of its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it (`SIGKILL`). Its data are lost, except what it saved.
    pub fn kill(&mut self) {
        self.child.kill().expect("a server to kill");
        self.child.wait().expect("its end");
    }

    /// Restarts it on the same port, with what it saved.
    pub fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = spawn(self.port, &self.dir, &self.args);
        assert!(answers(self.port, &mut self.child), "redis-server does not start again");
    }

    /// Stops it (`SIGSTOP`). The kernel still accepts connections and commands for it.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Continues it (`SIGCONT`). It then handles the commands that arrived meanwhile.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(status.expect("the kill command").success(), "kill -s {name} failed");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // SIGKILL also ends a stopped process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a free port no higher than `highest`.
#[must_use]
pub fn free_port_below(highest: u16) -> u16 {
    (0..1000).map(|_| free_port()).find(|port| *port <= highest).expect("a free port that low")
}

/// Returns a free port. Another process may take it at any time.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its number").port()
}

fn spawn(port: u16, dir: &TempDir, args: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--daemonize", "no", "--dir"])
        .arg(dir.path())
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server to be installed")
}

/// Waits for any reply to a `PING`, including one that asks for a password.
fn answers(port: u16, child: &mut Child) -> bool {
    for _ in 0..500 {
        if child.try_wait().is_ok_and(|status| status.is_some()) {
            return false;
        }
        if ping(port).is_some_and(|reply| &reply != b"-LOAD") {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}

fn ping(port: u16) -> Option<[u8; 5]> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    stream.write_all(b"PING\r\n").ok()?;
    let mut reply = [0; 5];
    stream.read_exact(&mut reply).ok()?;
    Some(reply)
}

/// Returns the version of the `redis-server` in `PATH`, as major and minor: `(7, 0)`. Valkey counts on from 7.2.
#[must_use]
pub fn version() -> (u32, u32) {
    static VERSION: LazyLock<(u32, u32)> = LazyLock::new(|| {
        let output =
            Command::new("redis-server").arg("--version").output().expect("redis-server to be installed");
        let text = String::from_utf8_lossy(&output.stdout);
        let numbers = text.split_once("v=").and_then(|(_, rest)| {
            let mut numbers = rest.split('.').map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        });
        numbers.expect("redis-server --version to begin with a version")
    });
    *VERSION
}

/// Returns the options that allow `DEBUG`. Redis 6 always allows it, and doesn't know the option.
#[must_use]
pub fn allow_debug() -> &'static [&'static str] {
    if version() >= (7, 0) { &["--enable-debug-command", "yes"] } else { &[] }
}

/// Returns the rules of `ACL SETUSER` that deny one subcommand to a user who may run everything. Redis 6 can't deny single
/// subcommands: there the whole command is denied, and the subcommands in `needed` are allowed again.
#[must_use]
pub fn deny(command: &str, subcommand: &str, needed: &[&str]) -> Vec<String> {
    if version() >= (7, 0) {
        return vec![format!("-{command}|{subcommand}")];
    }
    let given_back = needed.iter().map(|other| format!("+{command}|{other}"));
    std::iter::once(format!("-{command}")).chain(given_back).collect()
}

/// Sets long deadlines, which hold on a busy machine, for tests that are not about deadlines.
#[must_use]
pub fn patient(options: RedisOptions) -> RedisOptions {
    let long = Duration::from_secs(5);
    options.read_deadline(long).fill_deadline(long).evict_deadline(long).connect_deadline(long)
}

/// Opens a connection without deadlines, for tests that inspect the server.
pub async fn connect_without_deadline(url: &str) -> redis::aio::MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let client = redis::Client::open(url).expect("a URL");
    client.get_multiplexed_async_connection_with_config(&config).await.expect("a connection")
}

/// Returns the number of calls of a command, from `INFO commandstats`.
#[must_use]
pub fn calls(stats: &str, command: &str) -> u64 {
    // The `:` ends the name: `get` is also the start of `getrange`.
    let name = format!("cmdstat_{command}:calls=");
    let count = |line: &str| line.strip_prefix(&*name)?.split(',').next()?.parse().ok();
    stats.lines().find_map(count).unwrap_or(0)
}
