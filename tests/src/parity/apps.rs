//! The same service, built with each framework.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::handler::Handler;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use larder_core::{KeyBuilder, Larder, ReplyBody, RequestView};
use poem::EndpointExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt, service_fn};

use super::origin::{Failure, OriginBody};
use super::{Opt, Origin, Row};
use crate::in_process::Runs;

/// The adapter that a row runs through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapter {
    /// `larder-tower` on plain hyper.
    Tower,
    /// `larder-axum`.
    Axum,
    /// `larder-poem`.
    Poem,
}

/// The nested routers that hold the resources again.
const MOUNTS: [&str; 2] = ["/v1", "/v2"];
const RESOURCES: [&str; 2] = ["/x", "/y"];

/// The body of the response that an error of a handler becomes.
const FAILED: &str = "failed";

/// A running service. Dropping it stops it.
pub(super) struct App {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) async fn serve(adapter: Adapter, larder: &Larder, row: &Row, runs: &Runs) -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = match adapter {
        Adapter::Tower => tokio::spawn(serve_tower(listener, tower_app(larder, row, runs))),
        Adapter::Axum => {
            let app = axum_app(larder, row, runs);
            tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
        }
        Adapter::Poem => {
            let app = poem_app(larder, row, runs);
            let acceptor = poem::listener::TcpAcceptor::from_tokio(listener).unwrap();
            tokio::spawn(async move { poem::Server::new_with_acceptor(acceptor).run(app).await.unwrap() })
        }
    };
    App { address, task }
}

/// A key builder that sleeps before it answers.
struct Waiting(fn(&RequestView<'_>) -> Option<String>);

impl KeyBuilder for Waiting {
    async fn key(&self, request: &RequestView<'_>) -> Option<String> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        (self.0)(request)
    }
}

/// Makes the layers of an adapter for GET, PUT, DELETE and POST, with a row's options. Each adapter has its own types.
macro_rules! layers {
    ($adapter:ident, $larder:expr, $row:expr) => {{
        let mut read = $adapter::cache($larder);
        let mut write = $adapter::cache_put($larder);
        let mut evict = $adapter::cache_evict($larder);
        let mut build = None;
        for option in &$row.options {
            match *option {
                Opt::Group(group) => {
                    (read, write, evict) = (read.group(group), write.group(group), evict.group(group));
                }
                Opt::Prefix(prefix) => {
                    (read, write, evict) = (read.prefix(prefix), write.prefix(prefix), evict.prefix(prefix));
                }
                Opt::Public => (read, write, evict) = (read.public(), write.public(), evict.public()),
                Opt::Private => (read, write, evict) = (read.private(), write.private(), evict.private()),
                Opt::ByHost => {
                    (read, write, evict) = (read.vary_by_host(), write.vary_by_host(), evict.vary_by_host())
                }
                Opt::Params(names) => {
                    (read, write, evict) = (
                        read.query_params(names.to_vec()),
                        write.query_params(names.to_vec()),
                        evict.query_params(names.to_vec()),
                    );
                }
                Opt::Ttl(ttl) => (read, write) = (read.ttl(ttl), write.ttl(ttl)),
                Opt::NoExpiry => (read, write) = (read.no_expiry(), write.no_expiry()),
                Opt::MaxBody(bytes) => (read, write) = (read.max_body(bytes), write.max_body(bytes)),
                Opt::DownstreamTtl(ttl) => {
                    (read, write) = (read.downstream_ttl(ttl), write.downstream_ttl(ttl));
                }
                Opt::StaleIfError(limit) => {
                    (read, write) = (read.stale_if_error(limit), write.stale_if_error(limit));
                }
                Opt::Also(status, ttl) => read = read.ttl_for(StatusCode::from_u16(status).unwrap(), ttl),
                Opt::KeyBy(key) => {
                    (read, write) = (read.key_by(key), write.key_by(key));
                    build = Some(*option);
                }
                Opt::KeyByAsync(key) => {
                    (read, write) = (read.key_by_async(Waiting(key)), write.key_by_async(Waiting(key)));
                    build = Some(*option);
                }
            }
        }
        let key = match build {
            Some(Opt::KeyBy(key)) => evict.clone().key_by(key),
            Some(Opt::KeyByAsync(key)) => evict.clone().key_by_async(Waiting(key)),
            _ => evict.clone().key(),
        };
        let has_group = $row.options.iter().any(|option| matches!(option, Opt::Group(_)));
        let group = if has_group { evict } else { evict.group("none") }.whole_group();
        (read, write, key, group)
    }};
}

type TowerService = BoxCloneSyncService<Request<Incoming>, Response<ReplyBody<OriginBody>>, Failure>;

/// Plain services have no nested routers. This one dispatches on the whole URI.
fn tower_app(
    larder: &Larder,
    row: &Row,
    runs: &Runs,
) -> impl Service<Request<Incoming>, Response = Response<ReplyBody<OriginBody>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    let mut services: HashMap<(String, Method), TowerService> = HashMap::new();
    for mount in [""].into_iter().chain(MOUNTS) {
        let (read, write, key, group) = layers!(larder_tower, larder, row);
        let handler = |origin: Origin| {
            let runs = runs.clone();
            service_fn(move |request: Request<Incoming>| {
                let answer = origin.answer(mount, request.method(), request.headers(), &runs);
                async move { answer }
            })
        };
        let methods = [
            (Method::GET, BoxCloneSyncService::new(read.layer(handler(row.reads)))),
            (Method::PUT, BoxCloneSyncService::new(write.layer(handler(row.writes)))),
            (Method::DELETE, BoxCloneSyncService::new(key.layer(handler(row.writes)))),
            (Method::POST, BoxCloneSyncService::new(group.layer(handler(row.writes)))),
        ];
        for (method, service) in methods {
            for resource in RESOURCES {
                services.insert((format!("{mount}{resource}"), method.clone()), service.clone());
            }
        }
    }
    let services = Arc::new(services);
    service_fn(move |request: Request<Incoming>| {
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        let service = services.get(&(request.uri().path().to_owned(), method.clone())).cloned();
        async move {
            let (status, text) = match service {
                Some(service) => match service.oneshot(request).await {
                    Ok(response) => return Ok(response),
                    Err(Failure(status)) => (status, FAILED),
                },
                None => (StatusCode::NOT_FOUND, "no such resource"),
            };
            let mut response = Response::new(ReplyBody::full(Bytes::from_static(text.as_bytes())));
            *response.status_mut() = status;
            Ok(response)
        }
    })
}

async fn serve_tower<S>(listener: TcpListener, service: S)
where
    S: Service<
            Request<Incoming>,
            Response = Response<ReplyBody<OriginBody>>,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + 'static,
{
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        (self.0, FAILED).into_response()
    }
}

