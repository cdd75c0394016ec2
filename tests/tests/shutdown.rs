//! `close` leaves no connection and no unfinished work, and `Debug` shows no secret.

use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::routing::get as get_route;
use http::Method;
use larder_axum::{Larder, RedisOptions, cache, cache_evict, cache_put};
use larder_tests::in_process::{get, send};
use larder_tests::redis_cluster::{MASTERS, RedisCluster};
use larder_tests::redis_server::RedisServer;

/// Returns the number of connections from caches to the server.
async fn connections(redis: &RedisServer) -> usize {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.unwrap();
    list.lines().filter(|line| line.contains("lib-name=larder") || !line.contains("cmd=client")).count()
}

#[tokio::test]
async fn closing_closes_every_connection() {
    let redis = RedisServer::start();
    let larder = Larder::redis(&redis.url()).unwrap();
    assert_eq!(connections(&redis).await, 0, "none before it is used");
    assert!(larder.backend().set("k", &1, 60).await);
    assert_eq!(connections(&redis).await, 1);
    larder.close().await;
    // The server notices a little later.
    for _ in 0..100 {
        if connections(&redis).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} connections are left", connections(&redis).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_closes_connections_to_every_node() {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start).await.unwrap();
    let larder = Larder::redis(&cluster.url()).unwrap();
    for key in 0..50 {
        assert!(larder.backend().set(&key.to_string(), &key, 60).await);
    }
    // Nodes are clients of each other too, but not normal ones.
    let clients = |node| {
        let list = cluster.cli(node, &["client", "list"]);
        list.lines().filter(|line| line.contains(" flags=N ") && !line.contains("cmd=client")).count()
    };
    for node in 0..MASTERS {
        assert_ne!(clients(node), 0, "node {node} is in use");
    }
    larder.close().await;
    for _ in 0..100 {
        if (0..MASTERS).all(|node| clients(node) == 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?} connections are left", (0..MASTERS).map(clients).collect::<Vec<_>>());
}

#[tokio::test]
async fn work_in_progress_reaches_redis_before_connections_close() {
    let redis = RedisServer::start();
    let larder = Larder::redis(&redis.url()).unwrap();
    let slow = async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        "new"
    };
    let route = get_route(slow.layer(cache(&larder).group("g").ttl(60)))
        .put(slow.layer(cache_put(&larder).group("g").ttl(60)))
        .delete(slow.layer(cache_evict(&larder).group("g").key()));
    let app = Router::new().route("/{id}", route);
    let backend = larder.backend().group("g");
    assert!(backend.set("evicted", "old", 60).await);
    assert!(backend.set("written", "old", 60).await);
    for (method, uri) in [(Method::GET, "/filled"), (Method::PUT, "/written"), (Method::DELETE, "/evicted")] {
        let gone = tokio::time::timeout(Duration::from_millis(20), send(&app, method, uri, &[])).await;
        assert!(gone.is_err(), "the client doesn't wait for {uri}");
    }
    larder.close().await;

    // No old value is left. The write whose client disconnected evicted at that moment, so its later response isn't stored.
    let reader = Larder::redis(&redis.url()).unwrap();
    let app = Router::new()
        .route("/{id}", get_route((async || "not stored").layer(cache(&reader).group("g").ttl(60))));
    for (uri, cache, text) in
        [("/filled", "HIT", "new"), ("/written", "MISS", "not stored"), ("/evicted", "MISS", "not stored")]
    {
        let answer = get(&app, uri).await;
        assert_eq!((answer.cache(), answer.text()), (cache, text), "{uri}");
    }
}

#[tokio::test]
async fn closed_cache_misses_and_requests_succeed() {
    let redis = RedisServer::start();
    let larder = Larder::redis(&redis.url()).unwrap();
    let backend = larder.backend();
    assert!(backend.set("k", &1, 60).await);
    larder.close().await;
    let read = tokio::time::timeout(Duration::from_secs(1), backend.get::<u64>("k")).await;
    assert!(read.is_ok(), "the request is answered");
}

#[test]
fn debug_output_contains_no_secret() {
    let url = "redis://alice:hunter2@localhost:7000/1";
    let options = RedisOptions::from_url(url).unwrap();
    let from_url = Larder::builder()
        .principal_secret(b"hunter2")
        .store(larder_axum::RedisStore::new(options.clone()))
        .build();
    let vars = |name: &str| match name {
        "REDIS_HOST" => Some("localhost".to_owned()),
        "REDIS_USERNAME" => Some("alice".to_owned()),
        "REDIS_PASSWORD" => Some("hunter2".to_owned()),
        _ => None,
    };
    let misplaced = |name: &str| (name == "REDIS_HOST").then(|| "redis://alice:hunter2@localhost".to_owned());
    let misplaced = Larder::from_vars(misplaced).unwrap_err();
    let from_vars = Larder::from_vars(vars).unwrap();
    for shown in [
        format!("{options:?}"),
        format!("{from_url:?} {:?}", from_url.backend()),
        format!("{from_vars:?} {:?}", from_vars.backend().group("g")),
        format!("{misplaced} {misplaced:?}"),
        format!("{:?}", Larder::redis("redis://alice:hunter2@").err()),
        format!(
            "{:?}",
            Larder::from_vars(|name| (name == "REDIS_URL").then(|| "rubbish:hunter2@".to_owned())).err()
        ),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
