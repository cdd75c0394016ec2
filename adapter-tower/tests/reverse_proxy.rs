//! The example `reverse_proxy` between real sockets.

#![cfg(all(feature = "memory", feature = "redis"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../examples/reverse_proxy/admission.rs"]
mod admission;
#[path = "../examples/reverse_proxy/fields.rs"]
mod fields;
#[path = "../examples/reverse_proxy/proxy.rs"]
mod proxy;
#[path = "../examples/reverse_proxy/serve.rs"]
mod serve;
#[path = "../examples/reverse_proxy/tunnel.rs"]
mod tunnel;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use larder_tower::Larder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

/// Starts a proxy in front of this origin.
async fn proxy_to(origin: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = proxy::Proxy::to(&format!("http://{origin}")).unwrap();
    let service = serve::Service::new(&Larder::memory(), proxy, |_| {});
    tokio::spawn(serve::serve(listener, service, std::future::pending()));
    address
}

type Asked = Arc<Mutex<Vec<String>>>;

/// Starts an origin that answers each connection once with this response, and records the requests.
async fn origin(answer: &'static str) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = read_head(&mut stream).await;
            log.lock().unwrap().push(head);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

async fn read_head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Sends a request, and reads until the proxy closes the connection.
async fn ask(proxy: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

const OK: &str = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn transfer_coding_overrules_content_length() {
    let (origin, _) = origin(
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n9\r\nfirstlast\r\n0\r\n\r\n",
    )
    .await;
    let answer = ask(proxy_to(origin).await, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("firstlast") && !answer.contains("content-length: 3"), "{answer}");
}

#[tokio::test]
async fn clients_of_an_http_1_0_origin_keep_their_connections() {
    let (origin, _) = origin("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let request = "GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = ask(proxy_to(origin).await, request).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answer}");
    assert!(answer.contains("via: 1.0 larder\r\n"), "{answer}");
}

#[tokio::test]
async fn requests_name_exactly_one_host() {
    let (origin, asked) = origin(OK).await;
    let proxy = proxy_to(origin).await;
    // Stores a response that a bad request could be answered with.
    ask(proxy, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    for fields in [
        "HTTP/1.1\r\n",
        "HTTP/1.1\r\nhost: a\r\nhost: a\r\n",
        "HTTP/1.1\r\nhost: a\r\nhost: b\r\n",
        "HTTP/1.0\r\nhost: a\r\nhost: b\r\n",
        "HTTP/1.1\r\nhost:\r\n",
        "HTTP/1.1\r\nhost: a b\r\n",
        "HTTP/1.1\r\nhost: a/b\r\n",
        "HTTP/1.1\r\nhost: user@a\r\n",
    ] {
        let answer = ask(proxy, &format!("GET / {fields}connection: close\r\n\r\n")).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{fields} {answer}"
        );
    }
    let answer = ask(proxy, "GET http://a/ HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(asked.lock().unwrap().len(), 1);
    // The host in the request line takes precedence, and is the one in the key (RFC 9112 §3.2.2).
    let absolute = "GET http://a/ HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n";
    assert!(ask(proxy, absolute).await.contains("Larder; hit"));
    let absolute = "GET http://c/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert!(ask(proxy, absolute).await.contains("fwd=uri-miss"));
    assert!(asked.lock().unwrap().last().unwrap().contains("host: c\r\n"));
    let old = ask(proxy, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.contains(" 200 OK\r\n"), "{old}");
}

#[tokio::test]
async fn max_forwards_is_counted_down() {
    let (origin, asked) = origin(OK).await;
    let proxy = proxy_to(origin).await;
    for method in ["TRACE", "OPTIONS"] {
        let request = |left: &str| {
            format!(
                "{method} / HTTP/1.1\r\nhost: a\r\nmax-forwards: {left}\r\ncookie: secret=1\r\nx-a: b\r\n\
                 connection: close\r\n\r\n"
            )
        };
        let answer = ask(proxy, &request("0")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("secret"), "{answer}");
        match method {
            "TRACE" => {
                assert!(answer.contains("message/http") && answer.contains("\r\nx-a: b\r\n"), "{answer}")
            }
            _ => assert!(answer.contains("\r\nallow: GET, "), "{answer}"),
        }
        assert_eq!(asked.lock().unwrap().len(), 0);
        for (left, expected) in [("2", "1"), ("1", "0"), ("99999999999", "4294967294"), ("x", "x")] {
            ask(proxy, &request(left)).await;
            let head = asked.lock().unwrap().pop().unwrap();
            assert!(head.contains(&format!("max-forwards: {expected}\r\n")), "{left}: {head}");
        }
    }
    // In other methods, `Max-Forwards` has no meaning.
    ask(proxy, "GET / HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\nconnection: close\r\n\r\n").await;
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn requests_keep_one_length_field() {
    let (origin, asked) = origin(OK).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
                   content-length: 3\r\n\r\n0\r\n\r\n";
    ask(proxy_to(origin).await, request).await;
    for head in asked.lock().unwrap().iter() {
        assert!(!(head.contains("content-length: 3") || head.contains("content-length: 5")), "{head}");
    }
}

#[tokio::test]
async fn web_sockets_pass_through() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        socket.send(message).await.unwrap();
                    }
                }
            });
        }
    });
    let proxy = proxy_to(origin).await;
    let (mut socket, response) =
        tokio_tungstenite::connect_async(format!("ws://{proxy}/chat")).await.unwrap();
    assert_eq!(response.status(), 101);
    let long = Message::binary(vec![7; 300_000]);
    for message in [Message::text("hello"), long, Message::text("")] {
        socket.send(message.clone()).await.unwrap();
        let echoed = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.unwrap();
        assert_eq!(echoed.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}

#[tokio::test]
async fn other_protocols_are_not_switched_to() {
    let (origin, asked) = origin(OK).await;
    let proxy = proxy_to(origin).await;
    let answer = ask(
        proxy,
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let head = asked.lock().unwrap().pop().unwrap();
    assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
}
