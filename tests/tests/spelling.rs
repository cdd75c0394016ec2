//! Resources with several spellings, through real routers: evictions reach all of them, and no spelling reads or writes an entry
//! of another handler.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::handler::Handler;
use axum::response::Html;
use axum::routing::get as get_route;
use axum::{Router, http::StatusCode};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Full;
use larder_axum::{Larder, default_key};
use larder_tests::framework::{App, larder, outcome_of};
use larder_tests::in_process::Runs;
use poem::EndpointExt;
use tower::Layer;

#[derive(Clone, Copy, Debug)]
enum Framework {
    Axum,
    Poem,
}

const BOTH: [Framework; 2] = [Framework::Axum, Framework::Poem];

/// An app with these patterns, in axum's notation. GET is cached, PUT writes through, DELETE evicts. A handler answers with its
/// pattern and the number of its run.
fn routes(framework: Framework, larder: &Larder, patterns: &[&'static str], by: Option<Builder>) -> App {
    match framework {
        Framework::Axum => {
            let mut router = Router::new();
            for &pattern in patterns {
                let runs = Runs::new();
                let handler = move || async move { format!("{pattern} {}", runs.count()) };
                let (read, put, evict) = (
                    larder_axum::cache(larder).group("g").ttl(60),
                    larder_axum::cache_put(larder).group("g").ttl(60),
                    larder_axum::cache_evict(larder).group("g"),
                );
                let (read, put, evict) = match by {
                    Some(by) => (read.key_by(by), put.key_by(by), evict.key_by(by)),
                    None => (read, put, evict.key()),
                };
                let route = get_route(handler.clone().layer(read))
                    .put(handler.clone().layer(put))
                    .delete(handler.layer(evict));
                router = router.route(pattern, route);
            }
            App::axum(router)
        }
        Framework::Poem => {
            let mut router = poem::Route::new();
            for &pattern in patterns {
                let runs = Runs::new();
                let handler = poem::endpoint::make_sync(move |_| format!("{pattern} {}", runs.count()));
                let handler = Arc::new(handler);
                let (read, put, evict) = (
                    larder_poem::cache(larder).group("g").ttl(60),
                    larder_poem::cache_put(larder).group("g").ttl(60),
                    larder_poem::cache_evict(larder).group("g"),
                );
                let (read, put, evict) = match by {
                    Some(by) => (read.key_by(by), put.key_by(by), evict.key_by(by)),
                    None => (read, put, evict.key()),
                };
                let route = poem::get(Arc::clone(&handler).with(read))
                    .put(Arc::clone(&handler).with(put))
                    .delete(handler.with(evict));
                router = router.at(pattern.replace("{*", "*").replace('{', ":").replace('}', ""), route);
            }
            App::poem(router)
        }
    }
}

type Builder = fn(&larder_axum::RequestView<'_>) -> Option<String>;

#[tokio::test]
async fn spelling_of_another_handler_does_not_get_its_response() {
    for framework in BOTH {
        let app = routes(framework, &larder(), &["/products/{slug}", "/products/featured"], None);
        let stranger = app.get("/products/%66eatured").await;
        assert_eq!((outcome_of(&stranger).as_str(), stranger.text()), ("MISS absent", "/products/{slug} 1"));
        // The canonical spelling belongs to the other handler, which takes the entry.
        let house = app.get("/products/featured").await;
        assert_eq!(
            (outcome_of(&house).as_str(), house.text()),
            ("MISS pattern", "/products/featured 1"),
            "{framework:?}"
        );
        assert_eq!(outcome_of(&app.get("/products/featured").await), "HIT");
        // The first handler doesn't take it back.
        for _ in 0..2 {
            let stranger = app.get("/products/%66eatured").await;
            assert_eq!(
                (outcome_of(&stranger).as_str(), &stranger.text()[..16]),
                ("BYPASS pattern", "/products/{slug}")
            );
        }
        let house = app.get("/products/featured").await;
        assert_eq!(
            (outcome_of(&house).as_str(), house.text()),
            ("HIT", "/products/featured 1"),
            "{framework:?}"
        );
    }
}

#[tokio::test]
async fn other_spellings_get_no_internal_page() {
    for framework in BOTH {
        let app = routes(framework, &larder(), &["/docs/{page}", "/docs/intro"], None);
        assert_eq!(app.get("/docs/intro").await.text(), "/docs/intro 1");
        for uri in ["/docs/%69ntro", "/docs/intr%6F", "/docs/intr%6f"] {
            for fields in [&[][..], &[("cache-control", "no-cache")], &[("range", "bytes=0-1")]] {
                let answer = app.send_with(Method::GET, uri, fields).await;
                assert_eq!(
                    (answer.cache(), &answer.text()[..12]),
                    ("BYPASS", "/docs/{page}"),
                    "{uri} {fields:?}"
                );
            }
            let conditional = app.send_with(Method::GET, uri, &[("if-none-match", "*")]).await;
            assert_eq!(conditional.status, StatusCode::OK);
            let unsatisfiable = app.send_with(Method::GET, uri, &[("cache-control", "only-if-cached")]).await;
            assert_ne!(unsatisfiable.text(), "/docs/intro 1");
            assert_eq!(app.send(Method::HEAD, uri).await.cache(), "BYPASS");
        }
        let intro = app.get("/docs/intro").await;
        assert_eq!((outcome_of(&intro).as_str(), intro.text()), ("HIT", "/docs/intro 1"), "{framework:?}");
    }
}

#[tokio::test]
async fn write_by_another_spelling_replaces_no_other_handlers_entry() {
    for framework in BOTH {
        let app = routes(framework, &larder(), &["/pages/{name}", "/pages/terms"], None);
        assert_eq!(app.get("/pages/terms").await.text(), "/pages/terms 1");
        let written = app.send(Method::PUT, "/pages/%74erms").await;
        assert_eq!(written.text(), "/pages/{name} 1");
        let house = app.get("/pages/terms").await;
        assert_eq!(
            (outcome_of(&house).as_str(), house.text()),
            ("MISS absent", "/pages/terms 2"),
            "{framework:?}"
        );
        // With nothing stored it stores its response, but reads of the other handler don't get it.
        app.send(Method::DELETE, "/pages/terms").await;
        app.send(Method::PUT, "/pages/%74erms").await;
        let house = app.get("/pages/terms").await;
        assert_eq!(
            (outcome_of(&house).as_str(), &house.text()[..12]),
            ("MISS pattern", "/pages/terms"),
            "{framework:?}"
        );
        assert_eq!(outcome_of(&app.get("/pages/terms").await), "HIT");
    }
}

#[tokio::test]
async fn spellings_of_one_handler_share_an_entry_and_evict_it() {
    let spellings = [
        ("/users/a@b.example", "/users/a%40b.example"),
        ("/users/a,b:c", "/users/a%2Cb%3Ac"),
        ("/users/'!()*'", "/users/%27%21%28%29%2a%27"),
        ("/users/+=&$;", "/users/%2B%3D%26%24%3B"),
        ("/users/7", "/users/%37"),
        ("/users/~me-._", "/users/%7Eme%2D%2E%5F"),
        ("/users/caf%C3%A9", "/users/caf%c3%a9"),
        ("/users/a%20b", "/users/a%20%62"),
        ("/users/7?q=a+b", "/users/7?q=a%20b"),
        ("/users/7?q=a%20b", "/users/%37?%71=a+b"),
        ("/users/7?a=1", "/users/7?a=1&"),
        ("/users/7?a", "/users/7?a="),
        ("/users/7?a&", "/users/7?a"),
        ("/users/7", "/users/7?"),
        ("/users/7", "/users/7?&"),
        ("/users/7?q=@:/?!$'()*,;", "/users/7?q=%40%3a%2f%3F%21%24%27%28%29%2A%2C%3B"),
        ("/users/7?ids[]=1&ids[]=2", "/users/7?ids%5B%5D=1&ids%5b%5d=2"),
        ("/users/7?b=2&a=1", "/users/7?%61=1&b=2"),
        ("/users/7?a=1=2", "/users/7?a=1%3D2"),
    ];
    for framework in BOTH {
        for (one, other) in spellings {
            for (one, other) in [(one, other), (other, one)] {
                let app = routes(framework, &larder(), &["/users/{name}"], None);
                assert_eq!(outcome_of(&app.get(one).await), "MISS absent", "{one}");
                assert_eq!(outcome_of(&app.get(other).await), "HIT", "{framework:?} {other}");
                app.send(Method::DELETE, other).await;
                assert_eq!(
                    outcome_of(&app.get(one).await),
                    "MISS absent",
                    "{framework:?} {one} after {other}"
                );
                app.send(Method::PUT, other).await;
                assert_eq!(outcome_of(&app.get(one).await), "HIT", "{framework:?} {one} after {other}");
            }
        }
    }
}

#[tokio::test]
async fn paths_that_a_handler_distinguishes_have_separate_entries() {
    for framework in BOTH {
        let app = routes(framework, &larder(), &["/users/{name}"], None);
        for uri in [
            "/users/a%2Fb",
            "/users/a%252Fb",
            "/users/a+b",
            "/users/a%20b",
            "/users/7?q=a+b",
            "/users/7?q=a%2Bb",
            "/users/7?a=1&b=2",
            "/users/7?a=1%26b=2",
            "/users/7?a%3D1",
            "/users/7?a=1",
            "/users/7?ids[]=1&ids%5B%5D=2",
            "/users/7?ids%5B%5D=2&ids[]=1",
        ] {
            assert_eq!(outcome_of(&app.get(uri).await), "MISS absent", "{framework:?} {uri}");
        }
    }
}

#[tokio::test]
async fn only_the_canonical_spelling_is_cached_behind_a_catch_all() {
    for framework in BOTH {
        let app = routes(framework, &larder(), &["/files/{*path}"], None);
        for uri in ["/files/%61", "/files/a%40b", "/files/%7e/x"] {
            for _ in 0..2 {
                assert_eq!(outcome_of(&app.get(uri).await), "BYPASS spelling", "{framework:?} {uri}");
            }
        }
        assert_eq!(outcome_of(&app.get("/files/a").await), "MISS absent");
        assert_eq!(outcome_of(&app.get("/files/a").await), "HIT");
        // A write or an eviction by another spelling evicts.
        for method in [Method::PUT, Method::DELETE] {
            app.send(method, "/files/%61").await;
            assert_eq!(outcome_of(&app.get("/files/a").await), "MISS absent", "{framework:?}");
        }
    }
}

#[tokio::test]
async fn custom_keys_are_as_safe() {
    let by: Builder = |request| default_key(request);
    for framework in BOTH {
        let app = routes(framework, &larder(), &["/p/{slug}", "/p/featured", "/f/{*path}"], Some(by));
        assert_eq!(app.get("/p/%66eatured").await.text(), "/p/{slug} 1");
        let house = app.get("/p/featured").await;
        assert_eq!(
            (outcome_of(&house).as_str(), house.text()),
            ("MISS pattern", "/p/featured 1"),
            "{framework:?}"
        );
        assert_eq!(outcome_of(&app.get("/p/%66eatured").await), "BYPASS pattern");
        assert_eq!(outcome_of(&app.get("/f/%61").await), "BYPASS spelling");
        assert_eq!(outcome_of(&app.get("/p/a%40b").await), "MISS absent");
        assert_eq!(outcome_of(&app.get("/p/a@b").await), "HIT");
    }
    // With the author's own key builder, routes of several patterns can share an entry.
    let by: Builder = |request| Some(format!("product:{}", request.uri.path().rsplit('/').next()?));
    for framework in BOTH {
        let app = routes(framework, &larder(), &["/products/{id}", "/v2/articles/{id}"], Some(by));
        assert_eq!(outcome_of(&app.get("/products/7").await), "MISS absent");
        assert_eq!(outcome_of(&app.get("/v2/articles/7").await), "HIT", "{framework:?}");
        app.send(Method::DELETE, "/v2/articles/7").await;
        assert_eq!(outcome_of(&app.get("/products/7").await), "MISS absent", "{framework:?}");
    }
}

#[tokio::test]
async fn layer_around_a_router_never_serves_a_route_the_fallbacks_response() {
    let larder = larder();
    let cache = larder_axum::cache(&larder).ttl(60).ttl_for(StatusCode::NOT_FOUND, 60);
    let router = Router::new()
        .route("/api/prices", get_route(|| async { "prices" }))
        .route("/about", get_route(|| async { "about" }))
        .fallback(|| async { (StatusCode::NOT_FOUND, Html("<p>")) });
    let poem = poem::Route::new()
        .at("/api/prices", poem::get(poem::endpoint::make_sync(|_| "prices")))
        .at("/about", poem::get(poem::endpoint::make_sync(|_| "about")))
        .at("/*rest", poem::endpoint::make_sync(|_| poem::http::StatusCode::NOT_FOUND));
    let nested = poem::Route::new().nest(
        "/v1",
        poem::Route::new()
            .at("/about", poem::get(poem::endpoint::make_sync(|_| "about")))
            .at("/*rest", poem::endpoint::make_sync(|_| poem::http::StatusCode::NOT_FOUND))
            .with(larder_poem::cache(&larder).group("nested").ttl(60).ttl_for(StatusCode::NOT_FOUND, 60)),
    );
    let around = larder_poem::cache(&larder).group("poem").ttl(60).ttl_for(StatusCode::NOT_FOUND, 60);
    for (app, spelled, canonical, text) in [
        (App::axum(router.clone().layer(cache.clone())), "/api/%70rices", "/api/prices", "prices"),
        (App::axum(router.layer(cache.group("other"))), "/%61bout", "/about", "about"),
        (App::poem(poem.with(around)), "/%61bout", "/about", "about"),
        (App::poem(nested), "/v1/%61bout", "/v1/about", "about"),
    ] {
        assert_eq!(outcome_of(&app.get(spelled).await), "BYPASS spelling", "{spelled}");
        let house = app.get(canonical).await;
        assert_eq!((outcome_of(&house).as_str(), house.text()), ("MISS absent", text));
        assert_eq!(outcome_of(&app.get(spelled).await), "BYPASS spelling", "{spelled}");
        assert_eq!(app.get(canonical).await.text(), text);
    }
}

#[tokio::test]
async fn only_the_canonical_spelling_is_cached_without_a_router() {
    let larder = larder();
    let runs = Runs::new();
    // The service routes by the raw path, as an origin behind a gateway does.
    let handler = tower::service_fn(move |request: Request<Body>| {
        let text = format!("{} {}", request.uri(), runs.count());
        async move { Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from(text))) }
    });
    let (read, put, evict) = (
        App::tower(larder_tower::cache(&larder).ttl(60).layer(handler.clone())),
        App::tower(larder_tower::cache_put(&larder).ttl(60).layer(handler.clone())),
        App::tower(larder_tower::cache_evict(&larder).key().layer(handler)),
    );
    assert_eq!(outcome_of(&read.get("/p/%66eatured").await), "BYPASS spelling");
    assert_eq!(outcome_of(&read.get("/p/featured").await), "MISS absent");
    assert_eq!(outcome_of(&read.get("/p/%66eatured").await), "BYPASS spelling");
    assert_eq!(read.get("/p/featured").await.text(), "/p/featured 2");
    assert_eq!(outcome_of(&put.send(Method::PUT, "/p/%66eatured").await), "BYPASS spelling");
    assert_eq!(outcome_of(&read.get("/p/featured").await), "MISS absent");
    evict.send(Method::DELETE, "/p/%66eatured").await;
    assert_eq!(outcome_of(&read.get("/p/featured").await), "MISS absent");
    assert_eq!(outcome_of(&put.send(Method::PUT, "/p/featured").await), "MISS method");
    assert_eq!(outcome_of(&read.get("/p/featured").await), "HIT");
}

