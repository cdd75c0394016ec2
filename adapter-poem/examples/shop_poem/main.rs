//! A small shop that shows every way to cache with Larder.
//!
//! `cargo run -p larder-poem --example shop_poem` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`) and caches in
//! memory. With `REDIS_URL=redis://127.0.0.1:6379` it caches in Redis. `X-Redis-Cache` says for every response
//! whether it came from the cache, and `GET /origin-runs` returns how often each handler ran.
//!
//! The handlers here unpack requests and wrap responses. Their logic, and all use of the backend, is in `shop.rs`.

mod shop;

use std::error::Error;
use std::sync::Arc;

use futures_util::stream;
use larder_poem::larder_core::key::TRACKING_PARAMS;
use larder_poem::{Cache, EvictTags, Larder, TagResponse, Tags, cache, cache_evict, cache_put};
use poem::http::header::{ACCEPT_LANGUAGE, AUTHORIZATION, HeaderName, SET_COOKIE, VARY};
use poem::http::{HeaderMap, StatusCode};
use poem::listener::TcpAcceptor;
use poem::web::sse::{Event, SSE};
use poem::web::{Data, Json, Path, Query};
use poem::{Endpoint, EndpointExt, IntoResponse, Response, Route, Server, get, handler, post, put};
use serde::Serialize;
use serde_json::{Value, json};

use crate::shop::{Cart, CatalogPage, Evict, Fields, GRACE, NewValue, Page, Product, Shop, stopped};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Entries are in memory, unless the environment names a Redis.
    let larder = Larder::from_env()?;

    let listener = shop::listen().await?;
    // `/events` never ends, so the wait for running requests needs a limit.
    Server::new_with_acceptor(TcpAcceptor::from_tokio(listener)?)
        .run_with_graceful_shutdown(routes(&larder), stopped(), Some(GRACE))
        .await?;
    // Pending evictions reach the store before the process ends.
    larder.close().await;
    Ok(())
}

fn routes(larder: &Larder) -> impl Endpoint + use<> {
    Route::new()
        // Read, write-through and evict: all three use the key of the GET. A second layer on each write evicts the lists that
        // contain the product.
        .at(
            "/products/:id",
            get(get_product.with(cache(larder).group("products").ttl(300).public()))
                .put(
                    replace_product
                        .with(cache_put(larder).group("products").ttl(300).public())
                        .with(cache_evict(larder).group("product-lists").whole_group()),
                )
                .delete(
                    delete_product
                        .with(cache_evict(larder).group("products").key())
                        .with(cache_evict(larder).group("product-lists").whole_group()),
                ),
        )
        .at("/products", get(list_products.with(cache(larder).group("product-lists").ttl(60).public())))
        .at(
            "/admin/clear-products",
            post(
                clear_products
                    .with(cache_evict(larder).group("products").whole_group())
                    .with(cache_evict(larder).group("product-lists").whole_group()),
            ),
        )
        // Without a TTL, the entry stays until it is evicted, and browsers revalidate it on each request.
        .at("/config", get(config.with(cache(larder).group("config").public())))
        // Private: one entry for each Bearer token. Requests without a token bypass the cache.
        .at(
            "/me/profile",
            get(profile.with(cache(larder).ttl(60).private().evict_by_principal()))
                .put(update_profile.with(cache_put(larder).ttl(60).private().evict_by_principal())),
        )
        // Tagged: a change of one product evicts each page that shows it, whatever its URL is.
        .at(
            "/catalog/:id",
            get(catalog_product.with(cache_catalog(larder)))
                .put(replace_in_catalog.with(cache_evict(larder).tags_of_response())),
        )
        .at("/catalog", get(catalog_page.with(cache_catalog(larder))))
        .at("/admin/evict-tag/:tag", post(evict_tag))
        .at("/admin/evict-user/:user", post(evict_user))
        .at("/admin/evict-path", post(evict_path))
        // Handlers that use the backend.
        .at("/items/:id", get(item))
        .at("/dashboard/:user", get(dashboard))
        .at("/profile/:user", put(change_profile))
        .at("/content/:id", get(content))
        .at("/products/:id/view", post(record_view))
        .at("/warm-check/:id", get(warm_check))
        .at("/settings/:key", get(setting))
        .at("/sessions/:id", put(save_session))
        .at("/checkout", post(checkout))
        // Routes with credentials, errors, large bodies and streams.
        .at(
            "/slow/:id",
            get(slow.with(cache(larder).group("slow").ttl(300).public()))
                .put(set_slow.with(cache_evict(larder).group("slow").key())),
        )
        // Links from mails and advertisements lead to one entry.
        .at(
            "/tracked/:id",
            get(tracked.with(cache(larder).ttl(300).public().ignore_query_params(TRACKING_PARAMS))),
        )
        .at("/greeting", get(greeting.with(cache(larder).ttl(300).public())))
        .at("/events", get(events.with(cache(larder).ttl(60))))
        .at("/login", get(login.with(cache(larder).ttl(60))))
        // For measurements.
        .at("/big", get(big.with(cache(larder).ttl(300).public())))
        .at("/big-uncached", get(big))
        .at("/products-uncached/:id", get(product_uncached))
        .at("/origin-runs", get(origin_runs))
        .data(Arc::new(Shop::new(larder.clone())))
}

