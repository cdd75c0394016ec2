//! A small shop that shows every way to cache with Larder.
//!
//! `cargo run -p larder-poem --example shop` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`) and caches in
//! memory; with `REDIS_URL=redis://127.0.0.1:6379` the same shop caches in Redis. Every answer says in `X-Redis-Cache`
//! whether it came from the cache, and `GET /origin-runs` counts how often a handler really ran.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fmt, io};

use futures_util::stream;
use larder_poem::{CacheBackend, Larder, cache, cache_evict, cache_put};
use poem::http::header::{ACCEPT_LANGUAGE, AUTHORIZATION, SET_COOKIE, VARY};
use poem::http::{HeaderMap, StatusCode};
use poem::listener::TcpAcceptor;
use poem::web::sse::{Event, SSE};
use poem::web::{Data, Json, Path, Query};
use poem::{Endpoint, EndpointExt, IntoResponse, Response, Route, Server, get, handler, post, put};
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

    // `/events` never ends by itself, so the wait for running requests must.
    Server::new_with_acceptor(TcpAcceptor::from_tokio(listener)?)
        .run_with_graceful_shutdown(routes(&larder), stopped(), Some(GRACE))
        .await?;
    // Evictions that are still on their way reach the store before the process ends.
    larder.close().await;
    Ok(())
}

