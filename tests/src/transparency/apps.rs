//! Applications built from a [`World`], with Larder's layers or without.

mod axum_app;
mod poem_app;
mod tower_app;

use http::Uri;
use larder_core::Larder;

use super::handler::State;
use super::wire::App;
use super::world::{Framework, World};

/// The inputs for building an application.
#[derive(Clone, Debug)]
pub(super) struct Kit {
    /// `None` builds the application without a cache.
    pub(super) larder: Option<Larder>,
    pub(super) state: State,
}

pub(super) async fn build(world: &World, kit: &Kit) -> App {
    match world.framework {
        Framework::Axum => App::serve(axum_app::build(world, kit), world.transport).await,
        Framework::Tower => App::serve(tower_app::build(world, kit), world.transport).await,
        Framework::Poem => App::serve_poem(poem_app::build(world, kit), world.transport).await,
    }
}

const GROUP: &str = "all";
const LISTS: &str = "lists";

/// Returns the principal for `.private_by` in generated applications.
fn cookie_user(request: &larder_core::RequestView<'_>) -> Option<String> {
    let cookie = request.headers.get("cookie")?.to_str().ok()?;
    Some(cookie.strip_prefix("u=")?.to_owned())
}

/// Replaces the path.
fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    with_target(uri, &target)
}

fn with_target(uri: &Uri, target: &str) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Defines the functions that build one adapter's layers from a route's rule.
macro_rules! layers_of {
    ($adapter:ident) => {
        use crate::transparency::world::{Audience, NAMED, Query, Route};
        use $adapter::Larder;

        macro_rules! named {
            ($layer:expr, $route:expr) => {{
                let mut layer = $layer;
                let (rule, handler) = (&$route.rule, &$route.handler);
                layer = match handler.query {
                    Query::Ignored => layer.query_params(Vec::<String>::new()),
                    Query::Named => layer.query_params(NAMED),
                    Query::Read | Query::Part => layer,
                };
                if rule.by_host {
                    layer = layer.vary_by_host();
                }
                match rule.audience {
                    Audience::Undeclared => layer,
                    Audience::Public => layer.public(),
                    Audience::Private => layer.private(),
                    Audience::PrivateByCookie => layer.private_by(crate::transparency::apps::cookie_user),
                }
            }};
        }

        fn group(route: &Route) -> &'static str {
            if route.handler.is_list {
                crate::transparency::apps::LISTS
            } else {
                crate::transparency::apps::GROUP
            }
        }

        fn read_layer(larder: &Larder, route: &Route) -> $adapter::Cache {
            let mut layer = named!($adapter::cache(larder).group(group(route)), route);
            if let Some(ttl) = route.rule.ttl {
                layer = layer.ttl(ttl);
            }
            if route.rule.also {
                layer = layer.ttl_for(http::StatusCode::NOT_FOUND, 30);
                layer = layer.ttl_for(http::StatusCode::MOVED_PERMANENTLY, 30);
            }
            if route.rule.stale {
                let minute = std::time::Duration::from_secs(60);
                layer = layer.stale_while_revalidate(minute).stale_if_error(minute);
            }
            if route.rule.default_key {
                layer = layer.key_by($adapter::default_key);
            }
            if route.rule.small {
                layer = layer.max_body(60);
            }
            layer
        }

        #[allow(dead_code, reason = "not every application has routes that write")]
        fn put_layer(larder: &Larder, route: &Route) -> $adapter::CachePut {
            let mut layer = named!($adapter::cache_put(larder).group(group(route)), route);
            if let Some(ttl) = route.rule.ttl {
                layer = layer.ttl(ttl);
            }
            if route.rule.default_key {
                layer = layer.key_by($adapter::default_key);
            }
            if route.rule.small {
                layer = layer.max_body(60);
            }
            layer
        }

        fn evict_key_layer(larder: &Larder, route: &Route) -> $adapter::CacheEvict<$adapter::Chosen> {
            let layer = named!($adapter::cache_evict(larder).group(group(route)), route);
            if route.rule.default_key { layer.key_by($adapter::default_key) } else { layer.key() }
        }

        fn evict_group_layer(larder: &Larder, group: &str) -> $adapter::CacheEvict<$adapter::Chosen> {
            $adapter::cache_evict(larder).group(group).whole_group()
        }
    };
}
use layers_of;
