//! Generates cases. The same seed makes the same case.

use fastrand::Rng;
use http::Method;

use super::Case;
use super::handler::CREATED;
use super::request::{Ask, Content, LAST_ETAG, OUTCOME, Op, SLOW};
use super::world::{
    Audience, Framework, Handler, Place, Query, Read, Rewrite, Route, Rule, Shape, Store, Transport, Version,
    World, Wrap, Write,
};

/// Generates a case for this store. Nearly all cases on the store in memory send requests without the network.
#[must_use]
pub fn case(seed: u64, store: Store) -> Case {
    let mut rng = Rng::with_seed(seed);
    loop {
        let mut world = world(&mut rng, store);
        // Small applications, whose long sequences reach the same entries again and again.
        if chance(&mut rng, if store == Store::Tier { 70 } else { 30 }) {
            calm(&mut rng, &mut world);
        }
        if world.is_lawful() {
            let ops = ops(&mut rng, &world);
            return Case { world, ops };
        }
    }
}

fn one<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.usize(..all.len())]
}

fn chance(rng: &mut Rng, percent: u32) -> bool {
    rng.u32(..100) < percent
}

fn calm(rng: &mut Rng, world: &mut World) {
    (world.rewrite, world.inner_fallback, world.fallback) = (None, None, None);
    world.inside.clear();
    world.outside.clear();
    world.mounts.truncate(1);
    let count = if chance(rng, 50) { 1 } else { 2 };
    world.routes.truncate(count);
    let is_varying = chance(rng, 60);
    for route in &mut world.routes {
        route.handler.reads.retain(|read| match read {
            Read::Language | Read::Encoding | Read::Origin | Read::Counter => true,
            Read::Credential(_) => route.rule.audience != Audience::Undeclared,
            _ => false,
        });
        if is_varying && !route.handler.reads.contains(&Read::Language) {
            route.handler.reads.push(Read::Language);
        }
        let counts = world.store == Store::Tier && chance(rng, 25);
        if counts && !world.place.is_shared() && route.rule.write != Write::Put {
            route.handler.reads.push(Read::Counter);
        }
        route.handler.cache_control = route.handler.cache_control.filter(|_| world.place.is_shared());
        (route.rule.by_host, route.rule.twice, route.handler.sets_cookie) = (false, false, false);
    }
}

const PATTERNS: [&str; 9] = [
    "/items/{id}",
    "/items/featured",
    "/items",
    "/users/{name}",
    "/users/{name}/orders/{id}",
    "/files/{*rest}",
    "/search",
    "/about",
    "/",
];

const HOSTS: [&str; 2] = ["one.example", "two.example"];

