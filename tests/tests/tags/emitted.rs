//! Tags that routes name to other caches.

use http::HeaderName;
use larder_axum::{SharedCacheLayer, TagField};
use larder_tests::in_process::Answer;

use super::*;

/// Returns the only line of a field, or "".
fn line<'a>(answer: &'a Answer, name: &str) -> &'a str {
    assert!(answer.headers.get_all(name).iter().count() < 2, "{name}: {answer:?}");
    answer.header(name)
}

fn fields(answer: &Answer) -> [&str; 3] {
    ["cache-groups", "surrogate-key", "cache-tag"].map(|name| line(answer, name))
}

fn all(layer: larder_axum::Cache) -> larder_axum::Cache {
    layer.emit_tags(TagField::CacheGroups).emit_tags(TagField::SurrogateKey).emit_tags(TagField::CacheTag)
}

on_stores_with_tags! {
    async fn tags_are_named_in_hits_304s_and_misses_alike(larder) {
        let read = async || (Tags::of(["shop:3", "a b", "caf\u{e9}, 5%"]), [("etag", "\"e\"")], "x");
        let layer = all(cache(&larder).ttl(300).tag("catalog").tags_by(|_| ["catalog"]).evict_by_path());
        let app = Router::new().route("/x", get_route(read.layer(layer)));
        let expected = [
            r#""a b", "caf%C3%A9, 5%25", "catalog", "shop:3""#,
            "a%20b caf%C3%A9,%205%25 catalog shop:3",
            "a%20b,caf%C3%A9%2C%205%25,catalog,shop:3",
        ];
        for (method, conditions, status, outcome) in [
            (Method::HEAD, &[][..], 200, "BYPASS"),
            (Method::GET, &[("authorization", "x")], 200, "BYPASS"),
            (Method::GET, &[("cache-control", "no-store")], 200, "BYPASS"),
            (Method::GET, &[("if-none-match", "\"e\"")], 304, "MISS"),
            (Method::GET, &[], 200, "HIT"),
            (Method::HEAD, &[], 200, "HIT"),
            (Method::GET, &[("if-none-match", "\"e\"")], 304, "HIT"),
            (Method::GET, &[("cache-control", "no-cache")], 200, "MISS"),
        ] {
            let answer = send(&app, method.clone(), "/x", conditions).await;
            let case = format!("{method} {conditions:?}: {answer:?}");
            assert_eq!((answer.status.as_u16(), answer.cache()), (status, outcome), "{case}");
            assert_eq!(fields(&answer), expected, "{case}");
        }
        let part = send(&app, Method::GET, "/x", &[("range", "bytes=0-0")]).await;
        assert_eq!((part.status, fields(&part)), (StatusCode::PARTIAL_CONTENT, expected));
        // The words that the fields name evict here, too.
        assert!(larder.evict_tag("a b").await);
        is_new(&app, "/x").await;
    }

    async fn write_through_keeps_the_fields_of_its_entry(larder) {
        let read = async || (Tags::of(["read"]), "old");
        let write = async || (Tags::of(["written"]), EvictTags::of(["list", "other"]), [("location", "/y")], "new");
        let put = cache_put(&larder).ttl(300).tag("put").emit_tags(TagField::CacheTag).emit_tags(TagField::CacheGroups);
        let app = Router::new().route("/x", get_route(read.layer(all(cache(&larder).ttl(300)))).put(write.layer(put)));
        assert_eq!(fields(&get(&app, "/x").await), [r#""read""#, "read", "read"]);
        let written = send(&app, Method::PUT, "/x", &[]).await;
        assert_eq!(fields(&written), [r#""put", "written""#, "", "put,written"]);
        assert_eq!(line(&written, "cache-group-invalidation"), r#""list", "other""#);
        let hit = get(&app, "/x").await;
        assert_eq!((hit.cache(), hit.text()), ("HIT", "new"));
        assert_eq!(fields(&hit), [r#""put", "written""#, "", "put,written"]);
        assert!(!hit.headers.contains_key("cache-group-invalidation") && !hit.headers.contains_key("location"));
    }

    async fn evicting_routes_name_what_they_evicted(larder) {
        let status = Arc::new(AtomicU16::new(200));
        let answered = Arc::clone(&status);
        let write = move || async move { StatusCode::from_u16(answered.load(Ordering::SeqCst)).unwrap() };
        let plain = write.clone();
        let named = move || async move {
            (EvictTags::of(["b\u{e9}", "a"]).soft(), [("cache-group-invalidation", r#""own";x"#)], write().await)
        };
        let evict = || cache_evict(&larder).emit_tags(TagField::CacheGroups).emit_tags(TagField::SurrogateKey);
        let app = Router::new()
            .route("/named", post(named.clone().layer(evict().tags_of_response())))
            .route("/both", post(named.clone().layer(evict().key().tag("c").tags_by(|_| ["d", "a"]))))
            .route("/fixed", post(plain.clone().layer(evict().tag("c"))))
            .route("/key", post(plain.clone().layer(evict().key())))
            .route("/silent", post(named.layer(cache_evict(&larder).tags_of_response())));
        for (uri, own, expected) in [
            ("/named", r#""own";x"#, r#""own", "a", "b%C3%A9""#),
            ("/both", r#""own";x"#, r#""own", "a", "d", "c", "b%C3%A9""#),
            ("/fixed", "", r#""c""#),
            ("/key", "", ""),
            ("/silent", r#""own";x"#, r#""own";x"#),
        ] {
            for (code, evicts) in [(200, true), (204, true), (303, true), (404, false), (500, true)] {
                status.store(code, Ordering::SeqCst);
                let answer = send(&app, Method::POST, uri, &[]).await;
                let told = line(&answer, "cache-group-invalidation");
                assert_eq!(told, if evicts { expected } else { own }, "{uri} {code}");
                assert_eq!(fields(&answer), ["", "", ""], "{uri} {code}");
            }
        }
    }

    async fn reserved_tags_are_never_named(larder) {
        let read = async || "x";
        let private = all(cache(&larder).private().evict_by_principal().evict_by_path());
        let app = Router::new().route("/x", get_route(read.layer(private)));
        let token = [("authorization", "Bearer alice")];
        for outcome in ["MISS", "HIT"] {
            let answer = send(&app, Method::GET, "/x", &token).await;
            assert_eq!((answer.cache(), fields(&answer)), (outcome, ["", "", ""]));
        }
    }

    async fn own_lines_of_the_handler_are_combined(larder) {
        let read = async || {
            let mut response = (Tags::of(["b"]), "x").into_response();
            for (name, value) in [
                ("surrogate-key", "own"),
                ("surrogate-key", "own2 own3"),
                ("cache-tag", "own"),
                ("cache-groups", r#""own";p"#),
                ("cache-groups", r#""b", "own2""#),
            ] {
                response.headers_mut().append(HeaderName::from_static(name), value.parse().unwrap());
            }
            response
        };
        let app = Router::new().route("/x", get_route(read.layer(all(cache(&larder).ttl(300)))));
        for outcome in ["MISS", "HIT"] {
            let answer = get(&app, "/x").await;
            assert_eq!(answer.cache(), outcome);
            assert_eq!(fields(&answer), [r#""own", "b", "own2""#, "own own2 own3 b", "own,b"]);
        }
    }

    async fn responses_with_invalid_tags_are_not_for_other_caches(larder) {
        let read = async |headers: HeaderMap| {
            let own = headers.get("own").map(|own| ("cache-control", own.to_str().unwrap().to_owned()));
            let mut response = (Tags::of([""]), "x").into_response();
            response.headers_mut().extend(own.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())));
            response
        };
        let app = Router::new()
            .route("/x", get_route(read.layer(all(cache(&larder).ttl(300)))))
            .route("/silent", get_route(read.layer(cache(&larder).ttl(300))));
        for (uri, own, expected) in [("/x", None, "no-store"), ("/x", Some("max-age=9"), "max-age=9"), ("/silent", None, "")] {
            let request: Vec<_> = own.map(|own| ("own", own)).into_iter().collect();
            let answer = send(&app, Method::GET, uri, &request).await;
            assert_eq!((answer.cache(), answer.header("cache-control")), ("BYPASS", expected), "{uri} {own:?}");
            assert_eq!(fields(&answer), ["", "", ""]);
        }
    }

    async fn shared_cache_in_front_follows_the_fields_of_routes(larder) {
        let read = async |Path(id): Path<u64>| (Tags::of([format!("product:{id}")]), id.to_string());
        let write = async |Path(id): Path<u64>| EvictTags::of([format!("product:{id}")]);
        let layer = cache(&larder).ttl(300).emit_tags(TagField::CacheGroups);
        let evict = cache_evict(&larder).tags_of_response().emit_tags(TagField::CacheGroups);
        let app = Router::new().route("/{id}", get_route(read.layer(layer)).put(write.layer(evict)));
        let front = Larder::memory();
        let app = app.layer(SharedCacheLayer::new(&front));
        // The last member of the list is the outermost cache's.
        let is_hit = async |uri: &str| {
            let answer = get(&app, uri).await;
            let mut members = answer.headers.get_all("cache-status").iter();
            members.next_back().unwrap().to_str().unwrap().contains("; hit")
        };
        for uri in ["/1", "/2"] {
            get(&app, uri).await;
            assert!(is_hit(uri).await);
        }
        send(&app, Method::PUT, "/1?any=query", &[]).await;
        assert!(!is_hit("/1").await && is_hit("/2").await);
    }
}

/// The option exists in every framework.
#[tokio::test]
async fn tags_are_named_in_every_framework() {
    use larder_poem::TagResponse as _;
    use larder_tests::framework::{App, larder};
    use poem::EndpointExt as _;

    let (one, two) = (larder(), larder());
    let read =
        poem::endpoint::make(async |_| Ok::<_, poem::Error>("x".with_tags(larder_poem::Tags::of(["t"]))));
    let write =
        poem::endpoint::make(async |_| Ok::<_, poem::Error>("".evicting(larder_poem::EvictTags::of(["t"]))));
    let field = larder_poem::TagField::CacheGroups;
    let poem = poem::Route::new().at(
        "/x",
        poem::get(read.with(larder_poem::cache(&one).ttl(300).emit_tags(field)))
            .post(write.with(larder_poem::cache_evict(&one).tags_of_response().emit_tags(field))),
    );
    let read = tower::ServiceBuilder::new()
        .layer(larder_tower::cache(&two).ttl(300).emit_tags(larder_tower::TagField::CacheGroups))
        .service_fn(async |_: http::Request<axum::body::Body>| {
            let mut response = http::Response::new(axum::body::Body::from("x"));
            response.extensions_mut().insert(larder_tower::ResponseTags::of(["t"]));
            Ok::<_, std::convert::Infallible>(response)
        });
    let (poem, tower) = (App::poem(poem), App::tower(read));
    for app in [&poem, &tower] {
        for outcome in ["MISS", "HIT"] {
            let answer = app.get("/x").await;
            assert_eq!((answer.cache(), answer.header("cache-groups")), (outcome, r#""t""#));
        }
    }
    assert_eq!(poem.send(Method::POST, "/x").await.header("cache-group-invalidation"), r#""t""#);
}
