//! The same requests to the same routes have the same responses through every adapter and on every store. A new row tests all of
//! them.

use http::Method;
use larder_core::default_key;
use larder_tests::parity::Opt::{
    Also, ByHost, DownstreamTtl, Group, KeyBy, KeyByAsync, MaxBody, NoExpiry, Params, Prefix, Private,
    Public, StaleIfError, Ttl,
};
use larder_tests::parity::{
    ANY, Adapter, Ask, Content, LAST_ETAG, Row, ask, bypass, check_on_memory, check_on_redis, get, hit, miss,
    not_modified, says, status,
};

const ALICE: (&str, &str) = ("authorization", "Bearer alice");
const BOB: (&str, &str) = ("authorization", "Bearer bob");

fn head(uri: &'static str) -> Ask {
    ask(Method::HEAD, uri)
}

fn put(uri: &'static str) -> Ask {
    ask(Method::PUT, uri)
}

fn delete(uri: &'static str) -> Ask {
    ask(Method::DELETE, uri)
}

fn post(uri: &'static str) -> Ask {
    ask(Method::POST, uri)
}

/// The fields that `curl --http2` sends.
fn offering_h2c(ask: Ask) -> Ask {
    ask.with("connection", "Upgrade, HTTP2-Settings")
        .with("upgrade", "h2c")
        .with("http2-settings", "AAMAAABk")
}

fn rows() -> Vec<Row> {
    let mut rows = vec![];
    rows.extend(reading());
    rows.extend(asking());
    rows.extend(withholding());
    rows.extend(writing());
    rows.extend(telling_apart());
    rows.extend(naming());
    rows
}

/// Hits, misses and lifetimes.
fn reading() -> Vec<Row> {
    vec![
        Row::new("a miss, then hits whose age grows", &[Group("g"), Ttl(60)])
            .reads(says(200, &[("content-type", "text/plain"), ("x-own", "1")]))
            .on(get("/x"), miss("GET 1").with("cache-control", "max-age=60").because("absent"))
            .on(get("/x"), hit("GET 1").with("etag", ANY).with("x-own", "1"))
            .later(10)
            .on(
                get("/x"),
                hit("GET 1").with("cache-control", "max-age=50").with("content-type", "text/plain"),
            )
            .on(get("/y"), miss("GET 2"))
            .runs(2)
            .holds("redis:larder:cache:{g}:x")
            .holds("redis:larder:cache:{g}:y"),
        Row::new("an expired entry is a miss", &[Ttl(60)])
            .on(get("/x"), miss("GET 1"))
            .later(61)
            .on(get("/x"), miss("GET 2").with("cache-control", "max-age=60"))
            .on(get("/x"), hit("GET 2")),
        // The store in memory has the same clock, and keeps an expired entry only as long as it may be of use.
        Row::new("an expired entry that the store still has is a miss", &[Ttl(60), StaleIfError(600)])
            .on(get("/x"), miss("GET 1"))
            .later(61)
            .on(get("/x"), miss("GET 2").because("expired"))
            .on(get("/x"), hit("GET 2")),
        Row::new("the cache's default TTL", &[])
            .on(get("/x"), miss("GET 1").with("cache-control", "max-age=900"))
            .holds("redis:larder:cache:x"),
        Row::new("no expiry overrides the default", &[NoExpiry])
            .on(get("/x"), miss("GET 1").with("cache-control", "no-cache"))
            .later(365 * 24 * 3600)
            .on(get("/x"), hit("GET 1").with("cache-control", "no-cache")),
        Row::new("a shorter TTL for downstream caches", &[Ttl(60), DownstreamTtl(5)])
            .on(get("/x"), miss("GET 1").with("cache-control", "max-age=5"))
            .later(30)
            .on(get("/x"), hit("GET 1").with("cache-control", "max-age=5")),
        Row::new("other statuses with their own TTL", &[Ttl(60), Also(404, 5)])
            .reads(says(404, &[]))
            .on(get("/x"), miss("GET 1").status(404).with("cache-control", "max-age=5"))
            .on(get("/x"), hit("GET 1").status(404))
            .later(6)
            .on(get("/x"), miss("GET 2").status(404)),
        Row::new("an empty body is stored", &[Ttl(60)])
            .reads(says(200, &[]).content(Content::Nothing))
            .on(get("/x"), miss("").with("content-length", "0"))
            .on(get("/x"), hit("").with("content-length", "0"))
            .runs(1),
        Row::new("a HEAD is answered from the entry of a GET", &[Ttl(60)])
            .on(get("/x"), miss("GET 1"))
            .on(head("/x"), hit("").with("content-length", "5").with("etag", ANY))
            .on(head("/x").with("if-none-match", LAST_ETAG), not_modified("HIT"))
            .on(get("/x"), hit("GET 1"))
            .runs(1),
        Row::new("a HEAD that runs as HEAD stores nothing", &[Ttl(60)])
            .only(&[Adapter::Tower, Adapter::Axum])
            .on(head("/x"), bypass("head", ""))
            .lacks("redis:larder:cache:x")
            .on(get("/x"), miss("GET 2")),
        Row::new("a HEAD that runs as GET fills", &[Ttl(60)])
            .only(&[Adapter::Poem])
            .on(head("/x"), miss("").with("content-length", "5"))
            .holds("redis:larder:cache:x")
            .on(get("/x"), hit("GET 1")),
    ]
}

