//! Runs a shop as a process of its own, the way a user would.

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

/// How long a shop may take to say where it listens, or to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running shop, and a client of it. It is killed when it is dropped.
///
/// Set `LARDER_SHOP` to the path of another program to test that one instead.
#[derive(Debug)]
pub struct Shop {
    child: Child,
    http: Http,
    stderr: Arc<Mutex<String>>,
}

impl Shop {
    /// Starts the program on a free port with these variables and no other of the cache's.
    #[must_use]
    pub fn start(program: &str, variables: &[(&str, &str)]) -> Self {
        let (mut child, stderr, _) = spawn(program, variables);
        let (send, receive) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let _ = send.send(lines.next());
            // Whatever else it prints must not block it.
            lines.for_each(drop);
        });
        match receive.recv_timeout(PATIENCE) {
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

    /// The same with a deadline that a machine with other work to do keeps too. For scenarios that are not about the
    /// deadline: a read that misses it is answered by the handler, rightly, and counts as a run.
    #[must_use]
    pub fn on_patient_redis(program: &str, url: &str) -> Self {
        Self::start(program, &[("REDIS_URL", url), ("REDIS_SOCKET_TIMEOUT", "2")])
    }

    /// Runs the program to its end, which must come soon, and answers how it ended and what it said on stderr.
    #[must_use]
    pub fn fail(program: &str, variables: &[(&str, &str)]) -> (ExitStatus, String) {
        let (mut child, stderr, reader) = spawn(program, variables);
        let status = wait(&mut child);
        // What it said last may still be in the pipe.
        reader.join().unwrap();
        let stderr = stderr.lock().unwrap().clone();
        (status, stderr)
    }

    /// How often handlers ran, by the name of the shop's counter.
    pub async fn runs(&self, name: &str) -> u64 {
        let runs = self.http.get("/origin-runs").await.ok().json();
        runs.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Everything the shop said on stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Asks the shop to stop, as an operator does.
    pub fn terminate(&self) {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Waits until the shop has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "the shop does not stop");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A shop is asked through its client.
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
        // What the developer's shell says about a Redis is not for a test.
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
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the program did not end by itself");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
