//! A TCP proxy that delays, cuts or replaces what it forwards.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The treatment of forwarded data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// Forwarded unchanged.
    Forward,
    /// Forwarded after this time. Later data wait behind it.
    Slow(Duration),
    /// Replies are forwarded at this rate, in bytes per second, shared by all connections.
    Throttled(u64),
    /// Forwarded, but replies on connections that asked for invalidation messages arrive after this time.
    SlowInvalidations(Duration),
    /// Held until the mode changes. Connections are still accepted.
    BlackHole,
    /// Replies are replaced by invalid bytes.
    Garbage,
    /// Forwarded, but a connection that sends a command with these words is cut before the reply.
    CutAfter(&'static str),
    /// Forwarded, but a command with these words is dropped, and its connection cut.
    CutBefore(&'static str),
}

/// A proxy on its own port. Dropping it stops it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mode: watch::Sender<ProxyMode>,
    line: Arc<Line>,
    task: JoinHandle<()>,
}

/// State shared by all connections.
#[derive(Debug, Default)]
struct Line {
    /// Bytes of replies that have been forwarded.
    answered: AtomicU64,
    /// Held by the connection whose reply is forwarded while the proxy is throttled.
    turn: tokio::sync::Mutex<()>,
    /// The port that connections are forwarded to.
    target: watch::Sender<u16>,
}

impl Proxy {
    /// Starts to forward connections to this port of the loopback interface.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("its number").port();
        let (mode, modes) = watch::channel(ProxyMode::Forward);
        let line = Arc::<Line>::default();
        line.target.send_replace(port);
        let shared = Arc::clone(&line);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, modes.clone(), Arc::clone(&shared)));
            }
        });
        Self { port: own, mode, line, task }
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

    /// Changes the treatment of all data from now on, also on open connections.
    pub fn set_mode(&self, mode: ProxyMode) {
        self.mode.send_replace(mode);
    }

    /// Forwards new connections to another port, and cuts those that are open.
    pub fn redirect(&self, port: u16) {
        self.line.target.send_replace(port);
    }

    /// Returns the bytes of replies that have been forwarded on all connections.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.line.answered.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, modes: watch::Receiver<ProxyMode>, line: Arc<Line>) {
    let mut target = line.target.subscribe();
    let port = *target.borrow_and_update();
    let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await else { return };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (doomed, listens) = (AtomicBool::new(false), AtomicBool::new(false));
    tokio::select! {
        () = pump(from_client, to_server, modes.clone(), &doomed, &listens, None) => {}
        () = pump(from_server, to_client, modes, &doomed, &listens, Some(&line)) => {}
        _ = target.changed() => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut modes: watch::Receiver<ProxyMode>,
    doomed: &AtomicBool,
    listens: &AtomicBool,
    answers: Option<&Line>,
) {
    let are_answers = answers.is_some();
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        // The proxy was dropped: what it held back is lost.
        let Ok(mode) = modes.wait_for(|mode| *mode != ProxyMode::BlackHole).await.map(|now| *now) else {
            return;
        };
        if let ProxyMode::Slow(delay) = mode {
            sleep(delay).await;
        }
        let has = |words: &str| bytes[..count].windows(words.len()).any(|window| window == words.as_bytes());
        if !are_answers && has("TRACKING") {
            listens.store(true, Ordering::SeqCst);
        }
        if let ProxyMode::SlowInvalidations(delay) = mode
            && are_answers
            && listens.load(Ordering::SeqCst)
        {
            sleep(delay).await;
        }
        if let ProxyMode::CutBefore(words) = mode
            && has(words)
        {
            return;
        }
        if let ProxyMode::CutAfter(words) = mode {
            let found = has(words);
            if doomed.fetch_or(found && !are_answers, Ordering::SeqCst) && are_answers {
                return;
            }
        }
        let passed: &[u8] = if mode == ProxyMode::Garbage && are_answers {
            b"HTTP/1.1 400 Bad Request\r\n\r\n"
        } else {
            &bytes[..count]
        };
        if let Some(line) = answers {
            line.answered.fetch_add(passed.len() as u64, Ordering::SeqCst);
        }
        let written = match (mode, answers) {
            (ProxyMode::Throttled(rate), Some(line)) => throttled(&mut to, passed, rate, line).await,
            _ => to.write_all(passed).await,
        };
        if written.is_err() {
            return;
        }
    }
}

/// Writes at this rate, in bytes per second, in chunks of a few milliseconds.
async fn throttled(
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    bytes: &[u8],
    rate: u64,
    line: &Line,
) -> std::io::Result<()> {
    let piece = usize::try_from(rate / 250).unwrap_or(usize::MAX).max(1024);
    for piece in bytes.chunks(piece) {
        let _turn = line.turn.lock().await;
        sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
        to.write_all(piece).await?;
    }
    Ok(())
}
