//! axum applications, and the services that plain tower applications share with them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts as _, MatchedPath, RawPathParams};
use axum::routing::{MethodFilter, MethodRouter};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use larder_axum::SharedCacheLayer;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt as _, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::normalize_path::NormalizePathLayer;
use tower_http::timeout::TimeoutLayer;

use super::{Kit, LISTS, with_path, with_target};
use crate::transparency::handler::{Facts, Handling, TIMEOUT};
use crate::transparency::world::{Place, Rewrite, World, Wrap, Write};

super::layers_of!(larder_axum);

/// The type of every service in a generated application.
pub(in crate::transparency) type Svc = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Wraps a service in a layer.
pub(super) fn around<L, B>(layer: L, service: Svc) -> Svc
where
    L: Layer<Svc>,
    L::Service: Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    BoxCloneSyncService::new(
        layer.layer(service).map_response(|response: Response<B>| response.map(Body::new)),
    )
}

pub(super) fn wrap(wrap: Wrap, service: Svc) -> Svc {
    match wrap {
        Wrap::Compression => around(
            CompressionLayer::new().gzip(true).compress_when(
                |_: StatusCode, _: http::Version, _: &http::HeaderMap, _: &http::Extensions| true,
            ),
            service,
        ),
        Wrap::Cors => around(
            CorsLayer::new().allow_methods(Any).allow_origin(tower_http::cors::AllowOrigin::mirror_request()),
            service,
        ),
        Wrap::Timeout => {
            around(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, TIMEOUT), service)
        }
        Wrap::CatchPanic => around(CatchPanicLayer::new(), service),
    }
}

/// Makes a service of a handler, with the layers between it and the cache.
fn endpoint(world: &World, kit: &Kit, route: &Route, mount: &'static str) -> Svc {
    let (state, backend) = (kit.state.clone(), kit.larder.as_ref().map(Larder::backend));
    let handling = Arc::new(Handling::new(world, route, mount, state, backend));
    let service = service_fn(move |request: Request<Body>| {
        let handling = Arc::clone(&handling);
        async move {
            let (mut parts, body) = request.into_parts();
            let pattern = parts.extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned());
            let params = match &pattern {
                Some(_) => match RawPathParams::from_request_parts(&mut parts, &()).await {
                    Ok(params) => params.iter().map(|(_, value)| value.to_owned()).collect(),
                    Err(_) => {
                        let mut response = Response::new(Body::from("invalid"));
                        *response.status_mut() = StatusCode::BAD_REQUEST;
                        return Ok::<_, Infallible>(response);
                    }
                },
                None => vec![crate::transparency::handler::percent_decode(parts.uri.path())],
            };
            let content = if handling.reads_content() {
                to_bytes(body, 1 << 20).await.unwrap_or_default()
            } else {
                Bytes::new()
            };
            let pattern = pattern.unwrap_or_default();
            let facts = Facts {
                method: parts.method,
                pattern,
                params,
                uri: parts.uri,
                headers: parts.headers,
                content,
                is_poem: false,
            };
            Ok(handling.answer(facts).await.map(Body::from))
        }
    });
    let service = BoxCloneSyncService::new(service);
    world.inside.iter().fold(service, |service, layer| wrap(*layer, service))
}

fn methods(world: &World, kit: &Kit, route: &Route, mount: &'static str) -> MethodRouter {
    let endpoint = || endpoint(world, kit, route, mount);
    let (mut get, mut put, mut delete, mut post) = (endpoint(), endpoint(), endpoint(), endpoint());
    if let Some(larder) = &kit.larder {
        if world.place == Place::Route {
            for _ in 0..if route.rule.twice { 2 } else { 1 } {
                get = around(read_layer(larder, route), get);
            }
        }
        if !world.place.is_shared() {
            put = writing(world, larder, route, true, put);
            delete = writing(world, larder, route, false, delete);
            post = writing(world, larder, route, false, post);
        }
    }
    let methods = MethodRouter::new()
        .on_service(MethodFilter::GET, get)
        .on_service(MethodFilter::PUT, put)
        .on_service(MethodFilter::DELETE, delete);
    if world.created().is_some() { methods.on_service(MethodFilter::POST, post) } else { methods }
}

fn writing(world: &World, larder: &Larder, route: &Route, is_put: bool, service: Svc) -> Svc {
    let lists = || around_lists(world, route);
    let mut service = service;
    if lists() && !route.rule.lists_outside {
        service = around(evict_group_layer(larder, LISTS), service);
    }
    service = match route.rule.write {
        Write::Put if is_put => around(put_layer(larder, route), service),
        Write::Put | Write::EvictKey => around(evict_key_layer(larder, route), service),
        Write::EvictGroup => around(evict_group_layer(larder, group(route)), service),
    };
    if lists() && route.rule.lists_outside {
        service = around(evict_group_layer(larder, LISTS), service);
    }
    service
}