#[tokio::test]
async fn variants_belong_to_their_pattern() {
    let larder = larder();
    let route = |name: &'static str| {
        let handler = move |fields: HeaderMap| async move {
            let language = fields.get("accept-language").map_or("none", |value| value.to_str().unwrap());
            ([("vary", "accept-language")], format!("{name} {language}"))
        };
        get_route(handler.layer(larder_axum::cache(&larder).ttl(60)))
    };
    let app =
        App::axum(Router::new().route("/p/{slug}", route("slug")).route("/p/featured", route("featured")));
    let ask = async |uri, language| {
        let answer = app.send_with(Method::GET, uri, &[("accept-language", language)]).await;
        (outcome_of(&answer), answer.text().to_owned())
    };
    let is = |outcome: &str, text: &str| (outcome.to_owned(), text.to_owned());
    assert_eq!(ask("/p/featured", "en").await, is("MISS absent", "featured en"));
    assert_eq!(ask("/p/%66eatured", "en").await, is("BYPASS pattern", "slug en"));
    assert_eq!(ask("/p/%66eatured", "de").await, is("BYPASS pattern", "slug de"));
    assert_eq!(ask("/p/featured", "de").await, is("MISS variant", "featured de"));
    for language in ["en", "de"] {
        assert_eq!(ask("/p/featured", language).await, is("HIT", &format!("featured {language}")));
    }
    // In the other order.
    larder.evict(&larder.key_for(None, &"/p/featured".parse().unwrap()).unwrap()).await;
    assert_eq!(ask("/p/%66eatured", "en").await, is("MISS absent", "slug en"));
    assert_eq!(ask("/p/featured", "en").await, is("MISS pattern", "featured en"));
    assert_eq!(ask("/p/featured", "en").await, is("HIT", "featured en"));
    assert_eq!(ask("/p/%66eatured", "en").await, is("BYPASS pattern", "slug en"));
}

