//! Several cache layers around one handler: an item and its lists, and created resources.

use axum::Router;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get as get_route, post as post_route, put as put_route};
use http::Method;
use larder_axum::{Larder, cache, cache_evict, cache_put};
use larder_tests::in_process::{get, send};

const ALICE: [(&str, &str); 1] = [("authorization", "Bearer alice")];

fn larder() -> Larder {
    Larder::builder().cache_status(true).store(larder_axum::MemoryStore::new()).build()
}

async fn written() -> &'static str {
    "written"
}

/// Every way to put a write-through and an eviction of the lists around one handler.
fn stacks(larder: &Larder) -> [(&'static str, MethodRouter); 4] {
    let put = || cache_put(larder).group("items").ttl(60).public();
    let evict = || cache_evict(larder).group("lists").whole_group();
    let private =
        || cache_evict(larder).group("lists").private_by(|_| Some("alice".to_owned())).whole_group();
    [
        ("eviction outside", put_route(written.layer(put()).layer(evict()))),
        ("eviction inside", put_route(written.layer(evict()).layer(put()))),
        ("private eviction outside", put_route(written.layer(put()).layer(private()))),
        ("private eviction inside", put_route(written.layer(private()).layer(put()))),
    ]
}

#[tokio::test]
async fn put_and_eviction_of_the_lists_work_in_either_order() {
    for index in 0..4 {
        let larder = larder();
        let (name, write) = stacks(&larder).into_iter().nth(index).unwrap();
        let read = get_route((async || "read").layer(cache(&larder).group("items").ttl(60).public()));
        let list = get_route((async || "list").layer(cache(&larder).group("lists").ttl(60).public()));
        let app = Router::new().route("/items/7", read.merge(write)).route("/items", list);
        get(&app, "/items").await;
        assert_eq!(get(&app, "/items").await.cache(), "HIT", "{name}");

        let put = send(&app, Method::PUT, "/items/7", &ALICE).await;
        assert_eq!(put.headers.get_all("x-redis-cache").iter().count(), 1, "{name}");
        assert_eq!(put.cache(), "MISS", "{name}: {:?}", put.headers);
        let lines: Vec<_> =
            put.headers.get_all("cache-status").iter().map(|line| line.to_str().unwrap()).collect();
        assert_eq!(lines.len(), 2, "{name}: {lines:?}");
        assert_eq!(lines.iter().filter(|line| line.contains("; stored")).count(), 1, "{name}: {lines:?}");
        assert!(lines.iter().all(|line| line.contains("fwd=method")), "{name}: {lines:?}");

        let item = get(&app, "/items/7").await;
        assert_eq!((item.cache(), item.text()), ("HIT", "written"), "{name}");
        assert_eq!(get(&app, "/items").await.cache(), "MISS", "{name}");
    }
}

#[tokio::test]
async fn private_put_is_stored_with_an_eviction_on_either_side() {
    for is_inside in [false, true] {
        let larder = larder();
        let put = cache_put(&larder).group("items").ttl(60).private();
        let evict = cache_evict(&larder).group("lists").whole_group();
        let write = if is_inside {
            put_route(written.layer(evict).layer(put))
        } else {
            put_route(written.layer(put).layer(evict))
        };
        let read = get_route((async || "read").layer(cache(&larder).group("items").ttl(60).private()));
        let app = Router::new().route("/items/7", read.merge(write));
        assert_eq!(send(&app, Method::PUT, "/items/7", &ALICE).await.cache(), "MISS");
        let read = send(&app, Method::GET, "/items/7", &ALICE).await;
        assert_eq!((read.cache(), read.text()), ("HIT", "written"));
    }
}

#[tokio::test]
async fn refused_put_changes_neither_the_item_nor_the_lists() {
    let larder = larder();
    let refuse = async || StatusCode::FORBIDDEN;
    let read = get_route((async || "read").layer(cache(&larder).group("items").ttl(60).public()));
    let write = put_route(
        refuse
            .layer(cache_put(&larder).group("items").ttl(60).public())
            .layer(cache_evict(&larder).group("lists").whole_group()),
    );
    let list = get_route((async || "list").layer(cache(&larder).group("lists").ttl(60).public()));
    let app = Router::new().route("/items/7", read.merge(write)).route("/items", list);
    for uri in ["/items/7", "/items"] {
        get(&app, uri).await;
    }
    let put = send(&app, Method::PUT, "/items/7", &[]).await;
    assert_eq!((put.status, put.cache()), (StatusCode::FORBIDDEN, "BYPASS"));
    for uri in ["/items/7", "/items"] {
        assert_eq!(get(&app, uri).await.cache(), "HIT", "{uri}");
    }
}

/// A POST evicts a stored 404 of the resource that it creates, if `Location` names it on the same host.
#[tokio::test]
async fn create_evicts_the_stored_404_of_the_new_resource() {
    for (location, is_evicted) in [
        ("/items/7", true),
        ("items/7", true),
        ("http://shop.example/items/7", true),
        ("//shop.example/items/7", true),
        ("/items/7#top", true),
        ("/items/8", false),
        ("https://other.example/items/7", false),
    ] {
        let larder = larder();
        let absent = async || StatusCode::NOT_FOUND;
        let read = cache(&larder).group("items").public().ttl(60).ttl_for(StatusCode::NOT_FOUND, 60);
        let create =
            move || async move { (StatusCode::CREATED, [("location", location)], "created").into_response() };
        let app = Router::new()
            .route("/items/{id}", get_route(absent.layer(read)))
            .route("/items", post_route(create.layer(cache_evict(&larder).group("items").key())));
        let host = [("host", "shop.example")];
        send(&app, Method::GET, "/items/7", &host).await;
        assert_eq!(send(&app, Method::GET, "/items/7", &host).await.cache(), "HIT");
        send(&app, Method::POST, "/items", &host).await;
        let expected = if is_evicted { "MISS" } else { "HIT" };
        assert_eq!(send(&app, Method::GET, "/items/7", &host).await.cache(), expected, "{location}");
    }
}

#[tokio::test]
async fn put_with_its_own_location_stays_stored() {
    let larder = larder();
    let create = async || (StatusCode::CREATED, [("location", "/items/7")], "created");
    let read = get_route((async || "read").layer(cache(&larder).public().ttl(60)));
    let app = Router::new()
        .route("/items/7", read.merge(put_route(create.layer(cache_put(&larder).public().ttl(60)))));
    send(&app, Method::PUT, "/items/7", &[]).await;
    assert_eq!((get(&app, "/items/7").await.cache(), get(&app, "/items/7").await.text()), ("HIT", "created"));
}
