//! The shop's data and its handlers' logic, the same for every framework.
//!
//! The axum and the poem example share this file: the routes with their layers, and the types of requests and responses, are in
//! each example's `main.rs`.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fmt, io};

use larder_core::{CacheBackend, CacheError, Larder};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tracing_subscriber::EnvFilter;

/// Time that a stopping shop gives to running requests.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// Starts logging, binds `LISTEN_ADDR`, and prints the address.
#[expect(clippy::print_stdout, reason = "the one line that callers wait for")]
pub(crate) async fn listen() -> Result<TcpListener, Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(listener)
}

/// Ends with ctrl-c or SIGTERM.
pub(crate) async fn stopped() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// The shop's data, which a real one would keep in a database.
pub(crate) struct Shop {
    larder: Larder,
    products: Mutex<BTreeMap<u64, Fields>>,
    catalog: Mutex<BTreeMap<u64, Fields>>,
    profiles: Mutex<HashMap<String, Fields>>,
    slow: Mutex<HashMap<u64, Value>>,
    orders: AtomicU64,
    big: String,
    runs: Mutex<BTreeMap<String, u64>>,
}

/// A JSON object.
pub(crate) type Fields = Map<String, Value>;

/// The result of a request for a product.
pub(crate) enum Product {
    Found(Fields),
    /// The id is not a number.
    Unknown(Value),
    /// No product has this id. Answered with 404.
    Missing(Value),
}

#[derive(Deserialize)]
pub(crate) struct Page {
    limit: Option<usize>,
}

#[derive(Deserialize)]
pub(crate) struct CatalogPage {
    page: Option<usize>,
}