/// Request directives and conditions.
fn asking() -> Vec<Row> {
    vec![
        Row::new("a client with the current tag gets a 304", &[Ttl(60)])
            .on(get("/x"), miss("GET 1"))
            .on(
                get("/x").with("if-none-match", LAST_ETAG),
                not_modified("HIT").with("etag", ANY).with("cache-control", "max-age=60"),
            )
            .on(get("/x").with("if-none-match", "*"), not_modified("HIT"))
            .on(get("/x").with("if-none-match", "\"other\""), hit("GET 1"))
            .runs(1),
        Row::new("a 304 after a miss", &[Ttl(60)])
            .reads(says(200, &[("etag", "\"v1\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]))
            .on(get("/x").with("if-none-match", "\"v1\""), not_modified("MISS").with("etag", "\"v1\""))
            .on(get("/x").with("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"), not_modified("HIT"))
            .on(get("/x"), hit("GET 1")),
        Row::new("no-cache and max-age=0 refresh the entry", &[Ttl(60)])
            .on(get("/x"), miss("GET 1"))
            .on(get("/x").with("cache-control", "no-cache"), miss("GET 2").because("no-cache"))
            .on(get("/x"), hit("GET 2"))
            .on(get("/x").with("cache-control", "max-age=0"), miss("GET 3").because("max-age"))
            .on(get("/x"), hit("GET 3")),
        Row::new("max-age and min-fresh", &[Ttl(60)])
            .on(get("/x"), miss("GET 1"))
            .later(20)
            .on(get("/x").with("cache-control", "max-age=20"), hit("GET 1"))
            .on(get("/x").with("cache-control", "min-fresh=40"), hit("GET 1"))
            .on(get("/x").with("cache-control", "max-age=19"), miss("GET 2").because("max-age"))
            .later(20)
            .on(get("/x").with("cache-control", "min-fresh=41"), miss("GET 3").because("min-fresh")),
        Row::new("no-store neither reads nor writes", &[Ttl(60)])
            .on(get("/x").with("cache-control", "no-store"), bypass("no-store", "GET 1"))
            .lacks("redis:larder:cache:x")
            .on(get("/x"), miss("GET 2"))
            .on(get("/x").with("cache-control", "no-store"), bypass("no-store", "GET 3"))
            .on(get("/x"), hit("GET 2")),
        Row::new("only-if-cached", &[Ttl(60)])
            .on(get("/x").with("cache-control", "only-if-cached"), status(504).text(""))
            .runs(0)
            .on(get("/x"), miss("GET 1"))
            .on(get("/x").with("cache-control", "only-if-cached"), hit("GET 1")),
        Row::new("content and other preconditions bypass the cache", &[Ttl(60)])
            .on(get("/x"), miss("GET 1"))
            .on(get("/x").content("content"), bypass("content", "GET 2"))
            .on(get("/x").with("if-match", "\"v1\""), bypass("precondition", "GET 3"))
            .on(get("/x"), hit("GET 1")),
        Row::new("a range request fills with the whole response", &[Ttl(60)])
            .on(
                get("/x").with("range", "bytes=0-"),
                miss("GET 1").status(206).with("content-range", "bytes 0-4/5").because("absent"),
            )
            .on(get("/x"), hit("GET 1").with("accept-ranges", "bytes"))
            .on(
                get("/y").with("range", "bytes=1-2"),
                miss("ET").status(206).with("content-range", "bytes 1-2/5").because("absent"),
            )
            .on(get("/y"), hit("GET 2"))
            .on(
                get("/x?z=1").with("range", "bytes=5-"),
                miss("").status(416).with("content-range", "bytes */5"),
            )
            .on(get("/x?z=1"), hit("GET 3")),
        Row::new("a handler's own 206 is passed on", &[Ttl(60)])
            .reads(says(206, &[("content-range", "bytes 1-5/9")]))
            .on(get("/x").with("range", "bytes=1-5"), bypass("range", "GET 1").status(206))
            .on(get("/x").with("range", "bytes=1-5"), bypass("range", "GET 2").status(206))
            .lacks("redis:larder:cache:x"),
        Row::new("Accept-Ranges: none is respected", &[Ttl(60)])
            .reads(says(200, &[("accept-ranges", "none")]))
            .on(get("/x").with("range", "bytes=0-"), miss("GET 1").with("accept-ranges", "none"))
            .on(get("/x").with("range", "bytes=1-2"), hit("GET 1").with("accept-ranges", "none")),
        Row::new("ranges are cut from the entry", &[Ttl(60)])
            .on(get("/x"), miss("GET 1"))
            .on(
                get("/x").with("range", "bytes=0-1"),
                status(206).text("GE").with("content-range", "bytes 0-1/5"),
            )
            .on(
                get("/x").with("range", "bytes=-1"),
                status(206).text("1").with("content-range", "bytes 4-4/5"),
            )
            .on(get("/x").with("range", "bytes=5-"), status(416).text("").with("content-range", "bytes */5"))
            .runs(1)
            .on(get("/x"), hit("GET 1")),
    ]
}

/// Responses that must not be stored.
fn withholding() -> Vec<Row> {
    let twice = |name, options: &[_], reads, why, expected: u16| {
        Row::new(name, options)
            .reads(reads)
            .on(get("/x"), bypass(why, "GET 1").status(expected))
            .on(get("/x"), bypass(why, "GET 2").status(expected))
            .lacks("redis:larder:cache:x")
    };
    vec![
        twice("failures", &[Ttl(60)], says(404, &[]), "status", 404),
        twice(
            "a handler's no-store",
            &[Ttl(60)],
            says(200, &[("cache-control", "no-store")]),
            "withheld",
            200,
        ),
        twice("a handler's private", &[Ttl(60)], says(200, &[("cache-control", "private")]), "withheld", 200),
        twice("Vary: *", &[Ttl(60)], says(200, &[("vary", "*")]), "vary", 200),
        twice("bodies over the limit", &[Ttl(60), MaxBody(4)], says(200, &[]), "size", 200),
        twice("streams", &[Ttl(60)], says(200, &[]).content(Content::Streamed), "stream", 200),
        Row::new("a response with a cookie", &[Ttl(60), Public])
            .reads(says(200, &[("set-cookie", "session=1")]))
            .on(get("/x"), bypass("set-cookie", "GET 1").with("set-cookie", "session=1"))
            .on(get("/x"), bypass("set-cookie", "GET 2").with("cache-control", "no-store"))
            .lacks("redis:larder:cache:x"),
        Row::new("a returned error with status 500", &[Ttl(60)])
            .reads(says(500, &[]).content(Content::Failed))
            .on(get("/x"), status(500).text("failed"))
            .on(get("/x"), status(500).text("failed"))
            .runs(2)
            .lacks("redis:larder:cache:x"),
        Row::new("a returned error with status 404", &[Ttl(60)])
            .reads(says(404, &[]).content(Content::Failed))
            .on(get("/x"), status(404).text("failed"))
            .on(get("/x"), status(404).text("failed"))
            .runs(2)
            .lacks("redis:larder:cache:x"),
        Row::new("a stale response replaces an error status", &[Ttl(60), StaleIfError(600)])
            .reads(says(503, &[]).after(1))
            .on(get("/x"), miss("GET 1"))
            .later(61)
            .on(get("/x"), hit("GET 1"))
            .runs(2)
            .later(600)
            .on(get("/x"), bypass("status", "GET 3").status(503)),
        Row::new("a stale response replaces a returned error", &[Ttl(60), StaleIfError(600)])
            .reads(says(500, &[]).content(Content::Failed).after(1))
            .on(get("/x"), miss("GET 1"))
            .later(61)
            .on(get("/x"), hit("GET 1"))
            .runs(2)
            .later(600)
            .on(get("/x"), status(500).text("failed")),
        Row::new("a stale response doesn't replace a refusal", &[Ttl(60), StaleIfError(600)])
            .reads(says(404, &[]).after(1))
            .on(get("/x"), miss("GET 1"))
            .later(61)
            .on(get("/x"), bypass("status", "GET 2").status(404))
            .lacks("redis:larder:cache:x"),
        // In tower an error is only an error. In the others it has the status of its response.
        Row::new("a stale response doesn't replace a returned refusal", &[Ttl(60), StaleIfError(600)])
            .only(&[Adapter::Axum, Adapter::Poem])
            .reads(says(404, &[]).content(Content::Failed).after(1))
            .on(get("/x"), miss("GET 1"))
            .later(61)
            .on(get("/x"), status(404).text("failed"))
            .lacks("redis:larder:cache:x"),
        Row::new("a refusal evicts the entry", &[Ttl(60)])
            .only(&[Adapter::Axum, Adapter::Poem])
            .reads(says(404, &[]).content(Content::Failed).after(1))
            .on(get("/x"), miss("GET 1"))
            .on(get("/x").with("cache-control", "no-cache"), status(404).text("failed"))
            .on(get("/x"), status(404).text("failed")),
        Row::new("a failed refresh keeps the entry", &[Ttl(60)])
            .reads(says(500, &[]).content(Content::Failed).after(1))
            .on(get("/x"), miss("GET 1"))
            .on(get("/x").with("cache-control", "no-cache"), status(500).text("failed"))
            .on(get("/x"), hit("GET 1")),
        Row::new("credentials on an undeclared route", &[Ttl(60)])
            .reads(says(200, &[]).content(Content::Echoed("authorization")))
            .on(get("/x").with(ALICE.0, ALICE.1), bypass("authorization", "Bearer alice 1"))
            .on(get("/x").with("cookie", "a=1"), bypass("cookie", "none 2").with("cache-control", "no-store"))
            .on(get("/x"), miss("none 3"))
            .on(get("/x").with(ALICE.0, ALICE.1), bypass("authorization", "Bearer alice 4")),
    ]
}

/// Write-throughs and evictions.
fn writing() -> Vec<Row> {
    let warm = |name| Row::new(name, &[Group("g"), Ttl(60)]).on(get("/x"), miss("GET 1"));
    vec![
        warm("a write-through is the next hit")
            .on(put("/x"), miss("PUT 2").with("cache-control", "max-age=60").with("etag", ANY))
            .on(get("/x"), hit("PUT 2"))
            .on(put("/y").with("if-none-match", "*"), miss("PUT 3"))
            .on(get("/y"), hit("PUT 3"))
            .holds("redis:larder:cache:{g}:y"),
        warm("a write-through keeps the representation only")
            .writes(says(201, &[("location", "/x"), ("content-type", "text/x")]))
            .on(put("/x"), miss("PUT 2").status(201).with("location", "/x"))
            .on(get("/x"), hit("PUT 2").with("content-type", "text/x").without("location")),
        warm("a write that offers another protocol stores and evicts")
            .on(offering_h2c(put("/x")), miss("PUT 2"))
            .on(get("/x"), hit("PUT 2"))
            .on(offering_h2c(delete("/x")), status(200).text("DELETE 3"))
            .on(get("/x"), miss("GET 4"))
            .on(offering_h2c(post("/x")), status(200).text("POST 5"))
            .on(get("/x"), miss("GET 6")),
        warm("a write without a body evicts")
            .writes(says(204, &[]).content(Content::Nothing))
            .on(put("/x"), status(204).says("BYPASS").text(""))
            .on(get("/x"), miss("GET 3")),
        warm("a write that streams evicts")
            .writes(says(200, &[]).content(Content::Streamed))
            .on(put("/x"), bypass("stream", "PUT 2"))
            .on(get("/x"), miss("GET 3")),
        warm("a refused write changes nothing")
            .writes(says(422, &[]))
            .on(put("/x"), status(422).says("BYPASS").because("failed").text("PUT 2"))
            .on(delete("/x"), status(422).text("DELETE 3"))
            .on(post("/x"), status(422).text("POST 4"))
            .on(get("/x"), hit("GET 1")),
        warm("a failed write evicts, because it may have changed something")
            .writes(says(500, &[]).content(Content::Failed))
            .on(put("/x"), status(500).text("failed"))
            .on(get("/x"), miss("GET 3"))
            .on(delete("/x"), status(500).text("failed"))
            .on(get("/x"), miss("GET 5"))
            .on(post("/x"), status(500).text("failed"))
            .on(get("/x"), miss("GET 7"))
            .runs(7),
        warm("a write with a proxy's timeout evicts")
            .writes(says(504, &[]))
            .on(put("/x"), status(504).says("BYPASS").because("failed").text("PUT 2"))
            .on(get("/x"), miss("GET 3"))
            .on(delete("/x"), status(504).text("DELETE 4"))
            .on(get("/x"), miss("GET 5"))
            .on(post("/x"), status(504).text("POST 6"))
            .on(get("/x"), miss("GET 7")),
        warm("evicting a key")
            .on(get("/x?a=1"), miss("GET 2"))
            .on(get("/y"), miss("GET 3"))
            .on(delete("/x"), status(200).text("DELETE 4"))
            .lacks("redis:larder:cache:{g}:x")
            .holds("redis:larder:cache:{g}:x:a=1")
            .on(get("/x"), miss("GET 5"))
            .on(get("/x?a=1"), hit("GET 2"))
            .on(get("/y"), hit("GET 3")),
        warm("a redirect after a change evicts")
            .writes(says(303, &[("location", "/x")]))
            .on(delete("/x"), status(303).with("location", "/x"))
            .on(get("/x"), miss("GET 3")),
        warm("evicting the group")
            .on(get("/v1/y?a=1"), miss("GET/v1 2"))
            .on(post("/v2/x"), status(200).text("POST/v2 3"))
            .lacks("redis:larder:cache:{g}:x")
            .lacks("redis:larder:cache:{g}:v1:y:a=1")
            .on(get("/x"), miss("GET 4")),
    ]
}

/// Users, variants, routers.
fn telling_apart() -> Vec<Row> {
    vec![
        Row::new("users of a private route", &[Ttl(60), Private])
            .reads(says(200, &[]).content(Content::Echoed("authorization")))
            .on(
                get("/x").with(ALICE.0, ALICE.1),
                miss("Bearer alice 1").with("cache-control", "private, max-age=60"),
            )
            .on(get("/x").with(BOB.0, BOB.1), miss("Bearer bob 2"))
            .on(
                get("/x").with(ALICE.0, ALICE.1),
                hit("Bearer alice 1").with("cache-control", "private, max-age=60"),
            )
            .on(get("/x"), bypass("anonymous", "none 3"))
            .on(put("/x").with(ALICE.0, ALICE.1), miss("PUT 4"))
            .on(get("/x").with(ALICE.0, ALICE.1), hit("PUT 4"))
            .on(delete("/x").with(BOB.0, BOB.1), status(200))
            .on(get("/x").with(ALICE.0, ALICE.1), hit("PUT 4"))
            .on(get("/x").with(BOB.0, BOB.1), miss("Bearer bob 6"))
            .lacks("redis:larder:cache:x"),
        Row::new("a public route shares its entry", &[Ttl(60), Public])
            .on(get("/x").with(ALICE.0, ALICE.1), miss("GET 1"))
            .on(get("/x").with("cookie", "a=1"), hit("GET 1"))
            .on(get("/x"), hit("GET 1").with("cache-control", "public, max-age=60").without("vary")),
        Row::new("an undeclared route varies by credentials", &[Ttl(60)])
            .on(get("/x").with("x-api-key", "k"), bypass("credentials", "GET 1"))
            .on(get("/x"), miss("GET 2").with("vary", "Authorization, Cookie"))
            .on(get("/x"), hit("GET 2").with("vary", "Authorization, Cookie"))
            .on(put("/x"), miss("PUT 3").with("vary", "Authorization, Cookie"))
            .on(get("/x"), hit("PUT 3").with("vary", "Authorization, Cookie")),
        Row::new("variants by language", &[Group("g"), Ttl(60)])
            .reads(says(200, &[("vary", "accept-language")]).content(Content::Echoed("accept-language")))
            .on(get("/x").with("accept-language", "en"), miss("en 1"))
            .on(get("/x").with("accept-language", "fr"), miss("fr 2").because("variant"))
            .on(
                get("/x").with("accept-language", "en"),
                hit("en 1").with("vary", "accept-language, Authorization, Cookie"),
            )
            .on(get("/x").with("accept-language", "fr"), hit("fr 2"))
            .on(get("/x"), miss("none 3"))
            .on(delete("/x"), status(200))
            .on(get("/x").with("accept-language", "fr"), miss("fr 5"))
            .on(get("/x").with("accept-language", "en"), miss("en 6")),
        Row::new("nested routers", &[Group("g"), Ttl(60)])
            .on(get("/v1/x"), miss("GET/v1 1"))
            .on(get("/v2/x"), miss("GET/v2 2"))
            .on(get("/x"), miss("GET 3"))
            .on(get("/v1/x"), hit("GET/v1 1"))
            .on(get("/v2/x"), hit("GET/v2 2"))
            .holds("redis:larder:cache:{g}:v1:x")
            .holds("redis:larder:cache:{g}:v2:x")
            .on(delete("/v1/x"), status(200))
            .on(put("/v2/x"), miss("PUT/v2 5"))
            .on(get("/v1/x"), miss("GET/v1 6"))
            .on(get("/v2/x"), hit("PUT/v2 5"))
            .on(get("/x"), hit("GET 3")),
        Row::new("spellings of a query", &[Ttl(60)])
            .on(get("/x?b=2&a=1"), miss("GET 1"))
            .on(get("/x?a=1&b=2"), hit("GET 1"))
            .on(get("/x?a=1&b=2&a=3"), miss("GET 2"))
            .on(get("/x?a=3&b=2&a=1"), miss("GET 3"))
            .on(get("/x?a"), miss("GET 4"))
            .on(get("/x?a="), hit("GET 4"))
            .on(get("/x?"), miss("GET 5"))
            .on(get("/x"), hit("GET 5"))
            .on(get("/x?a=1%26b=2"), miss("GET 6"))
            .holds("redis:larder:cache:x:a=1:b=2"),
    ]
}

/// Key builders, prefixes, and the parts of a key.
fn naming() -> Vec<Row> {
    vec![
        Row::new(
            "a key builder",
            &[
                Group("g"),
                Ttl(60),
                KeyBy(|request| Some(format!("tenant:{}", request.headers.get("x-tenant")?.to_str().ok()?))),
            ],
        )
        .on(get("/x").with("x-tenant", "a"), miss("GET 1"))
        .on(get("/y").with("x-tenant", "a"), hit("GET 1"))
        .on(get("/x").with("x-tenant", "b"), miss("GET 2"))
        .holds("redis:larder:cache:{g}:tenant:a")
        .on(get("/x"), bypass("keyless", "GET 3"))
        .on(put("/x").with("x-tenant", "a"), miss("PUT 4"))
        .on(get("/x").with("x-tenant", "a"), hit("PUT 4"))
        .on(delete("/y").with("x-tenant", "b"), status(200))
        .lacks("redis:larder:cache:{g}:tenant:b")
        .on(delete("/y"), status(200))
        .holds("redis:larder:cache:{g}:tenant:a"),
        Row::new(
            "an async key builder sees the client's URI",
            &[Group("g"), Ttl(60), KeyByAsync(|request| Some(format!("v:{}", default_key(request)?)))],
        )
        .on(get("/v1/x?b&a"), miss("GET/v1 1"))
        .holds("redis:larder:cache:{g}:v:v1:x:a=:b=")
        .on(get("/v1/x?a&b"), hit("GET/v1 1"))
        .on(delete("/v1/x?a&b"), status(200))
        .lacks("redis:larder:cache:{g}:v:v1:x:a=:b="),
        Row::new("a prefix of the route", &[Prefix("shop:pages"), Group("g"), Ttl(60)])
            .on(get("/x"), miss("GET 1"))
            .holds("shop:pages:{g}:x")
            .on(get("/x"), hit("GET 1"))
            .on(post("/x"), status(200))
            .lacks("shop:pages:{g}:x"),
        Row::new("query_params", &[Ttl(60), Params(&["page"])])
            .on(get("/x?page=1&utm=2"), miss("GET 1"))
            .on(get("/x?page=1"), hit("GET 1"))
            .on(get("/x?page=2"), miss("GET 2"))
            .holds("redis:larder:cache:x:page=1")
            .on(delete("/x?utm=3&page=1"), status(200))
            .lacks("redis:larder:cache:x:page=1"),
        Row::new("vary_by_host", &[Ttl(60), ByHost])
            .on(get("/x").with("host", "a.example"), miss("GET 1"))
            .on(get("/x").with("host", "b.example"), miss("GET 2"))
            .on(get("/x").with("host", "A.example"), hit("GET 1")),
    ]
}

macro_rules! adapters {
    ($($name:ident: $adapter:ident),+) => {$(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_memory() {
                check_on_memory(Adapter::$adapter, &rows()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_redis() {
                check_on_redis(Adapter::$adapter, &rows()).await;
            }
        }
    )+};
}

adapters!(tower: Tower, axum: Axum, poem: Poem);
