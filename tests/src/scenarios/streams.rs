//! Responses that can't be stored.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::concurrently;
use crate::shop::Shop;

/// Events arrive as they happen, for one listener and for several. No listener gets the events of another.
pub async fn events_are_streamed_without_delay(shop: &Shop) {
    let began = Instant::now();
    for _ in 0..2 {
        let listeners = concurrently(3, async |_| {
            let answer = shop.open(Method::GET, "/events", &[], "").await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["content-type"], "text/event-stream");
            let cache = answer.headers().get("x-redis-cache");
            assert_eq!(cache.map(|value| value.as_bytes()), Some(&b"BYPASS"[..]));
            let mut body = answer.into_body();
            (next_event(&mut body).await, next_event(&mut body).await, next_event(&mut body).await)
        });
        for (first, second, third) in listeners.await {
            assert_eq!((&first[..], &second[..], &third[..]), ("data: 0\n\n", "data: 1\n\n", "data: 2\n\n"));
        }
    }
    // Two pauses of 100 ms for each of two listeners, and a margin for a busy machine.
    assert!(began.elapsed() < Duration::from_secs(3), "took {:?}", began.elapsed());
    assert_eq!(shop.runs("events").await, 6);
    // Endless responses don't block other requests.
    shop.get("/products/1").await.expect_miss();
}

/// A cookie goes only to the client it was made for, also with concurrent requests.
pub async fn cookies_are_never_stored(shop: &Shop) {
    let mut cookies = BTreeSet::new();
    for _ in 0..3 {
        let answer = shop.get("/login").await.ok().expect_bypass();
        assert!(cookies.insert(answer.header("set-cookie").to_owned()), "{answer:?}");
    }
    for answer in concurrently(40, async |_| shop.get("/login").await.ok().expect_bypass()).await {
        assert!(cookies.insert(answer.header("set-cookie").to_owned()), "{answer:?}");
    }
    assert!(!cookies.contains(""));
    for (field, value) in [("cookie", "session=1"), ("authorization", "Bearer alice")] {
        let answer = shop.get_with("/login", &[(field, value)]).await.ok().expect_bypass();
        assert!(cookies.insert(answer.header("set-cookie").to_owned()), "{answer:?}");
    }
    assert_eq!(shop.runs("login").await, 45);
}

async fn next_event(body: &mut Incoming) -> String {
    let frame = timeout(Duration::from_secs(1), body.frame()).await.expect("an event within a second");
    let data = frame.expect("no end").expect("no error").into_data().expect("data");
    String::from_utf8(data.to_vec()).unwrap()
}