fn axum_app(larder: &Larder, row: &Row, runs: &Runs) -> axum::Router {
    let resources = |mount: &'static str| {
        let (read, write, key, group) = layers!(larder_axum, larder, row);
        let handler = |origin: Origin| {
            let runs = runs.clone();
            move |request: axum::extract::Request| async move {
                let answer = origin.answer(mount, request.method(), request.headers(), &runs);
                answer.map(|response| response.map(axum::body::Body::new))
            }
        };
        let methods = axum::routing::get(handler(row.reads).layer(read))
            .put(handler(row.writes).layer(write))
            .delete(handler(row.writes).layer(key))
            .post(handler(row.writes).layer(group));
        RESOURCES.iter().fold(axum::Router::new(), |app, path| app.route(path, methods.clone()))
    };
    MOUNTS.iter().fold(resources(""), |app, mount| app.nest(mount, resources(mount)))
}

fn poem_app(larder: &Larder, row: &Row, runs: &Runs) -> poem::Route {
    let resources = |mount: &'static str| {
        let (read, write, key, group) = layers!(larder_poem, larder, row);
        let handler = |origin: Origin| {
            let runs = runs.clone();
            poem::endpoint::make_sync(move |request: poem::Request| -> poem::Result<poem::Response> {
                match origin.answer(mount, request.method(), request.headers(), &runs) {
                    Ok(response) => Ok(poem_response(response)),
                    Err(Failure(status)) => Err(poem::Error::from_string(FAILED, status)),
                }
            })
        };
        let methods = poem::get(handler(row.reads).with(read))
            .put(handler(row.writes).with(write))
            .delete(handler(row.writes).with(key))
            .post(handler(row.writes).with(group));
        let methods = Arc::new(methods);
        RESOURCES.iter().fold(poem::Route::new(), |app, path| app.at(path, Arc::clone(&methods)))
    };
    MOUNTS.iter().fold(resources(""), |app, mount| app.nest(mount, resources(mount)))
}

/// poem's own conversion drops the size of the body, and a body without a known end isn't stored.
fn poem_response(response: Response<OriginBody>) -> poem::Response {
    let (parts, body) = response.into_parts();
    let parts = poem::ResponseParts {
        status: parts.status,
        version: parts.version,
        headers: parts.headers,
        extensions: parts.extensions,
    };
    poem::Response::from_parts(parts, body.into())
}
