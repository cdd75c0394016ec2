//! A whole request in this process, from the call of the layer to the response, compared with the bare handler.
//!
//! The request is made and the response dropped outside the measured time, for both.

use bytes::Bytes;
use divan::{Bencher, black_box};
use http::header::{AUTHORIZATION, ETAG, IF_NONE_MATCH};
use http::{HeaderValue, Request};
use http_body_util::Empty;
use larder_axum::cache;
use larder_benches::{Direct, LARGE, PATH, SMALL, TTL, at_once, body, get, response, route, runtime};
use larder_core::{Call, Larder};
use tower::{Layer, Service, service_fn};

const SIZES: [usize; 2] = [SMALL, LARGE];

fn call(len: usize) -> Direct {
    Direct { request: get(PATH), body: body(len) }
}

/// A cache that holds the response.
fn filled(call: &Direct) -> Larder {
    let larder = Larder::memory();
    let response = runtime().block_on(route(&larder).handle(call.clone())).expect("no errors");
    assert_eq!(response.headers()["x-redis-cache"], "MISS");
    larder
}

#[divan::bench(args = SIZES)]
fn bare(bencher: Bencher<'_, '_>, len: usize) {
    let call = call(len);
    bencher.with_inputs(|| call.clone()).bench_local_values(|call| at_once(black_box(call).run()));
}

#[divan::bench(args = SIZES)]
fn hit(bencher: Bencher<'_, '_>, len: usize) {
    let call = call(len);
    let route = route(&filled(&call));
    bencher
        .with_inputs(|| call.clone())
        .bench_local_values(|call| at_once(route.clone().handle(black_box(call))));
}

/// The same through the tower service and its boxed future. The bare form is boxed too.
mod tower_service {
    use super::*;

    #[divan::bench(args = SIZES)]
    fn bare(bencher: Bencher<'_, '_>, len: usize) {
        let body = body(len);
        let mut service = service_fn(move |_: Request<Empty<Bytes>>| {
            let body = body.clone();
            Box::pin(async move { Ok::<_, std::convert::Infallible>(response(body)) })
        });
        let request = get(PATH);
        bencher
            .with_inputs(|| request.clone())
            .bench_local_values(|request| at_once(service.call(black_box(request))));
    }

    #[divan::bench(args = SIZES)]
    fn hit(bencher: Bencher<'_, '_>, len: usize) {
        let call = call(len);
        let body = call.body.clone();
        let mut service = cache(&filled(&call)).group("products").ttl(TTL).layer(service_fn(
            move |_: Request<Empty<Bytes>>| {
                let body = body.clone();
                async move { Ok::<_, std::convert::Infallible>(response(body).map(http_body_util::Full::new)) }
            },
        ));
        bencher
            .with_inputs(|| call.request.clone())
            .bench_local_values(|request| at_once(service.call(black_box(request))));
    }
}

#[divan::bench(args = SIZES)]
fn not_modified(bencher: Bencher<'_, '_>, len: usize) {
    let mut call = call(len);
    let route = route(&filled(&call));
    let stored = at_once(route.clone().handle(call.clone())).expect("no errors");
    call.request.headers_mut().insert(IF_NONE_MATCH, stored.headers()[ETAG].clone());
    bencher
        .with_inputs(|| call.clone())
        .bench_local_values(|call| at_once(route.clone().handle(black_box(call))));
}

/// A request with credentials bypasses the cache.
#[divan::bench]
fn bypass(bencher: Bencher<'_, '_>) {
    let mut call = call(SMALL);
    call.request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
    let route = route(&Larder::memory());
    bencher
        .with_inputs(|| call.clone())
        .bench_local_values(|call| at_once(route.clone().handle(black_box(call))));
}

/// Redis is known to be down, so the handler runs without the cache.
#[divan::bench(args = SIZES)]
fn down(bencher: Bencher<'_, '_>, len: usize) {
    let (runtime, call) = (runtime(), call(len));
    // No server listens on this port.
    let route = route(&Larder::redis("redis://127.0.0.1:1").expect("a valid URL"));
    for _ in 0..20 {
        let response = runtime.block_on(route.clone().handle(call.clone())).expect("no errors");
        assert_eq!(response.headers()["x-redis-cache"], "MISS");
    }
    bencher
        .with_inputs(|| call.clone())
        .bench_local_values(|call| at_once(route.clone().handle(black_box(call))));
}

/// A miss that is stored: a lease, a task, the handler, a hash of the body, a commit. It needs a runtime.
#[divan::bench(args = SIZES)]
fn miss_and_store(bencher: Bencher<'_, '_>, len: usize) {
    let (runtime, route, body) = (runtime(), route(&Larder::memory()), body(len));
    let mut id = 0;
    bencher
        .with_inputs(|| {
            id += 1;
            Direct { request: get(&format!("/products/{id}")), body: body.clone() }
        })
        .bench_local_values(|call| runtime.block_on(route.clone().handle(call)));
}

/// The bare handler in its own task on the same runtime.
#[divan::bench(args = SIZES)]
fn bare_in_a_task(bencher: Bencher<'_, '_>, len: usize) {
    let (runtime, call) = (runtime(), call(len));
    bencher
        .with_inputs(|| call.clone())
        .bench_local_values(|call| runtime.block_on(async { tokio::spawn(call.run()).await }));
}
