//! Tests of the examples' exports: each example runs as a process and is called over HTTP.

#![expect(
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking and gives up after a while, and counts are whole"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// A running example. It is killed on drop.
struct Example {
    child: Child,
    address: String,
    lines: Receiver<String>,
}

impl Example {
    fn start(program: &str) -> Self {
        let mut child = Command::new(program)
            .env_remove("REDIS_URL")
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let listening = lines.recv_timeout(Duration::from_secs(10)).unwrap();
        let address = listening.rsplit('/').next().unwrap().to_owned();
        Self { child, address, lines }
    }

    fn call(&self, line: &str) -> String {
        call(&self.address, line)
    }

    /// Returns the printed lines as soon as `is_enough` accepts them. Panics after ten seconds.
    fn prints(&self, is_enough: impl Fn(&str) -> bool) -> String {
        let (until, mut printed) = (Instant::now() + Duration::from_secs(10), String::new());
        while !is_enough(&printed) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { panic!("that is not enough:\n{printed}") };
            printed.push_str(&line);
            printed.push('\n');
        }
        printed
    }
}

fn call(address: &str, line: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn prometheus_can_fetch_the_numbers() {
    let shop = Example::start(env!("CARGO_BIN_EXE_prometheus"));
    let address = &shop.address;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| call(address, "GET /products/7"));
        }
    });
    shop.call("GET /products/7");
    shop.call("GET /products/8");
    shop.call("DELETE /products/7");
    shop.call("GET /products/7");

    let metrics = shop.call("GET /metrics");
    let of = |series: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series} in\n{metrics}")).trim().parse().unwrap()
    };
    let requests = |status: &str, reason: &str| {
        of(&format!(
            "larder_requests_total{{route=\"/products/{{id}}\",kind=\"read\",group=\"products\",\
             status=\"{status}\",reason=\"{reason}\"}}"
        ))
    };
    assert_eq!(requests("miss", "absent"), 3.0);
    assert_eq!(requests("hit", ""), 1.0);
    assert_eq!(requests("collapsed", ""), 3.0);
    assert_eq!(of("larder_writes_total{group=\"products\",result=\"stored\"}"), 3.0);
    assert_eq!(of("larder_evictions_total{group=\"products\",result=\"key\"}"), 1.0);
    assert_eq!(of("larder_fill_wait_seconds_count{result=\"filled\"}"), 3.0);
    assert!(metrics.contains("# TYPE larder_requests_total counter"), "{metrics}");
    assert!(!metrics.contains("products:7"), "a key in a label:\n{metrics}");
}

#[test]
fn opentelemetry_gets_spans_and_numbers() {
    let shop = Example::start(env!("CARGO_BIN_EXE_opentelemetry"));
    shop.call("GET /products/7");
    shop.call("GET /products/7");
    shop.call("DELETE /products/7");
    let is_counted = |point: &str| point.contains("Value        : 1") && point.contains("status: hit");
    let printed = shop
        .prints(|printed| printed.contains("cache.evict") && printed.split("DataPoint #").any(is_counted));
    for wanted in ["cache.get", "cache.set", "redis:larder:cache:{products}:products:7", "absent", "stored"] {
        assert!(printed.contains(wanted), "no {wanted} in\n{printed}");
    }
}