fn world(rng: &mut Rng, store: Store) -> World {
    let framework =
        one(rng, &[Framework::Axum, Framework::Axum, Framework::Axum, Framework::Poem, Framework::Tower]);
    let place = match framework {
        Framework::Axum => match rng.u32(..20) {
            0..=11 => Place::Route,
            12..=14 => Place::Router,
            15..=16 => Place::App,
            17..=18 => Place::Shared,
            _ => Place::SharedMount,
        },
        Framework::Poem => one(rng, &[Place::Route, Place::Route, Place::Router]),
        Framework::Tower => one(rng, &[Place::App, Place::App, Place::Shared]),
    };
    let version = one(rng, &[Version::Http1, Version::Http1, Version::Http2]);
    let transport = match rng.u32(..100) {
        0..=89 if framework != Framework::Poem => Transport::Direct,
        0..=97 => Transport::Pipe(version),
        _ => Transport::Socket(version),
    };
    let mounts: Vec<&'static str> = match framework {
        Framework::Tower => vec![""],
        _ => one(
            rng,
            &[&[""][..], &[""], &["/v1"], &["/v1", "/v2"], &["/v1", "/v2"], &["/a/b"], &["/v1", "/a/b"]],
        )
        .to_vec(),
    };
    let is_shared = place.is_shared();
    let can_rewrite = framework != Framework::Tower && matches!(place, Place::Route | Place::Router);
    let rewrite = match rng.u32(..10) {
        0 if can_rewrite => Some(Rewrite::HostToPath),
        1 if can_rewrite => Some(Rewrite::AddLanguage),
        2 if can_rewrite => Some(Rewrite::Trim),
        _ => None,
    };
    let common = (place != Place::Route).then(|| {
        let route = route(rng, "/", "common", is_shared);
        (route.rule, route.handler.query)
    });
    let mut routes = Vec::new();
    let count = rng.usize(1..=4);
    for _ in 0..count {
        let pattern = one(rng, &PATTERNS);
        if routes.len() == 4 || routes.iter().any(|route: &Route| route.pattern == pattern) {
            continue;
        }
        const NAMES: [&str; 4] = ["h0", "h1", "h2", "h3"];
        routes.push(lawful_route(rng, pattern, NAMES[routes.len()], is_shared, common.as_ref()));
        // A path that another spelling of `/items/{id}` can lead to.
        if pattern == "/items/{id}" && routes.len() < 4 && chance(rng, 40) {
            let name = NAMES[routes.len()];
            if routes.iter().all(|route| route.pattern != "/items/featured") {
                routes.push(lawful_route(rng, "/items/featured", name, is_shared, common.as_ref()));
            }
        }
    }
    if place == Place::Route
        && chance(rng, 20)
        && let Some(route) = routes.iter_mut().find(|route| route.pattern == "/items")
    {
        route.handler.is_list = true;
        route.handler.query = Query::Read;
        route.rule.write = Write::EvictGroup;
    }
    let mut wraps = |percent: u32| {
        let all = [Wrap::Compression, Wrap::Cors, Wrap::CatchPanic, Wrap::Timeout];
        all.into_iter().filter(|_| chance(rng, percent)).collect::<Vec<_>>()
    };
    let (outside, inside) = (wraps(15), wraps(5));
    let has_fallback = place != Place::Route || chance(rng, 50);
    let mut fallback = |name: &'static str, percent: u32| {
        (has_fallback && framework != Framework::Tower && chance(rng, percent)).then(|| {
            let mut route = lawful_route(rng, "/{*rest}", name, is_shared, common.as_ref());
            route.handler.is_read_only = true;
            route
        })
    };
    let inner_fallback = if rewrite.is_none() { fallback("inner", 40) } else { None };
    let takes_fallback = framework == Framework::Axum
        && (rewrite.is_none() && place != Place::SharedMount || !mounts.contains(&""));
    let is_merged = mounts.contains(&"") && inner_fallback.is_some();
    let fallback = if takes_fallback && !is_merged { fallback("outer", 30) } else { None };
    World {
        framework,
        store,
        transport,
        place,
        mounts,
        rewrite,
        routes,
        inner_fallback,
        fallback,
        outside,
        inside,
    }
}

/// Generates a route that is lawful in the simplest application of its place.
fn lawful_route(
    rng: &mut Rng,
    pattern: &'static str,
    name: &'static str,
    is_shared: bool,
    common: Option<&(Rule, Query)>,
) -> Route {
    let mut route = route(rng, pattern, name, is_shared);
    if let Some((rule, query)) = common {
        route.rule = rule.clone();
        route.handler.query = *query;
    }
    let reads = &mut route.handler.reads;
    if !route.rule.by_host && !is_shared {
        reads.retain(|read| *read != Read::Host);
    }
    reads.retain(|read| match (read, route.rule.audience) {
        (Read::Credential("authorization"), Audience::Private) => true,
        (Read::Credential("cookie"), Audience::PrivateByCookie) => true,
        (Read::Credential(_), Audience::Undeclared) => true,
        (Read::Credential(_), Audience::Public) => route.rule.write != Write::Put,
        (Read::Credential(_), _) => false,
        _ => true,
    });
    let of_principal = match route.rule.audience {
        Audience::Private => Some("authorization"),
        Audience::PrivateByCookie => Some("cookie"),
        Audience::Undeclared | Audience::Public => None,
    };
    if let Some(field) = of_principal
        && !reads.contains(&Read::Credential(field))
    {
        reads.push(Read::Credential(field));
    }
    if route.rule.write == Write::Put {
        reads.retain(|read| {
            !matches!(
                read,
                Read::Origin | Read::OriginSometimes | Read::Content | Read::Steering(_) | Read::Counter
            )
        });
        route.handler.shape = Shape::Found;
        route.handler.sets_cookie = false;
    }
    if is_shared {
        let has_credentials = reads.iter().any(|read| matches!(read, Read::Credential(_)));
        if has_credentials {
            route.handler.cache_control = Some("private, max-age=60");
        }
    }
    route
}

const STATED: [Option<&str>; 6] = [
    Some("max-age=60"),
    Some("max-age=60"),
    Some("public, max-age=60"),
    Some("no-cache"),
    Some("no-store"),
    None,
];

