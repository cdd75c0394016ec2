//! [`Route`]: a rule, a key builder, and the cache that they belong to.
//!
//! Each adapter has its own types for the options of a route. `route_layers!` defines them, and they end in
//! [`RouteOptions::route`].

mod metrics;
mod seconds;

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, VARY};
use http::{HeaderName, StatusCode};

use crate::exchange::miss_predictor::MissPredictor;
use crate::exchange::tag_memory::TagMemory;
use crate::headers::accept_encoding::coding_error;
use crate::key::KeySpace;
use crate::larder::Larder;
use crate::larder::context::{CacheContext, panic_invalid_config, with_ignored};
use crate::policy::CachePolicy;
use crate::policy::rule::{Audience, Kind, PrincipalOf, Rule};
use crate::policy::tag_rule::TagsOf;
use crate::request::RequestView;
use crate::tag::{EvictionMode, TagField, Tags, path_of, path_tag};
use crate::ttl::Ttl;

pub use self::seconds::Seconds;

/// A route of a cache. [`handle`](Self::handle) answers its requests.
pub struct Route {
    pub(crate) context: Arc<CacheContext>,
    pub(crate) policy: CachePolicy,
    pub(crate) key_source: KeySource,
    pub(crate) metrics: metrics::RouteMetrics,
    pub(crate) miss_predictor: MissPredictor,
    pub(crate) tag_memory: TagMemory,
    /// `true` after the warning that the route doesn't declare its audience.
    pub(crate) warned: AtomicBool,
    /// `true` after the warning that the cache wraps the handler twice.
    pub(crate) warned_nested: AtomicBool,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("rule", self.policy.rule()).finish_non_exhaustive()
    }
}

/// An asynchronous key builder. For a plain function, see `.key_by()`.
///
/// The key comes after the prefix and the group. With `None` the request has no key, and isn't cached.
///
/// ```
/// use larder_core::{KeyBuilder, RequestView};
///
/// struct ByTenant;
///
/// impl KeyBuilder for ByTenant {
///     async fn key(&self, request: &RequestView<'_>) -> Option<String> {
///         let tenant = request.headers.get("x-tenant")?.to_str().ok()?;
///         // … look the tenant up …
///         Some(format!("{tenant}:{}", larder_core::default_key(request)?))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an async key builder",
    label = "expected a type that implements `KeyBuilder`",
    note = "for a closure `|request: &RequestView<'_>| -> Option<String>`, use `.key_by(..)` instead"
)]
pub trait KeyBuilder: Send + Sync + 'static {
    /// Returns the key of a request, without prefix and group.
    fn key(&self, request: &RequestView<'_>) -> impl Future<Output = Option<String>> + Send;
}

/// Returns the key of routes without a key builder: the path with slashes as colons, and the sorted query.
#[must_use]
pub fn default_key(request: &RequestView<'_>) -> Option<String> {
    Some(crate::key::uri_suffix(request.uri))
}

type SyncBuilder = Arc<dyn Fn(&RequestView<'_>) -> Option<String> + Send + Sync>;

/// The source of keys.
#[derive(Clone)]
pub(crate) enum KeySource {
    Uri,
    Sync(SyncBuilder),
    Async(Arc<dyn DynKeyBuilder>),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uri => "Uri",
            Self::Sync(_) => "Sync(..)",
            Self::Async(_) => "Async(..)",
        })
    }
}

/// [`KeyBuilder`] as a trait object.
pub(crate) trait DynKeyBuilder: Send + Sync {
    fn build<'a>(
        &'a self,
        request: &'a RequestView<'_>,
    ) -> Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>>;
}

impl<B: KeyBuilder> DynKeyBuilder for B {
    fn build<'a>(
        &'a self,
        request: &'a RequestView<'_>,
    ) -> Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>> {
        Box::pin(self.key(request))
    }
}

/// The options of a route, which adapters wrap.
///
/// Clones share the options and the finished route until one of them is changed. axum clones the layers of a handler for
/// every request, and recreates their services.
#[derive(Clone, Debug)]
#[doc(hidden)]
#[must_use]
pub struct RouteOptions {
    config: Arc<RouteConfig>,
}

#[derive(Clone, Debug)]
struct RouteConfig {
    larder: Larder,
    prefix: Box<str>,
    group: Option<Box<str>>,
    rule: Rule,
    key_source: KeySource,
    name: Option<Box<str>>,
    /// The source location of the route.
    made_at: &'static Location<'static>,
    /// Created on first use.
    route: OnceLock<Arc<Route>>,
}

