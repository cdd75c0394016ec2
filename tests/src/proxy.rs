//! A TCP proxy that misbehaves on demand.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What becomes of what passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// It passes.
    Fair,
    /// It passes after this time, and what follows waits behind it.
    Slow(Duration),
    /// Answers pass at this rate, in bytes per second. All connections share it.
    Throttled(u64),
    /// It passes, but what comes after this time on connections that asked for invalidation messages.
    LateNews(Duration),
    /// It waits until the weather changes. Connections are accepted all the same.
    BlackHole,
    /// Answers are replaced by nonsense.
    Garbage,
    /// It passes, but whoever sends something with these words in it is cut off before the answer.
    CutAfter(&'static str),
    /// It passes, but what has these words in it is lost, and its connection with it.
    CutBefore(&'static str),
}

/// A proxy on a port of its own. It ends with this value.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    line: Arc<Line>,
    task: JoinHandle<()>,
}

/// What all connections share.
#[derive(Debug, Default)]
struct Line {
    /// How many bytes of answers have passed.
    answered: AtomicU64,
    /// Held by the connection whose answer passes while the line is throttled.
    turn: tokio::sync::Mutex<()>,
    /// The port that connections lead to.
    target: watch::Sender<u16>,
}

impl Proxy {
    /// Begins to pass everything on to this port of the loopback interface.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("its number").port();
        let (weather, forecast) = watch::channel(Weather::Fair);
        let line = Arc::<Line>::default();
        line.target.send_replace(port);
        let shared = Arc::clone(&line);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, forecast.clone(), Arc::clone(&shared)));
            }
        });
        Self { port: own, weather, line, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens, as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Changes what becomes of everything from now on, on connections that are open too.
    pub fn turn(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Leads new connections to another port, and cuts those that are open.
    pub fn redirect(&self, port: u16) {
        self.line.target.send_replace(port);
    }

    /// How many bytes of answers have passed on all connections.
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

async fn serve(client: TcpStream, forecast: watch::Receiver<Weather>, line: Arc<Line>) {
    let mut target = line.target.subscribe();
    let port = *target.borrow_and_update();
    let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await else { return };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (doomed, listens) = (AtomicBool::new(false), AtomicBool::new(false));
    tokio::select! {
        () = pump(from_client, to_server, forecast.clone(), &doomed, &listens, None) => {}
        () = pump(from_server, to_client, forecast, &doomed, &listens, Some(&line)) => {}
        _ = target.changed() => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut forecast: watch::Receiver<Weather>,
    doomed: &AtomicBool,
    listens: &AtomicBool,
    answers: Option<&Line>,
) {
    let are_answers = answers.is_some();
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        // The proxy is gone, and with it whatever it held back.
        let Ok(weather) = forecast.wait_for(|weather| *weather != Weather::BlackHole).await.map(|now| *now)
        else {
            return;
        };
        if let Weather::Slow(delay) = weather {
            sleep(delay).await;
        }
        let has = |words: &str| bytes[..count].windows(words.len()).any(|window| window == words.as_bytes());
        if !are_answers && has("TRACKING") {
            listens.store(true, Ordering::SeqCst);
        }
        if let Weather::LateNews(delay) = weather
            && are_answers
            && listens.load(Ordering::SeqCst)
        {
            sleep(delay).await;
        }
        if let Weather::CutBefore(words) = weather
            && has(words)
        {
            return;
        }
        if let Weather::CutAfter(words) = weather {
            let found = has(words);
            if doomed.fetch_or(found && !are_answers, Ordering::SeqCst) && are_answers {
                return;
            }
        }
        let passed: &[u8] = if weather == Weather::Garbage && are_answers {
            b"HTTP/1.1 400 Bad Request\r\n\r\n"
        } else {
            &bytes[..count]
        };
        if let Some(line) = answers {
            line.answered.fetch_add(passed.len() as u64, Ordering::SeqCst);
        }
        let written = match (weather, answers) {
            (Weather::Throttled(rate), Some(line)) => throttled(&mut to, passed, rate, line).await,
            _ => to.write_all(passed).await,
        };
        if written.is_err() {
            return;
        }
    }
}

/// Writes at this rate, in bytes per second, in pieces of a few milliseconds.
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
