//! Range requests on a cold route: they fill the cache, so that media files are cached, and the client gets its range.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get as get_route;
use http::{Method, StatusCode};
use larder_axum::{Larder, cache};
use larder_core::headers::range::{Selection, select, unsatisfied};
use larder_tests::in_process::{Answer, Runs, get, send};
use larder_tests::on_every_store;
use tokio::sync::Semaphore;

const MEDIA: &str = "0123456789";

/// A record of what the handler saw: the number of its runs, and the last `Range` and `If-Range`.
#[derive(Clone, Debug, Default)]
struct Seen {
    runs: Runs,
    fields: Arc<std::sync::Mutex<(String, String)>>,
}

impl Seen {
    fn note(&self, headers: &HeaderMap) {
        self.runs.count();
        let field = |name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        *self.fields.lock().unwrap() = (field("range"), field("if-range"));
    }

    fn range(&self) -> String {
        self.fields.lock().unwrap().0.clone()
    }

    fn if_range(&self) -> String {
        self.fields.lock().unwrap().1.clone()
    }
}

/// A handler without support for ranges.
fn whole(_: &HeaderMap) -> Response {
    ([("content-type", "video/mp4"), ("etag", "\"v1\"")], MEDIA).into_response()
}

/// A handler that serves ranges, as file servers do.
fn cuts(headers: &HeaderMap) -> Response {
    let if_range = headers.get("if-range").is_none_or(|tag| tag == "\"v1\"");
    let selection = if if_range { select(headers, MEDIA.len() as u64) } else { Selection::Whole };
    match selection {
        Selection::Whole => ([("accept-ranges", "bytes"), ("etag", "\"v1\"")], MEDIA).into_response(),
        Selection::Part(part) => {
            let fields = [("content-range", part.content_range()), ("etag", "\"v1\"".parse().unwrap())];
            (StatusCode::PARTIAL_CONTENT, fields, part.cut(&MEDIA.into())).into_response()
        }
        Selection::Unsatisfiable => {
            let fields = [("content-range", unsatisfied(MEDIA.len() as u64))];
            (StatusCode::RANGE_NOT_SATISFIABLE, fields).into_response()
        }
    }
}

/// A handler that declares that it doesn't support ranges.
fn refuses(_: &HeaderMap) -> Response {
    ([("accept-ranges", "none")], MEDIA).into_response()
}

/// A route with its own keys.
fn app(larder: &Larder, seen: &Seen, answer: fn(&HeaderMap) -> Response) -> Router {
    static APPS: AtomicUsize = AtomicUsize::new(0);
    let group = format!("g{}", APPS.fetch_add(1, Ordering::Relaxed));
    let seen = seen.clone();
    let handler = move |headers: HeaderMap| async move {
        seen.note(&headers);
        answer(&headers)
    };
    Router::new().route("/x", get_route(handler.layer(cache(larder).group(&group).ttl(60))))
}

async fn part(app: &Router, range: &str) -> Answer {
    send(app, Method::GET, "/x", &[("range", range)]).await
}

/// Formats status, cache status, `Content-Range` and body.
fn summary(answer: &Answer) -> String {
    let range = answer.header("content-range");
    format!("{} {} {range} {}", answer.status.as_u16(), answer.cache(), answer.text())
}