fn cache_catalog(larder: &Larder) -> Cache {
    cache(larder).ttl(300).stale_while_revalidate(60).public().evict_by_path()
}

// Routes that are cached, written through and evicted by a middleware. Their handlers do not use the cache.

#[handler]
async fn get_product(Data(shop): Data<&Arc<Shop>>, Path(id): Path<String>) -> Response {
    shop.ran("get_product");
    product(shop.product(&id))
}

#[handler]
async fn replace_product(
    Data(shop): Data<&Arc<Shop>>,
    Path(id): Path<u64>,
    Json(fields): Json<Fields>,
) -> Response {
    answer(shop.replace_product(id, fields))
}

#[handler]
async fn delete_product(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    answer(shop.delete_product(id))
}

#[handler]
async fn list_products(Data(shop): Data<&Arc<Shop>>, Query(page): Query<Page>) -> Response {
    answer(shop.list_products(&page))
}

#[handler]
async fn clear_products() -> Response {
    answer(json!({ "ok": true }))
}

#[handler]
async fn config(Data(shop): Data<&Arc<Shop>>) -> Response {
    answer(shop.config())
}

#[handler]
async fn profile(Data(shop): Data<&Arc<Shop>>, headers: &HeaderMap) -> Response {
    answer(shop.profile(field(headers, &AUTHORIZATION)))
}

#[handler]
async fn update_profile(
    Data(shop): Data<&Arc<Shop>>,
    headers: &HeaderMap,
    Json(fields): Json<Fields>,
) -> Response {
    answer(shop.update_profile(field(headers, &AUTHORIZATION), fields))
}

// Routes whose handlers say what their responses are made of.

#[handler]
async fn catalog_product(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    match shop.catalog_product(id) {
        Some(product) => answer(product).with_tags(Tags::of([shop::product_tag(id)])),
        None => answer(shop::not_in_catalog()).with_status(StatusCode::NOT_FOUND).into_response(),
    }
}

#[handler]
async fn catalog_page(Data(shop): Data<&Arc<Shop>>, Query(page): Query<CatalogPage>) -> Response {
    let (tags, products) = shop.catalog_page(&page);
    answer(products).with_tags(Tags::of(tags))
}

#[handler]
async fn replace_in_catalog(
    Data(shop): Data<&Arc<Shop>>,
    Path(id): Path<u64>,
    Json(product): Json<Fields>,
) -> Response {
    match shop.replace_in_catalog(id, product) {
        Some(product) => answer(product).evicting(EvictTags::of([shop::product_tag(id)])),
        None => answer(shop::not_in_catalog()).with_status(StatusCode::NOT_FOUND).into_response(),
    }
}

#[handler]
async fn evict_tag(
    Data(shop): Data<&Arc<Shop>>,
    Path(tag): Path<String>,
    Query(evict): Query<Evict>,
) -> Response {
    answer(shop.evict_tag(&tag, &evict).await)
}

