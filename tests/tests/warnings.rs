//! Warnings for authors of routes, logged once and with the routes' names. Alone in its program: `tracing` caches for the whole
//! process whether an event is wanted.

use std::io;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::handler::Handler;
use axum::routing::get as get_route;
use http::Method;
use larder_axum::{Larder, cache, cache_evict, cache_put};
use larder_tests::in_process::{get, send};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Returns the lines since the last call.
    fn lines(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn warnings_are_logged_once_and_name_the_route() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let larder = Larder::memory();

    // Requests with credentials on undeclared routes: each route is named.
    let route = || get_route((|| async { "x" }).layer(cache(&larder).ttl(60)));
    let app = Router::new().route("/a/{id}", route()).route("/b", route());
    for uri in ["/a/1", "/a/2", "/b", "/b"] {
        send(&app, Method::GET, uri, &[("authorization", "Bearer 1")]).await;
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("/a/{id}") && lines[1].contains("/b"), "{lines:#?}");

    // The same cache twice.
    let layer = cache(&larder).group("twice").ttl(60);
    let app = Router::new().route("/x/{id}", get_route((|| async { "x" }).layer(layer.clone()).layer(layer)));
    get(&app, "/x/1").await;
    get(&app, "/x/2").await;
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("/x/{id}") && lines[0].contains("nested"), "{lines:#?}");

    // Routes of a group with different options for their keys.
    let _ = cache(&larder).group("people").ttl(60).private().route();
    let _ = cache_evict(&larder).group("people").key().route();
    let _ = cache(&larder).group("hosts").vary_by_host().ttl(60).name("pages").route();
    let _ = cache_put(&larder).group("hosts").ttl(60).name("edit").route();
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("audience") && lines[0].matches("warnings.rs").count() == 2, "{lines:#?}");
    assert!(
        lines[1].contains("by_host") && lines[1].contains("pages") && lines[1].contains("edit"),
        "{lines:#?}"
    );

    // Routes of a group with the same options for their keys.
    let _ = cache(&larder).group("fine").ttl(60).query_params(["page"]).route();
    let _ = cache_evict(&larder).group("fine").key().query_params(["page"]).route();
    let _ = cache_evict(&larder).group("fine").whole_group().route();
    assert_eq!(log.lines(), Vec::<String>::new());
}
