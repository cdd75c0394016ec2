//! Applications without a framework: a service that routes by the raw path, with layers around it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use http::{Request, Response, StatusCode};
use larder_tower::SharedCacheLayer;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt as _, service_fn};

use super::Kit;
use super::axum_app::{Svc, around, is_read, wrap};
use crate::transparency::handler::{Facts, Handling, percent_decode};
use crate::transparency::world::{Place, World, Write};

super::layers_of!(larder_tower);

/// Returns the captures of a path, if it matches the pattern.
fn captures(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    let mut found = Vec::new();
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return Some(found),
            (Some(part), Some(first)) if part.starts_with("{*") => {
                let rest = path.fold(first.to_owned(), |rest, segment| rest + "/" + segment);
                found.push(percent_decode(&rest));
                return Some(found);
            }
            (Some(part), Some(segment)) if part.starts_with('{') && !segment.is_empty() => {
                found.push(percent_decode(segment));
            }
            (Some(part), Some(segment)) if part == segment => {}
            _ => return None,
        }
    }
}

fn router(world: &World, kit: &Kit) -> Svc {
    let mut routes = world.routes.clone();
    // Static segments come before captured ones.
    routes.sort_by_key(|route| (route.pattern.contains('*'), route.pattern.contains('{')));
    let handlings = routes.into_iter().map(|route| {
        let (state, backend) = (kit.state.clone(), kit.larder.as_ref().map(Larder::backend));
        Arc::new(Handling::new(world, &route, "", state, backend))
    });
    let handlings: Arc<[Arc<Handling>]> = handlings.collect();
    let service = BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let handlings = Arc::clone(&handlings);
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path();
            let matched = handlings
                .iter()
                .find_map(|handling| Some((handling, captures(handling.route.pattern, path)?)));
            let Some((handling, params)) = matched else {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_FOUND;
                return Ok::<_, Infallible>(response);
            };
            let content = match handling.reads_content() {
                true => to_bytes(body, 1 << 20).await.unwrap_or_default(),
                false => bytes::Bytes::new(),
            };
            let is_head = parts.method == http::Method::HEAD;
            let pattern = handling.route.pattern.to_owned();
            let (uri, headers) = (parts.uri, parts.headers);
            let facts =
                Facts { method: parts.method, pattern, params, uri, headers, content, is_poem: false };
            let response = handling.answer(facts).await;
            Ok(response.map(|bytes| if is_head { Body::empty() } else { Body::from(bytes) }))
        }
    }));
    world.inside.iter().fold(service, |service, layer| wrap(*layer, service))
}

/// Builds the whole application.
pub(super) fn build(world: &World, kit: &Kit) -> Svc {
    let service = router(world, kit);
    let service = match &kit.larder {
        None => service,
        Some(larder) if world.place == Place::Shared => around(SharedCacheLayer::new(larder), service),
        Some(larder) => by_method(world, larder, service),
    };
    world.outside.iter().fold(service, |service, layer| wrap(*layer, service))
}

/// Reads go through `cache`, PUT and DELETE through the layer of the first route's rule.
fn by_method(world: &World, larder: &Larder, service: Svc) -> Svc {
    let route = &world.routes[0];
    let reads = around(read_layer(larder, route), service.clone());
    let deletes = match route.rule.write {
        Write::EvictGroup => around(evict_group_layer(larder, group(route)), service.clone()),
        Write::EvictKey | Write::Put => around(evict_key_layer(larder, route), service.clone()),
    };
    let puts = match route.rule.write {
        Write::Put => around(put_layer(larder, route), service),
        Write::EvictGroup | Write::EvictKey => deletes.clone(),
    };
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let service = match request.method() {
            method if is_read(method) => reads.clone(),
            &http::Method::PUT => puts.clone(),
            _ => deletes.clone(),
        };
        service.oneshot(request)
    }))
}
