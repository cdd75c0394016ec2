//! A small shop that shows every way to cache with Larder.
//!
//! `cargo run -p larder-axum --example shop` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`) and caches in
//! memory; with `REDIS_URL=redis://127.0.0.1:6379` the same shop caches in Redis. Every answer says in `X-Redis-Cache`
//! whether it came from the cache, and `GET /origin-runs` counts how often a handler really ran.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fmt, io};

use axum::extract::{Path, Query, State};
use axum::handler::Handler;
use axum::http::header::{ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_TYPE, SET_COOKIE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use larder_axum::{CacheBackend, Larder, cache, cache_evict, cache_put};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tracing_subscriber::EnvFilter;

/// How long a stopping shop waits for requests that are still being answered.
const GRACE: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();

    // In memory, unless the environment names a Redis.
    let larder = Larder::from_env()?;

    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    announce(&listener)?;

    let app = routes(&larder);
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(stopped()) => served?,
        // `/events` never ends by itself, so the wait for running requests must.
        () = async { stopped().await; sleep(GRACE).await } => {}
    }
    // Evictions that are still on their way reach the store before the process ends.
    larder.close().await;
    Ok(())
}

fn routes(larder: &Larder) -> Router {
    Router::new()
        // Read, write through and invalidate: all three address the key of the GET. What changes a product also evicts the
        // lists that show it, by a second layer around the first.
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
        // No TTL: kept until it is evicted, and browsers ask each time whether it is still the same.
        .route("/config", get(config.layer(cache(larder).group("config").public())))
        // Private: one entry for each Bearer token, and nothing for those who have none.
        .route(
            "/me/profile",
            get(profile.layer(cache(larder).ttl(60).private()))
                .put(update_profile.layer(cache_put(larder).ttl(60).private())),
        )
        // Handlers that use the backend themselves.
        .route("/items/{id}", get(item))
        .route("/dashboard/{user}", get(dashboard))
        .route("/profile/{user}", put(change_profile))
        .route("/content/{id}", get(content))
        .route("/products/{id}/view", post(record_view))
        .route("/warm-check/{id}", get(warm_check))
        .route("/settings/{key}", get(setting))
        .route("/sessions/{id}", put(save_session))
        .route("/checkout", post(checkout))
        // What a cache must take care with.
        .route(
            "/slow/{id}",
            get(slow.layer(cache(larder).group("slow").ttl(300).public()))
                .put(set_slow.layer(cache_evict(larder).group("slow").key())),
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

// Routes that are cached, written through and evicted by a layer. Their handlers know nothing of the cache.

async fn get_product(State(shop): State<Arc<Shop>>, Path(id): Path<String>) -> Response {
    shop.ran("get_product");
    shop.product(&id)
}

async fn replace_product(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<u64>,
    Json(mut product): Json<Fields>,
) -> Json<Fields> {
    product.insert("id".to_owned(), id.into());
    lock(&shop.products).insert(id, product.clone());
    Json(product)
}

async fn delete_product(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Value> {
    lock(&shop.products).remove(&id);
    Json(json!({ "deleted": id }))
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
}

async fn list_products(State(shop): State<Arc<Shop>>, Query(page): Query<Page>) -> Json<Vec<Fields>> {
    shop.ran("list_products");
    Json(lock(&shop.products).values().take(page.limit.unwrap_or(10)).cloned().collect())
}

async fn clear_products() -> Json<Value> {
    Json(json!({ "ok": true }))
}

async fn config(State(shop): State<Arc<Shop>>) -> Json<Value> {
    shop.ran("config");
    Json(json!({ "theme": "dark" }))
}

async fn profile(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Json<Value> {
    shop.ran("profile");
    let Some(user) = bearer(&headers) else { return nobody() };
    let profile = lock(&shop.profiles).get(user).cloned().unwrap_or_default();
    owned_by(user, profile)
}

async fn update_profile(
    State(shop): State<Arc<Shop>>,
    headers: HeaderMap,
    Json(profile): Json<Fields>,
) -> Json<Value> {
    let Some(user) = bearer(&headers) else { return nobody() };
    lock(&shop.profiles).insert(user.to_owned(), profile.clone());
    owned_by(user, profile)
}

// Routes that ask the backend themselves, for what a layer can't express. A backend that is down reads as empty.

#[derive(Serialize, Deserialize)]
struct Item {
    id: u64,
    name: String,
    published: bool,
}

/// Conditional caching: drafts are not kept.
async fn item(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Item> {
    let items = shop.cache("items");
    let key = format!("item:{id}");
    if let Some(item) = items.get::<Item>(&key).await {
        return Json(item);
    }
    shop.ran(&key);
    let item = Item { id, name: format!("item-{id}"), published: id.is_multiple_of(2) };
    if item.published {
        items.set(&key, &item, 300).await;
    }
    Json(item)
}

/// Intermediate results: two computations that are kept, and invalidated, apart.
async fn dashboard(State(shop): State<Arc<Shop>>, Path(user): Path<String>) -> Json<Value> {
    let dashboard = shop.cache("dashboard");
    let key = format!("orders:{user}");
    let Ok(orders) = dashboard
        .get_or_set(&key, 60, || async {
            shop.ran(&key);
            Ok::<_, Infallible>(json!({ "count": 3, "total": 4200 }))
        })
        .await;
    let key = format!("reco:{user}");
    let Ok(recommendations) = dashboard
        .get_or_set(&key, 120, || async {
            shop.ran(&key);
            Ok::<_, Infallible>(json!(["product-1", "product-2"]))
        })
        .await;
    Json(json!({ "orders": orders, "recommendations": recommendations }))
}

/// Cascade: one write makes entries of several groups stale.
async fn change_profile(State(shop): State<Arc<Shop>>, Path(user): Path<String>) -> Json<Value> {
    shop.cache("profiles").delete(&format!("profile:{user}")).await;
    shop.cache("dashboard").delete(&format!("orders:{user}")).await;
    shop.cache("users").delete("all").await;
    Json(json!({ "ok": true }))
}

#[derive(Serialize, Deserialize)]
struct Content {
    id: u64,
    premium: bool,
    text: String,
}

/// Dynamic TTL: the data says how long it may be kept.
async fn content(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Content> {
    let contents = shop.cache("content");
    let key = format!("content:{id}");
    if let Some(content) = contents.get::<Content>(&key).await {
        return Json(content);
    }
    shop.ran(&key);
    let content = Content { id, premium: id.is_multiple_of(2), text: format!("content-{id}") };
    let ttl = if content.premium { 3600 } else { 300 };
    contents.set(&key, &content, ttl).await;
    Json(content)
}

/// Atomic read-modify-write: no view is lost, however many come at once.
async fn record_view(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Response {
    let views = shop
        .cache("analytics")
        .update(&format!("views:{id}"), 3600, |views: Option<u64>| views.unwrap_or(0) + 1)
        .await;
    match views {
        Ok(views) => Json(json!({ "product_id": id, "views": views })).into_response(),
        // A count that isn't atomic would be a lie, so without a store there is none.
        Err(error) => {
            tracing::warn!(%error, "a view was not counted");
            let body = json!({ "error": "views can't be counted at the moment" });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// Existence check: is it there, without reading it?
async fn warm_check(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Value> {
    let products = shop.cache("products");
    let key = format!("product:{id}");
    let warm = products.has(&key).await;
    if !warm {
        shop.ran(&format!("warm:{id}"));
        products.set(&key, &json!({ "id": id, "score": id * 7 }), 300).await;
    }
    Json(json!({ "warm": warm }))
}

/// A default for what isn't there.
async fn setting(State(shop): State<Arc<Shop>>, Path(key): Path<String>) -> Json<Value> {
    let value = shop.cache("settings").get_or(&format!("setting:{key}"), "default-value".to_owned()).await;
    Json(json!({ "key": key, "value": value }))
}

/// A TTL as a `Duration`.
async fn save_session(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
    session: Option<Json<Value>>,
) -> Json<Value> {
    let session = session.map_or(Value::Null, |Json(session)| session);
    shop.cache("sessions").set(&format!("session:{id}"), &session, Duration::from_secs(30 * 60)).await;
    Json(json!({ "ok": true }))
}

#[derive(Deserialize)]
struct Cart {
    user_id: UserId,
}

async fn checkout(State(shop): State<Arc<Shop>>, Json(cart): Json<Cart>) -> Json<Value> {
    let order = shop.orders.fetch_add(1, Ordering::Relaxed) + 1;
    let user = &cart.user_id;
    shop.cache("carts").delete(&format!("cart:{user}")).await;
    shop.cache("dashboard").delete(&format!("stats:{user}")).await;
    Json(json!({ "order_id": order, "user_id": user }))
}

// Routes that would embarrass a careless cache.

/// Reads, then takes its time: the value may change, and be evicted, before this answer is there.
async fn slow(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Value> {
    shop.ran(&format!("slow:{id}"));
    let value = lock(&shop.slow).get(&id).cloned().unwrap_or_else(|| json!(format!("old-{id}")));
    sleep(Duration::from_millis(200)).await;
    Json(json!({ "id": id, "value": value }))
}

#[derive(Deserialize)]
struct NewValue {
    value: Value,
}

async fn set_slow(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<u64>,
    Json(new): Json<NewValue>,
) -> Json<Value> {
    lock(&shop.slow).insert(id, new.value);
    Json(json!({ "ok": true }))
}

/// One URI, several answers: `Vary` makes the language part of the key.
async fn greeting(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> impl IntoResponse {
    shop.ran("greeting");
    let language = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or("en");
    let text = if language.starts_with("fr") { "Bonjour" } else { "Hello" };
    ([(VARY, "accept-language")], text)
}

/// A body without an end can't be stored, and must not be held back either.
async fn events(State(shop): State<Arc<Shop>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    shop.ran("events");
    Sse::new(stream::unfold(0_u64, |count| async move {
        if count > 0 {
            sleep(Duration::from_millis(100)).await;
        }
        Some((Ok(Event::default().data(count.to_string())), count + 1))
    }))
}

/// A cookie is for the one who logs in, so this answer is never stored, whatever the route says.
async fn login(State(shop): State<Arc<Shop>>) -> impl IntoResponse {
    let session = shop.ran("login");
    ([(SET_COOKIE, format!("session={session}; HttpOnly"))], Json(json!({ "ok": true })))
}

async fn big(State(shop): State<Arc<Shop>>) -> impl IntoResponse {
    shop.ran("big");
    ([(CONTENT_TYPE, "application/json")], shop.big.clone())
}

async fn product_uncached(State(shop): State<Arc<Shop>>, Path(id): Path<String>) -> Response {
    shop.product(&id)
}

async fn origin_runs(State(shop): State<Arc<Shop>>) -> Json<BTreeMap<String, u64>> {
    Json(lock(&shop.runs).clone())
}

/// The shop's data, which a real one would keep in a database.
struct Shop {
    larder: Larder,
    products: Mutex<BTreeMap<u64, Fields>>,
    profiles: Mutex<HashMap<String, Fields>>,
    slow: Mutex<HashMap<u64, Value>>,
    orders: AtomicU64,
    big: String,
    runs: Mutex<BTreeMap<String, u64>>,
}

/// A JSON object.
type Fields = Map<String, Value>;

impl Shop {
    fn new(larder: Larder) -> Self {
        let names =
            ["get_product", "list_products", "config", "profile", "greeting", "events", "login", "big"];
        Self {
            larder,
            products: Mutex::new((1..=1000).map(|id| (id, new_product(id))).collect()),
            profiles: Mutex::default(),
            slow: Mutex::default(),
            orders: AtomicU64::new(0),
            big: big_json(),
            runs: Mutex::new(names.into_iter().map(|name| (name.to_owned(), 0)).collect()),
        }
    }

    /// The cache of one eviction group.
    fn cache(&self, group: &str) -> CacheBackend {
        self.larder.backend().group(group)
    }

    /// Counts a run of a handler and answers how many there were.
    fn ran(&self, name: &str) -> u64 {
        let mut runs = lock(&self.runs);
        let count = runs.entry(name.to_owned()).or_default();
        *count += 1;
        *count
    }

    fn product(&self, id: &str) -> Response {
        let Ok(number) = id.parse() else {
            return Json(json!({ "id": id, "known": false })).into_response();
        };
        match lock(&self.products).get(&number) {
            Some(product) => Json(product).into_response(),
            None => (StatusCode::NOT_FOUND, Json(json!({ "error": "no such product" }))).into_response(),
        }
    }
}

fn new_product(id: u64) -> Fields {
    Fields::from_iter([
        ("id".to_owned(), id.into()),
        ("name".to_owned(), format!("product-{id}").into()),
        ("price".to_owned(), (id * 100).into()),
    ])
}

/// About 50 KB.
fn big_json() -> String {
    let rows: Vec<Value> = (0..700)
        .map(|n| json!({ "id": 10_000 + n, "text": "the quick brown fox jumps over the lazy dog" }))
        .collect();
    json!(rows).to_string()
}

/// Users come as numbers or as names.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum UserId {
    Number(u64),
    Name(String),
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// The Bearer token, which in this shop is the user's name. A real one would verify it, in a layer outside the cache.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn nobody() -> Json<Value> {
    Json(json!({ "user": null }))
}

fn owned_by(user: &str, mut profile: Fields) -> Json<Value> {
    profile.insert("user".to_owned(), user.into());
    Json(profile.into())
}

/// A handler that panicked while it held the lock has left the map whole: single inserts and removals only.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::print_stdout, reason = "the one line that callers wait for")]
fn announce(listener: &TcpListener) -> io::Result<()> {
    println!("listening on http://{}", listener.local_addr()?);
    Ok(())
}

/// Ends with ctrl-c or SIGTERM.
async fn stopped() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
