//! Descriptions of generated applications: plain data, from which each framework's application is built twice.

/// The framework of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the crates' names")]
pub enum Framework {
    Axum,
    Poem,
    Tower,
}

/// The store behind the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The store in memory.
    Memory,
    /// Redis, used by two processes.
    Redis,
    /// Redis with a local tier in each of two processes, whose invalidation messages are late.
    Tier,
}

/// The way from the client to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// A call of the service.
    Direct,
    /// A connection in memory.
    Pipe(Version),
    /// A TCP connection.
    Socket(Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// The place of the cache for reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `cache` on each route.
    Route,
    /// `cache` around the router that holds the routes.
    Router,
    /// `cache` around the whole application.
    App,
    /// A shared cache around the whole application.
    Shared,
    /// A shared cache inside each mount.
    SharedMount,
}

impl Place {
    pub(super) const fn is_shared(self) -> bool {
        matches!(self, Self::Shared | Self::SharedMount)
    }
}

/// A layer between the outer router and the routes that changes the URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rewrite {
    /// `Host: one.example`, `/home` → `/one.example/home`.
    HostToPath,
    /// `Accept-Language: fr`, `/home` → `/home?lang=fr`, and `Vary: Accept-Language` on the response.
    AddLanguage,
    /// Trailing slashes are removed.
    Trim,
}

/// Layers whose effect doesn't depend on the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrap {
    Compression,
    Cors,
    Timeout,
    CatchPanic,
}

/// An application.
#[derive(Clone, Debug)]
pub struct World {
    /// The framework.
    pub framework: Framework,
    /// The store.
    pub store: Store,
    pub(super) transport: Transport,
    pub(super) place: Place,
    /// The mounts of the router with the routes: `""`, `"/v1"`, or `"/a/b"` for two levels.
    pub(super) mounts: Vec<&'static str>,
    pub(super) rewrite: Option<Rewrite>,
    pub(super) routes: Vec<Route>,
    /// The fallback of the router with the routes.
    pub(super) inner_fallback: Option<Route>,
    /// The fallback of the outer router.
    pub(super) fallback: Option<Route>,
    /// Layers outside the cache, the innermost first.
    pub(super) outside: Vec<Wrap>,
    /// Layers between the cache and the handler, the innermost first.
    pub(super) inside: Vec<Wrap>,
}

/// A route: its pattern, its handler, and the options of its cache.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The pattern, in axum's notation.
    pub(super) pattern: &'static str,
    pub(super) handler: Handler,
    pub(super) rule: Rule,
}

/// A handler: the inputs and the form of its responses.
#[derive(Clone, Debug)]
pub(super) struct Handler {
    /// Distinguishes the responses of one handler from another's.
    pub(super) name: &'static str,
    pub(super) query: Query,
    pub(super) reads: Vec<Read>,
    pub(super) shape: Shape,
    pub(super) cache_control: Option<&'static str>,
    pub(super) sets_cookie: bool,
    pub(super) etag: bool,
    pub(super) last_modified: bool,
    /// Returns a list of everything that the other routes of the mount change.
    pub(super) is_list: bool,
    /// A fallback, which changes nothing.
    pub(super) is_read_only: bool,
}

/// The role of the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// Ignored, as `.query_params([])` declares.
    Ignored,
    /// The response depends on it.
    Read,
    /// The response depends on these parameters, as `.query_params` declares.
    Named,
    /// It names the resource, as the path does.
    Part,
}

/// The parameters of [`Query::Named`].
pub(super) const NAMED: [&str; 3] = ["a", "ids[]", "a b"];

/// A part of the request that a response depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// `Host`.
    Host,
    /// `Accept-Language`, with `Vary`.
    Language,
    /// `Accept-Encoding`, with `Vary` on every response.
    Encoding,
    /// `Accept-Encoding`, with `Vary` only on encoded responses.
    EncodingSometimes,
    /// `Accept-Encoding`, without `Vary`, which the handler forgets.
    EncodingSilently,
    /// `Origin`, with `Vary` on every response.
    Origin,
    /// `Origin`, with `Vary` only on responses to requests with an `Origin`.
    OriginSometimes,
    /// A field with credentials.
    Credential(&'static str),
    /// A field that changes the target or the method of a request.
    Steering(&'static str),
    /// The content of the request.
    Content,
    /// The scheme of the URI.
    Scheme,
    /// A number computed through `CacheBackend::get_or_set`.
    Backend,
    /// The number of the write, counted through `CacheBackend::update`.
    Counter,
}

/// The status of responses to reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// 200, or 404 after a DELETE.
    Found,
    /// 404 until a write.
    Missing,
    /// 301.
    Moved,
    /// 500 for every second version.
    Failing,
}

