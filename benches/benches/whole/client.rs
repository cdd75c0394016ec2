//! A cheap client: it sends on all its connections, then reads all the responses, and checks only their status and length.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The number of open connections.
pub(crate) const CONNECTIONS: usize = 16;

const FIELDS: &str = "Host: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0)\r\n\
    Accept: application/json\r\nAccept-Language: en-GB,en;q=0.7\r\nAccept-Encoding: gzip, deflate, br\r\n";

/// The requests of a client.
#[derive(Clone)]
pub(crate) struct Ask {
    many: bool,
    extra: &'static str,
    revalidate: bool,
}

impl Ask {
    /// Requests one product repeatedly.
    pub(crate) fn one() -> Self {
        Self { many: false, extra: "", revalidate: false }
    }

    /// Requests another product each time.
    pub(crate) fn many() -> Self {
        Self { many: true, ..Self::one() }
    }

    /// Requests one product, with credentials.
    pub(crate) fn known() -> Self {
        Self { extra: "Authorization: Bearer secret\r\n", ..Self::one() }
    }

    /// Requests one product, with its entity tag.
    pub(crate) fn revalidating() -> Self {
        Self { revalidate: true, ..Self::one() }
    }
}

pub(crate) struct Client {
    connections: Vec<TcpStream>,
    ask: Ask,
    etag: Option<String>,
    asked: u64,
    expected: u16,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects, and sends each request once, so that the response is stored.
    pub(crate) fn connect(address: SocketAddr, ask: Ask) -> Self {
        let connect = |_| {
            let stream = TcpStream::connect(address).expect("a server that listens");
            stream.set_nodelay(true).expect("a socket");
            stream
        };
        let connections = (0..CONNECTIONS).map(connect).collect();
        let buffer = vec![0; 128 * 1024];
        let mut client = Self { connections, ask, etag: None, asked: 0, expected: 200, buffer };
        client.send(0);
        client.receive(0, true);
        client.expected = if client.ask.revalidate { 304 } else { 200 };
        client
    }

    /// Sends requests for this time. Returns the number of responses, and the time that they took.
    pub(crate) fn ask_for(&mut self, time: Duration) -> (u64, Duration) {
        let (started, mut count) = (Instant::now(), 0);
        while started.elapsed() < time {
            for index in 0..CONNECTIONS {
                self.send(index);
            }
            for index in 0..CONNECTIONS {
                self.receive(index, false);
            }
            count += CONNECTIONS as u64;
        }
        (count, started.elapsed())
    }

    fn send(&mut self, index: usize) {
        self.asked += 1;
        let id = if self.ask.many { self.asked } else { 7 };
        let (extra, etag) = (self.ask.extra, self.etag.as_deref().unwrap_or_default());
        let request = format!("GET /products/{id} HTTP/1.1\r\n{FIELDS}{extra}{etag}\r\n");
        self.connections[index].write_all(request.as_bytes()).expect("a connection that is kept open");
    }

    fn receive(&mut self, index: usize, first: bool) {
        let (mut filled, mut whole) = (0, None);
        while whole.is_none_or(|whole| filled < whole) {
            let read = self.connections[index].read(&mut self.buffer[filled..]).expect("an answer");
            assert!(read > 0, "the server hung up");
            filled += read;
            if whole.is_none()
                && let Some(end) = self.buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&self.buffer[..end]).expect("text");
                assert_eq!(head[9..12].parse(), Ok(self.expected), "{head}");
                let field = |name| {
                    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
                    fields.find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value))
                };
                let length = field("content-length").map_or(0, |value| value.parse().expect("a number"));
                whole = Some(end + 4 + if self.expected == 304 { 0 } else { length });
                if first && self.ask.revalidate {
                    self.etag = field("etag").map(|etag| format!("If-None-Match: {etag}\r\n"));
                }
            }
        }
        assert_eq!(whole, Some(filled), "an answer and nothing after it");
    }
}
