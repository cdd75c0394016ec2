//! Safety of the cache: no response reaches another user, no cookie is replayed, no stream is held up.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::handler::Handler;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get as get_route};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, Method};
use http_body_util::BodyExt;
use larder_axum::{Cache, Larder, cache, cache_evict, cache_put};
use larder_tests::in_process::{Runs, get, send, start};
use larder_tests::on_every_store;

/// A route whose handler answers with the user and the number of its run.
fn app(layer: Cache, runs: &Runs) -> Router {
    let runs = runs.clone();
    let handler = move |headers: HeaderMap| async move {
        let who = headers.get("authorization").or(headers.get("cookie"));
        format!("{} {}", who.map_or("anonymous", |value| value.to_str().unwrap()), runs.count())
    };
    Router::new().route("/me", any(handler.layer(layer)))
}

/// A route whose handler always answers the same.
fn answering<R: IntoResponse + Clone + Send + Sync + 'static>(
    larder: &Larder,
    runs: &Runs,
    response: R,
) -> Router {
    let runs = runs.clone();
    let handler = move || async move {
        runs.count();
        response
    };
    Router::new().route("/x", any(handler.layer(cache(larder).ttl(60))))
}

on_every_store! {
    async fn credentials_bypass_undeclared_route(fixture) {
        let runs = Runs::new();
        let app = app(cache(&fixture.larder).ttl(60), &runs);
        for (name, value) in [("authorization", "Bearer alice"), ("cookie", "session=alice")] {
            for _ in 0..2 {
                let answer = send(&app, Method::GET, "/me", &[(name, value)]).await;
                assert_eq!(answer.cache(), "BYPASS");
                assert_eq!(answer.header("cache-control"), "no-store");
                assert!(answer.text().starts_with(value));
            }
        }
        assert_eq!(runs.total(), 4);
        let anonymous = get(&app, "/me").await;
        assert_eq!((anonymous.cache(), anonymous.text()), ("MISS", "anonymous 5"));
        let alice = send(&app, Method::GET, "/me", &[("authorization", "Bearer alice")]).await;
        assert_eq!(alice.text(), "Bearer alice 6", "the entry without credentials isn't served to Alice");
    }

    async fn private_routes_have_an_entry_per_user(fixture) {
        let runs = Runs::new();
        let app = app(cache(&fixture.larder).ttl(60).private(), &runs);
        let ask = async |token: &str| {
            send(&app, Method::GET, "/me", &[("authorization", &format!("Bearer {token}"))]).await
        };
        let (alice, bob) = (ask("alice").await, ask("bob").await);
        assert_eq!((alice.text(), bob.text()), ("Bearer alice 1", "Bearer bob 2"));
        assert_eq!(alice.header("cache-control"), "private, max-age=60");
        let again = ask("alice").await;
        assert_eq!((again.cache(), again.text()), ("HIT", "Bearer alice 1"));
        assert_eq!(again.header("cache-control"), "private, max-age=60");
        // No principal, or credentials that are not a token: the request bypasses the cache.
        for fields in [&[][..], &[("authorization", "Basic YTpi")], &[("cookie", "session=alice")]] {
            assert_eq!(send(&app, Method::GET, "/me", fields).await.cache(), "BYPASS", "{fields:?}");
        }
    }

    async fn custom_principal_is_set_outside_the_cache(fixture) {
        #[derive(Clone)]
        struct User(&'static str);
        let runs = Runs::new();
        let layer = cache(&fixture.larder).ttl(60).private_by(|request| {
            request.extensions.get::<User>().map(|user| user.0.to_owned())
        });
        // Authentication is a layer around the cache: a revoked session never reaches a hit.
        let authenticate = axum::middleware::from_fn(
            |mut request: axum::extract::Request, next: axum::middleware::Next| async move {
                let user = match request.headers().get("cookie").map(|value| value.as_bytes()) {
                    Some(b"session=1") => User("alice"),
                    Some(b"session=2") => User("bob"),
                    _ => return StatusCode::UNAUTHORIZED.into_response(),
                };
                request.extensions_mut().insert(user);
                next.run(request).await
            },
        );
        let app = app(layer, &runs).layer(authenticate);
        let ask = async |cookie: &str| send(&app, Method::GET, "/me", &[("cookie", cookie)]).await;
        assert_eq!(ask("session=1").await.text(), "session=1 1");
        assert_eq!(ask("session=2").await.text(), "session=2 2");
        assert_eq!(ask("session=1").await.cache(), "HIT");
        assert_eq!(ask("session=revoked").await.status, StatusCode::UNAUTHORIZED);
    }

    async fn public_routes_share_entries_with_any_credentials(fixture) {
        let runs = Runs::new();
        let app = app(cache(&fixture.larder).ttl(60).public(), &runs);
        send(&app, Method::GET, "/me", &[("cookie", "theme=dark")]).await;
        let answer = send(&app, Method::GET, "/me", &[("authorization", "Bearer bob")]).await;
        assert_eq!((answer.cache(), runs.total()), ("HIT", 1));
    }

    async fn cookies_are_never_stored(fixture) {
        let runs = Runs::new();
        let app = answering(&fixture.larder, &runs, ([("set-cookie", "session=1")], "hello"));
        for _ in 0..2 {
            let answer = get(&app, "/x").await;
            assert_eq!(answer.cache(), "BYPASS");
            assert_eq!((answer.header("set-cookie"), answer.header("cache-control")), ("session=1", "no-store"));
        }
        assert_eq!(runs.total(), 2);
    }

    async fn responses_with_restrictive_cache_control_are_not_stored(fixture) {
        for control in ["no-store", "private", "no-cache", "max-age=60, Private"] {
            let runs = Runs::new();
            let app = answering(&fixture.larder, &runs, ([("cache-control", control)], "hello"));
            for _ in 0..2 {
                let answer = get(&app, "/x").await;
                assert_eq!((answer.cache(), answer.header("cache-control")), ("BYPASS", control));
            }
            assert_eq!(runs.total(), 2, "{control}");
        }
    }

    async fn only_successful_responses_are_stored(fixture) {
        for status in [201, 204, 206, 301, 302, 400, 404, 410, 500, 503] {
            let runs = Runs::new();
            let app = answering(&fixture.larder, &runs, (StatusCode::from_u16(status).unwrap(), "x"));
            get(&app, "/x").await;
            assert_eq!(get(&app, "/x").await.cache(), "BYPASS", "{status}");
            assert_eq!(runs.total(), 2, "{status}");
        }
    }

    async fn negative_responses_are_stored_with_ttl_for(fixture) {
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move || async move {
            counted.count();
            (StatusCode::NOT_FOUND, "none")
        };
        let layer = cache(&fixture.larder).ttl(600).ttl_for(StatusCode::NOT_FOUND, 5);
        let app = Router::new().route("/x", get_route(handler.layer(layer)));
        get(&app, "/x").await;
        let again = get(&app, "/x").await;
        assert_eq!((again.cache(), again.status, again.text()), ("HIT", StatusCode::NOT_FOUND, "none"));
        assert_eq!(again.header("cache-control"), "max-age=5");
        assert_eq!(runs.total(), 1);
    }

    async fn post_is_neither_answered_nor_stored(fixture) {
        let runs = Runs::new();
        let app = answering(&fixture.larder, &runs, "hello");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
            assert_eq!(send(&app, method.clone(), "/x", &[]).await.cache(), "BYPASS", "{method}");
        }
        assert_eq!(get(&app, "/x").await.cache(), "MISS");
        assert_eq!(runs.total(), 6);
    }

    async fn head_never_answers_a_get(fixture) {
        let runs = Runs::new();
        let app = answering(&fixture.larder, &runs, "hello");
        let head = send(&app, Method::HEAD, "/x", &[]).await;
        assert_eq!((head.cache(), head.text()), ("BYPASS", ""));
        let first = get(&app, "/x").await;
        assert_eq!((first.cache(), first.text()), ("MISS", "hello"));
        let head = send(&app, Method::HEAD, "/x", &[]).await;
        assert_eq!((head.cache(), head.text(), head.header("content-length")), ("HIT", "", "5"));
        assert_eq!(head.header("etag"), first.header("etag"));
        assert_eq!(get(&app, "/x").await.text(), "hello");
        assert_eq!(runs.total(), 2);
    }

    async fn variants_have_separate_entries(fixture) {
        let larder = &fixture.larder;
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move |headers: HeaderMap| async move {
            counted.count();
            let language = headers.get("accept-language").map_or("none", |v| v.to_str().unwrap()).to_owned();
            ([("vary", "Accept-Language")], language)
        };
        let app = Router::new().route(
            "/x",
            get_route(handler.layer(cache(larder).group("g").ttl(60)))
                .delete((async || "gone").layer(cache_evict(larder).group("g").key())),
        );
        let ask = async |language: &str| send(&app, Method::GET, "/x", &[("accept-language", language)]).await;
        for language in ["en", "fr", "de"] {
            let answer = ask(language).await;
            assert_eq!((answer.cache(), answer.text()), ("MISS", language));
        }
        for language in ["en", "fr", "de"] {
            let answer = ask(language).await;
            assert_eq!((answer.cache(), answer.text()), ("HIT", language));
            assert_eq!(answer.header("vary"), "Accept-Language, Authorization, Cookie");
        }
        assert_eq!(get(&app, "/x").await.text(), "none");
        assert_eq!(runs.total(), 4);
        // One eviction of the resource evicts every variant.
        send(&app, Method::DELETE, "/x", &[]).await;
        for language in ["en", "fr"] {
            assert_eq!(ask(language).await.cache(), "MISS", "{language}");
        }
        larder.backend().group("g").delete_group().await;
        assert_eq!(ask("en").await.cache(), "MISS");
    }

    async fn vary_star_is_not_stored(fixture) {
        let runs = Runs::new();
        let app = answering(&fixture.larder, &runs, ([("vary", "*")], "hello"));
        get(&app, "/x").await;
        assert_eq!(get(&app, "/x").await.cache(), "BYPASS");
        assert_eq!(runs.total(), 2);
    }

    async fn coding_is_served_only_to_clients_that_accept_it(fixture) {
        let runs = Runs::new();
        // The handler omits `Vary`.
        let app = answering(&fixture.larder, &runs, ([("content-encoding", "gzip")], "zipped"));
        send(&app, Method::GET, "/x", &[("accept-encoding", "gzip")]).await;
        assert_eq!(send(&app, Method::GET, "/x", &[("accept-encoding", "gzip")]).await.cache(), "HIT");
        assert_eq!(get(&app, "/x").await.cache(), "MISS");
    }

    async fn ranges_and_conditions_are_answered(fixture) {
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move |headers: HeaderMap| async move {
            counted.count();
            if headers.contains_key("if-none-match") || headers.contains_key("if-modified-since") {
                return StatusCode::NOT_MODIFIED.into_response();
            }
            match headers.get("range") {
                Some(_) => (StatusCode::PARTIAL_CONTENT, [("content-range", "bytes 0-0/5")], "h").into_response(),
                None => "hello".into_response(),
            }
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&fixture.larder).ttl(60))));
        let ranged = send(&app, Method::GET, "/x", &[("range", "bytes=0-0")]).await;
        assert_eq!((ranged.cache(), ranged.status, ranged.text()), ("BYPASS", StatusCode::PARTIAL_CONTENT, "h"));
        // The handler must not answer the condition with a 304: the cache checks it afterwards.
        let unknown = send(&app, Method::GET, "/x", &[("if-none-match", "\"other\"")]).await;
        assert_eq!((unknown.cache(), unknown.status, unknown.text()), ("MISS", StatusCode::OK, "hello"));
        let etag = unknown.header("etag").to_owned();
        let known = send(&app, Method::GET, "/x", &[("if-none-match", &etag)]).await;
        assert_eq!((known.cache(), known.status, known.text()), ("HIT", StatusCode::NOT_MODIFIED, ""));
        assert_eq!(send(&app, Method::GET, "/x", &[("if-match", "\"other\"")]).await.cache(), "BYPASS");
        // The whole response is stored by now, and a range of it needs no handler.
        let cut = send(&app, Method::GET, "/x", &[("range", "bytes=1-2")]).await;
        assert_eq!((cut.cache(), cut.status, cut.text()), ("HIT", StatusCode::PARTIAL_CONTENT, "el"));
        assert_eq!((cut.header("content-range"), cut.header("content-length")), ("bytes 1-2/5", "2"));
    }

    async fn endless_bodies_are_streamed_at_once(fixture) {
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move || async move {
            counted.count();
            let ticks = stream::unfold(0u64, |tick| async move {
                if tick > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Some((Ok::<_, Infallible>(Bytes::from(format!("data: {tick}\n\n"))), tick + 1))
            });
            Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(ticks)).unwrap()
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&fixture.larder).ttl(60))));
        for _ in 0..2 {
            let response = tokio::time::timeout(Duration::from_secs(2), start(&app, Method::GET, "/x", &[]));
            let response = response.await.expect("the head comes at once");
            assert_eq!(response.headers()["x-redis-cache"], "BYPASS");
            let mut body = response.into_body();
            for tick in 0..3 {
                let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(frame, format!("data: {tick}\n\n"));
            }
        }
        assert_eq!(runs.total(), 2);
    }

    async fn bodies_over_the_limit_pass_unchanged(fixture) {
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move || async move {
            counted.count();
            "x".repeat(1001)
        };
        let layer = cache(&fixture.larder).ttl(60).max_body(1000);
        let app = Router::new().route("/x", get_route(handler.layer(layer)));
        for _ in 0..2 {
            let answer = get(&app, "/x").await;
            assert_eq!((answer.cache(), answer.status, answer.body.len()), ("BYPASS", StatusCode::OK, 1001));
        }
        assert_eq!(runs.total(), 2);
    }

    async fn broken_off_body_is_passed_on_and_not_stored(fixture) {
        let runs = Runs::new();
        let counted = runs.clone();
        let handler = move || async move {
            counted.count();
            let chunks = stream::iter([Ok("half"), Err("lost")]);
            Response::builder().header("content-length", "8").body(Body::from_stream(chunks)).unwrap()
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&fixture.larder).ttl(60))));
        for _ in 0..2 {
            let mut body = start(&app, Method::GET, "/x", &[]).await.into_body();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
            assert!(body.frame().await.unwrap().is_err());
        }
        assert_eq!(runs.total(), 2);
    }

    async fn nested_routers_do_not_share_keys(fixture) {
        let larder = &fixture.larder;
        let version = |name: &'static str| {
            Router::new().route("/items", get_route((move || async move { name }).layer(cache(larder).ttl(60))))
        };
        let app = Router::new().nest("/v1", version("one")).nest("/v2", version("two"));
        for _ in 0..2 {
            assert_eq!(get(&app, "/v1/items").await.text(), "one");
            assert_eq!(get(&app, "/v2/items").await.text(), "two");
        }
        let whole = Router::new()
            .nest("/v1", Router::new().route("/x", get_route(async || "one")).layer(cache(larder).ttl(60)))
            .nest("/v2", Router::new().route("/x", get_route(async || "two")).layer(cache(larder).ttl(60)));
        for _ in 0..2 {
            assert_eq!(get(&whole, "/v1/x").await.text(), "one");
            assert_eq!(get(&whole, "/v2/x").await.text(), "two");
        }
    }

    async fn stored_responses_omit_fields_of_one_connection(fixture) {
        let fields = [
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("age", "7"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("expires", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("x-kept", "1"),
        ];
        let handler = move || async move { (axum::response::AppendHeaders(fields), "hello") };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&fixture.larder).ttl(60))));
        get(&app, "/x").await;
        let hit = get(&app, "/x").await;
        assert_eq!((hit.cache(), hit.header("x-kept")), ("HIT", "1"));
        for name in ["connection", "x-hop", "keep-alive", "age", "date", "expires"] {
            assert!(!hit.headers.contains_key(HeaderName::from_static(name)), "{name}");
        }
    }

    async fn write_through_of_an_undeclared_route_bypasses_with_credentials(fixture) {
        let larder = &fixture.larder;
        let read = async |headers: HeaderMap| format!("read {}", headers.contains_key("authorization"));
        let write = async |headers: HeaderMap| format!("written by {}", headers["authorization"].to_str().unwrap());
        let app = Router::new().route(
            "/x",
            get_route(read.layer(cache(larder).ttl(60))).put(write.layer(cache_put(larder).ttl(60))),
        );
        get(&app, "/x").await;
        let put = send(&app, Method::PUT, "/x", &[("authorization", "Bearer alice")]).await;
        assert_eq!((put.cache(), put.text()), ("BYPASS", "written by Bearer alice"));
        let read = get(&app, "/x").await;
        assert_eq!((read.cache(), read.text()), ("MISS", "read false"), "evicted, and not replaced by Alice's");
    }

    async fn private_writes_change_only_their_users_entry(fixture) {
        let larder = &fixture.larder;
        let read = async |headers: HeaderMap| format!("read {}", headers["authorization"].to_str().unwrap());
        let write = async |headers: HeaderMap| format!("written {}", headers["authorization"].to_str().unwrap());
        let app = Router::new().route(
            "/me",
            get_route(read.layer(cache(larder).ttl(60).private()))
                .put(write.layer(cache_put(larder).ttl(60).private()))
                .delete((async || "gone").layer(cache_evict(larder).private().key())),
        );
        let (alice, bob) = ([("authorization", "Bearer alice")], [("authorization", "Bearer bob")]);
        send(&app, Method::GET, "/me", &alice).await;
        send(&app, Method::GET, "/me", &bob).await;
        let put = send(&app, Method::PUT, "/me", &alice).await;
        assert_eq!((put.cache(), put.header("cache-control")), ("MISS", "private, max-age=60"));
        assert_eq!(send(&app, Method::GET, "/me", &alice).await.text(), "written Bearer alice");
        assert_eq!(send(&app, Method::GET, "/me", &bob).await.text(), "read Bearer bob");
        send(&app, Method::DELETE, "/me", &alice).await;
        assert_eq!(send(&app, Method::GET, "/me", &alice).await.text(), "read Bearer alice");
        assert_eq!(send(&app, Method::GET, "/me", &bob).await.cache(), "HIT");
    }

    async fn variants_whose_record_was_deleted_are_replaced(fixture) {
        let larder = &fixture.larder;
        let handler = async |headers: HeaderMap| {
            ([("vary", "Accept-Language")], headers["accept-language"].to_str().unwrap().to_owned())
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(larder).group("g"))));
        let ask = async |language: &str| send(&app, Method::GET, "/x", &[("accept-language", language)]).await;
        for language in ["en", "fr"] {
            ask(language).await;
        }
        assert!(larder.backend().group("g").delete("x").await);
        for language in ["en", "fr"] {
            assert_eq!(ask(language).await.cache(), "MISS", "{language}");
            let hit = ask(language).await;
            assert_eq!((hit.cache(), hit.text()), ("HIT", language));
        }
    }

    async fn private_response_on_a_private_route_is_stored(fixture) {
        let handler = async || ([("cache-control", "private")], "mine");
        let layer = cache(&fixture.larder).ttl(60).private();
        let app = Router::new().route("/x", get_route(handler.layer(layer)));
        for cache in ["MISS", "HIT"] {
            let answer = send(&app, Method::GET, "/x", &[("authorization", "Bearer alice")]).await;
            assert_eq!((answer.cache(), answer.header("cache-control")), (cache, "private, max-age=60"));
        }
    }
}
