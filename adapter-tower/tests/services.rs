//! The guarantees of the layer to a tower service. The parity table covers what all adapters have in common.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use http::{HeaderName, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use larder_tower::larder_core::shared::SharedBody;
use larder_tower::{Larder, MemoryStore, ReplyBody, SharedCacheLayer, cache, cache_evict, cache_put};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

type Answer<B> = Response<ReplyBody<B>>;

fn ask(method: Method, uri: &str) -> Request<Empty<Bytes>> {
    Request::builder().method(method).uri(uri).body(Empty::new()).unwrap()
}

fn word<B>(answer: &Response<B>) -> &str {
    answer.headers()["x-redis-cache"].to_str().unwrap()
}

async fn text<B: Body<Error: std::fmt::Debug>>(answer: Answer<B>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// An error that only the test knows.
#[derive(Debug, PartialEq)]
struct Lost(usize);

#[tokio::test]
async fn errors_pass_through_and_errors_of_writes_evict() {
    let larder = Larder::memory();
    let runs = Arc::new(AtomicUsize::new(0));
    let failing = service_fn(move |_: Request<Empty<Bytes>>| {
        let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
        async move { Err::<Response<Full<Bytes>>, _>(Lost(run)) }
    });
    let answering = service_fn(async |_: Request<Empty<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("kept")))
    });

    // A failed fill is not shared: the next request runs the service again.
    let read = cache(&larder).group("g").ttl(60).layer(failing.clone());
    assert_eq!(read.clone().oneshot(ask(Method::GET, "/x")).await.unwrap_err(), Lost(1));
    assert_eq!(read.oneshot(ask(Method::GET, "/x")).await.unwrap_err(), Lost(2));

    // A failed write may have taken effect.
    let good = cache(&larder).group("g").ttl(60).layer(answering);
    let put = cache_put(&larder).group("g").ttl(60).layer(failing.clone());
    let key = cache_evict(&larder).group("g").key().layer(failing.clone());
    let group = cache_evict(&larder).group("g").whole_group().layer(failing);
    let expect = async |expected| {
        assert_eq!(word(&good.clone().oneshot(ask(Method::GET, "/x")).await.unwrap()), expected);
    };
    expect("MISS").await;
    expect("HIT").await;
    assert_eq!(put.oneshot(ask(Method::PUT, "/x")).await.unwrap_err(), Lost(3));
    expect("MISS").await;
    expect("HIT").await;
    assert_eq!(key.oneshot(ask(Method::DELETE, "/x")).await.unwrap_err(), Lost(4));
    expect("MISS").await;
    expect("HIT").await;
    assert_eq!(group.oneshot(ask(Method::POST, "/x")).await.unwrap_err(), Lost(5));
    expect("MISS").await;
}

/// A body that is `Send` but not `Sync`.
struct Unshared {
    chunks: Cell<Vec<&'static str>>,
    length: Option<u64>,
}

impl Unshared {
    fn new(chunks: &[&'static str], length: Option<u64>) -> Self {
        Self { chunks: Cell::new(chunks.iter().rev().copied().collect()), length }
    }
}

impl Body for Unshared {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.get_mut().chunks.get_mut().pop();
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes())))))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[tokio::test]
async fn bodies_need_not_be_sync() {
    let larder = Larder::memory();
    let service = service_fn(async |request: Request<Empty<Bytes>>| {
        let length = (request.uri().path() == "/known").then_some(6);
        Ok::<_, Infallible>(Response::new(Unshared::new(&["one", "two"], length)))
    });
    let service = cache(&larder).ttl(60).layer(service);
    for (path, words) in [("/known", ["MISS", "HIT"]), ("/unknown", ["BYPASS", "BYPASS"])] {
        for expected in words {
            let answer = service.clone().oneshot(ask(Method::GET, path)).await.unwrap();
            assert_eq!(word(&answer), expected, "{path}");
            assert_eq!(text(answer).await, "onetwo", "{path}");
        }
    }
}

#[tokio::test]
async fn extensions_of_outer_layers_reach_the_handler() {
    #[derive(Clone, Debug, PartialEq)]
    struct User(&'static str);
    let larder = Larder::memory();
    let service = service_fn(async |request: Request<Empty<Bytes>>| {
        let User(name) = request.extensions().get().unwrap();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(*name)))
    });
    // In a task or not, with a lookup or not, the handler gets the original request.
    let routes = [
        cache(&larder).group("read").ttl(60).layer(service).boxed_clone(),
        cache_put(&larder).group("put").ttl(60).layer(service).boxed_clone(),
        cache_evict(&larder).group("evict").key().layer(service).boxed_clone(),
    ];
    for route in routes {
        for method in [Method::GET, Method::PUT] {
            let mut request = ask(method, "/x");
            request.extensions_mut().insert(User("alice"));
            assert_eq!(text(route.clone().oneshot(request).await.unwrap()).await, "alice");
        }
    }
}

