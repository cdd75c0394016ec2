//! Runs a shop as a process of its own.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::http::Http;

/// The time that a shop may take to report its address, or to stop.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A running shop, and a client of it. Dropping it kills the process.
///
/// Set `LARDER_SHOP` to the path of another program to test that one instead.
#[derive(Debug)]
pub struct Shop {
    child: Child,
    http: Http,
    stderr: Arc<Mutex<String>>,
}

impl Shop {
    /// Starts the program on a free port with these variables, and without other variables of the cache.
    #[must_use]
    pub fn start(program: &str, variables: &[(&str, &str)]) -> Self {
        let (mut child, stderr, _) = spawn(program, variables);
        let (send, receive) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let _ = send.send(lines.next());
            // Reads the rest of its output, so that a full pipe doesn't block it.
            lines.for_each(drop);
        });
        match receive.recv_timeout(TIMEOUT) {
            Ok(Some(Ok(line))) => {
                let address = line.rsplit(['/', ' ']).find_map(|word| word.parse::<SocketAddr>().ok());
                let address = address.unwrap_or_else(|| panic!("no address in {line:?}"));
                Self { child, http: Http::new(address), stderr }
            }
            other => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the shop did not start: {other:?}\n{}", stderr.lock().unwrap())
            }
        }
    }

    /// Starts the program with its cache in memory.
    #[must_use]
    pub fn in_memory(program: &str) -> Self {
        Self::start(program, &[])
    }

    /// Starts the program with its cache in Redis.
    #[must_use]
    pub fn on_redis(program: &str, url: &str) -> Self {
        Self::start(program, &[("REDIS_URL", url)])
    }

    /// Starts the program on Redis with a long deadline, which holds on a busy machine, for scenarios that are not about
    /// deadlines. A read that misses its deadline is answered by the handler and counts as a run.
    #[must_use]
    pub fn on_patient_redis(program: &str, url: &str) -> Self {
        Self::start(program, &[("REDIS_URL", url), ("REDIS_SOCKET_TIMEOUT", "2")])
    }

    /// Runs the program until it exits, which must be soon, and returns its status and its stderr.
    #[must_use]
    pub fn fail(program: &str, variables: &[(&str, &str)]) -> (ExitStatus, String) {
        let (mut child, stderr, reader) = spawn(program, variables);
        let status = wait(&mut child);
        // The last lines may still be in the pipe.
        reader.join().unwrap();
        let stderr = stderr.lock().unwrap().clone();
        (status, stderr)
    }

    /// Returns the number of runs of handlers, by the name of the shop's counter.
    pub async fn runs(&self, name: &str) -> u64 {
        let runs = self.http.get("/origin-runs").await.ok().json();
        runs.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Returns everything that the shop has written to stderr.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Sends SIGTERM to the shop.
    pub fn terminate(&self) {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Waits until the shop has exited.
    pub async fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < TIMEOUT, "the shop does not stop");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Requests to a shop go through its client.
impl Deref for Shop {
    type Target = Http;

    fn deref(&self) -> &Http {
        &self.http
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- what the shop said ---\n{}--- end ---", self.stderr());
        }
    }
}

fn spawn(program: &str, variables: &[(&str, &str)]) -> (Child, Arc<Mutex<String>>, JoinHandle<()>) {
    let program = env::var("LARDER_SHOP").unwrap_or_else(|_| program.to_owned());
    let mut command = Command::new(&program);
    for (name, _) in env::vars_os() {
        // A Redis from the developer's environment must not affect the test.
        if name.to_string_lossy().starts_with("REDIS_") {
            command.env_remove(name);
        }
    }
    command
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = Arc::new(Mutex::new(String::new()));
    let mut pipe = child.stderr.take().unwrap();
    let writer = Arc::clone(&said);
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            writer.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    });
    (child, said, reader)
}

fn wait(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if began.elapsed() > TIMEOUT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the program did not end by itself");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
