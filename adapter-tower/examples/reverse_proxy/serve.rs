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

/// Time that a stopping proxy gives to running requests.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// The body of a response from the origin, or of one that the proxy made.
pub(crate) type OwnBody = Either<Incoming, Full<Bytes>>;

pub(crate) type Answer = Response<SharedBody<OwnBody>>;

/// The address of the client, for `X-Forwarded-For`.
#[derive(Clone, Copy)]
pub(crate) struct ClientAddress(pub(crate) SocketAddr);

/// The proxy behind a shared cache.
#[derive(Clone)]
pub(crate) struct Service {
    cached: BoxCloneSyncService<Request<Incoming>, Answer, Infallible>,
}

impl Service {
    pub(crate) fn new(larder: &Larder, proxy: Proxy, change: impl FnOnce(&mut SharedRule)) -> Self {
        let cache = SharedCacheLayer::with_rule(larder, |rule| {
            // A field with lifetimes for CDNs and reverse proxies, not for browsers (RFC 9213).
            rule.targeted = vec![HeaderName::from_static("cdn-cache-control")];
            // The origin gets the same scheme in `X-Forwarded-Proto`, whatever the client's request line says.
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

/// Serves connections until `stop` completes.
pub(crate) async fn serve(listener: TcpListener, service: Service, stop: impl Future<Output = ()>) {
    let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
    server.http1().timer(TokioTimer::new());
    let connections = GracefulShutdown::new();
    let mut stop: Pin<&mut _> = pin!(stop);
    loop {
        let (stream, client) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Usually the process has no free file descriptors. It has again once other connections end.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        // Without this option, responses are only slower.
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        let answer = move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ClientAddress(client));
            service.clone().answer(request)
        };
        let service = service_fn(answer);
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        // Errors of a connection concern only its client.
        tokio::spawn(connections.watch(connection));
    }
    let _late = tokio::time::timeout(SHUTDOWN_GRACE, connections.shutdown()).await;
}