#[tokio::test]
async fn requests_do_not_wait_for_another_patterns_run() {
    let larder = larder();
    let cache = larder_axum::cache(&larder).ttl(60);
    let never = std::future::pending::<&str>;
    let router = Router::new()
        .route("/p/{slug}", get_route(never.layer(cache.clone())))
        .route("/p/featured", get_route((|| async { "featured" }).layer(cache)));
    let app = App::axum(router);
    for fields in [&[][..], &[("cache-control", "no-cache")]] {
        let stuck = app.clone();
        let stuck = tokio::spawn(async move { stuck.send_with(Method::GET, "/p/%66eatured", fields).await });
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        let house =
            tokio::time::timeout(Duration::from_secs(2), app.get("/p/featured")).await.expect("no waiting");
        assert_eq!(house.text(), "featured", "{fields:?}");
        stuck.abort();
    }
}

#[tokio::test]
async fn refused_spelling_does_not_stop_a_route_from_being_stored() {
    let larder = larder();
    let cache = larder_axum::cache(&larder).ttl(60);
    let router = Router::new()
        .route("/p/{slug}", get_route((|| async { StatusCode::NOT_FOUND }).layer(cache.clone())))
        .route("/p/featured", get_route((|| async { "featured" }).layer(cache)));
    let app = App::axum(router);
    assert_eq!(outcome_of(&app.get("/p/%66eatured").await), "BYPASS status");
    // The lease is returned in the background.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(outcome_of(&app.get("/p/featured").await), "MISS absent");
    assert_eq!(outcome_of(&app.get("/p/featured").await), "HIT");
}