impl RouteOptions {
    /// Creates the options of a route with the cache's defaults.
    #[track_caller]
    pub fn new(larder: &Larder, kind: Kind) -> Self {
        let defaults = &larder.context.defaults;
        let space =
            KeySpace::new(&defaults.prefix, None).unwrap_or_else(|error| panic_invalid_config(&error));
        let rule = Rule {
            ttl: defaults.ttl.duration(),
            max_body: defaults.max_body,
            status_header: defaults.status_header.clone(),
            cache_status: defaults.cache_status,
            credential_fields: Arc::clone(&defaults.credential_fields),
            ignored_params: Arc::clone(&defaults.ignored_params),
            ..Rule::new(kind, space)
        };
        let config = RouteConfig {
            larder: larder.clone(),
            prefix: defaults.prefix.clone(),
            group: None,
            rule,
            key_source: KeySource::Uri,
            name: None,
            made_at: Location::caller(),
            route: OnceLock::new(),
        };
        Self { config: Arc::new(config) }
    }

    /// Returns the options for a change. A route that was finished before doesn't change.
    fn change(&mut self) -> &mut RouteConfig {
        let config = Arc::make_mut(&mut self.config);
        config.route = OnceLock::new();
        config
    }

    /// Returns the finished route.
    #[must_use]
    pub fn route(&self) -> Arc<Route> {
        let RouteConfig { larder, rule, key_source, name, made_at, route, .. } = &*self.config;
        let finish = || {
            let context = Arc::clone(&larder.context);
            context.agreement.compare(rule, name.as_deref(), made_at);
            let mut rule = rule.clone();
            rule.max_body = context.storable_body(rule.max_body);
            let policy = CachePolicy::new(Arc::new(rule)).with_secret(context.defaults.secret.clone());
            Arc::new(Route {
                context,
                policy,
                key_source: key_source.clone(),
                metrics: metrics::RouteMetrics::new(name.clone()),
                miss_predictor: MissPredictor::default(),
                tag_memory: TagMemory::default(),
                warned: AtomicBool::new(false),
                warned_nested: AtomicBool::new(false),
            })
        };
        Arc::clone(route.get_or_init(finish))
    }

    /// Sets the route's name in metrics.
    pub fn name(mut self, name: &str) -> Self {
        self.change().name = Some(name.into());
        self
    }

