//! Connections of clients, and the cache between them and the proxy.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderName, Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use larder_tower::larder_core::shared::{SchemeSource, SharedBody, SharedRule};
use larder_tower::{Larder, SharedCacheLayer};
use tokio::net::TcpListener;
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt};

use crate::admission::admit;
use crate::proxy::Proxy;

/// For how long connections may finish what they do when the proxy is told to stop.
const FAREWELL: Duration = Duration::from_secs(10);

/// The body of an answer: the origin's, or one that was made here.
pub(crate) type OwnBody = Either<Incoming, Full<Bytes>>;

pub(crate) type Answer = Response<SharedBody<OwnBody>>;

/// The address of the client, for `X-Forwarded-For`.
#[derive(Clone, Copy)]
pub(crate) struct ClientAddress(pub(crate) SocketAddr);

/// The proxy with a cache in front of it.
#[derive(Clone)]
pub(crate) struct Service {
    cached: BoxCloneSyncService<Request<Incoming>, Answer, Infallible>,
}

impl Service {
    pub(crate) fn new(larder: &Larder, proxy: Proxy, change: impl FnOnce(&mut SharedRule)) -> Self {
        let cache = SharedCacheLayer::with_rule(larder, |rule| {
            // Lifetimes for caches like this one, which the origin doesn't mean for browsers (RFC 9213).
            rule.targeted = vec![HeaderName::from_static("cdn-cache-control")];
            // The origin is told so too, whatever a client writes into its request line.
            rule.scheme = SchemeSource::Always(Scheme::HTTP);
            change(rule);
        });
        let ask = move |request| {
            let proxy = proxy.clone();
            async move { Ok::<_, Infallible>(proxy.forward(request).await) }
        };
        Self { cached: BoxCloneSyncService::new(cache.layer(tower::service_fn(ask))) }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        match admit(request) {
            ControlFlow::Continue(request) => self.cached.oneshot(request).await,
            ControlFlow::Break(answer) => Ok(answer.map(SharedBody::own)),
        }
    }
}

/// Answers connections until `stop` is ready.
pub(crate) async fn serve(listener: TcpListener, service: Service, stop: impl Future<Output = ()>) {
    let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
    server.http1().timer(TokioTimer::new());
    let connections = GracefulShutdown::new();
    let mut stop: Pin<&mut _> = pin!(stop);
    loop {
        let (stream, client) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Out of file descriptors, most likely: connections will end, and free some.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        // Where it can't be set, answers are a little later.
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        let answer = move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ClientAddress(client));
            service.clone().answer(request)
        };
        let service = service_fn(answer);
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        // A connection that breaks off is its client's business.
        tokio::spawn(connections.watch(connection));
    }
    let _late = tokio::time::timeout(FAREWELL, connections.shutdown()).await;
}
