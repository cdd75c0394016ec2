//! Resources that vary: each client gets a response that it accepts, each variant is stored once, and no client keeps out
//! another's.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::{get as get_route, put as put_route};
use http::Method;
use larder_axum::{Larder, cache, cache_evict, cache_put};
use larder_tests::in_process::{Answer, Runs, get, send};
use tokio::sync::Semaphore;

/// The fields and the body of a response.
type FieldsAndBody = (Vec<(&'static str, String)>, String);

/// A route whose handler makes its fields and body from the fields of the request.
fn app(runs: &Runs, answer: fn(&HeaderMap) -> FieldsAndBody) -> Router {
    let runs = runs.clone();
    let handler = move |headers: HeaderMap| async move {
        runs.count();
        let (fields, body) = answer(&headers);
        let mut response = body.into_response();
        for (name, value) in fields {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        response
    };
    Router::new().route("/x", get_route(handler.layer(cache(&Larder::memory()).public().ttl(60))))
}

fn field(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

async fn with(app: &Router, name: &str, value: &str) -> Answer {
    send(app, Method::GET, "/x", &[(name, value)]).await
}

/// A handler that compresses, and sends `Vary` only then.
fn zips(headers: &HeaderMap) -> FieldsAndBody {
    if field(headers, "accept-encoding").contains("gzip") {
        (vec![("content-encoding", "gzip".into())], "zipped".into())
    } else {
        (vec![], "plain".into())
    }
}

#[tokio::test]
async fn response_without_vary_keeps_the_other_variants() {
    let runs = Runs::new();
    let app = app(&runs, zips);
    for _ in 0..4 {
        assert_eq!(with(&app, "accept-encoding", "gzip").await.text(), "zipped");
        assert_eq!(get(&app, "/x").await.text(), "plain");
    }
    assert_eq!(runs.total(), 2);
    // The response without `Vary` must also tell downstream caches about it.
    for answer in [get(&app, "/x").await, with(&app, "accept-encoding", "gzip").await] {
        assert!(
            answer.header("vary").to_ascii_lowercase().contains("accept-encoding"),
            "{:?}",
            answer.headers
        );
    }
}

#[tokio::test]
async fn spellings_of_accept_encoding_run_the_handler_once() {
    let runs = Runs::new();
    let app = app(&runs, |headers| {
        let (mut fields, body) = zips(headers);
        fields.push(("vary", "accept-encoding".into()));
        (fields, body)
    });
    for spelling in [
        "gzip, deflate, br",
        "br,deflate , GZIP",
        "deflate;q=1.0, br;q=1, gzip",
        "deflate, gzip, br, sdch, zstd;q=0",
    ] {
        assert_eq!(with(&app, "accept-encoding", spelling).await.text(), "zipped", "{spelling}");
    }
    assert_eq!(runs.total(), 1);
}

#[tokio::test]
async fn clients_that_differ_in_undeclared_codings_share_a_variant() {
    let runs = Runs::new();
    let counted = runs.clone();
    let handler = move |headers: HeaderMap| async move {
        counted.count();
        let (fields, _) = zips(&headers);
        let mut response = field(&headers, "accept-encoding").into_response();
        response.headers_mut().append("vary", "accept-encoding".parse().unwrap());
        for (name, value) in fields {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        response
    };
    let layer = cache(&Larder::memory()).public().ttl(60).content_codings(["gzip"]);
    let app = Router::new().route("/x", get_route(handler.layer(layer)));
    for (run, (seen, spellings)) in [
        ("gzip", &["gzip, deflate, br, zstd", "gzip", "x-gzip;q=0.3, br", "*"][..]),
        ("identity", &["br", "", "gzip;q=0, zstd", "identity"]),
        // No declared coding is acceptable, so the handler sees the whole field.
        ("br, identity;q=0", &["br, identity;q=0"]),
    ]
    .into_iter()
    .enumerate()
    {
        for (asked, spelling) in spellings.iter().enumerate() {
            let answer = with(&app, "accept-encoding", spelling).await;
            assert_eq!((answer.text(), runs.total()), (seen, run + 1), "{spelling:?}");
            assert_eq!(answer.cache(), if asked == 0 { "MISS" } else { "HIT" }, "{spelling:?}");
            assert_eq!(answer.header("vary"), "accept-encoding", "{spelling:?}");
        }
    }
}

#[test]
#[should_panic(expected = "\"a coding\" is no content coding")]
fn content_coding_that_is_no_token_is_refused() {
    let _ = cache(&Larder::memory()).content_codings(["gzip", "a coding"]);
}

/// A CORS handler that allows every origin by name, and sends `Vary` only to requests with an `Origin`.
fn cors(headers: &HeaderMap) -> FieldsAndBody {
    let origin = field(headers, "origin");
    if origin.is_empty() {
        (vec![], "x".into())
    } else {
        (vec![("access-control-allow-origin", origin), ("vary", "origin".into())], "x".into())
    }
}

#[tokio::test]
async fn occasional_vary_origin_loses_neither_cors_fields_nor_hits() {
    let (a, b) = ("https://a.example", "https://b.example");
    // In any order, each kind of client costs two runs at most.
    for order in [["", a, b], [a, "", b], [a, b, ""]] {
        let runs = Runs::new();
        let app = app(&runs, cors);
        for round in 0..3 {
            for origin in order {
                let answer = if origin.is_empty() {
                    get(&app, "/x").await
                } else {
                    with(&app, "origin", origin).await
                };
                assert_eq!(answer.header("access-control-allow-origin"), origin, "{order:?}, round {round}");
                assert!(round < 2 || answer.cache() == "HIT", "{order:?}");
            }
        }
        assert!(runs.total() <= 4, "{order:?}: {} runs", runs.total());
    }
}

#[tokio::test]
async fn requests_with_an_origin_are_hits_if_no_response_varies_by_it() {
    let runs = Runs::new();
    let app = app(&runs, |_| (vec![], "x".into()));
    get(&app, "/x").await;
    with(&app, "origin", "https://a.example").await;
    for origin in ["https://a.example", "https://b.example"] {
        assert_eq!(with(&app, "origin", origin).await.cache(), "HIT");
    }
    assert_eq!(get(&app, "/x").await.cache(), "HIT");
    assert_eq!(runs.total(), 2);
}

fn language(headers: &HeaderMap) -> FieldsAndBody {
    (vec![("vary", "accept-language".into())], field(headers, "accept-language"))
}

#[tokio::test]
async fn made_up_languages_do_not_keep_out_a_real_one() {
    let app = app(&Runs::new(), language);
    for made_up in 0..200 {
        with(&app, "accept-language", &format!("x-{made_up}")).await;
    }
    assert_eq!(with(&app, "accept-language", "en").await.cache(), "MISS");
    assert_eq!(with(&app, "accept-language", "en").await.cache(), "HIT");
    // The list is still bounded: the variant that was stored first is dropped.
    assert_eq!(with(&app, "accept-language", "x-0").await.cache(), "MISS");
}

/// A route whose responses in German wait for a permit.
fn gated(larder: &Larder, gate: &Arc<Semaphore>) -> Router {
    let gate = Arc::clone(gate);
    let read = move |headers: HeaderMap| async move {
        let language = field(&headers, "accept-language");
        if language == "de" {
            gate.acquire().await.unwrap().forget();
        }
        ([("vary", "accept-language")], language)
    };
    let evict = async || "evicted";
    Router::new().route(
        "/x",
        get_route(read.layer(cache(larder).public().ttl(600))).delete(evict.layer(cache_evict(larder).key())),
    )
}

#[tokio::test]
async fn revoked_fill_of_a_new_variant_reports_its_reason() {
    let larder = Larder::builder().cache_status(true).store(larder_axum::MemoryStore::new()).build();
    let gate = Arc::new(Semaphore::new(0));
    let app = gated(&larder, &gate);
    with(&app, "accept-language", "en").await;
    let german = tokio::spawn({
        let app = app.clone();
        async move { with(&app, "accept-language", "de").await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    send(&app, Method::DELETE, "/x", &[]).await;
    gate.add_permits(1);
    let german = german.await.unwrap();
    assert_eq!(german.header("cache-control"), "no-cache");
    assert!(german.header("cache-status").ends_with("detail=evicted"), "{:?}", german.headers);
    gate.add_permits(1);
    assert_eq!(with(&app, "accept-language", "de").await.cache(), "MISS");
}

#[tokio::test]
async fn put_without_vary_is_served_to_no_language_around_an_eviction() {
    let larder = Larder::memory();
    let read = async |headers: HeaderMap| ([("vary", "accept-language")], field(&headers, "accept-language"));
    let write = async || "in the language of the writer";
    let app = Router::new().route(
        "/x",
        get_route(read.layer(cache(&larder).public().ttl(60)))
            .merge(put_route(write.layer(cache_put(&larder).public().ttl(60))))
            .delete((async || "").layer(cache_evict(&larder).key())),
    );
    for evicted_before in [false, true] {
        for language in ["en", "fr"] {
            with(&app, "accept-language", language).await;
        }
        if evicted_before {
            send(&app, Method::DELETE, "/x", &[]).await;
        }
        send(&app, Method::PUT, "/x", &[("accept-language", "de")]).await;
        for language in ["en", "fr"] {
            assert_eq!(with(&app, "accept-language", language).await.text(), language, "{evicted_before}");
        }
    }
}
