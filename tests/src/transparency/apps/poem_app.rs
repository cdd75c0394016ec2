//! poem applications.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use poem::endpoint::{BoxEndpoint, make};
use poem::http::StatusCode;
use poem::middleware::{CatchPanic, Cors, NormalizePath, TrailingSlash};
use poem::{EndpointExt as _, PathPattern, Request, Response, RouteMethod};

use super::{Kit, LISTS};
use crate::transparency::handler::{Facts, Handling, TIMEOUT, percent_decode};
use crate::transparency::world::{Place, Rewrite, World, Wrap, Write};

super::layers_of!(larder_poem);

type Endpoint = BoxEndpoint<'static, Response>;

/// Converts a pattern from axum's notation to poem's.
fn pattern(pattern: &str) -> String {
    let segments = pattern.split('/').map(|segment| match segment.strip_prefix('{') {
        None => segment.to_owned(),
        Some(rest) if rest.starts_with('*') => rest.trim_end_matches('}').to_owned(),
        Some(rest) => format!(":{}", rest.trim_end_matches('}')),
    });
    segments.collect::<Vec<_>>().join("/")
}

fn wrap(wrap: Wrap, endpoint: Endpoint) -> Endpoint {
    match wrap {
        Wrap::Cors => endpoint
            .with(Cors::new().allow_origins(["https://a.example", "https://b.example"]))
            .map_to_response()
            .boxed(),
        Wrap::CatchPanic => endpoint.with(CatchPanic::new()).map_to_response().boxed(),
        Wrap::Timeout => {
            let endpoint = Arc::new(endpoint);
            make(move |request: Request| {
                let endpoint = Arc::clone(&endpoint);
                async move {
                    match tokio::time::timeout(TIMEOUT, poem::Endpoint::call(&*endpoint, request)).await {
                        Ok(response) => response,
                        Err(_) => Ok(StatusCode::REQUEST_TIMEOUT.into()),
                    }
                }
            })
            .map_to_response()
            .boxed()
        }
        Wrap::Compression => endpoint,
    }
}

fn endpoint(world: &World, kit: &Kit, route: &Route, mount: &'static str) -> Endpoint {
    let (state, backend) = (kit.state.clone(), kit.larder.as_ref().map(Larder::backend));
    let handling = Arc::new(Handling::new(world, route, mount, state, backend));
    let names: Vec<String> = route
        .pattern
        .split('/')
        .filter_map(|segment| Some(segment.strip_prefix('{')?.trim_matches(['*', '}']).to_owned()))
        .collect();
    let endpoint = make(move |mut request: Request| {
        let (handling, names) = (Arc::clone(&handling), names.clone());
        async move {
            let content = match handling.reads_content() {
                true => request.take_body().into_bytes().await.unwrap_or_default(),
                false => Bytes::new(),
            };
            let pattern =
                request.data::<PathPattern>().map(|pattern| pattern.0.to_string()).unwrap_or_default();
            let param = |name: &String| percent_decode(request.raw_path_param(name).unwrap_or_default());
            let facts = Facts {
                method: request.method().clone(),
                pattern,
                params: names.iter().map(param).collect(),
                uri: request.uri().clone(),
                headers: request.headers().clone(),
                content,
                is_poem: true,
            };
            let (parts, bytes) = handling.answer(facts).await.into_parts();
            let parts = poem::ResponseParts {
                status: parts.status,
                version: parts.version,
                headers: parts.headers,
                extensions: parts.extensions,
            };
            Ok::<_, poem::Error>(Response::from_parts(parts, bytes.into()))
        }
    });
    world.inside.iter().fold(endpoint.map_to_response().boxed(), |endpoint, layer| wrap(*layer, endpoint))
}

fn methods(world: &World, kit: &Kit, route: &Route, mount: &'static str) -> RouteMethod {
    let endpoint = || endpoint(world, kit, route, mount);
    let (mut get, mut put, mut delete, mut post) = (endpoint(), endpoint(), endpoint(), endpoint());
    if let Some(larder) = &kit.larder {
        if world.place == Place::Route {
            for _ in 0..if route.rule.twice { 2 } else { 1 } {
                get = get.with(read_layer(larder, route)).boxed();
            }
        }
        put = writing(world, larder, route, true, put);
        delete = writing(world, larder, route, false, delete);
        post = writing(world, larder, route, false, post);
    }
    let methods = RouteMethod::new().get(get).put(put).delete(delete);
    if world.created().is_some() { methods.post(post) } else { methods }
}

fn writing(world: &World, larder: &Larder, route: &Route, is_put: bool, mut endpoint: Endpoint) -> Endpoint {
    let lists = world.has_list() && !route.handler.is_list;
    if lists && !route.rule.lists_outside {
        endpoint = endpoint.with(evict_group_layer(larder, LISTS)).boxed();
    }
    endpoint = match route.rule.write {
        Write::Put if is_put => endpoint.with(put_layer(larder, route)).boxed(),
        Write::Put | Write::EvictKey => endpoint.with(evict_key_layer(larder, route)).boxed(),
        Write::EvictGroup => endpoint.with(evict_group_layer(larder, group(route))).boxed(),
    };
    if lists && route.rule.lists_outside {
        endpoint = endpoint.with(evict_group_layer(larder, LISTS)).boxed();
    }
    endpoint
}

fn inner(world: &World, kit: &Kit, mount: &'static str) -> Endpoint {
    let mut router = poem::Route::new();
    for route in &world.routes {
        router = router.at(pattern(route.pattern), methods(world, kit, route, mount));
    }
    if let Some(route) = &world.inner_fallback {
        let mut endpoint = endpoint(world, kit, route, mount);
        if let (Some(larder), Place::Route) = (&kit.larder, world.place) {
            endpoint = endpoint.with(read_layer(larder, route)).boxed();
        }
        router = router.at("/*rest", endpoint);
    }
    match (&kit.larder, world.place) {
        (Some(larder), Place::Router) => router.with(read_layer(larder, &world.routes[0])).boxed(),
        _ => router.map_to_response().boxed(),
    }
}

/// Builds the whole application.
pub(super) fn build(world: &World, kit: &Kit) -> Endpoint {
    let is_alone = world.mounts == [""];
    let mut outer = poem::Route::new();
    let mut alone = None;
    for mount in &world.mounts {
        let mut endpoint = inner(world, kit, mount);
        if world.rewrite == Some(Rewrite::Trim) {
            endpoint = endpoint.with(NormalizePath::new(TrailingSlash::Trim)).map_to_response().boxed();
        }
        if is_alone {
            alone = Some(endpoint);
            continue;
        }
        outer = match mount.rsplit_once('/') {
            None => outer.nest("/", endpoint),
            Some(("", _)) => outer.nest(mount, endpoint),
            Some((first, _)) => outer.nest(first, poem::Route::new().nest(&mount[first.len()..], endpoint)),
        };
    }
    let endpoint = alone.unwrap_or_else(|| outer.map_to_response().boxed());
    world.outside.iter().fold(endpoint, |endpoint, layer| wrap(*layer, endpoint))
}

const _: Duration = TIMEOUT;