/// A service that must be polled ready before each call, as tower demands. Its clones aren't ready.
#[derive(Default)]
struct Strict {
    ready: bool,
    calls: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false, calls: Arc::clone(&self.calls) }
    }
}

impl Service<Request<Empty<Bytes>>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        self.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(Response::new(Full::from("ready"))) })
    }
}

#[tokio::test]
async fn service_is_called_only_when_it_is_ready() {
    let larder = Larder::memory();
    let strict = Strict::default();
    let mut read = cache(&larder).ttl(60).layer(strict.clone());
    let mut put = cache_put(&larder).ttl(60).layer(strict.clone());
    // One service, called repeatedly: each call makes a clone of it ready.
    for (uri, expected) in [("/a", "MISS"), ("/a", "HIT"), ("/b", "MISS"), ("/b", "HIT"), ("/c", "MISS")] {
        let answer = read.ready().await.unwrap().call(ask(Method::GET, uri)).await.unwrap();
        assert_eq!(word(&answer), expected, "{uri}");
        put.ready().await.unwrap().call(ask(Method::PUT, "/p")).await.unwrap();
    }
    // And concurrent requests that lead, follow or bypass.
    let crowd = (0..20).map(|n| {
        let method = if n % 5 == 0 { Method::POST } else { Method::GET };
        read.clone().oneshot(ask(method, "/crowd"))
    });
    for answer in join_all(crowd).await {
        assert_eq!(text(answer.unwrap()).await, "ready");
    }
    assert_eq!(strict.calls.load(Ordering::SeqCst), 3 + 5 + 4 + 1);
}

#[tokio::test]
async fn service_that_is_not_ready_is_not_called() {
    /// Fails its readiness.
    #[derive(Clone)]
    struct Closed;

    impl Service<Request<Empty<Bytes>>> for Closed {
        type Response = Response<Full<Bytes>>;
        type Error = Lost;
        type Future = BoxFuture<'static, Result<Self::Response, Lost>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Lost>> {
            Poll::Ready(Err(Lost(0)))
        }

        fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
            unreachable!()
        }
    }

    let service = cache(&Larder::memory()).ttl(60).layer(Closed);
    assert_eq!(service.oneshot(ask(Method::GET, "/x")).await.unwrap_err(), Lost(0));
}

#[tokio::test]
async fn busy_service_does_not_block_hits() {
    let busy = Arc::new(Semaphore::new(1));
    let limited = ServiceBuilder::new()
        .layer(cache(&Larder::memory()).ttl(60))
        .layer(GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&busy)))
        .service_fn(async |_: Request<Empty<Bytes>>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("made")))
        });
    let ask = |path| limited.clone().oneshot(ask(Method::GET, path));
    assert_eq!(word(&ask("/kept").await.unwrap()), "MISS");
    let taken = busy.clone().acquire_owned().await.unwrap();
    assert_eq!(word(&ask("/kept").await.unwrap()), "HIT");
    let mut waiting = pin!(ask("/new"));
    assert!(timeout(Duration::from_millis(50), waiting.as_mut()).await.is_err(), "the limit holds");
    drop(taken);
    assert_eq!(word(&waiting.await.unwrap()), "MISS");
    // A hit reserves no capacity of the service.
    let mut idle = limited.clone();
    let hit =
        idle.ready().await.unwrap().call(Request::get("/kept").body(Empty::new()).unwrap()).await.unwrap();
    assert_eq!(word(&hit), "HIT");
    assert_eq!(busy.available_permits(), 1);
}

/// An entry in this process is found while the service is called: without waiting, and without a runtime.
#[test]
fn entry_in_memory_is_ready_on_the_first_poll() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answering = service_fn(async |request: Request<Empty<Bytes>>| {
        let varies = request.uri().path() == "/varied";
        let answer = Response::builder().header("vary", if varies { "accept-language" } else { "" });
        Ok::<_, Infallible>(answer.body(Full::<Bytes>::from("kept")).unwrap())
    });
    let mut service = cache(&Larder::memory()).ttl(60).layer(answering);
    for path in ["/plain", "/varied"] {
        let first = runtime.block_on(service.clone().oneshot(ask(Method::GET, path))).unwrap();
        assert_eq!(word(&first), "MISS");
        for method in [Method::GET, Method::HEAD] {
            let answer = service.call(ask(method, path)).now_or_never().expect("no waiting").unwrap();
            assert_eq!(word(&answer), "HIT", "{path}");
        }
    }
}