const DECLINED: [&str; 5] = ["no-store", "private", "no-cache", "max-age=5", "max-age=60, must-revalidate"];

fn route(rng: &mut Rng, pattern: &'static str, name: &'static str, is_shared: bool) -> Route {
    let mut reads = Vec::new();
    let credential = Read::Credential(one(rng, &super::accept::CREDENTIALS));
    let steering = Read::Steering(one(rng, &super::accept::STEERING));
    for (read, percent) in [
        (Read::Host, 15),
        (Read::Language, 20),
        (Read::Encoding, 12),
        (Read::EncodingSometimes, if is_shared { 0 } else { 6 }),
        (Read::EncodingSilently, if is_shared { 0 } else { 4 }),
        (Read::Origin, 8),
        (Read::OriginSometimes, if is_shared { 0 } else { 4 }),
        (credential, 25),
        (steering, if is_shared { 0 } else { 8 }),
        (Read::Content, 10),
        (Read::Scheme, if is_shared { 15 } else { 0 }),
        (Read::Backend, if is_shared { 0 } else { 4 }),
        (Read::Counter, if is_shared { 0 } else { 6 }),
    ] {
        if chance(rng, percent) {
            reads.push(read);
        }
    }
    let query = match is_shared {
        true => Query::Part,
        false => one(rng, &[Query::Ignored, Query::Read, Query::Named, Query::Part, Query::Part]),
    };
    let audience = match is_shared {
        true => Audience::Undeclared,
        false => one(
            rng,
            &[
                Audience::Undeclared,
                Audience::Undeclared,
                Audience::Undeclared,
                Audience::Public,
                Audience::Public,
                Audience::Private,
                Audience::PrivateByCookie,
            ],
        ),
    };
    let write = match query {
        _ if is_shared => Write::EvictKey,
        Query::Read | Query::Named => Write::EvictGroup,
        Query::Ignored | Query::Part => {
            one(rng, &[Write::Put, Write::Put, Write::EvictKey, Write::EvictKey, Write::EvictGroup])
        }
    };
    let by_host = !is_shared && (reads.contains(&Read::Host) || chance(rng, 5));
    let cache_control = match is_shared {
        true => one(rng, &STATED),
        false => chance(rng, 8).then(|| one(rng, &DECLINED)),
    };
    let shapes = [
        Shape::Found,
        Shape::Found,
        Shape::Found,
        Shape::Found,
        Shape::Missing,
        Shape::Moved,
        Shape::Failing,
    ];
    Route {
        pattern,
        handler: Handler {
            name,
            query,
            reads,
            shape: one(rng, &shapes),
            cache_control,
            sets_cookie: chance(rng, 6),
            etag: chance(rng, 20),
            last_modified: chance(rng, 15),
            is_list: false,
            is_read_only: false,
        },
        rule: Rule {
            audience,
            ttl: one(rng, &[Some(60), Some(60), Some(5), None]),
            also: chance(rng, 30),
            stale: chance(rng, 15),
            by_host,
            default_key: matches!(query, Query::Read | Query::Part) && chance(rng, 8),
            small: chance(rng, 5),
            write,
            lists_outside: rng.bool(),
            twice: chance(rng, 3),
        },
    }
}

/// The targets of a case's requests: few, so that requests reach the same entries.
struct Topic<'a> {
    world: &'a World,
    targets: Vec<Target>,
    fields: Vec<&'static str>,
}

#[derive(Clone)]
struct Target {
    mount: &'static str,
    segments: Vec<&'static str>,
    query: Vec<(&'static str, &'static str)>,
    takes_query: bool,
}

const VALUES: [&str; 16] = [
    "7",
    "7",
    "featured",
    "featured",
    "a@b.example",
    "x y",
    "a:b,c",
    "it's(1)*!",
    "a+b&c=d;e",
    "é",
    "a/b",
    "100%",
    "%41",
    "[x]",
    "~u",
    "$1",
];

const QUERIES: [&[(&str, &str)]; 10] = [
    &[],
    &[("a", "1")],
    &[("a", "1"), ("b", "2")],
    &[("q", "a b")],
    &[("q", "a+b")],
    &[("ids[]", "1"), ("ids[]", "2")],
    &[("a", "")],
    &[("a b", "x@y:z")],
    &[("utm", "1")],
    &[("q", "a&b=c")],
];