/// The options of a route's cache.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) audience: Audience,
    pub(super) ttl: Option<u64>,
    /// `.ttl_for(404, ..).ttl_for(301, ..)`.
    pub(super) also: bool,
    pub(super) stale: bool,
    pub(super) by_host: bool,
    /// `.key_by(default_key)`.
    pub(super) default_key: bool,
    pub(super) small: bool,
    pub(super) write: Write,
    /// The layer that evicts the lists is outside the layer of the write itself.
    pub(super) lists_outside: bool,
    /// The same layer twice.
    pub(super) twice: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    Undeclared,
    Public,
    /// Private by Bearer token.
    Private,
    /// Private by the cookie `u`.
    PrivateByCookie,
}

/// The effect of a write on the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// PUT is `cache_put`, DELETE is `cache_evict().key()`.
    Put,
    /// `cache_evict().key()`.
    EvictKey,
    /// `cache_evict().whole_group()`.
    EvictGroup,
}

impl World {
    /// Returns every route, including the fallbacks.
    pub(super) fn all(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().chain(&self.inner_fallback).chain(&self.fallback)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Route> {
        self.routes.iter_mut().chain(&mut self.inner_fallback).chain(&mut self.fallback)
    }

    pub(super) fn has(&self, wrap: Wrap) -> bool {
        self.outside.contains(&wrap) || self.inside.contains(&wrap)
    }

    /// Returns the number of processes that share the store.
    pub(super) fn processes(&self) -> usize {
        if self.store == Store::Memory { 1 } else { 2 }
    }

    /// Returns `true` if timers may run on virtual time.
    pub(super) fn is_virtual(&self) -> bool {
        self.store == Store::Memory && !matches!(self.transport, Transport::Socket(_))
    }

    /// Returns the route whose items a POST to `/items` creates, if both routes agree on the parts of the key.
    pub(super) fn created(&self) -> Option<&Route> {
        let find = |pattern| self.routes.iter().find(|route: &&Route| route.pattern == pattern);
        let (items, item) = (find("/items")?, find("/items/{id}")?);
        let is_open = |route: &Route| matches!(route.rule.audience, Audience::Undeclared | Audience::Public);
        let agree = is_open(items)
            && is_open(item)
            && items.rule.audience == item.rule.audience
            && items.rule.by_host == item.rule.by_host
            && !items.rule.default_key
            && !item.rule.default_key
            && !items.handler.is_list
            && items.handler.query == item.handler.query
            && item.handler.query == Query::Part
            && item.rule.write != Write::EvictGroup
            && items.rule.write != Write::EvictGroup
            && self.rewrite != Some(Rewrite::HostToPath)
            && self.rewrite != Some(Rewrite::AddLanguage);
        agree.then_some(item)
    }

    /// Returns `true` if writes must evict a list.
    pub(super) fn has_list(&self) -> bool {
        self.routes.iter().any(|route| route.handler.is_list)
    }

    /// Returns `true` if the application follows the rules that Larder's guide sets for its author. An application that breaks
    /// them proves nothing about Larder.
    pub(super) fn is_lawful(&self) -> bool {
        let one_rule = !matches!(self.place, Place::Route);
        !self.routes.is_empty()
            && !self.mounts.is_empty()
            // Both would negotiate codings.
            && (!self.has(Wrap::Compression)
                || self.all().all(|route| {
                    !route.handler.reads.contains(&Read::Encoding)
                        && !route.handler.reads.contains(&Read::EncodingSometimes)
                        && !route.handler.reads.contains(&Read::EncodingSilently)
                }))
            // On a busy machine everything is late in real time.
            && (self.is_virtual() || !self.has(Wrap::Timeout))
            && (self.framework != Framework::Tower
                || (self.place != Place::Route
                    && self.place != Place::Router
                    && self.place != Place::SharedMount
                    && self.rewrite.is_none()
                    && self.inner_fallback.is_none()
                    && self.fallback.is_none()
                    && self.mounts == [""]))
            && (self.framework != Framework::Poem
                || (self.transport != Transport::Direct
                    && !self.place.is_shared()
                    && self.place != Place::App
                    && self.fallback.is_none()
                    && !self.has(Wrap::Compression)
                    && !matches!(self.rewrite, Some(Rewrite::HostToPath | Rewrite::AddLanguage))))
            // A cache outside the rewriting layer has other keys than the evictions inside it.
            && (self.rewrite.is_none() || matches!(self.place, Place::Route | Place::Router))
            && (self.rewrite.is_none() || self.inner_fallback.is_none())
            // A layer inside the cache that responds by `Origin` or `Accept-Encoding` is part of the stored response.
            && (!self.inside.contains(&Wrap::Cors) || self.routes.iter().all(|route| route.rule.write != Write::Put))
            && self.routes.iter().enumerate().all(|(index, route)| {
                self.routes[..index].iter().all(|other| other.pattern != route.pattern)
            })
            && self.routes.iter().filter(|route| route.handler.is_list).count() <= 1
            && self.all().all(|route| route.is_lawful(self))
            && (!one_rule || self.all().all(|route| route.same_rule(self.routes.first())))
    }
}

impl Route {
    fn same_rule(&self, first: Option<&Self>) -> bool {
        first.is_some_and(|first| {
            self.rule.audience == first.rule.audience
                && self.rule.by_host == first.rule.by_host
                && self.rule.default_key == first.rule.default_key
                && (self.handler.query == Query::Ignored) == (first.handler.query == Query::Ignored)
                && (self.handler.query == Query::Named) == (first.handler.query == Query::Named)
        })
    }