on_every_store! {
    async fn range_to_the_end_fills_with_the_whole_response(fixture) {
        for answer in [whole, cuts] {
            let seen = Seen::default();
            let app = app(&fixture.larder, &seen, answer);
            assert_eq!(summary(&part(&app, "bytes=0-").await), "206 MISS bytes 0-9/10 0123456789");
            assert_eq!(seen.range(), "");
            assert_eq!(summary(&part(&app, "bytes=7-").await), "206 HIT bytes 7-9/10 789");
            assert_eq!(summary(&get(&app, "/x").await), "200 HIT  0123456789");
            assert_eq!(seen.runs.total(), 1);
        }
    }

    async fn whole_response_to_a_range_is_stored_and_cut(fixture) {
        for (range, expected) in [
            ("bytes=2-4", "206 MISS bytes 2-4/10 234"),
            ("bytes=0-0", "206 MISS bytes 0-0/10 0"),
            ("bytes=-3", "206 MISS bytes 7-9/10 789"),
            ("bytes=10-", "416 MISS bytes */10 "),
            ("bytes=0-1,4-5", "200 MISS  0123456789"),
        ] {
            let seen = Seen::default();
            let app = app(&fixture.larder, &seen, whole);
            assert_eq!(summary(&part(&app, range).await), expected, "{range}");
            assert_eq!(seen.range(), range);
            assert_eq!(summary(&get(&app, "/x").await), "200 HIT  0123456789", "{range}");
            assert_eq!(seen.runs.total(), 1, "{range}");
        }
    }

    async fn partial_response_of_a_handler_is_never_stored(fixture) {
        let seen = Seen::default();
        let app = app(&fixture.larder, &seen, cuts);
        for (range, expected) in [
            ("bytes=2-4", "206 BYPASS bytes 2-4/10 234"),
            ("bytes=5-", "206 BYPASS bytes 5-9/10 56789"),
            ("bytes=99-", "416 BYPASS bytes */10 "),
        ] {
            assert_eq!(summary(&part(&app, range).await), expected, "{range}");
            assert_eq!(seen.range(), range);
        }
        // None of them keeps the next request from filling.
        assert_eq!(summary(&part(&app, "bytes=0-").await), "206 MISS bytes 0-9/10 0123456789");
        assert_eq!(summary(&part(&app, "bytes=2-4").await), "206 HIT bytes 2-4/10 234");
        assert_eq!(seen.runs.total(), 4);
    }

    async fn other_units_and_wrong_statuses_are_never_stored_as_whole(fixture) {
        // As services with paged collections do.
        fn pages(headers: &HeaderMap) -> Response {
            match headers.get("range").map(|range| range.to_str().unwrap()) {
                Some("bytes=0-1") => ([("content-range", "bytes 0-1/*")], "01").into_response(),
                Some(_) => "01".into_response(),
                None => MEDIA.into_response(),
            }
        }
        for range in ["items=0-1", "0-1", "bytes=0-1"] {
            let app = app(&fixture.larder, &Seen::default(), pages);
            assert_eq!((part(&app, range).await.cache(), part(&app, range).await.text()), ("BYPASS", "01"), "{range}");
            assert_eq!(summary(&get(&app, "/x").await), "200 MISS  0123456789", "{range}");
        }
    }

    async fn media_player_runs_the_handler_once(fixture) {
        for answer in [whole, cuts] {
            let seen = Seen::default();
            let app = app(&fixture.larder, &seen, answer);
            let first = part(&app, "bytes=0-").await;
            assert_eq!((first.status.as_u16(), first.header("accept-ranges")), (206, "bytes"));
            let etag = first.header("etag").to_owned();
            // A player reads the index at the end, seeks, and plays from there.
            for (range, body) in [("bytes=8-", "89"), ("bytes=4-5", "45"), ("bytes=6-9", "6789")] {
                let fields = [("range", range), ("if-range", etag.as_str())];
                let answer = send(&app, Method::GET, "/x", &fields).await;
                assert_eq!((answer.cache(), answer.status.as_u16(), answer.text()), ("HIT", 206, body));
            }
            assert_eq!(seen.runs.total(), 1);
        }
    }

    async fn responses_that_can_be_cut_have_accept_ranges(fixture) {
        let seen = Seen::default();
        let app = app(&fixture.larder, &seen, whole);
        for cache in ["MISS", "HIT"] {
            let answer = get(&app, "/x").await;
            assert_eq!((answer.cache(), answer.header("accept-ranges")), (cache, "bytes"));
        }
        let head = send(&app, Method::HEAD, "/x", &[("range", "bytes=1-2")]).await;
        assert_eq!((summary(&head).as_str(), head.header("accept-ranges")), ("200 HIT  ", "bytes"));
        assert_eq!(head.header("content-length"), "10");
    }

    async fn accept_ranges_none_is_respected(fixture) {
        for range in ["bytes=0-", "bytes=2-4", "bytes=99-"] {
            let seen = Seen::default();
            let app = app(&fixture.larder, &seen, refuses);
            for cache in ["MISS", "HIT"] {
                let answer = part(&app, range).await;
                assert_eq!(summary(&answer), format!("200 {cache}  0123456789"), "{range}");
                assert_eq!(answer.header("accept-ranges"), "none");
            }
        }
    }

    async fn if_range_applies_on_a_cold_route(fixture) {
        for (answer, range, tag, expected) in [
            (whole as fn(&HeaderMap) -> Response, "bytes=0-", "\"v1\"", "206 MISS bytes 0-9/10 0123456789"),
            (whole, "bytes=0-", "\"v0\"", "200 MISS  0123456789"),
            (whole, "bytes=4-", "\"v1\"", "206 MISS bytes 4-9/10 456789"),
            (whole, "bytes=4-", "\"v0\"", "200 MISS  0123456789"),
            (cuts, "bytes=4-", "\"v1\"", "206 BYPASS bytes 4-9/10 456789"),
            (cuts, "bytes=4-", "\"v0\"", "200 MISS  0123456789"),
        ] {
            let seen = Seen::default();
            let app = app(&fixture.larder, &seen, answer);
            let fields = [("range", range), ("if-range", tag)];
            assert_eq!(summary(&send(&app, Method::GET, "/x", &fields).await), expected, "{range} {tag}");
            assert_eq!(seen.if_range(), if range == "bytes=0-" { "" } else { tag });
        }
    }

    async fn conditions_are_checked_before_ranges(fixture) {
        for answer in [whole, cuts] {
            for range in ["bytes=0-", "bytes=2-4"] {
                let app = app(&fixture.larder, &Seen::default(), answer);
                let fields = [("range", range), ("if-none-match", "\"v1\"")];
                let answer = send(&app, Method::GET, "/x", &fields).await;
                assert_eq!((answer.status.as_u16(), answer.text()), (304, ""), "{range}");
            }
        }
    }

    async fn ranges_and_whole_requests_share_a_run(fixture) {
        let seen = Seen::default();
        let (noted, gate) = (seen.clone(), Arc::new(Semaphore::new(0)));
        let opened = Arc::clone(&gate);
        let handler = move |headers: HeaderMap| async move {
            noted.note(&headers);
            let _permit = gate.acquire().await.unwrap();
            whole(&headers)
        };
        let app = Router::new().route("/x", get_route(handler.layer(cache(&fixture.larder).ttl(60))));
        let ask = |range: &'static str| {
            let app = app.clone();
            tokio::spawn(async move { if range.is_empty() { get(&app, "/x").await } else { part(&app, range).await } })
        };
        let asked = ["bytes=0-", "", "bytes=3-4", "bytes=-1", "bytes=50-"].map(ask);
        tokio::time::sleep(Duration::from_millis(200)).await;
        opened.add_permits(100);
        let expected =
            ["206 bytes 0-9/10 0123456789", "200  0123456789", "206 bytes 3-4/10 34", "206 bytes 9-9/10 9", "416 bytes */10 "];
        for (answer, expected) in asked.into_iter().zip(expected) {
            let answer = answer.await.unwrap();
            let summary = format!("{} {} {}", answer.status.as_u16(), answer.header("content-range"), answer.text());
            assert_eq!(summary, expected);
        }
        assert_eq!(seen.runs.total(), 1);
    }
}

