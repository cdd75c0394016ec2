//! One route: its rule, its key builder, and the cache it belongs to.
//!
//! Adapters offer the options of a route under their own types, all made by `route_layers!`, and end in
//! [`RouteOptions::route`].

pub(crate) mod agreement;
mod seconds;

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderName, StatusCode};

use crate::exchange::miss_predictor::MissPredictor;
use crate::key::KeySpace;
use crate::larder::{CacheContext, Larder, panic_invalid_config};
use crate::policy::CachePolicy;
use crate::policy::rule::{Audience, Kind, PrincipalOf, Rule};
use crate::request::RequestView;
use crate::telemetry::RouteMetrics;
use crate::ttl::Ttl;

pub use self::seconds::Seconds;

/// What a record needs beside its body, at most, in bytes.
const HEAD_ROOM: u64 = 16 * 1024;

/// A route of a cache: [`handle`](Self::handle) answers its requests.
pub struct Route {
    pub(crate) context: Arc<CacheContext>,
    pub(crate) policy: CachePolicy,
    pub(crate) key_source: KeySource,
    pub(crate) metrics: RouteMetrics,
    pub(crate) miss_predictor: MissPredictor,
    /// Whether the author was told to declare whose the responses are.
    pub(crate) warned: AtomicBool,
    /// Whether the author was told that the cache is around the handler twice.
    pub(crate) warned_nested: AtomicBool,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("rule", self.policy.rule()).finish_non_exhaustive()
    }
}

/// Builds the key of a request when that takes waiting for something. For a plain function, see `.key_by()`.
///
/// The answer is what comes after the prefix and the group; `None` means that the request has no key and isn't cached.
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
    /// The key of a request, without prefix and group.
    fn key(&self, request: &RequestView<'_>) -> impl Future<Output = Option<String>> + Send;
}

/// The key that routes use unless they have a builder of their own: the path, slashes as colons, and the sorted query.
#[must_use]
pub fn default_key(request: &RequestView<'_>) -> Option<String> {
    Some(crate::key::uri_suffix(request.uri))
}

type SyncBuilder = Arc<dyn Fn(&RequestView<'_>) -> Option<String> + Send + Sync>;

/// Where keys come from.
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

/// The options of a route while they are being said. Adapters wrap it.
///
/// Clones share what they hold, and the finished route, until one of them is changed: axum clones the layers of a
/// handler for every request, and makes their services anew.
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
    /// Where in the program the route is.
    made_at: &'static Location<'static>,
    /// Made when it is first asked for.
    route: OnceLock<Arc<Route>>,
}

impl RouteOptions {
    /// A route with the cache's defaults.
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

    /// What is to be changed. A route that was finished before stays as it was.
    fn change(&mut self) -> &mut RouteConfig {
        let config = Arc::make_mut(&mut self.config);
        config.route = OnceLock::new();
        config
    }

    /// The finished route.
    #[must_use]
    pub fn route(&self) -> Arc<Route> {
        let RouteConfig { larder, rule, key_source, name, made_at, route, .. } = &*self.config;
        let finish = || {
            let context = Arc::clone(&larder.context);
            context.agreement.compare(rule, key_source, name.as_deref(), made_at);
            let mut rule = rule.clone();
            // A record is a little longer than its body.
            let largest = context.store.max_value_bytes();
            rule.max_body = rule.max_body.min(largest - HEAD_ROOM.min(largest / 4));
            let policy = CachePolicy::new(Arc::new(rule)).with_secret(context.defaults.secret.clone());
            let (key_source, metrics) = (key_source.clone(), RouteMetrics::new(name.clone()));
            let (miss_predictor, warned, warned_nested) =
                (MissPredictor::default(), AtomicBool::new(false), AtomicBool::new(false));
            Arc::new(Route { context, policy, key_source, metrics, miss_predictor, warned, warned_nested })
        };
        Arc::clone(route.get_or_init(finish))
    }