fn routes(larder: &Larder) -> impl Endpoint + use<> {
    Route::new()
        // Read, write through and invalidate: all three address the key of the GET. What changes a product also evicts the
        // lists that show it, by a second layer around the first.
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
        // No TTL: kept until it is evicted, and browsers ask each time whether it is still the same.
        .at("/config", get(config.with(cache(larder).group("config").public())))
        // Private: one entry for each Bearer token, and nothing for those who have none.
        .at(
            "/me/profile",
            get(get_profile.with(cache(larder).ttl(60).private()))
                .put(update_profile.with(cache_put(larder).ttl(60).private())),
        )
        // Handlers that use the backend themselves.
        .at("/items/:id", get(get_item))
        .at("/dashboard/:user", get(get_dashboard))
        .at("/profile/:user", put(change_profile))
        .at("/content/:id", get(get_content))
        .at("/products/:id/view", post(record_view))
        .at("/warm-check/:id", get(warm_check))
        .at("/settings/:key", get(setting))
        .at("/sessions/:id", put(save_session))
        .at("/checkout", post(checkout))
        // What a cache must take care with.
        .at(
            "/slow/:id",
            get(slow.with(cache(larder).group("slow").ttl(300).public()))
                .put(set_slow.with(cache_evict(larder).group("slow").key())),
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

// Routes that are cached, written through and evicted by a middleware. Their handlers know nothing of the cache.

#[handler]
async fn get_product(Data(shop): Data<&Arc<Shop>>, Path(id): Path<String>) -> Response {
    shop.ran("get_product");
    shop.product(&id)
}

#[handler]
async fn replace_product(
    Data(shop): Data<&Arc<Shop>>,
    Path(id): Path<u64>,
    Json(mut product): Json<Fields>,
) -> Response {
    product.insert("id".to_owned(), id.into());
    lock(&shop.products).insert(id, product.clone());
    answer(product)
}

#[handler]
async fn delete_product(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    lock(&shop.products).remove(&id);
    answer(json!({ "deleted": id }))
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
}

#[handler]
async fn list_products(Data(shop): Data<&Arc<Shop>>, Query(page): Query<Page>) -> Response {
    shop.ran("list_products");
    answer(lock(&shop.products).values().take(page.limit.unwrap_or(10)).cloned().collect::<Vec<_>>())
}

#[handler]
async fn clear_products() -> Response {
    answer(json!({ "ok": true }))
}

#[handler]
async fn config(Data(shop): Data<&Arc<Shop>>) -> Response {
    shop.ran("config");
    answer(json!({ "theme": "dark" }))
}

#[handler]
async fn get_profile(Data(shop): Data<&Arc<Shop>>, headers: &HeaderMap) -> Response {
    shop.ran("profile");
    let Some(user) = bearer(headers) else { return nobody() };
    let profile = lock(&shop.profiles).get(user).cloned().unwrap_or_default();
    owned_by(user, profile)
}

#[handler]
async fn update_profile(
    Data(shop): Data<&Arc<Shop>>,
    headers: &HeaderMap,
    Json(profile): Json<Fields>,
) -> Response {
    let Some(user) = bearer(headers) else { return nobody() };
    lock(&shop.profiles).insert(user.to_owned(), profile.clone());
    owned_by(user, profile)
}

// Routes that ask the backend themselves, for what a middleware can't express. A backend that is down reads as empty.

#[derive(Serialize, Deserialize)]
struct Item {
    id: u64,
    name: String,
    published: bool,
}

/// Conditional caching: drafts are not kept.
#[handler]
async fn get_item(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    let items = shop.cache("items");
    let key = format!("item:{id}");
    if let Some(item) = items.get::<Item>(&key).await {
        return answer(item);
    }
    shop.ran(&key);
    let item = Item { id, name: format!("item-{id}"), published: id.is_multiple_of(2) };
    if item.published {
        items.set(&key, &item, 300).await;
    }
    answer(item)
}

/// Intermediate results: two computations that are kept, and invalidated, apart.
#[handler]
async fn get_dashboard(Data(shop): Data<&Arc<Shop>>, Path(user): Path<String>) -> Response {
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
    answer(json!({ "orders": orders, "recommendations": recommendations }))
}

/// Cascade: one write makes entries of several groups stale.
#[handler]
async fn change_profile(Data(shop): Data<&Arc<Shop>>, Path(user): Path<String>) -> Response {
    shop.cache("profiles").delete(&format!("profile:{user}")).await;
    shop.cache("dashboard").delete(&format!("orders:{user}")).await;
    shop.cache("users").delete("all").await;
    answer(json!({ "ok": true }))
}

#[derive(Serialize, Deserialize)]
struct Content {
    id: u64,
    premium: bool,
    text: String,
}

/// Dynamic TTL: the data says how long it may be kept.
#[handler]
async fn get_content(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    let contents = shop.cache("content");
    let key = format!("content:{id}");
    if let Some(content) = contents.get::<Content>(&key).await {
        return answer(content);
    }
    shop.ran(&key);
    let content = Content { id, premium: id.is_multiple_of(2), text: format!("content-{id}") };
    let ttl = if content.premium { 3600 } else { 300 };
    contents.set(&key, &content, ttl).await;
    answer(content)
}

/// Atomic read-modify-write: no view is lost, however many come at once.
#[handler]
async fn record_view(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    let views = shop
        .cache("analytics")
        .update(&format!("views:{id}"), 3600, |views: Option<u64>| views.unwrap_or(0) + 1)
        .await;
    match views {
        Ok(views) => answer(json!({ "product_id": id, "views": views })),
        // A count that isn't atomic would be a lie, so without a store there is none.
        Err(error) => {
            tracing::warn!(%error, "a view was not counted");
            let body = json!({ "error": "views can't be counted at the moment" });
            answer(body).with_status(StatusCode::SERVICE_UNAVAILABLE).into_response()
        }
    }
}

/// Existence check: is it there, without reading it?
#[handler]
async fn warm_check(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    let products = shop.cache("products");
    let key = format!("product:{id}");
    let warm = products.has(&key).await;
    if !warm {
        shop.ran(&format!("warm:{id}"));
        products.set(&key, &json!({ "id": id, "score": id * 7 }), 300).await;
    }
    answer(json!({ "warm": warm }))
}

/// A default for what isn't there.
#[handler]
async fn setting(Data(shop): Data<&Arc<Shop>>, Path(key): Path<String>) -> Response {
    let value = shop.cache("settings").get_or(&format!("setting:{key}"), "default-value".to_owned()).await;
    answer(json!({ "key": key, "value": value }))
}

/// A TTL as a `Duration`.
#[handler]
async fn save_session(
    Data(shop): Data<&Arc<Shop>>,
    Path(id): Path<String>,
    session: Option<Json<Value>>,
) -> Response {
    let session = session.map_or(Value::Null, |Json(session)| session);
    shop.cache("sessions").set(&format!("session:{id}"), &session, Duration::from_secs(30 * 60)).await;
    answer(json!({ "ok": true }))
}

#[derive(Deserialize)]
struct Cart {
    user_id: UserId,
}

#[handler]
async fn checkout(Data(shop): Data<&Arc<Shop>>, Json(cart): Json<Cart>) -> Response {
    let order = shop.orders.fetch_add(1, Ordering::Relaxed) + 1;
    let user = &cart.user_id;
    shop.cache("carts").delete(&format!("cart:{user}")).await;
    shop.cache("dashboard").delete(&format!("stats:{user}")).await;
    answer(json!({ "order_id": order, "user_id": user }))
}

// Routes that would embarrass a careless cache.

/// Reads, then takes its time: the value may change, and be evicted, before this answer is there.
#[handler]
async fn slow(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>) -> Response {
    shop.ran(&format!("slow:{id}"));
    let value = lock(&shop.slow).get(&id).cloned().unwrap_or_else(|| json!(format!("old-{id}")));
    sleep(Duration::from_millis(200)).await;
    answer(json!({ "id": id, "value": value }))
}

#[derive(Deserialize)]
struct NewValue {
    value: Value,
}

#[handler]
async fn set_slow(Data(shop): Data<&Arc<Shop>>, Path(id): Path<u64>, Json(new): Json<NewValue>) -> Response {
    lock(&shop.slow).insert(id, new.value);
    answer(json!({ "ok": true }))
}

/// One URI, several answers: `Vary` makes the language part of the key.
#[handler]
async fn greeting(Data(shop): Data<&Arc<Shop>>, headers: &HeaderMap) -> Response {
    shop.ran("greeting");
    let language = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or("en");
    let text = if language.starts_with("fr") { "Bonjour" } else { "Hello" };
    text.with_header(VARY, "accept-language").into_response()
}

/// A body without an end can't be stored, and must not be held back either.
#[handler]
async fn events(Data(shop): Data<&Arc<Shop>>) -> SSE {
    shop.ran("events");
    SSE::new(stream::unfold(0_u64, |count| async move {
        if count > 0 {
            sleep(Duration::from_millis(100)).await;
        }
        Some((Event::message(count.to_string()), count + 1))
    }))
}

/// A cookie is for the one who logs in, so this answer is never stored, whatever the route says.
#[handler]
async fn login(Data(shop): Data<&Arc<Shop>>) -> Response {
    let session = shop.ran("login");
    answer(json!({ "ok": true }))
        .with_header(SET_COOKIE, format!("session={session}; HttpOnly"))
        .into_response()
}

#[handler]
async fn big(Data(shop): Data<&Arc<Shop>>) -> Response {
    shop.ran("big");
    shop.big.clone().with_content_type("application/json").into_response()
}

#[handler]
async fn product_uncached(Data(shop): Data<&Arc<Shop>>, Path(id): Path<String>) -> Response {
    shop.product(&id)
}

#[handler]
async fn origin_runs(Data(shop): Data<&Arc<Shop>>) -> Response {
    answer(lock(&shop.runs).clone())
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
            return answer(json!({ "id": id, "known": false }));
        };
        match lock(&self.products).get(&number) {
            Some(product) => answer(product),
            // Not an `Err`, which would leave the cache's word on it unsaid.
            None => {
                let body = json!({ "error": "no such product" });
                answer(body).with_status(StatusCode::NOT_FOUND).into_response()
            }
        }
    }
}

/// JSON without the `charset` that poem adds and JSON doesn't have (RFC 8259 §11): every shop answers the same.
fn answer(value: impl Serialize + Send) -> Response {
    Json(value).with_content_type("application/json").into_response()
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

fn nobody() -> Response {
    answer(json!({ "user": null }))
}

fn owned_by(user: &str, mut profile: Fields) -> Response {
    profile.insert("user".to_owned(), user.into());
    answer(profile)
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