    fn is_lawful(&self, world: &World) -> bool {
        let (handler, rule) = (&self.handler, &self.rule);
        let reads = |read: Read| handler.reads.contains(&read);
        let is_shared = world.place.is_shared();
        let credentials = handler.reads.iter().filter_map(|read| match read {
            Read::Credential(field) => Some(*field),
            _ => None,
        });
        let credentials: Vec<_> = credentials.collect();
        let steering = handler.reads.iter().any(|read| matches!(read, Read::Steering(_)));
        // The key contains the host.
        (!reads(Read::Host) || rule.by_host || is_shared)
            // A private response depends on its principal, and on no other credentials.
            && match rule.audience {
                Audience::Undeclared => true,
                Audience::Public => rule.write != Write::Put || credentials.is_empty(),
                Audience::Private => credentials == ["authorization"] && !is_shared,
                Audience::PrivateByCookie => credentials == ["cookie"] && !is_shared,
            }
            // A write-through stores fields that describe the representation, and no others.
            && (rule.write != Write::Put
                || (matches!(handler.shape, Shape::Found)
                    && !reads(Read::Origin)
                    && !reads(Read::OriginSometimes)
                    && !reads(Read::Content)
                    && !reads(Read::Counter)
                    && !handler.sets_cookie
                    && !steering))
            // An eviction of one key evicts one spelling of one query.
            && (handler.query != Query::Read && handler.query != Query::Named || rule.write == Write::EvictGroup || is_shared)
            // The author's own key builder replaces `.query_params`.
            && (!rule.default_key || matches!(handler.query, Query::Read | Query::Part))
            && (!handler.is_list
                || (!is_shared && rule.write == Write::EvictGroup && world.place == Place::Route
                    && matches!(rule.audience, Audience::Undeclared | Audience::Public)))
            && (matches!(world.place, Place::Route | Place::Shared) || !rule.twice)
            // In a shared cache, the responses themselves declare what may be stored.
            && (!is_shared
                || (handler.query == Query::Part
                    && rule.audience == Audience::Undeclared
                    && rule.write == Write::EvictKey
                    && !steering
                    && !reads(Read::Backend)
                    && !reads(Read::OriginSometimes)
                    && !reads(Read::Counter)
                    && !reads(Read::EncodingSometimes)
                    && !reads(Read::EncodingSilently)
                    && (credentials.iter().all(|field| *field == "authorization")
                        || handler.cache_control.is_some_and(|value| value.contains("private")))
                    && (credentials.is_empty() || handler.cache_control != Some("public, max-age=60"))))
            && (!reads(Read::Scheme) || is_shared)
    }
}