fn target(rng: &mut Rng, world: &World) -> Target {
    let route = &world.routes[rng.usize(..world.routes.len())];
    let mount = one(rng, &world.mounts);
    let mut segments = Vec::new();
    for segment in route.pattern.split('/').skip(1) {
        match segment.strip_prefix('{') {
            None => segments.push(segment),
            Some(rest) if rest.starts_with('*') => segments.extend(["d", "f.txt"]),
            Some(_) => segments.push(one(rng, &VALUES)),
        }
    }
    if (world.inner_fallback.is_some() || world.fallback.is_some()) && chance(rng, 20) {
        segments = vec!["nowhere"];
    }
    let takes_query = route.handler.query != Query::Part
        || !world.routes.iter().any(|route| route.handler.query == Query::Ignored);
    let query = if chance(rng, 50) { one(rng, &QUERIES).to_vec() } else { Vec::new() };
    Target { mount, segments, query, takes_query }
}

const FIELDS: [&str; 12] = [
    "accept-language",
    "accept-encoding",
    "origin",
    "credential",
    "credential",
    "steering",
    "range",
    "condition",
    "cache-control",
    "content",
    "host",
    "x-client",
];

fn ops(rng: &mut Rng, world: &World) -> Vec<Op> {
    let mut targets: Vec<Target> = (0..rng.usize(1..=if world.store == Store::Tier { 1 } else { 3 }))
        .map(|_| target(rng, world))
        .collect();
    if world.created().is_some() && chance(rng, 40) {
        let mount = one(rng, &world.mounts);
        for segments in [vec!["items"], vec!["items", CREATED], vec!["items", CREATED]] {
            targets.push(Target { mount, segments, query: Vec::new(), takes_query: false });
        }
    }
    let mut fields: Vec<&'static str> = (0..rng.usize(0..=3)).map(|_| one(rng, &FIELDS)).collect();
    // Requests carry the fields that handlers read.
    for read in world.all().flat_map(|route| &route.handler.reads) {
        fields.extend(match read {
            Read::Language => Some("accept-language"),
            Read::Encoding | Read::EncodingSometimes | Read::EncodingSilently => Some("accept-encoding"),
            Read::Origin | Read::OriginSometimes => Some("origin"),
            Read::Credential(_) => Some("credential"),
            Read::Steering(_) => Some("steering"),
            Read::Content => Some("content"),
            Read::Host => Some("host"),
            Read::Scheme | Read::Backend | Read::Counter => None,
        });
    }
    if world.rewrite == Some(Rewrite::HostToPath) {
        fields.push("host");
    }
    if world.rewrite == Some(Rewrite::AddLanguage) {
        fields.push("accept-language");
    }
    if world.place.is_shared() {
        fields.push("x-client");
    }
    let topic = Topic { world, targets, fields };
    let is_tier = world.store == Store::Tier;
    let count = rng.usize(8..=if is_tier { 80 } else { 40 });
    let mut ops = Vec::new();
    let counts = is_tier && world.all().any(|route| route.handler.reads.contains(&Read::Counter));
    for _ in 0..count {
        // One process keeps a value in its tier, and another changes it just before the first one updates it.
        if counts && chance(rng, 10) {
            let process = rng.usize(..world.processes());
            let read = Ask { process, ..topic.read(rng) };
            let write = Ask { target: read.target.clone(), ..topic.write(rng) };
            let elsewhere = Ask { process: (process + 1) % world.processes(), ..write.clone() };
            ops.extend([Op::Ask(read), Op::Ask(elsewhere), Op::Ask(Ask { process, ..write })]);
            continue;
        }
        // A stale value in a tier shows when messages have arrived and the value is read again.
        let (across, settle) = if is_tier { (14, 16) } else { (5, 0) };
        let op = match rng.u32(..100) {
            0..=3 => Op::Later(one(rng, &[1, 4, 10, 61])),
            4..=7 => Op::Together((0..rng.usize(2..=4)).map(|_| topic.read(rng)).collect()),
            8 if chance(rng, 30) => {
                Op::Hanging(Ask { content: Content::Endless, method: Method::GET, ..topic.read(rng) })
            }
            9..=20 if !is_tier => Op::Ask(topic.write(rng)),
            9..=14 => Op::Ask(topic.write(rng)),
            kind if (21..21 + across).contains(&kind) => {
                let mut read = topic.read(rng);
                read.fields.push((SLOW, "1".to_owned()));
                Op::Across(read, topic.write(rng))
            }
            kind if (40..40 + settle).contains(&kind) => Op::Settle,
            _ => Op::Ask(topic.read(rng)),
        };
        ops.push(op);
    }
    ops
}