/// Options of an eviction.
#[derive(Deserialize)]
pub(crate) struct Evict {
    #[serde(default)]
    pub(crate) soft: bool,
    #[serde(default)]
    pub(crate) path: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Item {
    id: u64,
    name: String,
    published: bool,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Content {
    id: u64,
    premium: bool,
    text: String,
}

#[derive(Deserialize)]
pub(crate) struct Cart {
    user_id: UserId,
}

#[derive(Deserialize)]
pub(crate) struct NewValue {
    value: Value,
}

/// A user's id, a number or a name.
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

impl Shop {
    pub(crate) fn new(larder: Larder) -> Self {
        let names =
            ["get_product", "list_products", "config", "profile", "greeting", "events", "login", "big"];
        Self {
            larder,
            products: Mutex::new((1..=1000).map(|id| (id, new_product(id))).collect()),
            catalog: Mutex::new((1..=60).map(|id| (id, new_product(id))).collect()),
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

    /// Counts a run of a handler and returns the number of runs.
    pub(crate) fn ran(&self, name: &str) -> u64 {
        let mut runs = lock(&self.runs);
        let count = runs.entry(name.to_owned()).or_default();
        *count += 1;
        *count
    }

    pub(crate) fn runs(&self) -> BTreeMap<String, u64> {
        lock(&self.runs).clone()
    }
}

// Logic of the routes that are cached, written through and evicted by a layer. It does not use the cache.
impl Shop {
    pub(crate) fn product(&self, id: &str) -> Product {
        let Ok(number) = id.parse() else {
            return Product::Unknown(json!({ "id": id, "known": false }));
        };
        match lock(&self.products).get(&number) {
            Some(product) => Product::Found(product.clone()),
            None => Product::Missing(json!({ "error": "no such product" })),
        }
    }

    pub(crate) fn replace_product(&self, id: u64, mut product: Fields) -> Fields {
        product.insert("id".to_owned(), id.into());
        lock(&self.products).insert(id, product.clone());
        product
    }

    pub(crate) fn delete_product(&self, id: u64) -> Value {
        lock(&self.products).remove(&id);
        json!({ "deleted": id })
    }

    pub(crate) fn list_products(&self, page: &Page) -> Vec<Fields> {
        self.ran("list_products");
        lock(&self.products).values().take(page.limit.unwrap_or(10)).cloned().collect()
    }

    pub(crate) fn config(&self) -> Value {
        self.ran("config");
        json!({ "theme": "dark" })
    }

    pub(crate) fn profile(&self, authorization: Option<&str>) -> Value {
        self.ran("profile");
        let Some(user) = bearer(authorization) else { return json!({ "user": null }) };
        let profile = lock(&self.profiles).get(user).cloned().unwrap_or_default();
        owned_by(user, profile)
    }

    pub(crate) fn update_profile(&self, authorization: Option<&str>, profile: Fields) -> Value {
        let Some(user) = bearer(authorization) else { return json!({ "user": null }) };
        lock(&self.profiles).insert(user.to_owned(), profile.clone());
        owned_by(user, profile)
    }
}

/// The number of products on a page of the catalog.
const PAGE: usize = 10;

// Logic of the routes whose responses are evicted by what they are made of.
impl Shop {
    /// Returns a product of the catalog.
    pub(crate) fn catalog_product(&self, id: u64) -> Option<Fields> {
        self.ran(&format!("catalog:{id}"));
        lock(&self.catalog).get(&id).cloned()
    }

    /// Returns the products on a page of the catalog, with the tag of each.
    pub(crate) fn catalog_page(&self, page: &CatalogPage) -> (Vec<String>, Vec<Fields>) {
        let page = page.page.unwrap_or(1).max(1);
        self.ran(&format!("catalog-page:{page}"));
        let products = lock(&self.catalog);
        let shown = products.iter().skip((page - 1).saturating_mul(PAGE)).take(PAGE);
        shown.map(|(id, product)| (product_tag(*id), product.clone())).unzip()
    }

    /// Changes a product of the catalog. Returns `None` if there is no such product.
    pub(crate) fn replace_in_catalog(&self, id: u64, mut product: Fields) -> Option<Fields> {
        product.insert("id".to_owned(), id.into());
        let mut products = lock(&self.catalog);
        let place = products.get_mut(&id)?;
        *place = product.clone();
        Some(product)
    }

    /// Evicts from outside of a route, as a job or another service's message would.
    pub(crate) async fn evict_tag(&self, tag: &str, evict: &Evict) -> Value {
        let eviction = self.larder.evict_tag(tag);
        // Without a confirmation the eviction is repeated, and entries with the tag are not used meanwhile.
        let _ = if evict.soft { eviction.soft().await } else { eviction.await };
        json!({ "ok": true })
    }

    /// Evicts the private responses of a user: after a log-out, for instance.
    pub(crate) async fn evict_user(&self, user: &str) -> Value {
        let _ = self.larder.evict_principal(user).await;
        json!({ "ok": true })
    }

    /// Evicts a path with all its queries.
    pub(crate) async fn evict_path(&self, evict: &Evict) -> Value {
        let _ = self.larder.evict_path(&evict.path).await;
        json!({ "ok": true })
    }
}

/// Returns the tag of every response that shows a product of the catalog.
pub(crate) fn product_tag(id: u64) -> String {
    format!("product:{id}")
}

/// The body of the 404 for a product that is not in the catalog.
pub(crate) fn not_in_catalog() -> Value {
    json!({ "error": "no such product" })
}

// Logic of the routes that use the backend, for what a layer can't express. A backend that is down reads as empty.
impl Shop {
    /// Conditional caching: drafts are not stored.
    pub(crate) async fn item(&self, id: u64) -> Item {
        let items = self.cache("items");
        let key = format!("item:{id}");
        if let Some(item) = items.get::<Item>(&key).await {
            return item;
        }
        self.ran(&key);
        let item = Item { id, name: format!("item-{id}"), published: id.is_multiple_of(2) };
        if item.published {
            items.set(&key, &item, 300).await;
        }
        item
    }

    /// Intermediate results: two computations, stored and invalidated separately.
    pub(crate) async fn dashboard(&self, user: &str) -> Value {
        let dashboard = self.cache("dashboard");
        let key = format!("orders:{user}");
        let Ok(orders) = dashboard
            .get_or_set(&key, 60, || async {
                self.ran(&key);
                Ok::<_, Infallible>(json!({ "count": 3, "total": 4200 }))
            })
            .await;
        let key = format!("reco:{user}");
        let Ok(recommendations) = dashboard
            .get_or_set(&key, 120, || async {
                self.ran(&key);
                Ok::<_, Infallible>(json!(["product-1", "product-2"]))
            })
            .await;
        json!({ "orders": orders, "recommendations": recommendations })
    }

    /// Cascade: one write evicts entries of several groups.
    pub(crate) async fn change_profile(&self, user: &str) -> Value {
        self.cache("profiles").delete(&format!("profile:{user}")).await;
        self.cache("dashboard").delete(&format!("orders:{user}")).await;
        self.cache("users").delete("all").await;
        json!({ "ok": true })
    }

    /// Dynamic TTL, chosen from the data.
    pub(crate) async fn content(&self, id: u64) -> Content {
        let contents = self.cache("content");
        let key = format!("content:{id}");
        if let Some(content) = contents.get::<Content>(&key).await {
            return content;
        }
        self.ran(&key);
        let content = Content { id, premium: id.is_multiple_of(2), text: format!("content-{id}") };
        let ttl = if content.premium { 3600 } else { 300 };
        contents.set(&key, &content, ttl).await;
        content
    }

    /// Atomic read-modify-write: concurrent views are all counted.
    ///
    /// # Errors
    ///
    /// If the store is down: a count that isn't atomic would be wrong. Answered with 503 and [`uncounted`].
    pub(crate) async fn record_view(&self, id: u64) -> Result<Value, CacheError> {
        let views = self
            .cache("analytics")
            .update(&format!("views:{id}"), 3600, |views: Option<u64>| views.unwrap_or(0) + 1)
            .await
            .inspect_err(|error| tracing::warn!(%error, "a view was not counted"))?;
        Ok(json!({ "product_id": id, "views": views }))
    }

    /// Existence check, without reading the value.
    pub(crate) async fn warm_check(&self, id: u64) -> Value {
        let products = self.cache("products");
        let key = format!("product:{id}");
        let warm = products.has(&key).await;
        if !warm {
            self.ran(&format!("warm:{id}"));
            products.set(&key, &json!({ "id": id, "score": id * 7 }), 300).await;
        }
        json!({ "warm": warm })
    }

    /// Default for a missing entry.
    pub(crate) async fn setting(&self, key: &str) -> Value {
        let value =
            self.cache("settings").get_or(&format!("setting:{key}"), "default-value".to_owned()).await;
        json!({ "key": key, "value": value })
    }

    /// TTL given as a `Duration`.
    pub(crate) async fn save_session(&self, id: &str, session: &Value) -> Value {
        self.cache("sessions").set(&format!("session:{id}"), session, Duration::from_secs(30 * 60)).await;
        json!({ "ok": true })
    }

    pub(crate) async fn checkout(&self, cart: &Cart) -> Value {
        let order = self.orders.fetch_add(1, Ordering::Relaxed) + 1;
        let user = &cart.user_id;
        self.cache("carts").delete(&format!("cart:{user}")).await;
        self.cache("dashboard").delete(&format!("stats:{user}")).await;
        json!({ "order_id": order, "user_id": user })
    }
}

// Logic of the routes that are difficult for a cache.
impl Shop {
    /// Reads, then waits: the value may change, and be evicted, before the response is complete.
    pub(crate) async fn slow(&self, id: u64) -> Value {
        self.ran(&format!("slow:{id}"));
        let value = lock(&self.slow).get(&id).cloned().unwrap_or_else(|| json!(format!("old-{id}")));
        sleep(Duration::from_millis(200)).await;
        json!({ "id": id, "value": value })
    }

    pub(crate) fn set_slow(&self, id: u64, new: NewValue) -> Value {
        lock(&self.slow).insert(id, new.value);
        json!({ "ok": true })
    }

    /// Returns the number of its run.
    pub(crate) fn tracked(&self, id: u64) -> Value {
        json!({ "id": id, "run": self.ran(&format!("tracked:{id}")) })
    }

    pub(crate) fn greeting(&self, accept_language: Option<&str>) -> &'static str {
        self.ran("greeting");
        if accept_language.is_some_and(|language| language.starts_with("fr")) { "Bonjour" } else { "Hello" }
    }

    /// Returns the value of `Set-Cookie` for a new session.
    pub(crate) fn login(&self) -> String {
        let session = self.ran("login");
        format!("session={session}; HttpOnly")
    }

    pub(crate) fn big(&self) -> String {
        self.ran("big");
        self.big.clone()
    }
}

/// The body of the 503 for a view that was not counted.
pub(crate) fn uncounted() -> Value {
    json!({ "error": "views can't be counted at the moment" })
}

/// Returns the next event of an endless stream, after a pause unless it is the first.
pub(crate) async fn next_event(count: u64) -> String {
    if count > 0 {
        sleep(Duration::from_millis(100)).await;
    }
    count.to_string()
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

/// The Bearer token, which in this shop is the user's name. A real shop would verify it, in a layer outside the cache.
fn bearer(authorization: Option<&str>) -> Option<&str> {
    let (scheme, token) = authorization?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn owned_by(user: &str, mut profile: Fields) -> Value {
    profile.insert("user".to_owned(), user.into());
    profile.into()
}

/// Locks a map, also after a handler panicked while it held the lock: single inserts and removals leave the map whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
