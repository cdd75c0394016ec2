//! The console, mounted in both frameworks: who may open it, and what an eviction requires. Its look is tested in a browser, by
//! `tests/console/run`.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::handler::Handler as _;
use axum::http::{Request, Response, StatusCode};
use axum::routing::get;
use larder_axum::{Larder, RequestView};
use poem::{Endpoint, EndpointExt as _};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// A request to both consoles: a method, a path, fields and a body.
struct Asked<'a>(&'a str, &'a str, &'a [(&'a str, &'a str)], Value);

struct Answered {
    status: StatusCode,
    cache: Option<String>,
    policy: Option<String>,
    stored: Option<String>,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{}", self.text))
    }
}

#[derive(Clone)]
enum App {
    Axum(Router),
    Poem(Arc<dyn poem::endpoint::DynEndpoint<Output = poem::Response>>),
}

/// A shop in each framework, with a console for clients that claim to be staff.
fn apps() -> [App; 2] {
    let is_staff = |request: &RequestView<'_>| request.headers.contains_key("x-staff");

    let larder = Larder::memory();
    let product = || async { "tea" };
    let axum = Router::new()
        .route(
            "/products/{id}",
            get(product.layer(larder_axum::cache(&larder).group("products").ttl(60).tag("shown"))),
        )
        .route("/private", get(product.layer(larder_axum::cache(&larder).private())))
        .nest("/admin/cache", larder_axum::console(&larder, is_staff));

    let larder = Larder::memory();
    let product = || poem::endpoint::make_sync(|_| "tea");
    let poem = poem::Route::new()
        .at(
            "/products/:id",
            poem::get(product().with(larder_poem::cache(&larder).group("products").ttl(60).tag("shown"))),
        )
        .at("/private", poem::get(product().with(larder_poem::cache(&larder).private())))
        .nest("/admin/cache", larder_poem::console(&larder, is_staff));
    [App::Axum(axum), App::Poem(Arc::new(poem::endpoint::ToDynEndpoint(poem.map_to_response())))]
}

impl App {
    async fn call(&self, Asked(method, path, fields, body): Asked<'_>) -> Answered {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, headers, text) = match self {
            Self::Axum(app) => {
                let mut request = Request::builder().method(method).uri(path);
                for (name, value) in fields {
                    request = request.header(*name, *value);
                }
                let answer: Response<Body> =
                    app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
                let (parts, body) = answer.into_parts();
                (parts.status, parts.headers, to_bytes(body, usize::MAX).await.unwrap().to_vec())
            }
            Self::Poem(app) => {
                let mut request = poem::Request::builder().method(method.parse().unwrap()).uri_str(path);
                for (name, value) in fields {
                    request = request.header(*name, *value);
                }
                let answer = app.get_response(request.body(body)).await;
                let (parts, body) = answer.into_parts();
                (parts.status, parts.headers, body.into_bytes().await.unwrap().to_vec())
            }
        };
        let field = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        Answered {
            status,
            cache: field("x-redis-cache"),
            policy: field("content-security-policy"),
            stored: field("cache-control"),
            text: String::from_utf8(text).unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Option<String> {
        self.call(Asked("GET", path, &[], Value::Null)).await.cache
    }
}

const STAFF: (&str, &str) = ("x-staff", "yes");
const PAGE: (&str, &str) = ("x-larder-console", "1");

#[tokio::test]
async fn console_requires_authorization() {
    for app in apps() {
        for (method, path) in [
            ("GET", ""),
            ("GET", "/api/state"),
            ("POST", "/api/evict"),
            ("POST", "/api/explain"),
            ("GET", "/x"),
        ] {
            let path = format!("/admin/cache{path}");
            let stranger = app.call(Asked(method, &path, &[PAGE], Value::Null)).await;
            assert_eq!(stranger.status, StatusCode::FORBIDDEN, "{path}");
            assert!(!stranger.text.contains("redis:larder"), "{path}");
        }
        let page = app.call(Asked("GET", "/admin/cache", &[STAFF], Value::Null)).await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.text.starts_with("<!doctype html>") && !page.text.contains("{nonce}"));
        assert_eq!(page.stored.as_deref(), Some("no-store"));
        let policy = page.policy.unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'nonce-"), "{policy}");
        let again = app.call(Asked("GET", "/admin/cache", &[STAFF], Value::Null)).await;
        assert_ne!(again.policy.unwrap(), policy, "each page has a nonce of its own");
    }
}