fn around_lists(world: &World, route: &Route) -> bool {
    world.has_list() && !route.handler.is_list
}

fn fallback(world: &World, kit: &Kit, route: &Route, mount: &'static str) -> Svc {
    let service = endpoint(world, kit, route, mount);
    match &kit.larder {
        Some(larder) if world.place == Place::Route => around(read_layer(larder, route), service),
        _ => service,
    }
}

fn inner(world: &World, kit: &Kit, mount: &'static str) -> Router {
    let mut routers = [Router::new(), Router::new()];
    for (index, route) in world.routes.iter().enumerate() {
        let pattern = match world.rewrite {
            Some(Rewrite::HostToPath) => format!("/{{host}}{}", route.pattern),
            _ => route.pattern.to_owned(),
        };
        let router = std::mem::take(&mut routers[index % 2]);
        routers[index % 2] = router.route(&pattern, methods(world, kit, route, mount));
    }
    let [mut router, other] = routers;
    router = router.merge(other);
    if let Some(route) = &world.inner_fallback {
        router = router.fallback_service(fallback(world, kit, route, mount));
    }
    if let (Some(larder), Place::Router) = (&kit.larder, world.place) {
        router = router.layer(read_layer(larder, &world.routes[0]));
    }
    router
}

/// Adds a layer that changes the URI of requests.
fn rewriting(rewrite: Rewrite, service: Svc) -> Svc {
    match rewrite {
        Rewrite::Trim => around(NormalizePathLayer::trim_trailing_slash(), service),
        Rewrite::HostToPath => BoxCloneSyncService::new(service.map_request(|mut request: Request<Body>| {
            let field = request.headers().get("host").and_then(|host| host.to_str().ok());
            let host =
                request.uri().authority().map(http::uri::Authority::as_str).or(field).unwrap_or("none");
            let path = format!("/{host}{}", request.uri().path());
            if let Some(uri) = with_path(request.uri(), &path) {
                *request.uri_mut() = uri;
            }
            request
        })),
        Rewrite::AddLanguage => {
            let service = service.map_request(|mut request: Request<Body>| {
                let language = request.headers().get("accept-language").and_then(|value| value.to_str().ok());
                if let Some(uri) = with_language(request.uri(), language.unwrap_or("none")) {
                    *request.uri_mut() = uri;
                }
                request
            });
            BoxCloneSyncService::new(service.map_response(|mut response: Response<Body>| {
                response.headers_mut().append("vary", HeaderValue::from_static("accept-language"));
                response
            }))
        }
    }
}

fn with_language(uri: &Uri, language: &str) -> Option<Uri> {
    let separator = if uri.query().is_some() { '&' } else { '?' };
    with_target(uri, &format!("{}{separator}language={language}", uri.path_and_query()?))
}

fn boxed(router: Router) -> Svc {
    BoxCloneSyncService::new(router)
}

/// Builds the whole application.
pub(super) fn build(world: &World, kit: &Kit) -> Svc {
    let mut outer = Router::new();
    let mut services: HashMap<&'static str, Svc> = HashMap::new();
    for mount in &world.mounts {
        let router = inner(world, kit, mount);
        let is_plain = world.rewrite.is_none() && world.place != Place::SharedMount;
        if is_plain {
            outer = match mount.rsplit_once('/') {
                None => outer.merge(router),
                Some(("", _)) => outer.nest(mount, router),
                Some((first, _)) => outer.nest(first, Router::new().nest(&mount[first.len()..], router)),
            };
            continue;
        }
        let mut service = boxed(router);
        if let (Some(larder), Place::SharedMount) = (&kit.larder, world.place) {
            service = around(SharedCacheLayer::new(larder), service);
        }
        if let Some(rewrite) = world.rewrite {
            service = rewriting(rewrite, service);
        }
        services.insert(mount, service);
    }
    for (mount, service) in services {
        outer = if mount.is_empty() {
            outer.fallback_service(service)
        } else {
            outer.nest_service(mount, service)
        };
    }
    if let Some(route) = &world.fallback {
        outer = outer.fallback_service(fallback(world, kit, route, ""));
    }
    let mut service = boxed(outer);
    if let Some(larder) = &kit.larder {
        service = match world.place {
            Place::App => around(read_layer(larder, &world.routes[0]), service),
            Place::Shared if world.routes[0].rule.twice => {
                around(SharedCacheLayer::new(larder), around(SharedCacheLayer::new(larder), service))
            }
            Place::Shared => around(SharedCacheLayer::new(larder), service),
            _ => service,
        };
    }
    world.outside.iter().fold(service, |service, layer| wrap(*layer, service))
}

impl Handling {
    pub(super) fn reads_content(&self) -> bool {
        self.route.handler.reads.contains(&crate::transparency::world::Read::Content)
    }
}

/// Returns `true` for methods that read.
pub(super) fn is_read(method: &Method) -> bool {
    [Method::GET, Method::HEAD].contains(method)
}