    /// What the route is called in metrics.
    pub fn name(mut self, name: &str) -> Self {
        self.change().name = Some(name.into());
        self
    }

    /// What the route does to the cache.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.change().rule.kind = kind;
        self
    }

    /// Whether a group was named.
    #[must_use]
    pub fn has_group(&self) -> bool {
        self.config.group.is_some()
    }

    /// The eviction group.
    #[track_caller]
    pub fn group(mut self, group: &str) -> Self {
        self.change().group = Some(group.into());
        self.with_space()
    }

    /// The prefix.
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

    /// The time to live.
    pub fn ttl(mut self, ttl: Ttl) -> Self {
        self.change().rule.ttl = ttl.duration();
        self
    }

    /// Another status that is stored.
    pub fn ttl_for(mut self, status: StatusCode, ttl: Ttl) -> Self {
        self.change().rule.also.push((status, ttl.duration()));
        self
    }

    /// Whose the responses are.
    pub fn audience(mut self, audience: Audience) -> Self {
        self.change().rule.audience = audience;
        self
    }

    /// Private to what this names.
    pub fn private_by(self, of: PrincipalOf) -> Self {
        self.audience(Audience::Private(of, vec![AUTHORIZATION, COOKIE]))
    }

    /// The request fields that the principal comes from.
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

    /// Public, and the handler sees these fields all the same.
    #[track_caller]
    pub fn public_with(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let rule = &mut self.change().rule;
        rule.audience = Audience::Public;
        rule.passed_fields = field_names(names);
        self
    }

    /// A synchronous key builder.
    pub fn key_by(self, build: impl Fn(&RequestView<'_>) -> Option<String> + Send + Sync + 'static) -> Self {
        self.choose_keys(KeySource::Sync(Arc::new(build)))
    }

    /// An asynchronous key builder.
    pub fn key_by_async(self, build: impl KeyBuilder) -> Self {
        self.choose_keys(KeySource::Async(Arc::new(build)))
    }

    fn choose_keys(mut self, by: KeySource) -> Self {
        let config = self.change();
        (config.key_source, config.rule.is_chosen) = (by, true);
        self
    }

    /// The query parameters that count.
    pub fn query_params(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.change().rule.params = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// The host becomes part of the key.
    pub fn vary_by_host(mut self) -> Self {
        self.change().rule.by_host = true;
        self
    }

    /// The largest body that is stored.
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.change().rule.max_body = bytes;
        self
    }

    /// The greatest lifetime that is told downstream.
    pub fn downstream_ttl(mut self, ttl: Seconds) -> Self {
        self.change().rule.downstream_ttl = Some(ttl.duration());
        self
    }

    /// For how long a stale response is used while it is refreshed.
    pub fn stale_while_revalidate(mut self, limit: Seconds) -> Self {
        self.change().rule.stale_while_revalidate = Some(limit.duration());
        self
    }

    /// For how long a stale response is used when the handler fails.
    pub fn stale_if_error(mut self, limit: Seconds) -> Self {
        self.change().rule.stale_if_error = Some(limit.duration());
        self
    }

    /// By which fraction lifetimes are shortened at random.
    #[track_caller]
    pub fn jitter(mut self, fraction: f64) -> Self {
        if !(0.0..=1.0).contains(&fraction) {
            panic_invalid_config(&format!("the jitter {fraction} is not a fraction between 0 and 1"));
        }
        self.change().rule.jitter = fraction;
        self
    }
}

/// The names of fields, which are literals.
#[track_caller]
fn field_names(names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<HeaderName> {
    let name = |name: &str| {
        HeaderName::from_bytes(name.as_bytes())
            .unwrap_or_else(|_| panic_invalid_config(&format!("{name:?} is no field name")))
    };
    names.into_iter().map(|text| name(text.as_ref())).collect()
}

/// What a `CacheEvict` must know before it is a layer.
#[diagnostic::on_unimplemented(
    message = "this `cache_evict` doesn't know what to evict",
    label = "say `.key()`, `.key_by(..)` or `.whole_group()` first",
    note = "`.key()` evicts the entry of a GET of the same URI, `.whole_group()` every entry of the group"
)]
#[doc(hidden)]
pub trait EvictTarget {}