#[tokio::test]
async fn body_too_large_to_store_still_answers_a_range_from_byte_0() {
    let larder = Larder::memory();
    let seen = Seen::default();
    let noted = seen.clone();
    let handler = move |headers: HeaderMap| async move {
        noted.note(&headers);
        cuts(&headers)
    };
    let app = Router::new().route("/x", get_route(handler.layer(cache(&larder).ttl(60).max_body(5))));
    assert_eq!(summary(&part(&app, "bytes=0-").await), "206 BYPASS bytes 0-9/10 0123456789");
    assert_eq!(summary(&part(&app, "bytes=4-").await), "206 BYPASS bytes 4-9/10 456789");
    assert_eq!(summary(&get(&app, "/x").await), "200 BYPASS  0123456789");
}

#[tokio::test]
async fn partial_response_of_a_handler_does_not_block_whole_requests() {
    let larder = Larder::memory();
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let seen = Seen::default();
    let noted = seen.clone();
    let handler = move |headers: HeaderMap| async move {
        noted.note(&headers);
        if headers.contains_key("range") {
            let _permit = gate.acquire().await.unwrap();
        }
        cuts(&headers)
    };
    let app = Router::new().route("/x", get_route(handler.layer(cache(&larder).ttl(60))));
    let ask = |fields: &'static [(&'static str, &'static str)]| {
        let app = app.clone();
        tokio::spawn(async move { send(&app, Method::GET, "/x", fields).await })
    };
    let first = ask(&[("range", "bytes=2-4")]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let others = [ask(&[]), ask(&[]), ask(&[("range", "bytes=0-")])];
    tokio::time::sleep(Duration::from_millis(50)).await;
    opened.add_permits(100);
    assert_eq!(summary(&first.await.unwrap()), "206 BYPASS bytes 2-4/10 234");
    for other in others {
        let other = other.await.unwrap();
        assert_ne!(other.cache(), "BYPASS");
        assert_eq!(other.text(), MEDIA);
    }
    assert_eq!(seen.runs.total(), 2);
}
