//! The connection to an application: a direct call, a connection in memory, or a TCP connection.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use poem::endpoint::BoxEndpoint;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use super::request::{Ask, Content};
use super::world::{Transport, Version};
use crate::in_process::Answer;

type Svc = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// A running application.
pub(super) enum App {
    Direct(Svc),
    Wire { line: Line, version: Version, task: JoinHandle<()> },
}

pub(super) enum Line {
    Pipe(mpsc::UnboundedSender<DuplexStream>),
    Socket(SocketAddr),
}

impl Drop for App {
    fn drop(&mut self) {
        if let Self::Wire { task, .. } = self {
            task.abort();
        }
    }
}

/// A connection of either kind.
enum Io {
    Pipe(DuplexStream),
    Socket(TcpStream),
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Pipe(io) => Pin::new(io).poll_read(context, buffer),
            Self::Socket(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Pipe(io) => Pin::new(io).poll_write(context, bytes),
            Self::Socket(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Pipe(io) => Pin::new(io).poll_flush(context),
            Self::Socket(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Pipe(io) => Pin::new(io).poll_shutdown(context),
            Self::Socket(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}

/// The source of connections.
enum Incoming {
    Pipe(mpsc::UnboundedReceiver<DuplexStream>),
    Socket(TcpListener),
}

impl Incoming {
    async fn next(&mut self) -> io::Result<Io> {
        match self {
            Self::Pipe(pipes) => {
                pipes.recv().await.map(Io::Pipe).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
            }
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Io::Socket(stream))
            }
        }
    }
}

impl Acceptor for Incoming {
    type Io = Io;

    fn local_addr(&self) -> Vec<LocalAddr> {
        Vec::new()
    }

    async fn accept(&mut self) -> io::Result<(Io, LocalAddr, RemoteAddr, Scheme)> {
        let Ok(io) = self.next().await else { std::future::pending().await };
        Ok((io, LocalAddr::default(), RemoteAddr::default(), Scheme::HTTP))
    }
}

async fn line(transport: Transport) -> (Line, Incoming, Version) {
    match transport {
        Transport::Socket(version) => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            (Line::Socket(listener.local_addr().unwrap()), Incoming::Socket(listener), version)
        }
        Transport::Pipe(version) => {
            let (line, pipes) = mpsc::unbounded_channel();
            (Line::Pipe(line), Incoming::Pipe(pipes), version)
        }
        Transport::Direct => unreachable!("a call needs no connection"),
    }
}

impl App {
    pub(super) async fn serve(service: Svc, transport: Transport) -> Self {
        if transport == Transport::Direct {
            return Self::Direct(service);
        }
        let (line, mut incoming, version) = line(transport).await;
        let task = tokio::spawn(async move {
            while let Ok(io) = incoming.next().await {
                let service = service
                    .clone()
                    .map_request(|request: Request<hyper::body::Incoming>| request.map(Body::new));
                let (io, service) = (TokioIo::new(io), TowerToHyperService::new(service));
                tokio::spawn(async move {
                    let _ = match version {
                        Version::Http1 => {
                            hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                        }
                        Version::Http2 => {
                            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            builder.serve_connection(io, service).await
                        }
                    };
                });
            }
        });
        Self::Wire { line, version, task }
    }

    pub(super) async fn serve_poem(
        endpoint: BoxEndpoint<'static, poem::Response>,
        transport: Transport,
    ) -> Self {
        let (line, incoming, version) = line(transport).await;
        let task = tokio::spawn(async move {
            let _ = poem::Server::new_with_acceptor(incoming).run(endpoint).await;
        });
        Self::Wire { line, version, task }
    }

    /// Sends a request and reads the whole response.
    pub(super) async fn send(&self, ask: &Ask, last_etag: &str) -> Result<Answer, String> {
        let request = self.request(ask, last_etag)?;
        let (parts, body) = match self {
            Self::Direct(service) => {
                let Ok(response) = service.clone().oneshot(request).await;
                response.into_parts()
            }
            Self::Wire { line, version, .. } => {
                let io = match line {
                    Line::Pipe(pipes) => {
                        let (mine, theirs) = tokio::io::duplex(64 * 1024);
                        pipes.send(theirs).map_err(|error| error.to_string())?;
                        Io::Pipe(mine)
                    }
                    Line::Socket(address) => {
                        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                        stream.set_nodelay(true).map_err(|error| error.to_string())?;
                        Io::Socket(stream)
                    }
                };
                exchange(io, *version, request).await.map_err(|error| error.to_string())?.into_parts()
            }
        };
        let body = match body.collect().await {
            // hyper's server drops the body of a HEAD. poem's sends that of an error, which HTTP/2 forbids.
            _ if ask.method == http::Method::HEAD => Bytes::new(),
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(error.to_string()),
        };
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    fn request(&self, ask: &Ask, last_etag: &str) -> Result<Request<Body>, String> {
        let scheme = if ask.https { "https" } else { "http" };
        let absolute = format!("{scheme}://{}{}", ask.host, ask.target);
        let is_absolute = ask.https || matches!(self, Self::Wire { version: Version::Http2, .. });
        let uri: Uri = if is_absolute { absolute.parse() } else { ask.target.parse() }
            .map_err(|error| format!("{}: {error}", ask.target))?;
        let mut request = Request::builder().method(&ask.method).uri(uri);
        if !is_absolute || !matches!(self, Self::Wire { version: Version::Http2, .. }) {
            request = request.header("host", ask.host);
        }
        for (name, value) in &ask.fields {
            request = request.header(*name, value.replace(super::request::LAST_ETAG, last_etag));
        }
        let chunk = |text: &'static str| Ok::<_, Infallible>(Bytes::from_static(text.as_bytes()));
        let body = match ask.content {
            Content::None => Body::empty(),
            Content::Sized(text) => Body::from(text),
            Content::Chunked(text) => Body::from_stream(stream::iter([chunk(text)])),
            Content::Endless => Body::from_stream(stream::iter([chunk("endless")]).chain(stream::pending())),
        };
        request.body(body).map_err(|error| error.to_string())
    }
}

async fn exchange(io: Io, version: Version, request: Request<Body>) -> hyper::Result<Response<Body>> {
    let io = TokioIo::new(io);
    let response = match version {
        Version::Http1 => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        }
        Version::Http2 => {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        }
    };
    Ok(response.map(Body::new))
}