/// Defines the three layers of an adapter, `Cache`, `CachePut` and `CacheEvict`, and the functions `cache`,
/// `cache_put` and `cache_evict` that begin them. Each has a method `route()`, from which the adapter makes its layer.
///
/// A layer must be a type of the adapter's crate to implement a framework's trait; this keeps one set of options.
#[doc(hidden)]
#[macro_export]
macro_rules! route_layers {
    () => {
        /// Caches the responses of a route: answers from the store, and fills it.
        ///
        /// A hit skips the handler *and its extractors*: authenticate outside the cache.
        #[derive(Clone, Debug)]
        #[must_use = "a cache does nothing until it is layered over a handler"]
        pub struct Cache {
            options: $crate::route::RouteOptions,
        }

        /// Stores what a handler that writes answered, so that the next read is a hit with the new value.
        #[derive(Clone, Debug)]
        #[must_use = "a write-through does nothing until it is layered over a handler"]
        pub struct CachePut {
            options: $crate::route::RouteOptions,
        }

        /// Evicts after a handler succeeded. It is a layer once [`key`](CacheEvict::key),
        /// [`key_by`](CacheEvict::key_by) or [`whole_group`](CacheEvict::whole_group) said what.
        #[derive(Clone, Debug)]
        #[must_use = "an eviction does nothing until it is layered over a handler"]
        pub struct CacheEvict<Target = ChooseKeyOrWholeGroup> {
            options: $crate::route::RouteOptions,
            target: ::std::marker::PhantomData<fn() -> Target>,
        }

        /// A [`CacheEvict`] that doesn't know yet what to evict: call `.key()`, `.key_by(..)` or `.whole_group()`.
        #[derive(Clone, Copy, Debug)]
        pub struct ChooseKeyOrWholeGroup;

        /// A [`CacheEvict`] that knows what to evict.
        #[derive(Clone, Copy, Debug)]
        pub struct Chosen;

        // Nobody implements this for a type of their own, so a list of who does would only be in the way.
        #[diagnostic::do_not_recommend]
        impl $crate::route::EvictTarget for Chosen {}

        /// Caches the responses of a route, for GET and HEAD.
        #[track_caller]
        pub fn cache(larder: &$crate::Larder) -> Cache {
            Cache { options: $crate::route::RouteOptions::new(larder, $crate::Kind::Read) }
        }

        /// Stores what a handler that writes answered under the key of a GET of the same URI.
        ///
        /// The handler runs first. If it refused (4xx but 408), what is stored stays. If it succeeded with something that
        /// can't be stored, or its outcome is unknown (408, 5xx, an error, a panic, a timeout), the key is evicted.
        #[track_caller]
        pub fn cache_put(larder: &$crate::Larder) -> CachePut {
            CachePut { options: $crate::route::RouteOptions::new(larder, $crate::Kind::Write) }
        }

        /// Evicts after the handler succeeded (2xx or 3xx), and when its outcome is unknown (408, 5xx, an error, a panic, a
        /// timeout).
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

            /// Also stores responses with this status, for its own time: negative caching. Without it only 200 is stored.
            pub fn ttl_for(mut self, status: $crate::http::StatusCode, ttl: impl Into<$crate::Ttl>) -> Self {
                self.options = self.options.ttl_for(status, ttl.into());
                self
            }
        }

        impl CachePut {
            $crate::route_layers!(@keys);
            $crate::route_layers!(@audience);
            $crate::route_layers!(@storing);
        }

        impl<Target> CacheEvict<Target> {
            $crate::route_layers!(@names);
            $crate::route_layers!(@audience);
        }

        impl CacheEvict {
            /// Evicts the entry of a GET of the same URI.
            pub fn key(self) -> CacheEvict<Chosen> {
                CacheEvict { options: self.options, target: ::std::marker::PhantomData }
            }

            /// Evicts the entry that this builder names: a function from the request to what comes after prefix and
            /// group. `None` evicts nothing.
            pub fn key_by(
                self,
                build: impl Fn(&$crate::RequestView<'_>) -> Option<String> + Send + Sync + 'static,
            ) -> CacheEvict<Chosen> {
                CacheEvict { options: self.options.key_by(build), target: ::std::marker::PhantomData }
            }

            /// Evicts the entry that this asynchronous builder names.
            pub fn key_by_async(self, build: impl $crate::KeyBuilder) -> CacheEvict<Chosen> {
                CacheEvict { options: self.options.key_by_async(build), target: ::std::marker::PhantomData }
            }

            /// Evicts every entry of the group.
            ///
            /// # Panics
            ///
            /// Without a [`group`](Self::group) before it.
            #[track_caller]
            pub fn whole_group(self) -> CacheEvict<Chosen> {
                assert!(self.options.has_group(), "whole_group() needs a group(..) before it");
                let options = self.options.kind($crate::Kind::EvictGroup);
                CacheEvict { options, target: ::std::marker::PhantomData }
            }
        }
    };

    (@names) => {
        /// What the route is called in [`Larder::stats`]($crate::Larder::stats), metrics and the console. By default
        /// that is the pattern that the framework's router matched, such as `/products/{id}`.
        pub fn name(mut self, name: &str) -> Self {
            self.options = self.options.name(name);
            self
        }

        /// The eviction group that the keys belong to.
        ///
        /// # Panics
        ///
        /// When it is empty or holds a brace, a bar, white space or a control character.
        #[track_caller]
        pub fn group(mut self, group: &str) -> Self {
            self.options = self.options.group(group);
            self
        }

        /// What the keys begin with, instead of the cache's own prefix.
        ///
        /// # Panics
        ///
        /// As [`group`](Self::group), and for an ending that stores keep for themselves.
        #[track_caller]
        pub fn prefix(mut self, prefix: &str) -> Self {
            self.options = self.options.prefix(prefix);
            self
        }

        /// Only these query parameters count for the key; others are ignored. Keeps strangers from flooding the cache.
        pub fn query_params(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
            self.options = self.options.query_params(names);
            self
        }

        /// Makes the host part of the key, for services with several tenants on several hosts.
        pub fn vary_by_host(mut self) -> Self {
            self.options = self.options.vary_by_host();
            self
        }
    };

    (@keys) => {
        $crate::route_layers!(@names);

        /// Builds the key with a function from the request to what comes after prefix and group. `None` means that
        /// the request isn't cached.
        pub fn key_by(
            mut self,
            build: impl Fn(&$crate::RequestView<'_>) -> Option<String> + Send + Sync + 'static,
        ) -> Self {
            self.options = self.options.key_by(build);
            self
        }

        /// Builds the key with an asynchronous builder.
        pub fn key_by_async(mut self, build: impl $crate::KeyBuilder) -> Self {
            self.options = self.options.key_by_async(build);
            self
        }
    };

    (@audience) => {
        /// Every client gets the same response: credentials don't keep a request from the cache.
        ///
        /// This is enforced: the handler whose response may be stored sees no `Authorization`, no `Cookie` and none of the
        /// other fields that carry credentials, nor those that change where a request goes, such as `X-Forwarded-Host`
        /// (unless [`vary_by_host`](Self::vary_by_host) makes the host part of the key). A write-through keeps its credentials, and
        /// what it stores is what its writer got. What a layer outside attached to the request can't be hidden.
        ///
        /// Without it, and without `private`, requests with credentials bypass the cache.
        pub fn public(mut self) -> Self {
            self.options = self.options.audience($crate::Audience::Public);
            self
        }

        /// As [`public`](Self::public), but the handler sees these fields of the request. Its response must not depend on
        /// them: every client gets it.
        ///
        /// # Panics
        ///
        /// When a name is none that a field can have.
        #[track_caller]
        pub fn public_with(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            self.options = self.options.public_with(names);
            self
        }

        /// Each holder of a Bearer token has a copy of their own, and browsers alone may keep it (`Cache-Control:
        /// private`, `Vary: Authorization`). Requests without a token bypass the cache. The handler sees no other
        /// credentials than the token.
        ///
        /// This authorises nobody: a hit doesn't ask the handler, so check the token outside the cache. Two tokens of
        /// one user are two principals, and are evicted separately.
        pub fn private(mut self) -> Self {
            self.options = self.options.audience($crate::Audience::bearer());
            self
        }

        /// As [`private`](Self::private), for whatever this says the request belongs to. `None` bypasses the cache.
        pub fn private_by(
            mut self,
            principal: impl Fn(&$crate::RequestView<'_>) -> Option<String> + Send + Sync + 'static,
        ) -> Self {
            self.options = self.options.private_by(::std::sync::Arc::new(principal));
            self
        }

        /// Names the request fields that the principal of [`private_by`](Self::private_by) comes from. By default these
        /// are `Authorization` and `Cookie`. `Vary` tells the names to browsers, so that they don't give one user's
        /// response to the next. The handler sees no other credentials.
        ///
        /// # Panics
        ///
        /// Without a `private_by` before it, or when a name is none that a field can have.
        #[track_caller]
        pub fn principal_from(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
            self.options = self.options.principal_from(names);
            self
        }

        /// The finished route, for adapters and tests.
        #[must_use]
        pub fn route(&self) -> ::std::sync::Arc<$crate::Route> {
            self.options.route()
        }
    };

    (@storing) => {
        /// How long responses are fresh: seconds or a `Duration`; 0 means no expiry.
        pub fn ttl(mut self, ttl: impl Into<$crate::Ttl>) -> Self {
            self.options = self.options.ttl(ttl.into());
            self
        }

        /// Responses stay until they are evicted, whatever the cache's default time to live is.
        pub fn no_expiry(self) -> Self {
            self.ttl($crate::Ttl::NO_EXPIRY)
        }

        /// The largest body that is stored, in bytes. Larger ones pass through.
        pub fn max_body(mut self, bytes: u64) -> Self {
            self.options = self.options.max_body(bytes);
            self
        }

        /// The greatest `max-age` to tell browsers and CDNs, which evictions never reach: seconds or a `Duration`.
        pub fn downstream_ttl(mut self, ttl: impl Into<$crate::route::Seconds>) -> Self {
            self.options = self.options.downstream_ttl(ttl.into());
            self
        }

        /// Serves a response for this long after its time to live ended, while one run of the handler in the background
        /// refreshes it (RFC 5861 §3): seconds or a `Duration`. Browsers and CDNs are told so too. A handler that says
        /// `must-revalidate` has its responses kept from this.
        pub fn stale_while_revalidate(mut self, limit: impl Into<$crate::route::Seconds>) -> Self {
            self.options = self.options.stale_while_revalidate(limit.into());
            self
        }

        /// Serves a response for this long after its time to live ended, if the handler fails: with an error, or with
        /// status 500, 502, 503 or 504 (RFC 5861 §4). Seconds or a `Duration`. A handler that says `must-revalidate` has its responses kept from
        /// this.
        pub fn stale_if_error(mut self, limit: impl Into<$crate::route::Seconds>) -> Self {
            self.options = self.options.stale_if_error(limit.into());
            self
        }

        /// Shortens each lifetime by a random part of this fraction, so that entries stored together don't expire
        /// together.
        ///
        /// # Panics
        ///
        /// When it is not between 0 and 1.
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
