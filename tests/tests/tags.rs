//! Evictions by tag: responses and values that carry a tag are evicted whatever their keys are, and no fill that began before is
//! stored.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query};
use axum::handler::Handler;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get as get_route, post};
use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use larder_axum::larder_core::{Abandon, Acquired, Intent, Lease, LeaseStore, ProcessLocal};
use larder_axum::{
    CacheKey, CacheStore, EvictTags, KeySpace, Larder, MemoryStore, RedisOptions, RedisStore, StoreError,
    Tags, cache, cache_evict, cache_put,
};
use larder_tests::in_process::{Runs, get, send, start};
use larder_tests::redis_server::RedisServer;
use tokio::sync::Notify;
use tokio::time::sleep;

const LONG: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes a test for each store of an `async fn(Larder)`.
macro_rules! on_stores_with_tags {
    ($(async fn $name:ident($larder:ident) $body:block)+) => {
        $(
            mod $name {
                #[allow(unused_imports)]
                use super::*;

                async fn scenario($larder: Larder) $body

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn on_memory() {
                    scenario(Larder::builder().cache_status(true).store(MemoryStore::new()).build()).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn on_redis() {
                    let server = RedisServer::start();
                    // A long deadline, which holds on a busy machine: a read that misses it is answered by the handler.
                    let options = RedisOptions::from_url(&server.url()).unwrap();
                    let options = options.read_deadline(PATIENCE).fill_deadline(PATIENCE).evict_deadline(PATIENCE);
                    let store = RedisStore::new(options);
                    scenario(Larder::builder().cache_status(true).store(store).build()).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn on_redis_with_a_local_tier() {
                    let server = RedisServer::start();
                    let options = RedisOptions::from_url(&server.url()).unwrap();
                    let options = options.read_deadline(PATIENCE).fill_deadline(PATIENCE).evict_deadline(PATIENCE);
                    let builder = Larder::builder().cache_status(true);
                    scenario(builder.redis_with_local(options, 16 << 20).build()).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn on_four_functions() {
                    let store = OnlyRequired(MemoryStore::new());
                    scenario(Larder::builder().cache_status(true).store(ProcessLocal::new(store)).build()).await;
                }
            }
        )+
    };
}

#[path = "tags/emitted.rs"]
mod emitted;
#[path = "tags/shared_cache.rs"]
mod shared_cache;

/// Delegates the required functions of a store but `get` to its first field.
macro_rules! delegates_required {
    (CacheStore) => {
        async fn set(&self, key: &CacheKey, value: Bytes, ttl: Option<Duration>) -> Result<(), StoreError> {
            self.0.set(key, value, ttl).await
        }

        async fn delete(&self, key: &CacheKey) -> Result<bool, StoreError> {
            self.0.delete(key).await
        }

        async fn delete_group(&self, group: &KeySpace) -> Result<u64, StoreError> {
            self.0.delete_group(group).await
        }
    };
    (LeaseStore) => {
        async fn begin(&self, key: &CacheKey, intent: Intent, ttl: Duration) -> Result<Acquired, StoreError> {
            self.0.begin(key, intent, ttl).await
        }

        async fn commit(
            &self,
            key: &CacheKey,
            lease: &Lease,
            value: Bytes,
            ttl: Option<Duration>,
        ) -> Result<bool, StoreError> {
            self.0.commit(key, lease, value, ttl).await
        }

        async fn renew(&self, key: &CacheKey, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
            self.0.renew(key, lease, ttl).await
        }

        async fn abandon(&self, key: &CacheKey, lease: &Lease, why: Abandon) -> Result<(), StoreError> {
            self.0.abandon(key, lease, why).await
        }
    };
}

/// A store that implements only required functions. Its leases keep no entries with tags; `ProcessLocal` adds tags to it.
struct OnlyRequired(MemoryStore);

impl CacheStore for OnlyRequired {
    delegates_required!(CacheStore);

    fn get(&self, key: &CacheKey) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send {
        self.0.get(key)
    }
}

impl LeaseStore for OnlyRequired {
    delegates_required!(LeaseStore);
}

/// A store whose first read after a soft eviction of a key fails.
struct FailsAfterSoftening(MemoryStore, AtomicBool);

impl CacheStore for FailsAfterSoftening {
    delegates_required!(CacheStore);

    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, StoreError> {
        if self.1.swap(false, Ordering::Relaxed) {
            return Err(StoreError::Timeout(PATIENCE));
        }
        self.0.get(key).await
    }
}

impl LeaseStore for FailsAfterSoftening {
    delegates_required!(LeaseStore);

    async fn evict_softly(&self, key: &CacheKey) -> Result<(), StoreError> {
        self.0.evict_softly(key).await?;
        self.1.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// A soft eviction that can't read whether the resource varies removes it.
#[tokio::test]
async fn soft_eviction_of_a_key_that_cannot_be_read_removes_its_variants() {
    let larder =
        Larder::builder().store(FailsAfterSoftening(MemoryStore::new(), AtomicBool::new(false))).build();
    let layer = cache(&larder).group("g").ttl(300).stale_while_revalidate(LONG);
    let app = Router::new().route("/x", get_route((async || ([("vary", "lang")], "x")).layer(layer)));
    for lang in ["fr", "en"] {
        for expected in ["MISS", "HIT"] {
            assert_eq!(send(&app, Method::GET, "/x", &[("lang", lang)]).await.cache(), expected, "{lang}");
        }
    }
    assert!(
        larder.evict(&larder.key_for("g", &"/x".parse().unwrap()).unwrap()).soft().await,
        "it was removed"
    );
    for lang in ["fr", "en"] {
        assert_eq!(send(&app, Method::GET, "/x", &[("lang", lang)]).await.cache(), "MISS", "{lang}");
    }
    let stats = larder.stats();
    let group = stats.groups.iter().find(|known| known.group.as_deref() == Some("g")).unwrap();
    assert_eq!(group.evictions.keys, 3, "the record and its two variants, once each");
}

/// Pages of three products each, `/page/0` with the products 0 to 2, which the handler names as tags.
fn pages(larder: &Larder, runs: &Runs) -> Router {
    let counted = runs.clone();
    let page = move |Path(page): Path<u64>| async move {
        let tags = Tags::of((page * 3..page * 3 + 3).map(|id| format!("product:{id}")));
        (tags, counted.count().to_string())
    };
    Router::new().route("/page/{page}", get_route(page.layer(cache(larder).group("pages").ttl(300))))
}

/// Asserts that a request is answered by the handler, and the next one from the cache.
async fn is_new(app: &Router, uri: &str) {
    let miss = get(app, uri).await;
    assert_eq!(miss.cache(), "MISS", "{uri} is new: {miss:?}");
    let hit = get(app, uri).await;
    assert_eq!((hit.cache(), hit.text()), ("HIT", miss.text()), "{uri} is stored: {miss:?}");
}

async fn is_stored(app: &Router, uri: &str) {
    let hit = get(app, uri).await;
    assert_eq!(hit.cache(), "HIT", "{uri} is stored: {hit:?}");
}

on_stores_with_tags! {
    async fn tag_of_the_handler_evicts_exactly_the_responses_that_carry_it(larder) {
        let app = pages(&larder, &Runs::new());
        for page in 0..4 {
            is_new(&app, &format!("/page/{page}")).await;
            is_new(&app, &format!("/page/{page}?x=1")).await;
        }
        for round in 0..3 {
            assert!(larder.evict_tag("product:4").await);
            for page in [0, 2, 3] {
                is_stored(&app, &format!("/page/{page}")).await;
            }
            is_stored(&app, "/page/2?x=1").await;
            is_new(&app, "/page/1").await;
            is_new(&app, "/page/1?x=1").await;
            assert!(larder.evict_tags(["product:0", "product:11", "other"]).await, "{round}");
            is_new(&app, "/page/0").await;
            is_new(&app, "/page/3").await;
            is_stored(&app, "/page/1").await;
            is_stored(&app, "/page/2").await;
        }
    }

    async fn tags_of_the_route_and_of_the_request_evict_too(larder) {
        let route = |layer: larder_axum::Cache| get_route((async || "x").layer(layer));
        let app = Router::new()
            .route("/a/{id}", route(cache(&larder).group("a").tag("all").tag("a")))
            .route("/b", route(cache(&larder).tag("all").tags_by(|request| {
                request.headers.get("tenant").and_then(|tenant| tenant.to_str().ok()).map(|t| format!("tenant:{t}"))
            }).key_by(|request| Some(format!("b:{:?}", request.headers.get("tenant"))))));
        let tenant = async |name: &str| send(&app, Method::GET, "/b", &[("tenant", name)]).await.cache().to_owned();
        for uri in ["/a/1", "/a/2"] {
            is_new(&app, uri).await;
        }
        assert_eq!((tenant("x").await, tenant("y").await), ("MISS".to_owned(), "MISS".to_owned()));
        larder.evict_tag("tenant:x").await;
        assert_eq!((tenant("x").await, tenant("y").await), ("MISS".to_owned(), "HIT".to_owned()));
        larder.evict_tag("a").await;
        assert_eq!((tenant("x").await, tenant("y").await), ("HIT".to_owned(), "HIT".to_owned()));
        is_new(&app, "/a/1").await;
        is_new(&app, "/a/2").await;
        larder.evict_tag("all").await;
        assert_eq!((tenant("x").await, tenant("y").await), ("MISS".to_owned(), "MISS".to_owned()));
        is_new(&app, "/a/1").await;
    }

    async fn fill_during_which_its_tag_was_evicted_is_not_stored(larder) {
        for soft in [false, true] {
            let (began, go, runs) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Runs::new());
            let (counted, started, waits) = (runs.clone(), Arc::clone(&began), Arc::clone(&go));
            let handler = move || async move {
                let run = counted.count();
                if run == 1 {
                    started.notify_one();
                    waits.notified().await;
                }
                (Tags::of(["t"]), run.to_string())
            };
            let group = if soft { "soft" } else { "hard" };
            let layer = cache(&larder).group(group).ttl(300).stale_while_revalidate(LONG);
            let app = Router::new().route("/x", get_route(handler.layer(layer)));
            let first = tokio::spawn({ let app = app.clone(); async move { get(&app, "/x").await } });
            began.notified().await;
            let eviction = larder.evict_tag("t");
            assert!(if soft { eviction.soft().await } else { eviction.await });
            // A request after the eviction waits for the fill, and doesn't get its response.
            let later = tokio::spawn({ let app = app.clone(); async move { get(&app, "/x").await } });
            sleep(Duration::from_millis(20)).await;
            go.notify_one();
            let (first, later) = (first.await.unwrap(), later.await.unwrap());
            assert_eq!(first.text(), "1");
            // After a soft eviction, the response of the fill is stale from the start.
            assert!(later.text() == "2" || soft, "{later:?}");
            sleep(Duration::from_millis(30)).await;
            assert!(first.header("cache-status").ends_with("detail=evicted"), "{first:?}");
            assert_eq!(first.header("cache-control"), "no-cache");
            let hit = get(&app, "/x").await;
            assert_eq!((hit.cache(), hit.text()), ("HIT", "2"));
        }
    }

    async fn variants_carry_the_tags(larder) {
        let runs = Runs::new();
        let counted = runs.clone();
        let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (started, waits) = (Arc::clone(&began), Arc::clone(&go));
        let handler = move |headers: HeaderMap| async move {
            let field = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            let tags = Tags::of(field("tag"));
            let run = counted.count().to_string();
            if headers.contains_key("wait") {
                started.notify_one();
                waits.notified().await;
            }
            ([("vary", field("by").unwrap_or_else(|| "lang".to_owned()))], tags, run)
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&larder).ttl(300))));
        let ask = async |fields: &[(&str, &str)]| send(&app, Method::GET, "/x", fields).await;
        for (lang, tag) in [("en", "a"), ("fr", "b"), ("de", "a")] {
            assert_eq!(ask(&[("lang", lang), ("tag", tag)]).await.cache(), "MISS");
            assert_eq!(ask(&[("lang", lang)]).await.cache(), "HIT", "{lang}");
        }
        larder.evict_tag("a").await;
        assert_eq!(ask(&[("lang", "fr")]).await.cache(), "HIT");
        assert_eq!(ask(&[("lang", "en"), ("tag", "a")]).await.cache(), "MISS");
        assert_eq!(ask(&[("lang", "de"), ("tag", "a")]).await.cache(), "MISS");
        // A response that varies by more fields replaces the variants.
        assert_eq!(ask(&[("lang", "es"), ("tag", "c"), ("by", "lang, by")]).await.cache(), "MISS");
        assert_eq!(ask(&[("lang", "es"), ("by", "lang, by")]).await.cache(), "HIT");
        larder.evict_tag("c").await;
        assert_eq!(ask(&[("lang", "es"), ("by", "lang, by"), ("tag", "c")]).await.cache(), "MISS");
        // The first variant, and a wider one, lose races too.
        larder.evict(&larder.key_for(None, &"/x".parse().unwrap()).unwrap()).await;
        for (lang, by) in [("it", "lang"), ("pt", "lang, by"), ("nl", "lang, by, more")] {
            let fields = [("lang", lang), ("tag", "r"), ("by", by), ("wait", "")];
            let (answer, ()) = tokio::join!(ask(&fields), async {
                began.notified().await;
                larder.evict_tag("r").await;
                go.notify_one();
            });
            assert!(answer.header("cache-status").ends_with("detail=evicted"), "{by}: {answer:?}");
            assert_eq!(answer.header("cache-control"), "no-cache", "{by}");
            let fields = [("lang", lang), ("by", by)];
            assert_eq!(ask(&fields).await.cache(), "MISS", "{by}: it was filled with what was read before");
        }
    }

    async fn write_through_stores_its_tags_and_loses_races(larder) {
        let (runs, began, go) = (Runs::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (counted, started, waits) = (runs.clone(), Arc::clone(&began), Arc::clone(&go));
        let read = async move || (Tags::of(["read"]), counted.count().to_string());
        let write = move |Query(wait): Query<Vec<(String, String)>>| async move {
            if !wait.is_empty() {
                started.notify_one();
                waits.notified().await;
            }
            (Tags::of(["written"]), "new")
        };
        let app = Router::new().route(
            "/x",
            get_route(read.layer(cache(&larder).ttl(300).query_params(["none"])))
                .put(write.layer(cache_put(&larder).ttl(300).tag("put").query_params(["none"]))),
        );
        for tag in ["written", "put"] {
            assert_eq!(send(&app, Method::PUT, "/x", &[]).await.cache(), "MISS");
            assert_eq!(get(&app, "/x").await.text(), "new");
            larder.evict_tag("read").await;
            assert_eq!(get(&app, "/x").await.text(), "new");
            larder.evict_tag(tag).await;
            assert_eq!(get(&app, "/x").await.cache(), "MISS", "{tag}");
        }
        let (answer, ()) = tokio::join!(send(&app, Method::PUT, "/x?wait=1", &[]), async {
            began.notified().await;
            larder.evict_tag("written").await;
            go.notify_one();
        });
        assert!(answer.header("cache-status").ends_with("detail=evicted"), "{answer:?}");
        let read = get(&app, "/x").await;
        assert_eq!(read.cache(), "MISS", "neither the written response nor an older one remains");
    }

    async fn tagged_responses_that_cannot_be_stored_are_delivered(larder) {
        let many = || (0..129).map(|i| i.to_string());
        let named = async move |Path(kind): Path<String>| match &*kind {
            "empty" => (Tags::of([""]), "x").into_response(),
            "long" => (Tags::of(["x".repeat(257)]), "x").into_response(),
            "control" => (Tags::of(["a\nb"]), "x").into_response(),
            "many" => (Tags::of(many()), "x").into_response(),
            "together" => (Tags::of(many().take(128)), "x").into_response(),
            _ => (Tags::of(many().take(127).chain(["x".repeat(256)]).take(127)), "x").into_response(),
        };
        let app = Router::new()
            .route("/{kind}", get_route(named.layer(cache(&larder).ttl(300).tag("route"))))
            .route("/by/request", get_route((async || "x").layer(cache(&larder).tags_by(|_| [""]))));
        for kind in ["empty", "long", "control", "many", "together", "by/request"] {
            for _ in 0..2 {
                let answer = get(&app, &format!("/{kind}")).await;
                assert_eq!((answer.status, answer.text()), (StatusCode::OK, "x"), "{kind}");
                assert_eq!(answer.cache(), "BYPASS", "{kind}");
                assert!(answer.header("cache-status").ends_with("detail=tags"), "{kind}: {answer:?}");
            }
        }
        is_new(&app, "/fits").await;
    }

    async fn layer_evicts_its_tags_after_success_and_unknown_outcomes_only(larder) {
        let app = pages(&larder, &Runs::new());
        let status = Arc::new(AtomicU16::new(200));
        let answered = Arc::clone(&status);
        let write = move || async move { StatusCode::from_u16(answered.load(Ordering::SeqCst)).unwrap() };
        let named = write.clone();
        let named = move || async move { (EvictTags::of(["product:1"]), named().await) };
        let app = app
            .route("/fixed", post(write.clone().layer(cache_evict(&larder).tag("product:1"))))
            .route("/by", post(write.clone().layer(cache_evict(&larder).tags_by(|request| {
                request.uri.query().map(str::to_owned)
            }))))
            .route("/too", post(write.clone().layer(cache_evict(&larder).group("other").whole_group().tag("product:1"))))
            .route("/key-too", post(write.layer(cache_evict(&larder).key().tag("product:1"))))
            .route("/named", post(named.clone().layer(cache_evict(&larder).tags_of_response())))
            .route("/named-too", post(named.clone().layer(cache_evict(&larder).key())))
            .route("/put", post(named.layer(cache_put(&larder))));
        is_new(&app, "/page/0").await;
        is_new(&app, "/page/1").await;
        for uri in ["/fixed", "/by?product:1", "/too", "/key-too", "/named", "/named-too", "/put"] {
            for (code, evicts) in [(200, true), (204, true), (303, true), (404, false), (422, false), (500, true), (503, true)] {
                status.store(code, Ordering::SeqCst);
                let answer = send(&app, Method::POST, uri, &[]).await;
                assert_eq!(answer.status.as_u16(), code);
                let page = get(&app, "/page/0").await;
                assert_eq!(page.cache(), if evicts { "MISS" } else { "HIT" }, "{uri} {code}");
                is_stored(&app, "/page/1").await;
            }
        }
    }

    async fn eviction_by_a_layer_does_not_depend_on_the_client(larder) {
        let app = pages(&larder, &Runs::new());
        let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (started, waits) = (Arc::clone(&began), Arc::clone(&go));
        let write = move || async move {
            started.notify_one();
            waits.notified().await;
            (EvictTags::of(["product:4"]), StatusCode::NO_CONTENT)
        };
        let app = app.route("/x", post(write.layer(cache_evict(&larder).tag("product:1"))));
        is_new(&app, "/page/0").await;
        is_new(&app, "/page/1").await;
        {
            let mut request = pin!(start(&app, Method::POST, "/x", &[]));
            tokio::select! {
                biased;
                _ = &mut request => panic!("the handler waits"),
                () = began.notified() => {}
            }
        }
        // The write is of unknown outcome as soon as its client is gone.
        sleep(Duration::from_millis(20)).await;
        is_new(&app, "/page/0").await;
        go.notify_one();
        sleep(Duration::from_millis(50)).await;
        is_new(&app, "/page/0").await;
        is_new(&app, "/page/1").await;
    }

    async fn principal_is_evicted_from_outside_its_requests(larder) {
        let runs = Runs::new();
        let route = |private: larder_axum::Cache| {
            let counted = runs.clone();
            get_route((async move || counted.count().to_string()).layer(private.ttl(300)))
        };
        let app = Router::new()
            .route("/me", route(cache(&larder).private().evict_by_principal()))
            .route("/cart", route(cache(&larder).private_by(|request| {
                Some(request.headers.get("user")?.to_str().ok()?.to_owned())
            }).principal_from(["user"]).evict_by_principal()))
            .route("/kept", route(cache(&larder).private()));
        let ask = async |uri: &str, user: &str| {
            let token = format!("Bearer {user}");
            send(&app, Method::GET, uri, &[("authorization", &token), ("user", user)]).await.cache().to_owned()
        };
        for user in ["alice", "bob"] {
            for uri in ["/me", "/cart", "/kept"] {
                ask(uri, user).await;
                assert_eq!(ask(uri, user).await, "HIT", "{uri}");
            }
        }
        assert!(larder.evict_principal("alice").await);
        assert_eq!((ask("/me", "alice").await, ask("/cart", "alice").await), ("MISS".to_owned(), "MISS".to_owned()));
        assert_eq!((ask("/me", "bob").await, ask("/cart", "bob").await), ("HIT".to_owned(), "HIT".to_owned()));
        assert_eq!(ask("/kept", "alice").await, "HIT", "the route didn't ask for it");
    }

    async fn path_is_evicted_with_all_queries_and_variants(larder) {
        let route = |layer: larder_axum::Cache| {
            get_route((async || ([("vary", "lang")], "x")).layer(layer.ttl(300)))
        };
        let app = Router::new()
            .route("/products", route(cache(&larder).group("lists").evict_by_path()))
            .route("/products/{id}", route(cache(&larder).evict_by_path()))
            .route("/kept", route(cache(&larder)));
        let all = ["/products", "/products?page=3", "/products?page=3&x=%C3%A9", "/products/7", "/kept"];
        let ask = async |uri: &str, lang: &str| send(&app, Method::GET, uri, &[("lang", lang)]).await.cache().to_owned();
        for uri in all {
            for lang in ["en", "fr"] {
                assert_eq!(ask(uri, lang).await, "MISS");
                assert_eq!(ask(uri, lang).await, "HIT");
            }
        }
        for path in ["/products", "/products?other=1", "/%70roducts"] {
            assert!(larder.evict_path(path).await);
            for uri in all {
                for lang in ["en", "fr"] {
                    let expected = if uri.starts_with("/products") && uri != "/products/7" { "MISS" } else { "HIT" };
                    assert_eq!(ask(uri, lang).await, expected, "{path}: {uri}");
                }
            }
        }
        larder.evict_path("/kept").await;
        assert_eq!(ask("/kept", "en").await, "HIT", "the route didn't ask for it");
        for path in ["products", "", "a b"] {
            assert!(!larder.evict_path(path).await, "{path:?} is no path");
        }
    }

    async fn layers_and_handlers_evict_paths_and_principals(larder) {
        let text = async || "x";
        let read = |layer: larder_axum::Cache| get_route(text.layer(layer.ttl(300)));
        let user = |request: &larder_axum::RequestView<'_>| request.uri.query().map(str::to_owned);
        let named = async move |Query(named): Query<Vec<(String, String)>>| {
            named.into_iter().fold(EvictTags::default(), |tags, (kind, name)| match &*kind {
                "path" => tags.and_path(&name),
                "user" => tags.and_principal(&name),
                _ => tags,
            })
        };
        let write = |layer: larder_axum::CacheEvict<larder_axum::Chosen>| post((async || "").layer(layer));
        let app = Router::new()
            .route("/me", read(cache(&larder).private().evict_by_principal()))
            .route("/cart", read(cache(&larder).group("carts").private_by(|request| {
                Some(request.headers.get("user")?.to_str().ok()?.to_owned())
            }).principal_from(["user"]).evict_by_principal()))
            .route("/list", read(cache(&larder).group("lists").evict_by_path()))
            .route("/list/{id}", read(cache(&larder).evict_by_path()))
            .route("/ban", write(cache_evict(&larder).principals_by(user)))
            .route("/ban-too", write(cache_evict(&larder).key().principals_by(user)))
            .route("/fixed", write(cache_evict(&larder).path("/li%73t?ignored")))
            .route("/fixed-too", write(cache_evict(&larder).group("other").whole_group().path("/list")))
            .route("/by", write(cache_evict(&larder).paths_by(|request| request.uri.query().map(str::to_owned))))
            .route("/by-too", write(cache_evict(&larder).tag("none").paths_by(|_| ["no path", "/list"])))
            .route("/named", post(named.layer(cache_evict(&larder).tags_of_response())))
            .route("/named-put", post(named.layer(cache_put(&larder))));
        let ask = async |uri: &str, user: &str| {
            let token = format!("Bearer {user}");
            let fields: &[(&str, &str)] = if user.is_empty() { &[] } else { &[("authorization", &token), ("user", user)] };
            send(&app, Method::GET, uri, fields).await.cache().to_owned()
        };
        let all = [("/me", "alice"), ("/cart", "alice"), ("/me", "bob"), ("/cart", "bob"), ("/list", ""), ("/list?page=2", ""), ("/list/7", "")];
        for (uri, expected) in [
            ("/ban?alice", 0..2), ("/ban-too?bob", 2..4), ("/named?user=alice", 0..2), ("/named-put?user=bob", 2..4), ("/ban", 0..0),
            ("/fixed", 4..6), ("/fixed-too", 4..6), ("/by?/list", 4..6), ("/by?/list/7", 6..7), ("/by?nothing", 0..0), ("/by-too", 4..6),
            ("/named?path=/list", 4..6), ("/named-put?path=/list/7", 6..7), ("/named?path=x&user=alice", 0..2),
        ] {
            for (uri, user) in all {
                ask(uri, user).await;
                assert_eq!(ask(uri, user).await, "HIT", "{uri}");
            }
            assert_eq!(send(&app, Method::POST, uri, &[]).await.status, StatusCode::OK, "{uri}");
            for (index, (found, user)) in all.into_iter().enumerate() {
                let is_evicted = expected.contains(&index);
                assert_eq!(ask(found, user).await, if is_evicted { "MISS" } else { "HIT" }, "{uri}: {found} of {user:?}");
            }
        }
    }

    async fn soft_eviction_makes_stale_as_of_now(larder) {
        let (runs, status) = (Runs::new(), Arc::new(AtomicU16::new(200)));
        let route = |layer: larder_axum::Cache| {
            let (counted, answered) = (runs.clone(), Arc::clone(&status));
            get_route((async move || {
                let status = StatusCode::from_u16(answered.load(Ordering::SeqCst)).unwrap();
                (status, Tags::of(["t"]), counted.count().to_string())
            }).layer(layer))
        };
        let brief = Duration::from_millis(100);
        let app = Router::new()
            .route("/refreshed", route(cache(&larder).group("1").ttl(300).stale_while_revalidate(LONG)))
            .route("/endless", route(cache(&larder).group("2").no_expiry().stale_while_revalidate(LONG)))
            .route("/brief", route(cache(&larder).group("3").ttl(300).stale_while_revalidate(brief)))
            .route("/error", route(cache(&larder).group("4").ttl(300).stale_if_error(LONG)))
            .route("/neither", route(cache(&larder).group("5").ttl(300)));
        for uri in ["/refreshed", "/endless", "/brief", "/error", "/neither"] {
            is_new(&app, uri).await;
        }
        assert!(larder.evict_tag("t").soft().await);
        for uri in ["/refreshed", "/endless"] {
            let before = runs.total();
            let stale = get(&app, uri).await;
            assert_eq!(stale.cache(), "HIT", "{uri}: {stale:?}");
            let told = stale.header("cache-control");
            assert_eq!(told, "max-age=0", "{uri}: a stale response is not fresh downstream");
            while runs.total() == before {
                sleep(Duration::from_millis(1)).await;
            }
            sleep(Duration::from_millis(30)).await;
            let hit = get(&app, uri).await;
            assert_eq!((hit.cache(), hit.text()), ("HIT", (before + 1).to_string().as_str()), "{uri}");
            assert_eq!(runs.total(), before + 1, "{uri}: fresh after one refresh");
        }
        status.store(503, Ordering::SeqCst);
        let stale = get(&app, "/error").await;
        assert_eq!((stale.status, stale.cache()), (StatusCode::OK, "HIT"));
        assert_eq!(get(&app, "/neither").await.status, StatusCode::SERVICE_UNAVAILABLE);
        status.store(200, Ordering::SeqCst);
        is_new(&app, "/error").await;
        is_new(&app, "/neither").await;
        sleep(brief).await;
        is_new(&app, "/brief").await;
        larder.evict_tag("t").soft().await;
        larder.evict_tag("t").await;
        is_new(&app, "/refreshed").await;
    }

    async fn soft_eviction_of_a_key_or_a_group_makes_stale_as_of_now(larder) {
        let runs = Runs::new();
        let counted = runs.clone();
        // The route is large, so that HEAD and conditions read parts, and small.
        let read = move |Path(size): Path<usize>| async move {
            let run = counted.count().to_string();
            ([("x-run", run.clone())], format!("{run}{}", "x".repeat(size)))
        };
        let app = Router::new()
            .route("/in/{size}", get_route(read.clone().layer(cache(&larder).group("in").ttl(300).stale_while_revalidate(LONG))))
            .route("/out/{size}", get_route(read.clone().layer(cache(&larder).ttl(300).stale_while_revalidate(LONG))))
            .route("/neither/{size}", get_route(read.layer(cache(&larder).group("in").ttl(300))))
            .route("/write/key/{*uri}", post((async || "").layer(cache_evict(&larder).group("in").key_by(|request| {
                Some(request.uri.path().strip_prefix("/write/key/")?.replace('/', ":"))
            }).soft())))
            .route("/write/group", post((async || "").layer(cache_evict(&larder).group("in").whole_group().soft())))
            .route("/write/group-and-tag", post((async || StatusCode::BAD_GATEWAY).layer(
                cache_evict(&larder).group("in").whole_group().tag("none").soft(),
            )));
        let key = |group: Option<&str>, uri: &str| larder.key_for(group, &uri.parse().unwrap()).unwrap();
        let (small, large, apart, without) = ("/in/10", "/in/100000", "/out/10", "/neither/10");
        for how in ["key", "backend key", "layer key", "group", "backend group", "layer group", "layer with a 502", "prefix"] {
            for uri in [small, large, apart, without] {
                let _ = get(&app, uri).await;
                is_stored(&app, uri).await;
            }
            let before = runs.total();
            match how {
                "key" => for uri in [small, large, without] {
                    assert!(larder.evict(&key(Some("in"), uri)).soft().await);
                },
                "backend key" => for uri in [small, large, without] {
                    let suffix = uri[1..].replace('/', ":");
                    larder.backend().group("in").evict(&suffix).soft().confirm().await.unwrap();
                },
                "layer key" => for uri in [small, large, without] {
                    send(&app, Method::POST, &format!("/write/key{uri}"), &[]).await;
                },
                "group" => assert!(larder.evict_group("in").soft().await),
                "backend group" => assert!(larder.backend().group("in").evict_group().soft().await),
                "layer group" => drop(send(&app, Method::POST, "/write/group", &[]).await),
                "layer with a 502" => drop(send(&app, Method::POST, "/write/group-and-tag", &[]).await),
                _ => assert!(larder.backend().evict_group().soft().await),
            }
            assert!(!larder.backend().group("in").has("in:10").await, "{how}: `has` agrees with `get`");
            if how == "prefix" {
                let stale = get(&app, apart).await;
                assert_eq!((stale.cache(), stale.header("cache-control")), ("HIT", "max-age=0"), "{how}: {:?}", stale.headers);
                assert!(stale.header("x-run").parse::<usize>().unwrap() <= before, "{how}: it is the old response");
            } else {
                is_stored(&app, apart).await;
                assert_eq!(get(&app, apart).await.header("cache-control"), "max-age=300, stale-while-revalidate=60", "{how}");
            }
            is_new(&app, without).await;
            let head = send(&app, Method::HEAD, large, &[]).await;
            assert_eq!((head.cache(), head.header("cache-control")), ("HIT", "max-age=0"), "{how}: {:?}", head.headers);
            for uri in [small, large] {
                let stale = get(&app, uri).await;
                assert_eq!(stale.cache(), "HIT", "{how} {uri}: {:?}", stale.headers);
                let run: usize = stale.header("x-run").parse().unwrap();
                // A HEAD may have refreshed the large one.
                assert!(run <= before || uri == large, "{how} {uri}: it is the old response");
                for _ in 0..200 {
                    if get(&app, uri).await.header("x-run") != stale.header("x-run") || run > before {
                        break;
                    }
                    sleep(Duration::from_millis(5)).await;
                }
                let fresh = get(&app, uri).await;
                assert!(fresh.header("x-run").parse::<usize>().unwrap() > before, "{how} {uri}: it was refreshed");
                assert_ne!(fresh.header("cache-control"), "max-age=0", "{how} {uri}: it is fresh");
            }
            // A hard eviction of what was evicted softly.
            larder.evict_group("in").soft().await;
            larder.evict(&key(Some("in"), small)).await;
            is_new(&app, small).await;
            assert!(larder.evict_group("in").await);
            is_new(&app, large).await;
        }
        for name in ["", "{", "a b"] {
            assert!(larder.try_evict_group(name).is_err(), "{name:?}");
        }
    }

    async fn fill_that_began_before_a_soft_eviction_is_not_stored(larder) {
        for (index, kind) in ["key", "group", "prefix"].into_iter().enumerate() {
            // With 3, another variant is stored after the eviction, and so the record is written again.
            for variants in [0, 1, 2, 3] {
                let (began, go, runs) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Runs::new());
                let (counted, started, waits) = (runs.clone(), Arc::clone(&began), Arc::clone(&go));
                let handler = move |headers: HeaderMap| async move {
                    let run = counted.count();
                    if headers.contains_key("wait") {
                        started.notify_one();
                        waits.notified().await;
                    }
                    let vary = ["accept-encoding", "lang", "lang, by"][if headers.contains_key("wider") { 2 } else { variants.min(1) }];
                    ([("vary", vary)], run.to_string())
                };
                let group = format!("g{index}{variants}");
                let layer = cache(&larder).group(&group).ttl(300).stale_while_revalidate(LONG);
                let app = Router::new().route("/x", get_route(handler.layer(layer)));
                let ask = async |lang: &'static str, fields: &[(&str, &str)]| {
                    let fields: Vec<_> = [("lang", lang)].into_iter().chain(fields.iter().copied()).collect();
                    send(&app, Method::GET, "/x", &fields).await
                };
                if variants > 0 {
                    ask("fr", &[]).await;
                    assert_eq!(ask("fr", &[]).await.cache(), "HIT");
                }
                let fields: &[(&str, &str)] = if variants >= 2 { &[("wait", ""), ("wider", "")] } else { &[("wait", "")] };
                let (first, ()) = tokio::join!(ask("en", fields), async {
                    began.notified().await;
                    let key = larder.key_for(&*group, &"/x".parse().unwrap()).unwrap();
                    assert!(match kind {
                        "key" => larder.evict(&key).soft().await,
                        "group" => larder.evict_group(&group).soft().await,
                        _ => larder.backend().evict_group().soft().await,
                    });
                    if variants == 3 {
                        ask("de", &[]).await;
                        assert_eq!(ask("de", &[]).await.cache(), "HIT", "{kind}");
                    }
                    go.notify_one();
                });
                let why = format!("{kind}, {variants}");
                assert!(first.header("cache-status").ends_with("detail=evicted"), "{why}: {first:?}");
                assert_eq!(first.header("cache-control"), "no-cache", "{why}: {first:?}");
                let second = ask("en", &fields[1..]).await;
                assert_ne!(second.text(), first.text(), "{why}: the fill began before the eviction");
                if variants == 1 {
                    let stale = ask("fr", &[]).await;
                    assert_eq!((stale.text() == "1", stale.cache()), if kind == "key" { (false, "MISS") } else { (true, "HIT") }, "{why}");
                }
                for _ in 0..200 {
                    let answer = ask("en", &fields[1..]).await;
                    if answer.cache() == "HIT" && answer.header("cache-control") != "max-age=0" {
                        break;
                    }
                    sleep(Duration::from_millis(2)).await;
                }
                let answer = ask("en", &fields[1..]).await;
                assert_eq!(answer.cache(), "HIT", "{why}: it can be filled again: {answer:?}");
                assert_ne!(answer.header("cache-control"), "max-age=0", "{why}: it is fresh again");
            }
        }
    }

    async fn values_carry_tags(larder) {
        let values = larder.backend().group("values").tagged(["t"]);
        let both = values.tagged(["u"]);
        assert!(values.set("set", &1, 60).await);
        assert_eq!(both.get_or_set("computed", 60, async || Ok::<_, StoreError>(2)).await.unwrap(), 2);
        assert_eq!(both.update("updated", 60, |old: Option<u64>| old.unwrap_or(0) + 3).await.unwrap(), 3);
        let all = async || {
            (values.get::<u64>("set").await, values.get::<u64>("computed").await, values.get::<u64>("updated").await)
        };
        assert_eq!(all().await, (Some(1), Some(2), Some(3)));
        assert!(larder.evict_tag("u").await);
        assert_eq!(all().await, (Some(1), None, None));
        assert_eq!(both.update("updated", 60, |old: Option<u64>| old.unwrap_or(0) + 3).await.unwrap(), 3);
        assert!(values.evict_tag("t").await);
        assert_eq!(all().await, (None, None, None));
        assert!(!values.has("set").await);

        // A computation that began before the eviction is not stored.
        let compute = async || {
            larder.evict_tag("t").await;
            Ok::<_, StoreError>(4)
        };
        assert_eq!(values.get_or_set("computed", 60, compute).await.unwrap(), 4);
        assert_eq!(values.get::<u64>("computed").await, None);
        // A value has no stale form.
        values.set("set", &1, 60).await;
        larder.evict_tag("t").soft().await;
        assert_eq!(values.get::<u64>("set").await, None);
        assert_eq!(values.get_or_set("set", 60, async || Ok::<_, StoreError>(5)).await.unwrap(), 5);
        assert_eq!(values.get::<u64>("set").await, Some(5));
        values.evict("set").soft().await;
        assert_eq!((values.get::<u64>("set").await, values.has("set").await), (None, false));
        assert_eq!(values.update("set", 60, |old: Option<u64>| old.map_or(6, |_| 7)).await.unwrap(), 6);
        values.evict_group().soft().await;
        assert_eq!((values.get::<u64>("set").await, values.has("set").await), (None, false));
        assert_eq!(values.get_or_set("set", 60, async || Ok::<_, StoreError>(8)).await.unwrap(), 8);
        assert_eq!((values.get::<u64>("set").await, values.has("set").await), (Some(8), true));
        assert!(values.try_tagged([""]).is_err());
    }

    async fn races_of_fills_and_evictions_leave_nothing_stale(larder) {
        let version = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let read = Arc::clone(&version);
        let handler = move |Path(id): Path<u64>| async move {
            let version = read.load(Ordering::SeqCst);
            tokio::task::yield_now().await;
            let tags = Tags::of([format!("even:{}", id.is_multiple_of(2)), "all".to_owned()]);
            let vary = [("vary", if id.is_multiple_of(3) { "lang" } else { "accept-encoding" })];
            (vary, tags, version.to_string()).into_response()
        };
        let app = Router::new().route("/{id}", get_route(handler.layer(cache(&larder).ttl(300))));
        for round in 0..400_u64 {
            let readers = (0..8_u64).map(|id| {
                let app = app.clone();
                tokio::spawn(async move { get(&app, &format!("/{id}")).await })
            });
            let readers: Vec<_> = readers.collect();
            if round % 3 == 0 {
                tokio::task::yield_now().await;
            }
            let current = version.fetch_add(1, Ordering::SeqCst) + 1;
            match round % 2 {
                0 => larder.evict_tag("all").await,
                _ => larder.evict_tags(["even:true", "even:false"]).await,
            };
            let after = join_all((0..8_u64).map(|id| {
                let app = app.clone();
                async move { get(&app, &format!("/{id}")).await }
            })).await;
            for answer in after {
                let found: u64 = answer.text().parse().unwrap();
                assert!(found >= current, "stale: {found} after {current}, {answer:?}");
            }
            for reader in readers {
                reader.await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn store_without_tags_stores_only_responses_without_tags() {
    let larder = Larder::builder().cache_status(true).store(OnlyRequired(MemoryStore::new())).build();
    let app = Router::new()
        .route("/named", get_route((async || (Tags::of(["t"]), "x")).layer(cache(&larder).ttl(300))))
        .route("/route", get_route((async || "x").layer(cache(&larder).ttl(300).tag("t"))))
        .route("/none", get_route((async || "x").layer(cache(&larder).ttl(300))))
        .route("/no-tags", get_route((async || (Tags::of([""; 0]), "x")).layer(cache(&larder).ttl(300))));
    is_new(&app, "/none").await;
    is_new(&app, "/no-tags").await;
    for uri in ["/named", "/route", "/named", "/route"] {
        let answer = get(&app, uri).await;
        assert_eq!((answer.text(), answer.cache()), ("x", "BYPASS"));
        assert!(answer.header("cache-status").ends_with("detail=tags"), "{answer:?}");
    }
    let values = larder.backend();
    assert!(values.set("k", &1, 60).await);
    assert!(!values.tagged(["t"]).set("k", &2, 60).await);
    assert_eq!(values.get::<u64>("k").await, None, "the older value is gone");
    let computed = values.tagged(["t"]).get_or_set("k", 60, async || Ok::<_, StoreError>(3)).await;
    assert_eq!((computed.unwrap(), values.get::<u64>("k").await), (3, None));
    assert!(values.tagged(["t"]).update("k", 60, |_: Option<u64>| 4).await.is_err());
}

#[test]
fn invalid_tag_of_a_route_panics_where_it_is_made() {
    let larder = Larder::memory();
    let place = |make: &dyn Fn()| {
        let (send, receive) = std::sync::mpsc::channel();
        let (before, here) = (std::panic::take_hook(), std::thread::current().id());
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().id() == here {
                send.send((info.location().unwrap().file().to_owned(), info.to_string())).unwrap();
            } else {
                before(info);
            }
        }));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
        drop(std::panic::take_hook());
        assert!(result.is_err());
        receive.recv().unwrap()
    };
    for make in [
        &(|| drop(cache(&larder).tag(""))) as &dyn Fn(),
        &|| drop(cache_put(&larder).tag(&"x".repeat(257))),
        &|| drop(cache_evict(&larder).tag("a\u{7}")),
        &|| drop(cache_evict(&larder).key().tag("")),
        &|| drop((0..=128).fold(cache(&larder), |layer, i| layer.tag(&i.to_string()))),
        &|| drop(larder.backend().tagged([""])),
        &|| drop(cache_evict(&larder).path("tag")),
        &|| drop(cache_evict(&larder).key().path("tag tag")),
    ] {
        let (file, message) = place(make);
        assert!(file.ends_with("tags.rs"), "{file}: {message}");
        assert!(message.contains("tag"), "{message}");
    }
}

#[tokio::test]
async fn tags_never_reach_the_client() {
    let larder = Larder::memory();
    let read: fn() -> std::future::Ready<Response> =
        || std::future::ready((Tags::of(["secret-tag"]), EvictTags::of(["secret-tag"]), "x").into_response());
    let app =
        Router::new().route("/x", get_route(read.layer(cache(&larder))).post(read.layer(cache_put(&larder))));
    for method in [Method::GET, Method::GET, Method::POST] {
        let answer = send(&app, method, "/x", &[]).await;
        assert!(!format!("{:?}", answer.headers).contains("secret"), "{answer:?}");
    }
}

/// Handlers name tags with types of each framework.
#[tokio::test]
async fn handlers_name_tags_in_every_framework() {
    use larder_poem::TagResponse as _;
    use larder_tests::framework::{App, larder};
    use poem::EndpointExt as _;

    let (one, two, three) = (larder(), larder(), larder());
    let axum = Router::new().route(
        "/x",
        get_route((async || (Tags::of(["t"]), "x")).layer(cache(&one).ttl(300).evict_by_path()))
            .post((async || EvictTags::default().and_path("/x")).layer(cache_evict(&one).tags_of_response())),
    );
    let read =
        poem::endpoint::make(async |_| Ok::<_, poem::Error>("x".with_tags(larder_poem::Tags::of(["t"]))));
    let write = poem::endpoint::make(async |_| {
        Ok::<_, poem::Error>("".evicting(larder_poem::EvictTags::of(["t"]).soft()))
    });
    let poem = poem::Route::new().at(
        "/x",
        poem::get(read.with(larder_poem::cache(&two).ttl(300)))
            .post(write.with(larder_poem::cache_evict(&two).tags_of_response())),
    );
    let read = tower::ServiceBuilder::new()
        .layer(larder_tower::cache(&three).ttl(300).evict_by_path())
        .service_fn(async |_: http::Request<axum::body::Body>| {
            let mut response = http::Response::new(axum::body::Body::from("x"));
            response.extensions_mut().insert(larder_tower::ResponseTags::of(["t"]));
            Ok::<_, std::convert::Infallible>(response)
        });
    let write = tower::ServiceBuilder::new()
        .layer(larder_tower::cache_evict(&three).path("/x").principals_by(|_| ["alice"]).soft())
        .service_fn(async |_: http::Request<axum::body::Body>| {
            let response = http::Response::new(axum::body::Body::empty());
            Ok::<_, std::convert::Infallible>(response)
        });
    let (axum, poem) = (App::axum(axum), App::poem(poem));
    let (read, write) = (App::tower(read), App::tower(write));
    for (name, reader, writer) in [("axum", &axum, &axum), ("poem", &poem, &poem), ("tower", &read, &write)] {
        for round in 0..2 {
            assert_eq!(reader.get("/x").await.cache(), "MISS", "{name} {round}");
            assert_eq!(reader.get("/x").await.cache(), "HIT", "{name} {round}");
            writer.send(Method::POST, "/x").await;
        }
    }
}
