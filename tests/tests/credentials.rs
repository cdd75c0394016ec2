//! Credentials in any field, and fields that change a request's target: no response that depends on them reaches another client.

use axum::Router;
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderName};
use axum::routing::{get as get_route, put as put_route};
use http::Method;
use larder_axum::{Cache, Larder, cache, cache_put};
use larder_tests::in_process::{get, send};

const CREDENTIALS: [&str; 21] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "x-access-token",
    "x-forwarded-user",
    "x-forwarded-email",
    "x-forwarded-preferred-username",
    "x-forwarded-access-token",
    "x-remote-user",
    "x-amzn-oidc-identity",
    "x-amzn-oidc-data",
    "cf-access-jwt-assertion",
    "x-goog-iap-jwt-assertion",
    "x-client-cert",
    "x-ssl-client-cert",
    "x-forwarded-client-cert",
    "client-cert",
    "ssl-client-cert",
];

const ROUTING: [&str; 11] = [
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
];

/// A route whose handler lists the fields above that it sees.
fn app(layer: Cache) -> Router {
    Router::new().route("/x", get_route(seen.layer(layer)))
}

async fn seen(headers: HeaderMap) -> String {
    let names = CREDENTIALS.iter().chain(&ROUTING).filter(|name| headers.contains_key(**name));
    names.map(|name| format!("{name} ")).collect()
}

#[tokio::test]
async fn credentials_bypass_undeclared_routes() {
    let app = app(cache(&Larder::memory()).ttl(60));
    for name in CREDENTIALS {
        let first = send(&app, Method::GET, "/x", &[(name, "secret-1")]).await;
        assert_eq!((first.cache(), first.text()), ("BYPASS", &*format!("{name} ")));
        assert_eq!(first.header("cache-control"), "no-store", "{name}");
        assert_eq!(get(&app, "/x").await.text(), "", "{name}");
    }
}

#[tokio::test]
async fn declared_credential_fields_bypass_undeclared_routes() {
    let larder = Larder::builder()
        .credential_fields([HeaderName::from_static("x-house-key")])
        .store(larder_axum::MemoryStore::new())
        .build();
    let app = app(cache(&larder).ttl(60));
    assert_eq!(send(&app, Method::GET, "/x", &[("x-house-key", "1")]).await.cache(), "BYPASS");
    assert_eq!(get(&app, "/x").await.header("vary"), "Authorization, Cookie, X-House-Key");
}

#[tokio::test]
async fn handler_of_a_public_route_sees_no_credentials() {
    for name in CREDENTIALS.into_iter().chain(ROUTING) {
        for method in [Method::GET, Method::HEAD] {
            let app = app(cache(&Larder::memory()).ttl(60).public());
            let first = send(&app, method.clone(), "/x", &[(name, "secret-1")]).await;
            assert!(first.status.is_success());
            assert_eq!(get(&app, "/x").await.text(), "", "{method} {name}");
        }
        // When the request bypasses the cache, the handler sees all fields.
        let app = app(cache(&Larder::memory()).ttl(60).public());
        let past = send(&app, Method::GET, "/x", &[(name, "secret-1"), ("cache-control", "no-store")]).await;
        assert_eq!((past.cache(), past.text()), ("BYPASS", &*format!("{name} ")));
        assert_eq!(past.header("vary"), "");
    }
}

#[tokio::test]
async fn stored_responses_do_not_depend_on_routing_fields() {
    for name in ROUTING {
        let poisoned = [(name, "evil.example"), ("authorization", "Bearer t")];
        let undeclared = app(cache(&Larder::memory()).ttl(60));
        send(&undeclared, Method::GET, "/x", &poisoned[..1]).await;
        assert_eq!(get(&undeclared, "/x").await.text(), "", "{name}");
        let private = app(cache(&Larder::memory()).ttl(60).private());
        send(&private, Method::GET, "/x", &poisoned).await;
        assert_eq!(
            send(&private, Method::GET, "/x", &poisoned[1..]).await.text(),
            "authorization ",
            "{name}"
        );
        // With the host in the key, the handler may see the fields that name it, which are then also in the key.
        let by_host = app(cache(&Larder::memory()).ttl(60).public().vary_by_host());
        send(&by_host, Method::GET, "/x", &[(name, "host=evil.example")]).await;
        assert_eq!(get(&by_host, "/x").await.text(), "", "{name}");
    }
}

#[tokio::test]
async fn public_with_passes_fields_to_the_handler() {
    let app = app(cache(&Larder::memory()).ttl(60).public_with(["cookie", "x-forwarded-host"]));
    let all = [("cookie", "a=1"), ("x-forwarded-host", "h"), ("x-api-key", "k")];
    assert_eq!(send(&app, Method::GET, "/x", &all).await.text(), "cookie x-forwarded-host ");
}

#[tokio::test]
async fn handler_of_a_private_route_sees_only_the_principals_fields() {
    let all: Vec<(&str, &str)> = CREDENTIALS
        .iter()
        .map(|name| (*name, if *name == "authorization" { "Bearer alice" } else { "x" }))
        .collect();
    let larder = Larder::memory();
    for (layer, sees, vary) in [
        (cache(&larder).group("a").ttl(60).private(), "authorization ", "Authorization"),
        (
            cache(&larder).group("b").ttl(60).private_by(|_| Some("alice".to_owned())),
            "authorization cookie ",
            "Authorization, Cookie",
        ),
        (
            cache(&larder)
                .group("c")
                .ttl(60)
                .private_by(|request| {
                    Some(request.headers.get("x-forwarded-user")?.to_str().ok()?.to_owned())
                })
                .principal_from(["X-Forwarded-User"]),
            "x-forwarded-user ",
            "X-Forwarded-User",
        ),
    ] {
        let app = app(layer);
        for expected in ["MISS", "HIT"] {
            let answer = send(&app, Method::GET, "/x", &all).await;
            assert_eq!((answer.cache(), answer.text(), answer.header("vary")), (expected, sees, vary));
        }
    }
}

#[tokio::test]
async fn handler_of_a_write_sees_all_credentials() {
    let larder = Larder::memory();
    let read = get_route(seen.layer(cache(&larder).ttl(60).public()));
    let app =
        Router::new().route("/x", read.merge(put_route(seen.layer(cache_put(&larder).ttl(60).public()))));
    let fields = [("authorization", "Bearer t"), ("x-forwarded-host", "evil.example")];
    assert_eq!(send(&app, Method::PUT, "/x", &fields).await.text(), "authorization ");
    assert_eq!(get(&app, "/x").await.cache(), "HIT");
    // A method or a URI in a field may change what the request is, so its response isn't stored.
    for name in ["x-http-method-override", "x-original-url"] {
        let answer = send(&app, Method::PUT, "/x", &[(name, "DELETE")]).await;
        assert_eq!((answer.cache(), answer.text()), ("BYPASS", &*format!("{name} ")));
        assert_eq!(get(&app, "/x").await.cache(), "MISS", "{name}");
    }
}

#[tokio::test]
async fn public_routes_send_public_and_keep_must_revalidate() {
    let handler = async || ([("cache-control", "must-revalidate")], "x");
    let app = Router::new().route("/x", get_route(handler.layer(cache(&Larder::memory()).ttl(60).public())));
    for expected in ["MISS", "HIT"] {
        let answer = get(&app, "/x").await;
        assert_eq!(
            (answer.cache(), answer.header("cache-control")),
            (expected, "public, max-age=60, must-revalidate")
        );
    }
}
