//! A small shop that shows every way to cache with Larder.
//!
//! `cargo run -p larder-axum --example shop` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`) and caches in
//! memory. With `REDIS_URL=redis://127.0.0.1:6379` it caches in Redis. `X-Redis-Cache` says for every response
//! whether it came from the cache, and `GET /origin-runs` returns how often each handler ran.
//!
//! The handlers here unpack requests and wrap responses. Their logic, and all use of the backend, is in `shop.rs`.

mod shop;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::handler::Handler;
use axum::http::header::{ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_TYPE, HeaderName, SET_COOKIE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use larder_axum::larder_core::key::TRACKING_PARAMS;
use larder_axum::{Cache, EvictTags, Larder, Tags, cache, cache_evict, cache_put};
use serde_json::{Value, json};

use crate::shop::{
    Cart, CatalogPage, Content, Evict, Fields, GRACE, Item, NewValue, Page, Product, Shop, stopped,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Entries are in memory, unless the environment names a Redis.
    let larder = Larder::from_env()?;

    let listener = shop::listen().await?;
    tokio::select! {
        served = axum::serve(listener, routes(&larder)).with_graceful_shutdown(stopped()) => served?,
        // `/events` never ends, so the wait for running requests needs a limit.
        () = async { stopped().await; tokio::time::sleep(GRACE).await } => {}
    }
    // Pending evictions reach the store before the process ends.
    larder.close().await;
    Ok(())
}

fn routes(larder: &Larder) -> Router {
    Router::new()
        // Read, write-through and evict: all three use the key of the GET. A second layer on each write evicts the lists that
        // contain the product.
        .route(
            "/products/{id}",
            get(get_product.layer(cache(larder).group("products").ttl(300).public()))
                .put(
                    replace_product
                        .layer(cache_put(larder).group("products").ttl(300).public())
                        .layer(cache_evict(larder).group("product-lists").whole_group()),
                )
                .delete(
                    delete_product
                        .layer(cache_evict(larder).group("products").key())
                        .layer(cache_evict(larder).group("product-lists").whole_group()),
                ),
        )
        .route("/products", get(list_products.layer(cache(larder).group("product-lists").ttl(60).public())))
        .route(
            "/admin/clear-products",
            post(
                clear_products
                    .layer(cache_evict(larder).group("products").whole_group())
                    .layer(cache_evict(larder).group("product-lists").whole_group()),
            ),
        )
        // Without a TTL, the entry stays until it is evicted, and browsers revalidate it on each request.
        .route("/config", get(config.layer(cache(larder).group("config").public())))
        // Private: one entry for each Bearer token. Requests without a token bypass the cache.
        .route(
            "/me/profile",
            get(profile.layer(cache(larder).ttl(60).private().evict_by_principal()))
                .put(update_profile.layer(cache_put(larder).ttl(60).private().evict_by_principal())),
        )
        // Tagged: a change of one product evicts each page that shows it, whatever its URL is.
        .route(
            "/catalog/{id}",
            get(catalog_product.layer(cache_catalog(larder)))
                .put(replace_in_catalog.layer(cache_evict(larder).tags_of_response())),
        )
        .route("/catalog", get(catalog_page.layer(cache_catalog(larder))))
        .route("/admin/evict-tag/{tag}", post(evict_tag))
        .route("/admin/evict-user/{user}", post(evict_user))
        .route("/admin/evict-path", post(evict_path))
        // Handlers that use the backend.
        .route("/items/{id}", get(item))
        .route("/dashboard/{user}", get(dashboard))
        .route("/profile/{user}", put(change_profile))
        .route("/content/{id}", get(content))
        .route("/products/{id}/view", post(record_view))
        .route("/warm-check/{id}", get(warm_check))
        .route("/settings/{key}", get(setting))
        .route("/sessions/{id}", put(save_session))
        .route("/checkout", post(checkout))
        // Routes with credentials, errors, large bodies and streams.
        .route(
            "/slow/{id}",
            get(slow.layer(cache(larder).group("slow").ttl(300).public()))
                .put(set_slow.layer(cache_evict(larder).group("slow").key())),
        )
        // Links from mails and advertisements lead to one entry.
        .route(
            "/tracked/{id}",
            get(tracked.layer(cache(larder).ttl(300).public().ignore_query_params(TRACKING_PARAMS))),
        )
        .route("/greeting", get(greeting.layer(cache(larder).ttl(300).public())))
        .route("/events", get(events.layer(cache(larder).ttl(60))))
        .route("/login", get(login.layer(cache(larder).ttl(60))))
        // For measurements.
        .route("/big", get(big.layer(cache(larder).ttl(300).public())))
        .route("/big-uncached", get(big))
        .route("/products-uncached/{id}", get(product_uncached))
        .route("/origin-runs", get(origin_runs))
        .with_state(Arc::new(Shop::new(larder.clone())))
}

fn cache_catalog(larder: &Larder) -> Cache {
    cache(larder).ttl(300).stale_while_revalidate(60).public().evict_by_path()
}

// Routes that are cached, written through and evicted by a layer. Their handlers do not use the cache.

async fn get_product(State(shop): State<Arc<Shop>>, Path(id): Path<String>) -> Response {
    shop.ran("get_product");
    product(shop.product(&id))
}

async fn replace_product(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<u64>,
    Json(fields): Json<Fields>,
) -> Json<Fields> {
    Json(shop.replace_product(id, fields))
}

async fn delete_product(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Value> {
    Json(shop.delete_product(id))
}

async fn list_products(State(shop): State<Arc<Shop>>, Query(page): Query<Page>) -> Json<Vec<Fields>> {
    Json(shop.list_products(&page))
}

async fn clear_products() -> Json<Value> {
    Json(json!({ "ok": true }))
}

async fn config(State(shop): State<Arc<Shop>>) -> Json<Value> {
    Json(shop.config())
}

async fn profile(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Json<Value> {
    Json(shop.profile(field(&headers, &AUTHORIZATION)))
}

async fn update_profile(
    State(shop): State<Arc<Shop>>,
    headers: HeaderMap,
    Json(fields): Json<Fields>,
) -> Json<Value> {
    Json(shop.update_profile(field(&headers, &AUTHORIZATION), fields))
}

// Routes whose handlers say what their responses are made of.

async fn catalog_product(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Response {
    match shop.catalog_product(id) {
        Some(product) => (Tags::of([shop::product_tag(id)]), Json(product)).into_response(),
        None => (StatusCode::NOT_FOUND, Json(shop::not_in_catalog())).into_response(),
    }
}

async fn catalog_page(
    State(shop): State<Arc<Shop>>,
    Query(page): Query<CatalogPage>,
) -> (Tags, Json<Vec<Fields>>) {
    let (tags, products) = shop.catalog_page(&page);
    (Tags::of(tags), Json(products))
}

async fn replace_in_catalog(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<u64>,
    Json(product): Json<Fields>,
) -> Response {
    match shop.replace_in_catalog(id, product) {
        Some(product) => (EvictTags::of([shop::product_tag(id)]), Json(product)).into_response(),
        None => (StatusCode::NOT_FOUND, Json(shop::not_in_catalog())).into_response(),
    }
}

async fn evict_tag(
    State(shop): State<Arc<Shop>>,
    Path(tag): Path<String>,
    Query(evict): Query<Evict>,
) -> Json<Value> {
    Json(shop.evict_tag(&tag, &evict).await)
}

async fn evict_user(State(shop): State<Arc<Shop>>, Path(user): Path<String>) -> Json<Value> {
    Json(shop.evict_user(&user).await)
}

async fn evict_path(State(shop): State<Arc<Shop>>, Query(evict): Query<Evict>) -> Json<Value> {
    Json(shop.evict_path(&evict).await)
}

// Routes whose handlers use the backend.

async fn item(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Item> {
    Json(shop.item(id).await)
}

async fn dashboard(State(shop): State<Arc<Shop>>, Path(user): Path<String>) -> Json<Value> {
    Json(shop.dashboard(&user).await)
}

async fn change_profile(State(shop): State<Arc<Shop>>, Path(user): Path<String>) -> Json<Value> {
    Json(shop.change_profile(&user).await)
}

async fn content(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Content> {
    Json(shop.content(id).await)
}

async fn record_view(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Response {
    match shop.record_view(id).await {
        Ok(views) => Json(views).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Json(shop::uncounted())).into_response(),
    }
}

async fn warm_check(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Value> {
    Json(shop.warm_check(id).await)
}

async fn setting(State(shop): State<Arc<Shop>>, Path(key): Path<String>) -> Json<Value> {
    Json(shop.setting(&key).await)
}

async fn save_session(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
    session: Option<Json<Value>>,
) -> Json<Value> {
    Json(shop.save_session(&id, &session.map_or(Value::Null, |Json(session)| session)).await)
}

async fn checkout(State(shop): State<Arc<Shop>>, Json(cart): Json<Cart>) -> Json<Value> {
    Json(shop.checkout(&cart).await)
}

// Routes that are difficult for a cache.

async fn slow(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Value> {
    Json(shop.slow(id).await)
}

async fn set_slow(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<u64>,
    Json(new): Json<NewValue>,
) -> Json<Value> {
    Json(shop.set_slow(id, new))
}

async fn tracked(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Value> {
    Json(shop.tracked(id))
}

/// One URI, several responses: `Vary` makes the language part of the key.
async fn greeting(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> impl IntoResponse {
    ([(VARY, "accept-language")], shop.greeting(field(&headers, &ACCEPT_LANGUAGE)))
}

/// A body without an end passes through and is not stored.
async fn events(State(shop): State<Arc<Shop>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    shop.ran("events");
    Sse::new(stream::unfold(0, |count| async move {
        Some((Ok(Event::default().data(shop::next_event(count).await)), count + 1))
    }))
}

/// A response that sets a cookie is never stored, whatever the route declares.
async fn login(State(shop): State<Arc<Shop>>) -> impl IntoResponse {
    ([(SET_COOKIE, shop.login())], Json(json!({ "ok": true })))
}

async fn big(State(shop): State<Arc<Shop>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], shop.big())
}

async fn product_uncached(State(shop): State<Arc<Shop>>, Path(id): Path<String>) -> Response {
    product(shop.product(&id))
}

async fn origin_runs(State(shop): State<Arc<Shop>>) -> Json<BTreeMap<String, u64>> {
    Json(shop.runs())
}

fn product(product: Product) -> Response {
    match product {
        Product::Found(fields) => Json(fields).into_response(),
        Product::Unknown(body) => Json(body).into_response(),
        Product::Missing(body) => (StatusCode::NOT_FOUND, Json(body)).into_response(),
    }
}

fn field<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