impl Topic<'_> {
    fn read(&self, rng: &mut Rng) -> Ask {
        let method = match rng.u32(..30) {
            0 | 1 => Method::HEAD,
            2 => Method::OPTIONS,
            _ => Method::GET,
        };
        self.ask(rng, method)
    }

    fn write(&self, rng: &mut Rng) -> Ask {
        let method = match rng.u32(..10) {
            0..=5 => Method::PUT,
            6..=8 => Method::DELETE,
            _ => Method::POST,
        };
        let mut ask = self.ask(rng, method);
        let is_condition = |name: &str| {
            ["range", "if-none-match", "if-modified-since", "if-range", "cache-control"].contains(&name)
        };
        ask = ask.without(is_condition);
        if ask.content == Content::None && chance(rng, 30) {
            ask.content = Content::Sized("new");
        }
        let mut outcomes = vec!["403", "409", "408", "500", "502"];
        if self.world.has(Wrap::CatchPanic) {
            outcomes.extend(["panic"; 3]);
        }
        if self.world.has(Wrap::Timeout) {
            outcomes.extend(["hang"; 3]);
        }
        if chance(rng, 25) {
            ask.fields.push((OUTCOME, one(rng, &outcomes).to_owned()));
        }
        ask
    }

    fn ask(&self, rng: &mut Rng, method: Method) -> Ask {
        let target = &self.targets[rng.usize(..self.targets.len())];
        let mut ask = Ask {
            process: rng.usize(..self.world.processes()),
            method,
            target: String::new(),
            host: HOSTS[0],
            https: false,
            fields: Vec::new(),
            content: Content::None,
        };
        if self.world.place.is_shared() && self.world.transport == Transport::Direct && chance(rng, 20) {
            ask.https = self.world.all().any(|route| route.handler.reads.contains(&Read::Scheme));
        }
        for field in &self.fields {
            if chance(rng, 55) {
                self.add(rng, &mut ask, field);
            }
        }
        ask.target = self.spell(rng, target, &ask);
        ask
    }

    fn spell(&self, rng: &mut Rng, target: &Target, ask: &Ask) -> String {
        let mut path = target.mount.to_owned();
        let style = rng.u32(..20);
        let lower = rng.bool();
        let mut one_more = style == 11 || style == 12;
        for segment in &target.segments {
            path.push('/');
            let chosen = if one_more && chance(rng, 60) && !segment.is_empty() {
                one_more = false;
                Some(rng.usize(..segment.len()))
            } else {
                None
            };
            for (index, byte) in segment.bytes().enumerate() {
                let is_unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
                let is_pchar = is_unreserved || b"!$&'()*+,;=:@".contains(&byte);
                let is_escaped = match style {
                    // As `encodeURIComponent` does.
                    0..=2 => !is_unreserved && !b"!'()*".contains(&byte),
                    3 => !is_unreserved,
                    4 => true,
                    _ => !is_pchar || chosen == Some(index),
                };
                if is_escaped {
                    path += &if lower && style < 4 { format!("%{byte:02x}") } else { format!("%{byte:02X}") };
                } else {
                    path.push(char::from(byte));
                }
            }
        }
        if path.is_empty() {
            path.push('/');
        }
        if style == 13
            && (self.world.rewrite == Some(Rewrite::Trim) || chance(rng, 20))
            && !path.ends_with('/')
        {
            path.push('/');
        }
        // The path alone names what a write changes, unless every handler's query is part of the name.
        let mut query = target.query.clone();
        if !target.takes_query
            || (ask.is_write() && self.world.all().any(|route| route.handler.query != Query::Part))
        {
            query.clear();
        }
        if style == 14 {
            query = one(rng, &QUERIES).to_vec();
            if ask.is_write() {
                query.clear();
            }
        }
        path + &spell_query(rng, &query)
    }

    fn add(&self, rng: &mut Rng, ask: &mut Ask, field: &str) {
        let (has_range, has_codings) =
            (!ask.field("range").is_empty(), !ask.field("accept-encoding").is_empty());
        let mut put = |name: &'static str, value: &str| {
            ask.fields.retain(|(known, _)| *known != name);
            ask.fields.push((name, value.to_owned()));
        };
        match field {
            "accept-language" => put("accept-language", one(rng, &["en", "fr", "de"])),
            "accept-encoding" if !self.world.has(Wrap::Compression) || !has_range => {
                let codings = ["gzip", "br, gzip", "gzip, br", "gzip;q=0", "identity", "deflate"];
                put("accept-encoding", one(rng, &codings));
            }
            "origin" => put("origin", one(rng, &["https://a.example", "https://b.example"])),
            "credential" => {
                let read =
                    self.world.all().flat_map(|route| &route.handler.reads).filter_map(|read| match read {
                        Read::Credential(name) => Some(*name),
                        _ => None,
                    });
                let read: Vec<&'static str> = read.collect();
                let name = match read.is_empty() || chance(rng, 20) {
                    true => one(rng, &super::accept::CREDENTIALS),
                    false => one(rng, &read),
                };
                let who = one(rng, &["alice", "bob"]);
                let value = match name {
                    "authorization" | "proxy-authorization" => format!("Bearer {who}"),
                    "cookie" => format!("u={who}"),
                    _ => who.to_owned(),
                };
                put(name, &value);
            }
            "steering" => {
                let read =
                    self.world.all().flat_map(|route| &route.handler.reads).find_map(|read| match read {
                        Read::Steering(name) => Some(*name),
                        _ => None,
                    });
                let name = read.unwrap_or_else(|| one(rng, &super::accept::STEERING));
                // With `.vary_by_host()` these are in the key, and an eviction covers only one of their values.
                let is_host = ["forwarded", "x-forwarded-host"].contains(&name);
                if is_host && self.world.all().any(|route| route.rule.by_host) {
                    return;
                }
                put(name, one(rng, &["evil.example", "/other"]));
            }
            "range" if ask.method == Method::GET => {
                if self.world.has(Wrap::Compression) && has_codings {
                    return;
                }
                put("range", one(rng, &["bytes=0-", "bytes=0-0", "bytes=2-5", "bytes=-3", "bytes=100000-"]));
                if chance(rng, 20) {
                    put("if-range", one(rng, &[LAST_ETAG, "\"other\"", "Wed, 01 Jan 2025 10:00:00 GMT"]));
                }
            }
            "condition" => match rng.u32(..8) {
                0 => put("if-modified-since", "Wed, 01 Jan 2025 10:00:00 GMT"),
                1 => put("if-none-match", "*"),
                2 => put("if-none-match", &format!("{LAST_ETAG}-gzip")),
                3 => put("if-none-match", &format!("\"other\", {LAST_ETAG}")),
                _ => put("if-none-match", LAST_ETAG),
            },
            "cache-control" => {
                let directives = [
                    "no-cache",
                    "no-store",
                    "max-age=0",
                    "max-age=5",
                    "max-stale=100",
                    "min-fresh=10",
                    "only-if-cached",
                ];
                put("cache-control", one(rng, &directives));
            }
            "content" if ask.method != Method::HEAD => {
                let contents = [
                    Content::Sized("one"),
                    Content::Sized("two"),
                    Content::Chunked("one"),
                    Content::Chunked("two"),
                ];
                ask.content = one(rng, &contents);
            }
            "host" => ask.host = one(rng, &HOSTS),
            "x-client" => put("x-client", one(rng, &["c1", "c2"])),
            _ => {}
        }
    }
}

fn spell_query(rng: &mut Rng, pairs: &[(&str, &str)]) -> String {
    if pairs.is_empty() {
        return if chance(rng, 5) { "?".to_owned() } else { String::new() };
    }
    let mut pairs = pairs.to_vec();
    if chance(rng, 20) {
        rng.shuffle(&mut pairs);
    }
    let style = rng.u32(..8);
    let spell = |text: &str| {
        let mut spelled = String::new();
        for byte in text.bytes() {
            match byte {
                b' ' if style == 0 => spelled.push('+'),
                _ if byte.is_ascii_alphanumeric() && style != 1 => spelled.push(char::from(byte)),
                b'[' | b']' if style > 3 => spelled.push(char::from(byte)),
                b'@' | b':' if style > 2 => spelled.push(char::from(byte)),
                _ => spelled += &format!("%{byte:02X}"),
            }
        }
        spelled
    };
    let mut query = Vec::new();
    for (name, value) in pairs {
        let name = spell(name);
        query.push(match value {
            "" if style.is_multiple_of(2) => name,
            value => format!("{name}={}", spell(value)),
        });
    }
    let end = if chance(rng, 10) { "&" } else { "" };
    format!("?{}{end}", query.join("&"))
}
