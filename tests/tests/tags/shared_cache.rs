//! Cache groups (RFC 9875) and tags of CDNs in the shared cache.

use std::sync::atomic::AtomicU64;

use axum::extract::Request;
use http::HeaderValue;
use larder_axum::SharedCacheLayer;
use larder_axum::larder_core::shared::SharedRule;
use larder_axum::larder_core::tag::TagField;
use larder_tests::in_process::Answer;

use super::*;

/// A service behind a shared cache, and the cache.
struct Site {
    app: Router,
    layer: SharedCacheLayer,
    runs: Runs,
}

impl Site {
    fn new(larder: &Larder) -> Self {
        Self::with_rule(larder, |_| {})
    }

    /// The service answers with the number of its run, with the status in the field `status` of the request, and with the fields of
    /// the request that begin with `say-`. It answers a condition with a 304 if the request says so.
    fn with_rule(larder: &Larder, change: impl FnOnce(&mut SharedRule)) -> Self {
        let runs = Runs::new();
        let counted = runs.clone();
        let origin = async move |request: Request| {
            let run = counted.count();
            let fields = request.headers();
            let is_valid = fields.contains_key("valid") && fields.contains_key("if-none-match");
            let status = fields.get("status").map_or("200", |status| status.to_str().unwrap());
            let mut response = if is_valid { "" } else { &*run.to_string().leak() }.into_response();
            *response.status_mut() =
                if is_valid { StatusCode::NOT_MODIFIED } else { status.parse().unwrap() };
            for (name, value) in fields {
                if let Some(name) = name.as_str().strip_prefix("say-") {
                    response.headers_mut().append(http::HeaderName::try_from(name).unwrap(), value.clone());
                }
            }
            let control = HeaderValue::from_static("max-age=300");
            response.headers_mut().entry("cache-control").or_insert(control);
            response
        };
        let layer = SharedCacheLayer::with_rule(larder, change);
        Self { app: Router::new().fallback(origin).layer(layer.clone()), layer, runs }
    }

    async fn get(&self, uri: &str, fields: &[(&str, &str)]) -> Answer {
        send(&self.app, Method::GET, uri, fields).await
    }

    async fn post(&self, uri: &str, fields: &[(&str, &str)]) -> Answer {
        send(&self.app, Method::POST, uri, fields).await
    }

    /// Fills an entry with these groups.
    async fn fill(&self, uri: &str, groups: &str) {
        let answer = self.get(uri, &[("say-cache-groups", groups)]).await;
        assert!(answer.header("cache-status").contains("; stored"), "{uri}: {answer:?}");
        assert!(self.has(uri).await, "{uri} was just stored");
    }

    /// Returns `true` if a stored response answers.
    async fn has(&self, uri: &str) -> bool {
        let answer = self.get(uri, &[("cache-control", "only-if-cached")]).await;
        answer.status == StatusCode::OK && answer.header("cache-status").contains("; hit")
    }

    /// Sends a write that invalidates these groups of the origin of the URI.
    async fn invalidate(&self, uri: &str, groups: &str) {
        let answer = self.post(uri, &[("say-cache-group-invalidation", groups)]).await;
        assert_eq!(answer.header("cache-group-invalidation"), groups, "it is for the next cache, too");
    }
}