    /// Sets the route's effect on the cache.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.change().rule.kind = kind;
        self
    }

    /// Returns `true` if there is an eviction group.
    #[must_use]
    pub fn has_group(&self) -> bool {
        self.config.group.is_some()
    }

    /// Sets the eviction group.
    #[track_caller]
    pub fn group(mut self, group: &str) -> Self {
        self.change().group = Some(group.into());
        self.with_space()
    }

    /// Sets the prefix.
    #[track_caller]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.change().prefix = prefix.into();
        self.with_space()
    }

    #[track_caller]
    fn with_space(mut self) -> Self {
        let config = self.change();
        match KeySpace::new(&config.prefix, config.group.as_deref()) {
            Ok(space) => config.rule.space = space,
            Err(error) => panic_invalid_config(&error),
        }
        self
    }

    /// Sets the time to live.
    pub fn ttl(mut self, ttl: Ttl) -> Self {
        self.change().rule.ttl = ttl.duration();
        self
    }

    /// Stores responses with another status too.
    pub fn ttl_for(mut self, status: StatusCode, ttl: Ttl) -> Self {
        self.change().rule.ttl_for.push((status, ttl.duration()));
        self
    }

    /// Sets the audience of the responses.
    pub fn audience(mut self, audience: Audience) -> Self {
        self.change().rule.audience = audience;
        self
    }

    /// Makes the route private to the principals that `of` returns.
    pub fn private_by(self, of: PrincipalOf) -> Self {
        self.audience(Audience::Private(of, vec![AUTHORIZATION, COOKIE]))
    }

    /// Sets the request fields that the principal comes from.
    #[track_caller]
    pub fn principal_from(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let names = field_names(names);
        match &mut self.change().rule.audience {
            Audience::Private(_, from) => *from = names,
            Audience::Undeclared | Audience::Public => {
                panic_invalid_config(&"principal_from(..) needs private_by(..) before it");
            }
        }
        self
    }

    /// Makes the route public, but lets the handler see these fields.
    #[track_caller]
    pub fn public_with(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let rule = &mut self.change().rule;
        rule.audience = Audience::Public;
        rule.passed_fields = field_names(names);
        self
    }

    /// Sets a synchronous key builder.
    pub fn key_by(self, build: impl Fn(&RequestView<'_>) -> Option<String> + Send + Sync + 'static) -> Self {
        self.choose_keys(KeySource::Sync(Arc::new(build)))
    }

    /// Sets an asynchronous key builder.
    pub fn key_by_async(self, build: impl KeyBuilder) -> Self {
        self.choose_keys(KeySource::Async(Arc::new(build)))
    }

    fn choose_keys(mut self, by: KeySource) -> Self {
        let config = self.change();
        (config.key_source, config.rule.is_chosen) = (by, true);
        self
    }

    /// Sets the query parameters that count for the key.
    pub fn query_params(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.change().rule.query_params = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Adds query parameters that don't count for the key.
    #[track_caller]
    pub fn ignore_query_params(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let rule = &mut self.change().rule;
        rule.ignored_params = with_ignored(&rule.ignored_params, names);
        self
    }

    /// Sets the content codings that the handler's responses can have.
    #[track_caller]
    pub fn content_codings(mut self, codings: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let codings: Vec<String> = codings.into_iter().map(Into::into).collect();
        if let Some(error) = codings.iter().find_map(|coding| coding_error(coding)) {
            panic_invalid_config(&error);
        }
        self.change().rule.content_codings = Some(codings);
        self
    }

    /// Adds the host to the key.
    pub fn vary_by_host(mut self) -> Self {
        self.change().rule.vary_by_host = true;
        self
    }

    /// Adds response fields that are not stored.
    #[track_caller]
    pub fn not_stored(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let names = field_names(names);
        if let Some(name) = names.iter().find(|name| [CONTENT_ENCODING, CONTENT_TYPE, VARY].contains(name)) {
            panic_invalid_config(&format!("{name} describes the stored body, so it must be stored"));
        }
        self.change().rule.unstored_fields.extend(names);
        self
    }

    /// Sets the largest body that is stored, in bytes.
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.change().rule.max_body = bytes;
        self
    }

    /// Sets the greatest `max-age` for downstream caches.
    pub fn downstream_ttl(mut self, ttl: Seconds) -> Self {
        self.change().rule.downstream_ttl = Some(ttl.duration());
        self
    }

    /// Declares that the content of a URI never changes.
    pub fn immutable(mut self) -> Self {
        self.change().rule.is_immutable = true;
        self
    }

    /// Sets how long a stale response is served while it is refreshed. On a write-through, sets only how long it is kept.
    pub fn stale_while_revalidate(mut self, limit: Seconds) -> Self {
        self.change().rule.stale_while_revalidate = Some(limit.duration());
        self
    }

    /// Sets how long a stale response is served if the handler fails. On a write-through, sets only how long it is kept.
    pub fn stale_if_error(mut self, limit: Seconds) -> Self {
        self.change().rule.stale_if_error = Some(limit.duration());
        self
    }

    /// Adds a tag for every request.
    #[track_caller]
    pub fn tag(mut self, tag: &str) -> Self {
        let tags = &mut self.change().rule.tags;
        let all = Tags::new([tag]).and_then(|tag| std::mem::take(&mut tags.fixed).union(tag));
        match all {
            Ok(all) => tags.fixed = all,
            Err(error) => panic_invalid_config(&error),
        }
        self
    }

    /// Adds tags that depend on the request.
    pub fn tags_by<I>(mut self, of: impl Fn(&RequestView<'_>) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.change().rule.tags.by_request.push(names_of(of));
        self
    }

    /// Adds the tag of the request's principal.
    pub fn evict_by_principal(mut self) -> Self {
        self.change().rule.tags.by_principal = true;
        self
    }

    /// Adds the tag of the request's path.
    pub fn evict_by_path(mut self) -> Self {
        self.change().rule.tags.by_path = true;
        self
    }

    /// Adds a field that names the tags to other caches.
    pub fn emit_tags(mut self, field: TagField) -> Self {
        let emitted = &mut self.change().rule.tags.emitted;
        if !emitted.contains(&field) {
            emitted.push(field);
        }
        self
    }

    /// Evicts a path.
    #[track_caller]
    pub fn path(mut self, path: &str) -> Self {
        let tags = &mut self.change().rule.tags;
        let all = path_of(path).and_then(|uri| std::mem::take(&mut tags.fixed).union(path_tag(&uri)));
        match all {
            Ok(all) => tags.fixed = all,
            Err(error) => panic_invalid_config(&error),
        }
        self
    }

    /// Evicts paths that depend on the request.
    pub fn paths_by<I>(mut self, of: impl Fn(&RequestView<'_>) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.change().rule.tags.paths_by.push(names_of(of));
        self
    }

    /// Evicts principals that depend on the request.
    pub fn principals_by<I>(mut self, of: impl Fn(&RequestView<'_>) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.change().rule.tags.principals_by.push(names_of(of));
        self
    }

    /// Makes entries stale instead of removing them.
    pub fn soft(mut self) -> Self {
        self.change().rule.eviction = EvictionMode::Soft;
        self
    }

    /// Sets the fraction by which times to live are shortened at random.
    #[track_caller]
    pub fn jitter(mut self, fraction: f64) -> Self {
        if !(0.0..=1.0).contains(&fraction) {
            panic_invalid_config(&format!("the jitter {fraction} is not a fraction between 0 and 1"));
        }
        self.change().rule.jitter = fraction;
        self
    }
}

/// Returns a function that collects the names of another one.
fn names_of<I>(of: impl Fn(&RequestView<'_>) -> I + Send + Sync + 'static) -> TagsOf
where
    I: IntoIterator<Item: Into<String>>,
{
    Arc::new(move |request| of(request).into_iter().map(Into::into).collect())
}

/// Parses field names, which are literals.
#[track_caller]
fn field_names(names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<HeaderName> {
    let name = |name: &str| {
        HeaderName::from_bytes(name.as_bytes())
            .unwrap_or_else(|_| panic_invalid_config(&format!("{name:?} is no field name")))
    };
    names.into_iter().map(|text| name(text.as_ref())).collect()
}

/// The state of a `CacheEvict` that has a target, and so is a layer.
#[diagnostic::on_unimplemented(
    message = "this `cache_evict` doesn't know what to evict",
    label = "say `.key()`, `.key_by(..)`, `.whole_group()` or `.tag(..)` first",
    note = "`.key()` evicts the entry of a GET of the same URI, `.whole_group()` every entry of the group, `.tag(..)` every entry with the tag"
)]
#[doc(hidden)]
pub trait EvictTarget {}

/// Defines the three layers of an adapter, `Cache`, `CachePut` and `CacheEvict`, and the functions `cache`, `cache_put` and
/// `cache_evict` that create them. Each has a method `route()`, from which the adapter makes its layer.
///
/// A layer must be a type of the adapter's crate to implement a framework's trait. The macro gives all adapters the same
/// options.
#[doc(hidden)]
#[macro_export]
macro_rules! route_layers {
    () => {
        /// A layer that caches the responses of a route.
        ///
        /// A hit skips the handler *and its extractors*: authenticate outside the cache.
        #[doc(alias = "CacheLayer")]
        #[derive(Clone, Debug)]
        #[must_use = "a cache does nothing until it is layered over a handler"]
        pub struct Cache {
            options: $crate::route::RouteOptions,
        }

        /// A layer that stores a write's response, so that the next read is a hit with the new value.
        #[derive(Clone, Debug)]
        #[must_use = "a write-through does nothing until it is layered over a handler"]
        pub struct CachePut {
            options: $crate::route::RouteOptions,
        }

        /// A layer that evicts after the handler succeeded. It becomes a layer with [`key`](CacheEvict::key),
        /// [`key_by`](CacheEvict::key_by), [`whole_group`](CacheEvict::whole_group) or [`tag`](CacheEvict::tag).
        #[derive(Clone, Debug)]
        #[must_use = "an eviction does nothing until it is layered over a handler"]
        pub struct CacheEvict<Target = ChooseKeyOrWholeGroup> {
            options: $crate::route::RouteOptions,
            target: ::std::marker::PhantomData<fn() -> Target>,
        }

        /// The state of a [`CacheEvict`] without a target: call `.key()`, `.key_by(..)`, `.whole_group()` or `.tag(..)`.
        #[derive(Clone, Copy, Debug)]
        pub struct ChooseKeyOrWholeGroup;

        /// The state of a [`CacheEvict`] with a target.
        #[derive(Clone, Copy, Debug)]
        pub struct Chosen;

        // No other type implements this, so an error message needn't list implementations.
        #[diagnostic::do_not_recommend]
        impl $crate::route::EvictTarget for Chosen {}

        /// Creates a layer that caches the responses of a route, for GET and HEAD.
        #[track_caller]
        pub fn cache(larder: &$crate::Larder) -> Cache {
            Cache { options: $crate::route::RouteOptions::new(larder, $crate::Kind::Read) }
        }

        /// Creates a layer that stores a write's response under the key of a GET of the same URI.
        ///
        /// The handler runs first. If it refuses the request (4xx except 408), the stored entry stays. If it succeeds with
        /// a response that can't be stored, or its outcome is unknown (408, 5xx, an error, a panic, a timeout), the key is
        /// evicted.
        #[track_caller]
        pub fn cache_put(larder: &$crate::Larder) -> CachePut {
            CachePut { options: $crate::route::RouteOptions::new(larder, $crate::Kind::Write) }
        }

        /// Creates a layer that evicts after the handler succeeded (2xx or 3xx), and when its outcome is unknown (408, 5xx,
        /// an error, a panic, a timeout).
        #[track_caller]
        pub fn cache_evict(larder: &$crate::Larder) -> CacheEvict {
            CacheEvict {
                options: $crate::route::RouteOptions::new(larder, $crate::Kind::EvictKey),
                target: ::std::marker::PhantomData,
            }
        }

        impl Cache {
            $crate::route_layers!(@keys);
            $crate::route_layers!(@audience);
            $crate::route_layers!(@storing);
            $crate::route_layers!(@tags);
            $crate::route_layers!(@emitting);

            /// Stores responses with this status too, for `ttl`: negative caching. Without it, only status 200 is stored.
            pub fn ttl_for(mut self, status: $crate::http::StatusCode, ttl: impl Into<$crate::Ttl>) -> Self {
                self.options = self.options.ttl_for(status, ttl.into());
                self
            }

            /// Sets the content codings that the handler's responses can have, such as `gzip` and `br`. Other codings are
            /// taken out of `Accept-Encoding` before the handler sees it, and the field gets one spelling. Clients that
            /// differ only in the other codings then share a stored response (RFC 9111 §4.1).
            ///
            /// Without this option only the spelling is normalised, because the handler may know every coding.
            ///
            /// # Panics
            ///
            /// Panics if a coding isn't a token (RFC 9110 §8.4.1).
            #[track_caller]
            pub fn content_codings(mut self, codings: impl IntoIterator<Item = impl Into<String>>) -> Self {
                self.options = self.options.content_codings(codings);
                self
            }
        }

        impl CachePut {
            $crate::route_layers!(@keys);
            $crate::route_layers!(@audience);
            $crate::route_layers!(@storing);
            $crate::route_layers!(@tags);
            $crate::route_layers!(@emitting);
        }

        impl<Target> CacheEvict<Target> {
            $crate::route_layers!(@names);
            $crate::route_layers!(@audience);
            $crate::route_layers!(@emitting);
        }

        impl CacheEvict {
            /// Evicts the entry of a GET of the same URI.
            pub fn key(self) -> CacheEvict<Chosen> {
                CacheEvict { options: self.options, target: ::std::marker::PhantomData }
            }

            /// Evicts the entry whose key this function returns, without prefix and group. `None` evicts nothing.
            pub fn key_by(
                self,
                build: impl Fn(&$crate::RequestView<'_>) -> Option<String> + Send + Sync + 'static,
            ) -> CacheEvict<Chosen> {
                CacheEvict { options: self.options.key_by(build), target: ::std::marker::PhantomData }
            }

            /// Evicts the entry whose key this asynchronous builder returns.
            pub fn key_by_async(self, build: impl $crate::KeyBuilder) -> CacheEvict<Chosen> {
                CacheEvict { options: self.options.key_by_async(build), target: ::std::marker::PhantomData }
            }

            /// Evicts every entry of the group.
            ///
            /// # Panics
            ///
            /// Panics without a [`group`](Self::group) before it.
            #[track_caller]
            pub fn whole_group(self) -> CacheEvict<Chosen> {
                assert!(self.options.has_group(), "whole_group() needs a group(..) before it");
                let options = self.options.kind($crate::Kind::EvictGroup);
                CacheEvict { options, target: ::std::marker::PhantomData }
            }

            /// Evicts every entry that carries this tag, in any group.
            ///
            /// # Panics
            ///
            /// Panics if no entry can have this tag.
            #[track_caller]
            pub fn tag(self, tag: &str) -> CacheEvict<Chosen> {
                CacheEvict {
                    options: self.options.kind($crate::Kind::EvictTags).tag(tag),
                    target: ::std::marker::PhantomData,
                }
            }

            /// Evicts every entry that carries one of the tags that this function returns for the request, in any group.
            ///
            /// A tag that no entry can have is logged and skipped.
            pub fn tags_by<I>(
                self,
                tags: impl Fn(&$crate::RequestView<'_>) -> I + Send + Sync + 'static,
            ) -> CacheEvict<Chosen>
            where
                I: IntoIterator<Item: Into<String>>,
            {
                CacheEvict {
                    options: self.options.kind($crate::Kind::EvictTags).tags_by(tags),
                    target: ::std::marker::PhantomData,
                }
            }

            /// Evicts the responses of this path, with all its queries, variants, hosts and principals, on routes with
            /// `.evict_by_path()`.
            ///
            /// # Panics
            ///
            /// Panics if it is not a path.
            #[track_caller]
            pub fn path(self, path: &str) -> CacheEvict<Chosen> {
                CacheEvict {
                    options: self.options.kind($crate::Kind::EvictTags).path(path),
                    target: ::std::marker::PhantomData,
                }
            }

            /// Evicts the responses of the paths that this function returns for the request, as [`path`](Self::path) does. A text
            /// that is no path is logged and skipped.
            pub fn paths_by<I>(
                self,
                paths: impl Fn(&$crate::RequestView<'_>) -> I + Send + Sync + 'static,
            ) -> CacheEvict<Chosen>
            where
                I: IntoIterator<Item: Into<String>>,
            {
                CacheEvict {
                    options: self.options.kind($crate::Kind::EvictTags).paths_by(paths),
                    target: ::std::marker::PhantomData,
                }
            }

            /// Evicts the responses of the principals that this function returns for the request, on routes with
            /// `.evict_by_principal()`: after a log-out, a ban, or a change of roles. A principal is what the `.private_by(..)` of
            /// these routes returns, or the Bearer token of a `.private()` route.
            pub fn principals_by<I>(
                self,
                principals: impl Fn(&$crate::RequestView<'_>) -> I + Send + Sync + 'static,
            ) -> CacheEvict<Chosen>
            where
                I: IntoIterator<Item: Into<String>>,
            {
                CacheEvict {
                    options: self.options.kind($crate::Kind::EvictTags).principals_by(principals),
                    target: ::std::marker::PhantomData,
                }
            }

            /// Evicts only the tags that the handler names with its response
            /// ([`TagsToEvict`]($crate::tag::TagsToEvict)). Other targets evict these too.
            pub fn tags_of_response(self) -> CacheEvict<Chosen> {
                CacheEvict {
                    options: self.options.kind($crate::Kind::EvictTags),
                    target: ::std::marker::PhantomData,
                }
            }
        }

        impl CacheEvict<Chosen> {
            /// Evicts every entry that carries this tag too.
            ///
            /// # Panics
            ///
            /// Panics if no entry can have this tag.
            #[track_caller]
            pub fn tag(mut self, tag: &str) -> Self {
                self.options = self.options.tag(tag);
                self
            }

            /// Evicts every entry that carries one of the tags that this function returns for the request too.
            pub fn tags_by<I>(
                mut self,
                tags: impl Fn(&$crate::RequestView<'_>) -> I + Send + Sync + 'static,
            ) -> Self
            where
                I: IntoIterator<Item: Into<String>>,
            {
                self.options = self.options.tags_by(tags);
                self
            }

            /// Evicts the responses of this path too, on routes with `.evict_by_path()`.
            ///
            /// # Panics
            ///
            /// Panics if it is not a path.
            #[track_caller]
            pub fn path(mut self, path: &str) -> Self {
                self.options = self.options.path(path);
                self
            }

            /// Evicts the responses of the paths that this function returns for the request too.
            pub fn paths_by<I>(
                mut self,
                paths: impl Fn(&$crate::RequestView<'_>) -> I + Send + Sync + 'static,
            ) -> Self
            where
                I: IntoIterator<Item: Into<String>>,
            {
                self.options = self.options.paths_by(paths);
                self
            }

            /// Evicts the responses of the principals that this function returns for the request too, on routes with
            /// `.evict_by_principal()`.
            pub fn principals_by<I>(
                mut self,
                principals: impl Fn(&$crate::RequestView<'_>) -> I + Send + Sync + 'static,
            ) -> Self
            where
                I: IntoIterator<Item: Into<String>>,
            {
                self.options = self.options.principals_by(principals);
                self
            }

            /// Makes the entries of the key, the group and the tags stale as of now instead of removing them:
            /// `stale_while_revalidate` and `stale_if_error` apply from this moment, and a fill that began before isn't stored.
            ///
            /// Without these options on the route that reads, there is no difference. A key whose resource varies is
            /// removed, and so is the entry at the `Location` of a 201 response, such as a stored 404.
            pub fn soft(mut self) -> Self {
                self.options = self.options.soft();
                self
            }
        }
    };

    (@tags) => {
        /// Adds a tag to the responses: [`Larder::evict_tag`]($crate::Larder::evict_tag) and `cache_evict` layers with this tag
        /// evict them, whatever their keys and groups are.
        ///
        /// # Panics
        ///
        /// Panics if an entry can't have this tag: it is empty, longer than 256 bytes, or has a control character; or if
        /// there are more than 128.
        #[track_caller]
        pub fn tag(mut self, tag: &str) -> Self {
            self.options = self.options.tag(tag);
            self
        }

        /// Adds the tags that this function returns for the request. If an entry can't have them, the response isn't stored
        /// ([`Reason::Tags`]($crate::Reason::Tags)).
        ///
        /// The handler adds tags that depend on its data, with its response.
        pub fn tags_by<I>(
            mut self,
            tags: impl Fn(&$crate::RequestView<'_>) -> I + Send + Sync + 'static,
        ) -> Self
        where
            I: IntoIterator<Item: Into<String>>,
        {
            self.options = self.options.tags_by(tags);
            self
        }

        /// Makes [`Larder::evict_principal`]($crate::Larder::evict_principal) evict the responses. They carry one more tag.
        pub fn evict_by_principal(mut self) -> Self {
            self.options = self.options.evict_by_principal();
            self
        }

        /// Makes [`Larder::evict_path`]($crate::Larder::evict_path) evict the responses, by the path of the request that
        /// stored them. They carry one more tag.
        pub fn evict_by_path(mut self) -> Self {
            self.options = self.options.evict_by_path();
            self
        }
    };

    (@emitting) => {
        /// Names the tags in a field of the response, so that a CDN or another cache downstream can be purged by the same words. Can
        /// be called once for each field; on a `cache_evict` only `CacheGroups` has an effect.
        ///
        /// Responses of `cache` and `cache_put` name their tags, of the route and of the handler, in hits, 304s and misses
        /// alike; those of writes also name the tags that they evict, in `Cache-Group-Invalidation`, with
        /// [`CacheGroups`]($crate::tag::TagField::CacheGroups). A tag that the field can't hold is
        /// [encoded]($crate::tag::TagField::spell). The tags of principals and of paths are never named. Other fields of the
        /// same name that the handler sets stay, and all are combined into one line.
        ///
        /// The entry keeps the field, so a route that reads entries of a `cache_put` needs the option there. An entry that was stored
        /// before the option was set has no field until it is filled again.
        ///
        /// A response with invalid tags says `no-store`, unless the handler sets `Cache-Control`: it couldn't be purged.
        ///
        /// A write names the evicted tags also if the store didn't confirm the eviction. Until it is repeated, another
        /// process of this service may send the old response to a cache downstream, which keeps it for its `max-age`.
        pub fn emit_tags(mut self, field: $crate::tag::TagField) -> Self {
            self.options = self.options.emit_tags(field);
            self
        }
    };

    (@names) => {
        /// Sets the route's name in [`Larder::stats`]($crate::Larder::stats), metrics and the console. The default is the
        /// pattern that the framework's router matched, such as `/products/{id}`.
        pub fn name(mut self, name: &str) -> Self {
            self.options = self.options.name(name);
            self
        }

        /// Sets the eviction group of the route's keys.
        ///
        /// # Panics
        ///
        /// Panics if it is empty or contains a brace, a bar, white space or a control character.
        #[track_caller]
        pub fn group(mut self, group: &str) -> Self {
            self.options = self.options.group(group);
            self
        }

        /// Sets the prefix of the route's keys, instead of the cache's own.
        ///
        /// # Panics
        ///
        /// Panics as [`group`](Self::group) does, and for an ending that stores reserve.
        #[track_caller]
        pub fn prefix(mut self, prefix: &str) -> Self {
            self.options = self.options.prefix(prefix);
            self
        }

        /// Uses only these query parameters in the key, and ignores others. Otherwise every unknown parameter (`?x=1`)
        /// creates an entry.
        pub fn query_params(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
            self.options = self.options.query_params(names);
            self
        }

        /// Leaves these query parameters out of the key, beside those of
        /// [`LarderBuilder::ignore_query_params`]($crate::LarderBuilder::ignore_query_params). In a name, one `*` stands for any
        /// characters: [`TRACKING_PARAMS`]($crate::key::TRACKING_PARAMS) has `utm_*`. The handler sees them, so its response must
        /// not depend on them. Has no effect with [`query_params`](Self::query_params) or a key builder.
        ///
        /// # Panics
        ///
        /// Panics if a name is empty or has more than one `*`.
        #[track_caller]
        pub fn ignore_query_params(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
            self.options = self.options.ignore_query_params(names);
            self
        }

        /// Adds the host to the key, for services with several tenants on several hosts.
        pub fn vary_by_host(mut self) -> Self {
            self.options = self.options.vary_by_host();
            self
        }
    };

    (@keys) => {
        $crate::route_layers!(@names);

        /// Sets a function that returns the key of a request, without prefix and group. If it returns `None`, the request
        /// isn't cached.
        pub fn key_by(
            mut self,
            build: impl Fn(&$crate::RequestView<'_>) -> Option<String> + Send + Sync + 'static,
        ) -> Self {
            self.options = self.options.key_by(build);
            self
        }

        /// Sets an asynchronous key builder.
        pub fn key_by_async(mut self, build: impl $crate::KeyBuilder) -> Self {
            self.options = self.options.key_by_async(build);
            self
        }
    };

    (@audience) => {
        /// Declares that every client gets the same response, so that requests with credentials are cached too.
        ///
        /// The cache enforces this. A handler whose response may be stored sees no `Authorization`, no `Cookie`, and no
        /// other field that carries credentials. It doesn't see fields that change a request's destination either, such as
        /// `X-Forwarded-Host` (unless [`vary_by_host`](Self::vary_by_host) adds the host to the key). A write-through keeps
        /// its credentials, and stores the response that its writer got. Extensions that an outer layer attached to the
        /// request can't be hidden.
        ///
        /// Without this or `private`, requests with credentials bypass the cache.
        pub fn public(mut self) -> Self {
            self.options = self.options.audience($crate::Audience::Public);
            self
        }

        /// Declares the route [`public`](Self::public), but lets the handler see these request fields. Its response must
        /// not depend on them, because every client gets it.
        ///
        /// # Panics
        ///
        /// Panics if a name isn't a valid field name.
        #[track_caller]
        pub fn public_with(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            self.options = self.options.public_with(names);
            self
        }

        /// Stores one response for each Bearer token. Downstream, only browsers may store it (`Cache-Control: private`,
        /// `Vary: Authorization`). Requests without a token bypass the cache. The handler sees no other credentials than
        /// the token.
        ///
        /// This is not authorization: a hit doesn't run the handler, so check the token outside the cache. Two tokens of
        /// one user are two principals, and are evicted separately.
        pub fn private(mut self) -> Self {
            self.options = self.options.audience($crate::Audience::bearer());
            self
        }

        /// Stores one response for each principal, as [`private`](Self::private) does for tokens. `principal` returns the
        /// request's principal, or `None` to bypass the cache.
        pub fn private_by(
            mut self,
            principal: impl Fn(&$crate::RequestView<'_>) -> Option<String> + Send + Sync + 'static,
        ) -> Self {
            self.options = self.options.private_by(::std::sync::Arc::new(principal));
            self
        }

        /// Sets the request fields that the principal of [`private_by`](Self::private_by) comes from. The default is
        /// `Authorization` and `Cookie`. `Vary` lists them, so that browsers don't give one user's response to the next.
        /// The handler sees no other credentials.
        ///
        /// # Panics
        ///
        /// Panics without a `private_by` before it, or if a name isn't a valid field name.
        #[track_caller]
        pub fn principal_from(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            self.options = self.options.principal_from(names);
            self
        }

        /// Returns the finished route, for adapters and tests.
        #[must_use]
        pub fn route(&self) -> ::std::sync::Arc<$crate::Route> {
            self.options.route()
        }
    };

    (@storing) => {
        /// Sets how long responses are fresh: seconds or a `Duration`. The number 0 means no expiry. With a `Duration` of
        /// zero, responses are not stored.
        pub fn ttl(mut self, ttl: impl Into<$crate::Ttl>) -> Self {
            self.options = self.options.ttl(ttl.into());
            self
        }

        /// Keeps responses until they are evicted, regardless of the cache's default time to live.
        pub fn no_expiry(self) -> Self {
            self.ttl($crate::Ttl::NO_EXPIRY)
        }

        /// Doesn't store these response fields: the client for which the handler ran gets them, and later clients don't.
        ///
        /// Fields that describe one exchange are never stored: ids of requests and traces (`X-Request-Id`, `traceparent`),
        /// timings (`Server-Timing`), rate limits (`RateLimit`, `X-RateLimit-*`), and tokens against forged requests
        /// (`X-CSRF-Token`). A layer that adds such a field to each response belongs outside the cache.
        ///
        /// # Panics
        ///
        /// Panics if a name isn't a valid field name, or is `Content-Encoding`, `Content-Type` or `Vary`, without which the
        /// stored body couldn't be used.
        #[track_caller]
        pub fn not_stored(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            self.options = self.options.not_stored(names);
            self
        }

        /// Sets the largest body that is stored, in bytes. Larger bodies pass through.
        pub fn max_body(mut self, bytes: u64) -> Self {
            self.options = self.options.max_body(bytes);
            self
        }

        /// Sets the greatest `max-age` for browsers and CDNs, which evictions don't reach: seconds or a `Duration`. With 0,
        /// they validate a response before each use.
        pub fn downstream_ttl(mut self, ttl: impl Into<$crate::route::Seconds>) -> Self {
            self.options = self.options.downstream_ttl(ttl.into());
            self
        }

        /// Declares that the content of a URI never changes, as with versioned URIs (`/app.3f9a.js`): the responses say
        /// `immutable` (RFC 8246), so that browsers don't validate them while they are fresh, not even on a reload. Errors
        /// that are stored don't say so. Evictions never reach the browsers.
        pub fn immutable(mut self) -> Self {
            self.options = self.options.immutable();
            self
        }

        /// Serves a response for this long after its time to live ended, while one run of the handler in the background
        /// refreshes it (RFC 5861 §3): seconds or a `Duration`. Browsers and CDNs get the same directive. Responses with
        /// `must-revalidate` are excluded. With 0, no response is served after its time to live.
        ///
        /// The option of the route that reads an entry decides whether a stale response is served. On a write-through
        /// (`cache_put`) it only makes the store keep the response for this long after its time to live, and adds the
        /// directive to the write's response. Without it there, the response is gone when its time to live ends, so set the
        /// same limit on both routes.
        pub fn stale_while_revalidate(mut self, limit: impl Into<$crate::route::Seconds>) -> Self {
            self.options = self.options.stale_while_revalidate(limit.into());
            self
        }

        /// Serves a response for this long after its time to live ended, if the handler fails: with an error, or with
        /// status 500, 502, 503 or 504 (RFC 5861 §4). Seconds or a `Duration`. Responses with `must-revalidate` are
        /// excluded. With 0, no response is served after its time to live.
        ///
        /// The option of the route that reads an entry decides, as with
        /// [`stale_while_revalidate`](Self::stale_while_revalidate). If the handler of a write-through fails, the client gets the
        /// error.
        pub fn stale_if_error(mut self, limit: impl Into<$crate::route::Seconds>) -> Self {
            self.options = self.options.stale_if_error(limit.into());
            self
        }

        /// Shortens each time to live by a random part of this fraction, so that entries stored together don't expire
        /// together.
        ///
        /// # Panics
        ///
        /// Panics if it is not between 0 and 1.
        #[track_caller]
        pub fn jitter(mut self, fraction: f64) -> Self {
            self.options = self.options.jitter(fraction);
            self
        }
    };
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use super::*;

    #[test]
    fn clones_are_one_route_until_they_are_changed() {
        let options = RouteOptions::new(&Larder::memory(), Kind::Read).group("a");
        let (clone, changed) = (options.clone(), options.clone().group("b"));
        assert!(Arc::ptr_eq(&options.route(), &clone.route()));
        assert!(!Arc::ptr_eq(&options.route(), &changed.route()));
        let changed = clone.group("b");
        assert_eq!(changed.route().policy.rule().space.group(), Some("b"));
        assert_eq!(options.route().policy.rule().space.group(), Some("a"));
    }
}