#[handler]
async fn evict_user(Data(shop): Data<&Arc<Shop>>, Path(user): Path<String>) -> Response {
    answer(shop.evict_user(&user).await)
}

#[handler]
async fn evict_path(Data(shop): Data<&Arc<Shop>>, Query(evict): Query<Evict>) -> Response {
    answer(shop.evict_path(&evict).await)
}

// Routes whose handlers use the backend.

#[handler]
async fn item(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    answer(shop.item(id).await)
}

#[handler]
async fn dashboard(Data(shop): Data<&Arc<Shop>>, Path(user): Path<String>) -> Response {
    answer(shop.dashboard(&user).await)
}

#[handler]
async fn change_profile(Data(shop): Data<&Arc<Shop>>, Path(user): Path<String>) -> Response {
    answer(shop.change_profile(&user).await)
}

#[handler]
async fn content(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    answer(shop.content(id).await)
}

#[handler]
async fn record_view(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    match shop.record_view(id).await {
        Ok(views) => answer(views),
        Err(_) => answer(shop::uncounted()).with_status(StatusCode::SERVICE_UNAVAILABLE).into_response(),
    }
}

#[handler]
async fn warm_check(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    answer(shop.warm_check(id).await)
}

#[handler]
async fn setting(Data(shop): Data<&Arc<Shop>>, Path(key): Path<String>) -> Response {
    answer(shop.setting(&key).await)
}

#[handler]
async fn save_session(
    Data(shop): Data<&Arc<Shop>>,
    Path(id): Path<String>,
    session: Option<Json<Value>>,
) -> Response {
    answer(shop.save_session(&id, &session.map_or(Value::Null, |Json(session)| session)).await)
}

#[handler]
async fn checkout(Data(shop): Data<&Arc<Shop>>, Json(cart): Json<Cart>) -> Response {
    answer(shop.checkout(&cart).await)
}

// Routes that are difficult for a cache.

#[handler]
async fn slow(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    answer(shop.slow(id).await)
}

#[handler]
async fn set_slow(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>, Json(new): Json<NewValue>) -> Response {
    answer(shop.set_slow(id, new))
}

#[handler]
async fn tracked(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    answer(shop.tracked(id))
}

/// One URI, several responses: `Vary` makes the language part of the key.
#[handler]
async fn greeting(Data(shop): Data<&Arc<Shop>>, headers: &HeaderMap) -> Response {
    shop.greeting(field(headers, &ACCEPT_LANGUAGE)).with_header(VARY, "accept-language").into_response()
}

/// A body without an end passes through and is not stored.
#[handler]
async fn events(Data(shop): Data<&Arc<Shop>>) -> SSE {
    shop.ran("events");
    SSE::new(stream::unfold(0, |count| async move {
        Some((Event::message(shop::next_event(count).await), count + 1))
    }))
}

/// A response that sets a cookie is never stored, whatever the route declares.
#[handler]
async fn login(Data(shop): Data<&Arc<Shop>>) -> Response {
    answer(json!({ "ok": true })).with_header(SET_COOKIE, shop.login()).into_response()
}

#[handler]
async fn big(Data(shop): Data<&Arc<Shop>>) -> Response {
    shop.big().with_content_type("application/json").into_response()
}

#[handler]
async fn product_uncached(Data(shop): Data<&Arc<Shop>>, Path(id): Path<String>) -> Response {
    product(shop.product(&id))
}

#[handler]
async fn origin_runs(Data(shop): Data<&Arc<Shop>>) -> Response {
    answer(shop.runs())
}

fn product(product: Product) -> Response {
    match product {
        Product::Found(fields) => answer(fields),
        Product::Unknown(body) => answer(body),
        // A response and not an `Err`, because the cache adds its headers only to responses.
        Product::Missing(body) => answer(body).with_status(StatusCode::NOT_FOUND).into_response(),
    }
}

/// Answers with JSON without the `charset` parameter that poem adds and JSON does not define (RFC 8259 §11).
fn answer(value: impl Serialize + Send) -> Response {
    Json(value).with_content_type("application/json").into_response()
}

fn field<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