type Pages = BoxCloneService<Request<Empty<Bytes>>, Response<SharedBody<Full<Bytes>>>, Infallible>;

/// A shared cache around pages. A write changes the version of all pages, and then runs `after`.
fn pages<F>(larder: &Larder, after: impl Fn() -> F + Clone + Send + 'static) -> Pages
where
    F: Future<Output = ()> + Send + 'static,
{
    let version = Arc::new(AtomicUsize::new(0));
    let service = service_fn(move |request: Request<Empty<Bytes>>| {
        let (version, after) = (Arc::clone(&version), after.clone());
        async move {
            if request.method() != Method::GET {
                version.fetch_add(1, Ordering::SeqCst);
                after().await;
            }
            let text = format!("v{}", version.load(Ordering::SeqCst));
            let answer = Response::builder().header("cache-control", "max-age=60");
            Ok::<_, Infallible>(answer.body(Full::<Bytes>::from(text)).unwrap())
        }
    });
    BoxCloneService::new(SharedCacheLayer::new(larder).layer(service))
}

/// Returns the body of a read, and the cache's status.
async fn read(pages: &Pages, uri: &str) -> (String, String) {
    let (parts, body) = pages.clone().oneshot(ask(Method::GET, uri)).await.unwrap().into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    (text, parts.headers["cache-status"].to_str().unwrap().to_owned())
}

#[tokio::test]
async fn shared_cache_evicts_when_the_caller_drops_a_write() {
    for (method, written) in
        [("PUT", "/about"), ("DELETE", "/about"), ("POST", "/%61bout"), ("PATCH", "https://h/about")]
    {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let gate = Arc::new(Semaphore::new(0));
        let larder = Larder::memory();
        let waits = Arc::clone(&gate);
        let pages = pages(&larder, move || {
            let gate = Arc::clone(&waits);
            async move { gate.acquire().await.unwrap().forget() }
        });
        for host in ["http://h/about", "https://h/about"] {
            assert_eq!(read(&pages, host).await.0, "v0");
            assert_eq!(read(&pages, host).await.1, "Larder; hit; ttl=60");
        }
        let written =
            if written.starts_with('/') { format!("http://h{written}") } else { written.to_owned() };
        // Like a timeout outside of the cache, which answers its client with a 408.
        let given_up = pages.clone().oneshot(ask(method.clone(), &written)).now_or_never();
        assert!(given_up.is_none());
        for host in ["http://h/about", "https://h/about"] {
            assert_eq!(read(&pages, host).await.0, "v1", "{host} after {method} {written}");
        }
        // The service continues. When it ends, it evicts entries that were stored meanwhile.
        gate.add_permits(1);
        larder.close().await;
        let (_, status) = read(&pages, "http://h/about").await;
        assert!(status.contains("fwd=uri-miss"), "{status} after {method} {written}");
    }
}

#[tokio::test]
async fn shared_cache_evicts_before_a_panic_of_a_write_reaches_the_caller() {
    let pages = pages(&Larder::memory(), async || panic!("after the change"));
    assert_eq!(read(&pages, "/about").await.0, "v0");
    let caught = AssertUnwindSafe(pages.clone().oneshot(ask(Method::PUT, "/about"))).catch_unwind().await;
    assert!(caught.is_err());
    assert_eq!(read(&pages, "/about").await.0, "v1");
}

#[tokio::test]
async fn shared_cache_uses_the_builders_credential_fields() {
    let name = HeaderName::from_static("x-house-key");
    let larder = Larder::builder().credential_fields([name.clone()]).store(MemoryStore::new()).build();
    let more = HeaderName::from_static("x-desk-key");
    let cache = SharedCacheLayer::with_rule(&larder, |rule| rule.credential_fields = vec![more.clone()]);
    let service = cache.layer(service_fn(async |_: Request<Empty<Bytes>>| {
        let answer = Response::builder().header("cache-control", "max-age=60");
        Ok::<_, Infallible>(answer.body(Full::<Bytes>::from("for one")).unwrap())
    }));
    for name in [name, more, HeaderName::from_static("x-api-key")] {
        let mut request = ask(Method::GET, "/x");
        request.headers_mut().insert(&name, "k".parse().unwrap());
        let answer = service.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.headers()["cache-status"], "Larder; fwd=uri-miss; detail=authorization", "{name}");
    }
}
