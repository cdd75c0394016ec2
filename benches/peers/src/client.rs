//! A client that keeps many connections busy from one thread at little cost: it waits for all of them at once, sends the next
//! request as soon as a response is complete, and checks only statuses and lengths.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

const FIELDS: &str = "Host: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0)\r\n\
    Accept: application/json\r\nAccept-Language: en-GB,en;q=0.7\r\nAccept-Encoding: gzip, deflate, br\r\n";

/// The time after which a contender is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The requests of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// This path, repeatedly.
    One(&'static str),
    /// Another path below this one each time.
    Many(&'static str),
    /// This path with its entity tag, repeatedly.
    Revalidate(&'static str),
}

/// The result of sending requests for a while.
pub(crate) struct Tally {
    pub(crate) answers: u64,
    pub(crate) took: Duration,
    /// The latency of each response in nanoseconds, if requested.
    pub(crate) latencies: Vec<u64>,
}

impl Tally {
    /// Returns the responses per second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers as f64 / self.took.as_secs_f64()
    }
}

/// A client whose connections stay open until it is dropped.
pub(crate) struct Client {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    ask: Ask,
    /// The whole request, if it is the same each time.
    request: Vec<u8>,
    expected: u16,
    asked: u64,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    answer: Answer,
    asked_at: Instant,
}

/// The part of a response that has been received.
enum Answer {
    None,
    /// A part of the head.
    Head(Vec<u8>),
    /// The number of bytes of the body that are left.
    Body(usize),
    /// A chunked body, and its last bytes.
    Chunks([u8; 5]),
}

impl Client {
    /// Connects, and sends each request twice, so that the response is stored.
    ///
    /// # Errors
    ///
    /// Returns the contender's wrong or missing answer.
    pub(crate) fn connect(address: SocketAddr, connections: usize, ask: Ask) -> Result<Self, String> {
        let fail = |error: io::Error| error.to_string();
        let poll = Poll::new().map_err(fail)?;
        let connect = |token| {
            // Blocks until it is connected.
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(token), Interest::READABLE)?;
            Ok(Connection { stream, answer: Answer::None, asked_at: Instant::now() })
        };
        let connections = (0..connections).map(connect).collect::<io::Result<_>>().map_err(fail)?;
        let events = Events::with_capacity(1024);
        let buffer = vec![0; 256 * 1024];
        let mut client =
            Self { poll, events, connections, ask, request: Vec::new(), expected: 200, asked: 0, buffer };
        client.request = client.fixed_request(None);
        let first = client.once(address)?;
        std::thread::sleep(Duration::from_millis(50));
        if matches!(ask, Ask::Revalidate(_)) {
            let etag = first.ok_or("its answers have no ETag")?;
            client.request = client.fixed_request(Some(&etag));
            client.expected = 304;
        }
        client.once(address)?;
        Ok(client)
    }

    /// Sends requests for this time, then waits for the responses that are left.
    pub(crate) fn ask_for(&mut self, time: Duration, keep_latencies: bool) -> Result<Tally, String> {
        let mut tally = Tally { answers: 0, took: Duration::ZERO, latencies: Vec::new() };
        let started = Instant::now();
        for index in 0..self.connections.len() {
            self.send(index, started)?;
        }
        let mut waiting = self.connections.len();
        while waiting > 0 {
            self.poll.poll(&mut self.events, Some(PATIENCE)).map_err(|error| error.to_string())?;
            let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
            if ready.is_empty() {
                return Err("it stopped answering".to_owned());
            }
            let now = Instant::now();
            for index in ready {
                if !self.receive(index)? {
                    continue;
                }
                tally.answers += 1;
                if keep_latencies {
                    tally.latencies.push((now - self.connections[index].asked_at).as_nanos() as u64);
                }
                if now - started < time {
                    self.send(index, now)?;
                } else {
                    waiting -= 1;
                }
            }
        }
        tally.took = started.elapsed();
        Ok(tally)
    }

    fn fixed_request(&self, etag: Option<&str>) -> Vec<u8> {
        let (Ask::One(path) | Ask::Many(path) | Ask::Revalidate(path)) = self.ask;
        let condition = etag.map(|etag| format!("If-None-Match: {etag}\r\n")).unwrap_or_default();
        format!("GET {path} HTTP/1.1\r\n{FIELDS}{condition}\r\n").into_bytes()
    }

    fn send(&mut self, index: usize, now: Instant) -> Result<(), String> {
        self.asked += 1;
        if let Ask::Many(path) = self.ask {
            self.request = format!("GET {path}{} HTTP/1.1\r\n{FIELDS}\r\n", self.asked).into_bytes();
        }
        let connection = &mut self.connections[index];
        connection.asked_at = now;
        // A connection with nothing in its buffer takes a whole request.
        connection.stream.write_all(&self.request).map_err(|error| format!("it hung up: {error}"))
    }

    /// Receives what has arrived. Returns `true` if that completes a response.
    fn receive(&mut self, index: usize) -> Result<bool, String> {
        let connection = &mut self.connections[index];
        loop {
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => return Err("it hung up".to_owned()),
                Ok(read) => {
                    if connection.answer.take(&self.buffer[..read], self.expected)? {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Sends one request on a separate connection. Returns the response's entity tag.
    fn once(&self, address: SocketAddr) -> Result<Option<String>, String> {
        let fail = |error: io::Error| error.to_string();
        let mut stream = std::net::TcpStream::connect(address).map_err(fail)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        stream.write_all(&self.request).map_err(fail)?;
        let (mut answer, mut buffer, mut head) = (Answer::None, vec![0; 64 * 1024], Vec::new());
        loop {
            let read = stream.read(&mut buffer).map_err(fail)?;
            head.extend_from_slice(&buffer[..read]);
            if read == 0 {
                return Err("it hung up".to_owned());
            }
            if answer.take(&buffer[..read], self.expected)? {
                let end = find(&head, b"\r\n\r\n").unwrap_or(head.len());
                return Ok(field(&head[..end], "etag").map(str::to_owned));
            }
        }
    }
}

impl Answer {
    /// Consumes some bytes. Returns `true` if they complete the response.
    fn take(&mut self, bytes: &[u8], expected: u16) -> Result<bool, String> {
        let complete = match self {
            Self::None => return self.take_head(bytes, expected),
            Self::Head(head) => {
                let mut head = std::mem::take(head);
                head.extend_from_slice(bytes);
                return self.take_head(&head, expected);
            }
            Self::Body(left) => {
                *left = left.checked_sub(bytes.len()).ok_or("more came than it had said")?;
                *left == 0
            }
            Self::Chunks(last) => {
                for byte in &bytes[bytes.len().saturating_sub(last.len())..] {
                    last.rotate_left(1);
                    last[4] = *byte;
                }
                last == b"0\r\n\r\n"
            }
        };
        if complete {
            *self = Self::None;
        }
        Ok(complete)
    }

    fn take_head(&mut self, bytes: &[u8], expected: u16) -> Result<bool, String> {
        let Some(end) = find(bytes, b"\r\n\r\n") else {
            *self = Self::Head(bytes.to_vec());
            return Ok(false);
        };
        let (head, body) = (&bytes[..end], &bytes[end + 4..]);
        let status = head.get(9..12).and_then(|status| std::str::from_utf8(status).ok());
        if status.and_then(|status| status.parse().ok()) != Some(expected) {
            return Err(format!("its status is {}, not {expected}", status.unwrap_or("unreadable")));
        }
        let length = match field(head, "content-length") {
            _ if expected == 304 => Some(0),
            Some(length) => Some(length.trim().parse().map_err(|_| "its length is no number")?),
            None => None,
        };
        *self = length.map_or(Self::Chunks([0; 5]), Self::Body);
        self.take(body, expected)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Returns the value of a field that starts a line.
fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let mut lines = head.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the response in every split into two, then byte by byte: it is complete with its last byte and not before.
    fn complete_at_its_end(answer: &str, expected: u16) {
        let (bytes, mut all) = (answer.as_bytes(), Answer::None);
        for cut in 1..bytes.len() {
            let mut answer = Answer::None;
            assert_eq!(answer.take(&bytes[..cut], expected), Ok(false), "cut at {cut}");
            assert_eq!(answer.take(&bytes[cut..], expected), Ok(true), "cut at {cut}");
        }
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(all.take(&[*byte], expected), Ok(at + 1 == bytes.len()), "byte {at}");
        }
    }

    #[test]
    fn response_ends_at_its_declared_length() {
        complete_at_its_end("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200);
        complete_at_its_end("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200);
        complete_at_its_end("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304);
        let chunks = "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
        complete_at_its_end(&format!("HTTP/1.1 200 OK\r\n{chunks}"), 200);
    }

    #[test]
    fn unexpected_response_is_refused() {
        let take = |bytes: &str| Answer::None.take(bytes.as_bytes(), 200);
        assert!(take("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(take("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab").is_err());
        assert!(take("gibberish\r\n\r\n").is_err());
    }
}
