//! The cache's spans. Alone in its program: `tracing` caches for the whole process whether a span is wanted, and other tests
//! don't want spans.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::handler::Handler as _;
use axum::http::Request;
use axum::routing::get;
use larder_axum::{Larder, MemoryStore, cache, cache_evict, cache_put};
use tower::ServiceExt as _;

async fn product() -> &'static str {
    "tea"
}

async fn call(app: &Router, line: &str, fields: &[(&str, &str)]) {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
}

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

type Fields = BTreeMap<&'static str, String>;

/// Records every span of the cache, with its fields.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<(&'static str, Fields)>>>);

impl Spans {
    fn named(&self, name: &str) -> Vec<Fields> {
        let spans = self.0.lock().unwrap();
        spans.iter().filter(|(known, _)| *known == name).map(|(_, fields)| fields.clone()).collect()
    }
}

struct Into<'a>(&'a mut Fields);

impl Visit for Into<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target() == "larder"
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut spans = self.0.lock().unwrap();
        let mut fields = Fields::new();
        attributes.record(&mut Into(&mut fields));
        spans.push((attributes.metadata().name(), fields));
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut spans = self.0.lock().unwrap();
        values.record(&mut Into(&mut spans[span.into_u64() as usize - 1].1));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn fields(fields: &[(&'static str, &str)]) -> Fields {
    fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

#[tokio::test]
async fn every_operation_has_its_span() {
    let spans = Spans::default();
    // The runtime runs on this thread, and so do the tasks that fill and write.
    let _guard = tracing::subscriber::set_default(spans.clone());
    let larder = Larder::builder().prefix("p").store(MemoryStore::new()).build();
    let app = Router::new().route(
        "/products/{id}",
        get(product.layer(cache(&larder).group("g").ttl(60)))
            .put(product.layer(cache_put(&larder).group("g").ttl(30)))
            .delete(product.layer(cache_evict(&larder).group("g").key()))
            .post(product.layer(cache_evict(&larder).group("g").whole_group())),
    );
    call(&app, "GET /products/1", &[]).await;
    call(&app, "GET /products/1", &[]).await;
    call(&app, "GET /products/1", &[("cookie", "a=b")]).await;
    for method in ["PUT", "DELETE", "POST"] {
        call(&app, &format!("{method} /products/1"), &[]).await;
    }
    assert!(larder.evict(&larder.key_for("g", &"/products/1".parse().unwrap()).unwrap()).soft().await);
    let items = larder.backend().group("items");
    assert_eq!(items.get_or_set("1", 5, || async { Ok::<_, Infallible>(7) }).await, Ok(7));
    items.get::<u8>("1").await;
    items.get::<u8>("2").await;
    items.set("1", &8, 5).await;
    items.update("1", 5, |old: Option<u8>| old.unwrap_or(0) + 1).await.unwrap();
    items.has("1").await;
    items.delete("1").await;
    items.delete_group().await;

    let key = ("key", "p:{g}:products:1");
    let (group, evicted) = (("group", "g"), ("status", "evicted"));
    assert_eq!(
        spans.named("cache.get"),
        [
            fields(&[key, group, ("status", "miss"), ("reason", "absent")]),
            fields(&[key, group, ("status", "hit"), ("ttl", "60.0")]),
            fields(&[group, ("status", "bypass"), ("reason", "cookie")]),
        ]
    );
    assert_eq!(spans.named("cache.set"), [fields(&[key, group, ("status", "stored"), ("ttl", "60.0")])]);
    assert_eq!(spans.named("cache.put"), [fields(&[key, group, ("status", "stored"), ("ttl", "30.0")])]);
    let key_evicted = fields(&[key, group, evicted]);
    assert_eq!(
        spans.named("cache.evict"),
        [key_evicted.clone(), fields(&[group, evicted]), key_evicted],
        "the key, its group, and the key softly"
    );

    let status = |name: &str| -> Vec<String> {
        spans.named(name).into_iter().map(|mut fields| fields.remove("status").unwrap()).collect()
    };
    assert_eq!(status("cache.backend.get_or_set"), ["miss"]);
    assert_eq!(status("cache.backend.get"), ["hit", "miss"]);
    assert_eq!(status("cache.backend.set"), ["stored"]);
    assert_eq!(status("cache.backend.update"), ["stored"]);
    assert_eq!(status("cache.backend.has"), ["hit"]);
    assert_eq!(status("cache.backend.delete"), ["deleted"]);
    assert_eq!(status("cache.backend.delete_group"), ["absent"]);
}