#[tokio::test]
async fn eviction_requires_more_than_authorization() {
    for app in apps() {
        app.get("/products/7").await;
        let what = || json!({ "group": "products" });
        let evict = "/admin/cache/api/evict";
        for (method, fields, expected) in [
            ("POST", &[STAFF][..], 403),
            ("POST", &[STAFF, PAGE, ("sec-fetch-site", "cross-site")], 403),
            ("POST", &[STAFF, PAGE, ("sec-fetch-site", "same-site")], 403),
            ("POST", &[STAFF, PAGE, ("host", "shop.example"), ("origin", "https://evil.example")], 403),
            ("POST", &[STAFF, ("sec-fetch-site", "same-origin")], 403),
            ("GET", &[STAFF, PAGE], 405),
        ] {
            let refused = app.call(Asked(method, evict, fields, what())).await;
            assert_eq!(refused.status.as_u16(), expected, "{method} {fields:?}");
        }
        assert_eq!(app.get("/products/7").await.as_deref(), Some("HIT"), "still there");

        let fields = [STAFF, PAGE, ("sec-fetch-site", "same-origin")];
        let done = app.call(Asked("POST", evict, &fields, what())).await;
        assert_eq!(done.json(), json!({ "evicted": "products", "confirmed": true }));
        assert_eq!(app.get("/products/7").await.as_deref(), Some("MISS"));

        let key = json!({ "key": "redis:larder:cache:{products}:products:7" });
        app.call(Asked("POST", evict, &fields, key)).await;
        assert_eq!(app.get("/products/7").await.as_deref(), Some("MISS"));
        assert_eq!(app.get("/products/7").await.as_deref(), Some("HIT"));
        let done = app.call(Asked("POST", evict, &fields, json!({ "tag": "shown" }))).await;
        assert_eq!(done.json(), json!({ "evicted": "shown", "confirmed": true }));
        assert_eq!(app.get("/products/7").await.as_deref(), Some("MISS"));
        for bad in [
            json!({ "key": "another:key" }),
            json!({ "group": "a b" }),
            json!({ "tag": "" }),
            json!({}),
            json!([]),
            json!({ "key": "redis:larder:cache:{products}:products:7", "group": "products" }),
            json!({ "group": "products", "tag": "shown" }),
            json!({ "group": "products", "sfot": true }),
            json!({ "group": "products", "soft": null }),
            json!({ "group": "products", "tag": null, "other": null }),
        ] {
            let refused = app.call(Asked("POST", evict, &fields, bad.clone())).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }
}

#[tokio::test]
async fn console_shows_reasons_and_history() {
    for app in apps() {
        for path in ["/products/7", "/products/7", "/private"] {
            app.get(path).await;
        }
        let fields = [STAFF, PAGE];
        let state = app.call(Asked("GET", "/admin/cache/api/state", &fields, Value::Null)).await.json();
        assert_eq!(state["hit_ratio"], json!(0.5));
        let words: Vec<&str> = state["decisions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["reason"].as_str().unwrap_or(one["status"].as_str().unwrap()))
            .collect();
        assert_eq!(words, ["anonymous", "hit", "absent"]);
        let counted: u64 = state["slices"][0]["statuses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|count| count.as_u64().unwrap())
            .sum();
        assert_eq!(counted + state["slices"][1]["latency"]["count"].as_u64().unwrap_or(0), 3);

        let ask = async |question: Value| {
            app.call(Asked("POST", "/admin/cache/api/explain", &fields, question)).await
        };
        let hit = ask(json!({ "target": "/products/7" })).await.json();
        assert_eq!(hit["explanation"]["status"], "hit");
        assert_eq!(hit["entry"]["response"]["body_bytes"], 3);
        assert!(!hit.to_string().contains("tea"), "bodies are never shown");
        let cookie = ask(json!({ "target": "/products/7", "fields": "cookie: a=b" })).await.json();
        assert_eq!(cookie["explanation"]["reason"], "cookie");
        let answer = json!({ "status": 200, "fields": "set-cookie: a=b", "length": 1 });
        let refused = ask(json!({ "target": "/products/8", "answer": answer })).await.json();
        assert_eq!(refused["explanation"]["reason"], "set-cookie");
        let by_key = ask(json!({ "target": "redis:larder:cache:{products}:products:7" })).await.json();
        assert_eq!(by_key["entry"]["found"], "response");
        assert_eq!(ask(json!({ "target": "/nowhere" })).await.status, StatusCode::NOT_FOUND);
        assert_eq!(ask(json!({ "target": "no path" })).await.status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn explanations_match_real_responses() {
    let larder = Larder::memory();
    let handler = |uri: axum::http::Uri| async move {
        match uri.path() {
            "/500" => (StatusCode::INTERNAL_SERVER_ERROR, [("x-a", "b")], "no"),
            "/404" => (StatusCode::NOT_FOUND, [("x-a", "b")], "no"),
            "/cookie" => (StatusCode::OK, [("set-cookie", "a=b")], "ok"),
            "/vary" => (StatusCode::OK, [("vary", "*")], "ok"),
            "/no-store" => (StatusCode::OK, [("cache-control", "no-store")], "ok"),
            _ => (StatusCode::OK, [("x-a", "b")], "ok"),
        }
    };
    for path in ["/500", "/404", "/cookie", "/vary", "/no-store", "/plain"] {
        let cache = larder_axum::cache(&larder).name(path).ttl(60);
        let route = cache.route();
        let app = Router::new().fallback_service(handler.layer(cache).with_state(()));
        for fields in
            [&[][..], &[("cookie", "a=b")], &[("cache-control", "no-cache")], &[("range", "bytes=0-1")]]
        {
            let mut request = Request::get(path);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let request = request.body(Body::empty()).unwrap();
            let answer = handler(request.uri().clone()).await;
            let answer = axum::response::IntoResponse::into_response(answer).into_parts().0;
            let length = larder_core::policy::BodyLength::Known(2);
            let explained = route.explain(RequestView::from(&request), Some((&answer, length))).await;

            let before = larder.stats();
            app.clone().oneshot(request).await.unwrap();
            let after = larder.stats();
            let of = |stats: &larder_axum::Stats| {
                let route = stats.routes.iter().find(|known| known.route == path);
                route.map(|route| (route.requests, route.reasons.clone())).unwrap_or_default()
            };
            let ((before, reasons_before), (after, reasons)) = (of(&before), of(&after));
            let grown =
                larder_axum::Status::ALL.into_iter().find(|status| after.of(*status) > before.of(*status));
            assert_eq!(Some(explained.status), grown, "{path} {fields:?}\n{explained}");
            let count = |reasons: &[larder_core::stats::ReasonCount]| {
                let of = reasons.iter().find(|counted| Some(counted.reason) == explained.reason);
                of.map_or(0, |counted| counted.count)
            };
            let more = u64::from(explained.reason.is_some());
            assert_eq!(count(&reasons), count(&reasons_before) + more, "{path} {fields:?}\n{explained}");
        }
    }
}