on_stores_with_tags! {
    async fn invalidated_group_evicts_exactly_the_responses_of_its_origin(larder) {
        let site = Site::new(&larder);
        let all = [
            ("http://a.example/1", r#""a""#),
            ("http://a.example/2", r#""b", "a";x=1"#),
            ("http://a.example/3", r#""b""#),
            ("http://a.example/4", r#""A""#),
            ("http://a.example/5", r#""a "#),
            ("http://a.example/6", "a"),
            ("http://a.example:80/7", r#""a""#),
            ("http://a.example:8080/8", r#""a""#),
            ("https://a.example/9", r#""a""#),
            ("http://b.example/10", r#""a""#),
        ];
        let fill = async || {
            for (uri, groups) in all {
                if !site.has(uri).await {
                    site.fill(uri, groups).await;
                }
            }
        };
        let evicted = async || {
            let mut evicted = String::new();
            for (uri, _) in all {
                if !site.has(uri).await {
                    evicted.push_str(uri.rsplit_once('/').unwrap().1);
                }
            }
            evicted
        };
        for (uri, groups, expected) in [
            ("http://a.example/x", r#""a""#, "127"),
            ("http://A.example:80/x", r#""other", "a";p"#, "127"),
            ("http://a.example/x", r#""b""#, "23"),
            ("http://a.example/x", r#""b", "A""#, "234"),
            ("http://a.example:8080/x", r#""a""#, "8"),
            ("https://a.example:443/x", r#""a""#, "9"),
            ("http://b.example/x", r#""a", "b""#, "10"),
            ("http://c.example/x", r#""a", "b""#, ""),
            ("http://a.example/x", r#""a", b"#, ""),
            ("http://a.example/x", "a", ""),
            ("http://a.example/x", r#""""#, ""),
        ] {
            fill().await;
            site.invalidate(uri, groups).await;
            assert_eq!(evicted().await, expected, "{uri} {groups}");
        }
        // HTTP/1.1 doesn't state the scheme, so the groups may be those of either.
        fill().await;
        let fields = [("host", "a.example"), ("say-cache-group-invalidation", r#""a""#)];
        site.post("/x", &fields).await;
        assert_eq!(evicted().await, "1279");
    }

    async fn only_successful_unsafe_methods_invalidate_groups(larder) {
        let site = Site::new(&larder);
        let uri = "http://a.example/1";
        for (method, status, evicts) in [
            (Method::POST, "200", true),
            (Method::PUT, "204", true),
            (Method::DELETE, "303", true),
            (Method::PATCH, "201", true),
            (Method::from_bytes(b"PURGE").unwrap(), "200", true),
            (Method::GET, "200", false),
            (Method::HEAD, "200", false),
            (Method::OPTIONS, "200", false),
            (Method::TRACE, "200", false),
            (Method::from_bytes(b"QUERY").unwrap(), "200", false),
            (Method::POST, "400", false),
            (Method::POST, "404", false),
            (Method::POST, "500", false),
            (Method::POST, "503", false),
        ] {
            site.fill(uri, r#""a""#).await;
            let fields = [("say-cache-group-invalidation", r#""a""#), ("status", status)];
            send(&site.app, method.clone(), "http://a.example/other", &fields).await;
            assert_eq!(!site.has(uri).await, evicts, "{method} {status}");
            // For the next row, also what an error or a GET left behind.
            site.post(uri, &[]).await;
            site.post("http://a.example/other", &[]).await;
        }
        // An answer from the store invalidates nothing either.
        site.fill(uri, r#""a""#).await;
        let other = [("say-cache-group-invalidation", r#""a""#)];
        for _ in 0..2 {
            site.get("http://a.example/other", &other).await;
        }
        assert!(site.has(uri).await);
    }

    async fn invalidation_does_not_cascade(larder) {
        let site = Site::new(&larder);
        site.fill("http://a.example/1", r#""a", "b""#).await;
        site.fill("http://a.example/2", r#""b", "c""#).await;
        // An invalidation of a URI or of one group says nothing about the other groups of the response.
        site.post("http://a.example/1", &[]).await;
        assert!(!site.has("http://a.example/1").await && site.has("http://a.example/2").await);
        site.fill("http://a.example/1", r#""a", "b""#).await;
        site.invalidate("http://a.example/x", r#""a""#).await;
        assert!(!site.has("http://a.example/1").await && site.has("http://a.example/2").await);
    }

    async fn responses_with_more_groups_than_an_entry_can_have_are_not_stored(larder) {
        let site = Site::new(&larder);
        let list = |count: usize, length: usize| {
            (0..count).map(|i| format!("\"{i:0length$}\"")).collect::<Vec<_>>().join(", ")
        };
        for (groups, is_stored) in [
            (list(32, 32), true),
            (list(128, 100), true),
            (list(1, 256), true),
            (list(129, 4), false),
            (list(1, 257), false),
        ] {
            let uri = "http://a.example/1";
            let answer = site.get(uri, &[("say-cache-groups", &groups)]).await;
            assert_eq!(answer.header("cache-groups"), groups);
            assert_eq!(answer.header("cache-status").contains("; stored"), is_stored, "{answer:?}");
            assert_eq!(answer.header("cache-status").ends_with("detail=tags"), !is_stored, "{answer:?}");
            assert_eq!(site.has(uri).await, is_stored, "{groups}");
            if is_stored {
                site.invalidate("http://a.example/x", &list(1, groups.split('"').nth(1).unwrap().len())).await;
                assert!(!site.has(uri).await, "{groups}");
            }
        }
        // Several lines are one list.
        let lines = [list(100, 4), list(101, 5)];
        let fields: Vec<_> = lines.iter().map(|line| ("say-cache-groups", line.as_str())).collect();
        assert!(site.get("http://a.example/2", &fields).await.header("cache-status").ends_with("detail=tags"));
        let fields = [("say-cache-groups", r#""a""#), ("say-cache-groups", r#""b""#)];
        for group in [r#""a""#, r#""b""#] {
            site.get("http://a.example/3", &fields).await;
            assert!(site.has("http://a.example/3").await);
            site.invalidate("http://a.example/x", group).await;
            assert!(!site.has("http://a.example/3").await, "{group}");
        }
        let fields = [("say-cache-group-invalidation", r#""x""#), ("say-cache-group-invalidation", r#""a""#)];
        site.fill("http://a.example/3", r#""a""#).await;
        site.post("http://a.example/x", &fields).await;
        assert!(!site.has("http://a.example/3").await);
    }

    async fn groups_of_variants_and_parts_are_invalidated(larder) {
        let site = Site::new(&larder);
        let ask = async |lang: &str, group: &str, by: &str| {
            let group = format!("\"{group}\"");
            let fields = [("lang", lang), ("say-vary", by), ("say-cache-groups", &group)];
            site.get("http://a.example/1", &fields).await
        };
        let has = async |lang: &str| {
            let fields = [("lang", lang), ("cache-control", "only-if-cached")];
            site.get("http://a.example/1", &fields).await.status == StatusCode::OK
        };
        for (lang, group) in [("en", "a"), ("fr", "b"), ("de", "a")] {
            ask(lang, group, "lang").await;
            assert!(has(lang).await, "{lang}");
        }
        site.invalidate("http://a.example/x", r#""a""#).await;
        assert_eq!((has("en").await, has("fr").await, has("de").await), (false, true, false));
        // A response that varies by more fields replaces the variants.
        ask("es", "c", "lang, other").await;
        assert!(has("es").await && !has("fr").await);
        site.invalidate("http://a.example/x", r#""c""#).await;
        assert!(!has("es").await);

        let part = |range: &'static str, sent: &'static str, group: &'static str| {
            [("range", range), ("status", "206"), ("say-content-range", sent), ("say-etag", "\"e\""), ("say-cache-groups", group)]
        };
        let uri = "http://a.example/part";
        let has_part = async || site.get(uri, &[("range", "bytes=0-0"), ("cache-control", "only-if-cached")]).await.status == StatusCode::PARTIAL_CONTENT;
        assert_eq!(site.get(uri, &part("bytes=0-0", "bytes 0-0/4", r#""a""#)).await.status, StatusCode::PARTIAL_CONTENT);
        assert!(has_part().await);
        site.invalidate("http://a.example/x", r#""a""#).await;
        assert!(!has_part().await);
    }

    async fn response_to_a_post_that_answers_gets_has_its_groups(larder) {
        let site = Site::new(&larder);
        let uri = "http://a.example/1";
        let fields = [("say-content-location", "/1"), ("say-cache-groups", r#""a""#)];
        let post = async |more: &[(&str, &str)]| site.post(uri, &[&fields[..], more].concat()).await;
        post(&[]).await;
        assert!(site.has(uri).await);
        site.invalidate("http://a.example/x", r#""b""#).await;
        assert!(site.has(uri).await);
        site.invalidate("http://a.example/x", r#""a""#).await;
        assert!(!site.has(uri).await);
        // The response is older than the invalidation that it asks for.
        post(&[("say-cache-group-invalidation", r#""a""#)]).await;
        assert!(!site.has(uri).await);
        post(&[("say-cache-group-invalidation", r#""b""#)]).await;
        assert!(site.has(uri).await);
        post(&[("say-cache-groups", &format!("\"{}\"", "x".repeat(257)))]).await;
        assert!(!site.has(uri).await);
    }

    async fn validated_response_has_the_groups_of_the_newest_answer(larder) {
        let site = Site::new(&larder);
        let uri = "http://a.example/1";
        let stale = [("say-etag", "\"e\""), ("say-cache-control", "max-age=0"), ("say-cache-groups", r#""old", "both""#)];
        site.get(uri, &stale).await;
        for (groups, invalidated, remains) in [
            (Some(r#""new", "both""#), "old", true),
            (Some(r#""new", "both""#), "new", false),
            (Some(r#""new", "both""#), "both", false),
            (None, "old", false),
            (None, "new", true),
        ] {
            site.post(uri, &[]).await;
            site.get(uri, &stale).await;
            let mut fields = vec![("valid", ""), ("say-etag", "\"e\"")];
            fields.extend(groups.map(|groups| ("say-cache-groups", groups)));
            let validated = site.get(uri, &fields).await;
            assert!(validated.header("cache-status").contains("fwd-status=304; stored"), "{validated:?}");
            let told = groups.unwrap_or(r#""old", "both""#);
            assert_eq!(validated.header("cache-groups"), told);
            site.invalidate("http://a.example/x", &format!("\"{invalidated}\"")).await;
            assert_eq!(site.has(uri).await, remains, "{groups:?} {invalidated}");
        }
        // A validated response that gets more groups than an entry can have is evicted.
        site.post(uri, &[]).await;
        site.get(uri, &stale).await;
        let many = (0..129).map(|i| format!("\"{i}\"")).collect::<Vec<_>>().join(",");
        let answer = site.get(uri, &[("valid", ""), ("say-etag", "\"e\""), ("say-cache-groups", &many)]).await;
        assert!(!answer.header("cache-status").contains("; stored"), "{answer:?}");
        assert!(!site.has(uri).await);
    }

    async fn answers_of_validation_carry_the_groups(larder) {
        let site = Site::new(&larder);
        let uri = "http://a.example/1";
        site.get(uri, &[("say-etag", "\"e\""), ("say-cache-groups", r#""a""#)]).await;
        let not_modified = site.get(uri, &[("if-none-match", "\"e\"")]).await;
        assert_eq!(not_modified.status, StatusCode::NOT_MODIFIED);
        assert_eq!(not_modified.header("cache-groups"), r#""a""#);
        let head = send(&site.app, Method::HEAD, uri, &[]).await;
        assert_eq!(head.header("cache-groups"), r#""a""#);
    }

    async fn fill_during_which_its_group_was_invalidated_is_not_stored(larder) {
        let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (started, waits) = (Arc::clone(&began), Arc::clone(&go));
        let origin = async move |request: Request| {
            if request.headers().contains_key("wait") {
                started.notify_one();
                waits.notified().await;
            }
            let is_valid = request.headers().contains_key("if-none-match");
            let vary = request.headers().get("vary").map(|vary| ("vary", vary.to_str().unwrap().to_owned()));
            let mut response = if is_valid { StatusCode::NOT_MODIFIED.into_response() } else { "x".into_response() };
            if request.method() == Method::POST {
                response.headers_mut().insert("cache-group-invalidation", HeaderValue::from_static(r#""a""#));
                return response;
            }
            for (name, value) in [
                ("cache-control", if request.uri().path() == "/stale" { "max-age=0" } else { "max-age=300" }.to_owned()),
                ("cache-groups", r#""a""#.to_owned()),
                ("etag", "\"e\"".to_owned()),
            ].into_iter().chain(vary) {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        };
        let app = Router::new().fallback(origin).layer(SharedCacheLayer::new(&larder));
        let ask = async |method: Method, uri: &str, fields: &[(&str, &str)]| send(&app, method, uri, fields).await;
        let has = async |uri: &str, fields: &[(&str, &str)]| {
            let fields: Vec<_> = fields.iter().copied().chain([("cache-control", "only-if-cached, max-stale")]).collect();
            ask(Method::GET, uri, &fields).await.status == StatusCode::OK
        };
        for (uri, fields) in [
            ("/plain", &[][..]),
            ("/vary", &[("vary", "lang"), ("lang", "en")]),
            ("/vary", &[("vary", "lang, more"), ("lang", "fr")]),
            ("/stale", &[]),
        ] {
            if uri == "/stale" {
                ask(Method::GET, uri, fields).await;
            }
            let waiting: Vec<_> = fields.iter().copied().chain([("wait", "")]).collect();
            let (answer, ()) = tokio::join!(ask(Method::GET, uri, &waiting), async {
                began.notified().await;
                ask(Method::POST, "/write", &[]).await;
                go.notify_one();
            });
            assert_eq!((answer.status, answer.text()), (StatusCode::OK, "x"), "{uri}");
            sleep(Duration::from_millis(20)).await;
            assert!(!has(uri, fields).await, "{uri} {fields:?}: it was asked for before the invalidation");
            if uri == "/stale" {
                let status = answer.header("cache-status");
                assert!(status.ends_with("detail=evicted") && !status.contains("; stored"), "{status}");
                let told: Vec<_> = answer.headers.get_all("cache-control").iter().collect();
                assert_eq!(told, ["max-age=0", "no-cache"]);
            }
            ask(Method::GET, uri, fields).await;
            assert!(has(uri, fields).await, "{uri} {fields:?}: the next one is stored");
        }
    }

    async fn invalidation_does_not_depend_on_the_client(larder) {
        let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (started, waits) = (Arc::clone(&began), Arc::clone(&go));
        let write = async move || {
            started.notify_one();
            waits.notified().await;
            ([("cache-group-invalidation", r#""a""#)], StatusCode::NO_CONTENT)
        };
        let read = async || ([("cache-control", "max-age=300"), ("cache-groups", r#""a""#)], "x");
        let app = Router::new().route("/read", get_route(read)).route("/write", post(write));
        let app = app.layer(SharedCacheLayer::new(&larder));
        for _ in 0..2 {
            get(&app, "/read").await;
        }
        {
            let mut request = pin!(start(&app, Method::POST, "/write", &[]));
            tokio::select! {
                biased;
                _ = &mut request => panic!("the service waits"),
                () = began.notified() => {}
            }
        }
        assert!(get(&app, "/read").await.header("cache-status").contains("; hit"));
        go.notify_one();
        for _ in 0..200 {
            sleep(Duration::from_millis(5)).await;
            if !get(&app, "/read").await.header("cache-status").contains("; hit") {
                return;
            }
        }
        panic!("the group was not evicted");
    }

    async fn races_of_fills_and_invalidations_leave_nothing_stale(larder) {
        let version = Arc::new(AtomicU64::new(0));
        let current = Arc::clone(&version);
        let origin = async move |request: Request| {
            let is_write = request.method() == Method::POST;
            let version = if is_write { current.fetch_add(1, Ordering::SeqCst) + 1 } else { current.load(Ordering::SeqCst) };
            tokio::task::yield_now().await;
            let vary = if request.uri().path() == "/3" { "lang" } else { "accept-encoding" };
            let fields = if is_write { [("cache-group-invalidation", r#""all""#), ("x", "x"), ("x", "x")] } else {
                [("cache-groups", r#""all", "other""#), ("cache-control", "max-age=300"), ("vary", vary)]
            };
            (fields, version.to_string())
        };
        let app = Router::new().fallback(origin).layer(SharedCacheLayer::new(&larder));
        for round in 0..300 {
            let readers: Vec<_> = (0..6).map(|id| {
                let app = app.clone();
                tokio::spawn(async move { get(&app, &format!("/{id}")).await })
            }).collect();
            if round % 3 == 0 {
                tokio::task::yield_now().await;
            }
            let written: u64 = send(&app, Method::POST, "/write", &[]).await.text().parse().unwrap();
            let after = join_all((0..6).map(|id| {
                let app = app.clone();
                async move { get(&app, &format!("/{id}")).await }
            })).await;
            for answer in after {
                let found: u64 = answer.text().parse().unwrap();
                assert!(found >= written, "stale: {found} after {written}, {answer:?}");
            }
            for reader in readers {
                reader.await.unwrap();
            }
        }
    }

    async fn tags_of_cdns_are_read_and_removed_by_option(larder) {
        let fields = [
            ("say-surrogate-key", "product:7 shop:3"),
            ("say-surrogate-key", "all"),
            ("say-cache-tag", "red tea, green"),
            ("say-cache-groups", r#""g""#),
        ];
        let keys = [TagField::SurrogateKey, TagField::CacheTag];
        for (index, keeps) in [false, true].into_iter().enumerate() {
            let site = Site::with_rule(&larder, |rule| {
                rule.tag_fields.extend(keys);
                rule.keep_tag_fields = keeps;
            });
            let uri = format!("http://{index}.example/1");
            for tag in ["product:7", "shop:3", "all", "red tea", "green"] {
                for expected in ["; stored", "; hit"] {
                    let answer = site.get(&uri, &fields).await;
                    assert!(answer.header("cache-status").contains(expected), "{tag}: {answer:?}");
                    assert_eq!(answer.headers.contains_key("surrogate-key"), keeps, "{answer:?}");
                    assert_eq!(answer.headers.contains_key("cache-tag"), keeps, "{answer:?}");
                    assert_eq!(answer.header("cache-groups"), r#""g""#);
                }
                assert!(larder.evict_tag("other").await && larder.evict_tag("g").await);
                assert!(site.has(&uri).await, "{tag}");
                let evicted = if keeps { larder.evict_tag(tag).await } else { site.layer.cache().evict_tag(tag).await };
                assert!(evicted && !site.has(&uri).await, "{tag}");
            }
            // Responses that aren't stored lose the fields too.
            for answer in [site.post(&uri, &fields).await, site.get(&uri, &[&fields[..], &[("say-set-cookie", "a=b")]].concat()).await] {
                assert_eq!(answer.headers.contains_key("surrogate-key"), keeps, "{answer:?}");
            }
            for name in ["say-surrogate-key", "say-cache-tag"] {
                let answer = site.get(&format!("{uri}/long"), &[(name, &"x".repeat(257))]).await;
                assert!(answer.header("cache-status").ends_with("detail=tags"), "{answer:?}");
            }
        }
        // Without the option they are ordinary fields.
        let site = Site::new(&larder);
        for _ in 0..2 {
            assert_eq!(site.get("http://c.example/1", &fields).await.header("surrogate-key"), "product:7 shop:3");
        }
        larder.evict_tag("all").await;
        assert!(site.has("http://c.example/1").await);
        let without = Site::with_rule(&larder, |rule| rule.tag_fields.clear());
        without.fill("http://d.example/1", r#""a""#).await;
        without.invalidate("http://d.example/x", r#""a""#).await;
        assert!(without.has("http://d.example/1").await, "the option turns groups off");
    }

    async fn soft_eviction_makes_stale_as_of_now_and_a_later_validation_fresh(larder) {
        let site = Site::new(&larder);
        let fill = async |uri: &str, control: &str| {
            let fields = [
                ("say-etag", "\"e\""), ("say-cache-groups", r#""a""#), ("say-cache-control", control),
                ("say-cdn-cache-control", "max-age=600"),
            ];
            site.get(uri, &fields).await;
            assert!(site.has(uri).await);
        };
        let evict = async || assert!(site.layer.cache().evict_cache_group("a", "A.example:80").soft().await);
        let uri = "http://a.example/1";
        fill(uri, "max-age=300").await;
        fill("https://a.example/1", "max-age=300").await;
        fill("http://b.example/1", "max-age=300").await;
        evict().await;
        assert!(!site.has(uri).await && site.has("http://b.example/1").await);
        assert!(site.has("https://a.example/1").await, "that port isn't the one of https");
        assert!(site.layer.cache().evict_cache_group("a", "a.example").soft().await);
        assert!(!site.has("https://a.example/1").await, "both schemes");
        // The origin says that it is still valid.
        let runs = site.runs.total();
        let valid = [("valid", ""), ("say-etag", "\"e\""), ("say-cache-control", "max-age=300")];
        let validated = site.get(uri, &valid).await;
        assert!(validated.header("cache-status").starts_with("Larder; fwd=stale; fwd-status=304; stored"), "{validated:?}");
        assert!(!validated.header("cache-control").contains("no-cache"));
        assert!(site.has(uri).await);
        assert_eq!(site.runs.total(), runs + 1);
        // A stale response is used meanwhile, and no cache downstream takes it for fresh.
        for (uri, control, status) in [
            ("http://a.example/refreshed", "max-age=300, stale-while-revalidate=60", "200"),
            ("http://a.example/failed", "max-age=300, stale-if-error=60", "503"),
        ] {
            fill(uri, control).await;
            evict().await;
            let stale = site.get(uri, &[("status", status)]).await;
            assert_eq!(stale.status, StatusCode::OK, "{control}");
            let told: Vec<_> = stale.headers.get_all("cache-control").iter().collect();
            assert_eq!(told, [control, "no-cache"]);
            assert!(!stale.headers.contains_key("cdn-cache-control"), "{stale:?}");
        }
        // A hard eviction after a soft one.
        fill("http://a.example/2", "max-age=300, stale-while-revalidate=60").await;
        evict().await;
        assert!(site.layer.cache().evict_cache_group("a", "a.example").await);
        let answer = site.get("http://a.example/2", &[]).await;
        assert!(answer.header("cache-status").starts_with("Larder; fwd=uri-miss"), "{answer:?}");
        for group in ["", "x".repeat(256).as_str()] {
            assert!(site.layer.cache().evict_cache_group(group, "a.example").await);
        }
        assert!(!site.layer.cache().evict_cache_group(&"x".repeat(257), "a.example").await);
    }

    async fn fill_that_began_before_a_soft_eviction_is_not_stored_in_place_of_a_later_record(larder) {
        let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (started, waits) = (Arc::clone(&began), Arc::clone(&go));
        let origin = async move |request: Request| {
            if request.headers().contains_key("wait") {
                started.notify_one();
                waits.notified().await;
            }
            let vary = request.headers().get("say-vary").cloned().unwrap();
            ([("cache-control", HeaderValue::from_static("max-age=300")), ("vary", vary)], "x")
        };
        let space = KeySpace::new(larder.prefix(), Some("pages")).unwrap();
        let layer = SharedCacheLayer::with_rule(&larder, |rule| rule.space = space);
        let app = Router::new().fallback(origin).layer(layer);
        let ask = async |fields: &[(&str, &str)]| send(&app, Method::GET, "/x", fields).await;
        let has = async |lang: &str| {
            ask(&[("lang", lang), ("cache-control", "only-if-cached, max-stale")]).await.status == StatusCode::OK
        };
        let wider = [("lang", "en"), ("say-vary", "lang, more"), ("wait", "")];
        ask(&[("lang", "fr"), ("say-vary", "lang")]).await;
        tokio::join!(ask(&wider), async {
            began.notified().await;
            assert!(larder.evict_group("pages").soft().await);
            ask(&[("lang", "de"), ("say-vary", "lang")]).await;
            assert!(has("de").await, "the record was written again");
            go.notify_one();
        });
        sleep(Duration::from_millis(20)).await;
        assert!(!has("en").await, "it was asked for before the eviction");
        assert!(has("de").await);
        ask(&wider[..2]).await;
        assert!(has("en").await, "the next one is stored");
    }

    async fn soft_eviction_of_a_group_of_keys_makes_its_responses_stale(larder) {
        let space = KeySpace::new(larder.prefix(), Some("pages")).unwrap();
        let site = Site::with_rule(&larder, |rule| rule.space = space);
        let ask = async |uri: &str, lang: &str, fields: &[(&str, &str)]| {
            let varies = [("lang", lang), ("say-etag", "\"e\"")];
            let vary = uri.ends_with("varies").then_some(("say-vary", "lang"));
            let fields: Vec<_> = varies.into_iter().chain(vary).chain(fields.iter().copied()).collect();
            site.get(uri, &fields).await
        };
        for uri in ["http://a.example/one", "http://a.example/varies"] {
            for lang in ["en", "fr"] {
                ask(uri, lang, &[]).await;
                assert!(ask(uri, lang, &[]).await.header("cache-status").contains("; hit"), "{uri} {lang}");
            }
        }
        assert!(larder.evict_group("pages").soft().await);
        for (uri, lang) in [("http://a.example/varies", "en"), ("http://a.example/varies", "fr"), ("http://a.example/one", "en")] {
            let validated = ask(uri, lang, &[("valid", "")]).await;
            let status = validated.header("cache-status");
            assert!(status.contains("fwd=stale; fwd-status=304; stored"), "{uri} {lang}: {status}");
            assert!(ask(uri, lang, &[]).await.header("cache-status").contains("; hit"), "{uri} {lang}");
        }
    }
}

#[tokio::test]
async fn store_without_tags_stores_only_responses_without_groups() {
    let larder = Larder::builder().store(OnlyRequired(MemoryStore::new())).build();
    let site = Site::new(&larder);
    for uri in ["/0", "/1"] {
        let answer = site.get(uri, &[("say-cache-groups", r#""a""#)]).await;
        assert!(answer.header("cache-status").ends_with("detail=tags"), "{answer:?}");
        assert!(!answer.header("cache-status").contains("stored"), "{answer:?}");
        assert!(!site.has(uri).await);
    }
    site.get("/2", &[]).await;
    assert!(site.has("/2").await);
}
