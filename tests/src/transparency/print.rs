//! Prints cases as program text.

use std::fmt;

use super::Case;
use super::request::{Ask, Content, Op};
use super::world::{Audience, Framework, Place, Query, Rewrite, Route, World, Write};

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.world)?;
        for (index, op) in self.ops.iter().enumerate() {
            writeln!(f, "  {index:>2}  {op}")?;
        }
        Ok(())
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { framework, store, transport, place, mounts, rewrite, .. } = self;
        writeln!(
            f,
            "// {framework:?}, {store:?}, {transport:?}; inside the cache {:?}, outside {:?}",
            self.inside, self.outside
        )?;
        writeln!(f, "let router = Router::new()")?;
        for route in &self.routes {
            write!(f, "    .route({:?}, ", route.pattern)?;
            route.print(f, self, true)?;
            writeln!(f, ")")?;
        }
        if let Some(route) = &self.inner_fallback {
            write!(f, "    .fallback(")?;
            route.print(f, self, false)?;
            writeln!(f, ")")?;
        }
        if *place == Place::Router {
            writeln!(f, "    .layer({})", self.routes[0].options("cache"))?;
        }
        writeln!(f, "    ;")?;
        let mut inner = "router".to_owned();
        if *place == Place::SharedMount {
            inner = format!("SharedCacheLayer::new(&larder).layer({inner})");
        }
        inner = match rewrite {
            None => inner,
            Some(Rewrite::HostToPath) => format!("host_to_path.layer({inner})"),
            Some(Rewrite::AddLanguage) => format!("add_language_to_query.layer({inner})"),
            Some(Rewrite::Trim) => format!("NormalizePath::trim.layer({inner})"),
        };
        let mut app = match (&**mounts, framework) {
            ([""], Framework::Poem | Framework::Tower) => inner,
            _ => {
                let mounted = mounts.iter().map(|mount| match (mount.is_empty(), rewrite.is_some()) {
                    (true, false) => format!(".merge({inner})"),
                    (true, true) => format!(".fallback_service({inner})"),
                    (false, _) => format!(".nest({mount:?}, {inner})"),
                });
                format!("Router::new(){}", mounted.collect::<String>())
            }
        };
        if self.fallback.is_some() {
            app += ".fallback(outer_fallback)";
        }
        app = match place {
            Place::App => format!("{}.layer({app})", self.routes[0].options("cache")),
            Place::Shared if self.routes[0].rule.twice => {
                format!("SharedCacheLayer::new(&larder).layer(SharedCacheLayer::new(&larder).layer({app}))")
            }
            Place::Shared => format!("SharedCacheLayer::new(&larder).layer({app})"),
            _ => app,
        };
        writeln!(f, "let app = {app};")?;
        if let Some(route) = &self.fallback {
            write!(f, "// outer_fallback = ")?;
            route.print(f, self, false)?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Route {
    fn print(&self, f: &mut fmt::Formatter<'_>, world: &World, writes: bool) -> fmt::Result {
        let name = self.handler.name;
        match world.place {
            Place::Route => {
                let options = self.options("cache");
                let twice = if self.rule.twice { format!(".layer({options})") } else { String::new() };
                write!(f, "get({name}.layer({options}){twice})")?;
            }
            _ => write!(f, "get({name})")?,
        }
        if writes && !world.place.is_shared() {
            let lists = match (world.has_list() && !self.handler.is_list, self.rule.lists_outside) {
                (false, _) => "",
                (true, true) => ", then outside cache_evict(lists).whole_group()",
                (true, false) => ", and inside cache_evict(lists).whole_group()",
            };
            write!(f, ".put/.delete({:?}{lists})", self.rule.write)?;
        }
        let handler = &self.handler;
        write!(f, " /* {name}: {:?}, query {:?}, reads {:?}", handler.shape, handler.query, handler.reads)?;
        if let Some(value) = handler.cache_control {
            write!(f, ", cache-control: {value}")?;
        }
        for (is_so, word) in [
            (handler.sets_cookie, "set-cookie"),
            (handler.etag, "etag"),
            (handler.last_modified, "last-modified"),
            (handler.is_list, "the list"),
        ] {
            if is_so {
                write!(f, ", {word}")?;
            }
        }
        write!(f, " */")
    }

    fn options(&self, layer: &str) -> String {
        let mut text = format!("{layer}(&larder)");
        match self.handler.query {
            Query::Ignored => text += ".query_params([])",
            Query::Named => text += ".query_params([\"a\", \"ids[]\", \"a b\"])",
            Query::Read | Query::Part => {}
        }
        match self.rule.audience {
            Audience::Undeclared => {}
            Audience::Public => text += ".public()",
            Audience::Private => text += ".private()",
            Audience::PrivateByCookie => text += ".private_by(cookie)",
        }
        if let Some(ttl) = self.rule.ttl {
            text += &format!(".ttl({ttl})");
        }
        for (is_said, option) in [
            (self.rule.also, ".ttl_for(404, 30).ttl_for(301, 30)"),
            (self.rule.stale, ".stale_while_revalidate(60 s).stale_if_error(60 s)"),
            (self.rule.by_host, ".vary_by_host()"),
            (self.rule.default_key, ".key_by(default_key)"),
            (self.rule.small, ".max_body(60)"),
            (self.rule.write == Write::EvictGroup, ".group(\"all\")"),
        ] {
            if is_said {
                text += option;
            }
        }
        text
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask(ask) => write!(f, "{ask}"),
            Self::Together(asks) => {
                let asks: Vec<_> = asks.iter().map(ToString::to_string).collect();
                write!(f, "together: {}", asks.join("  |  "))
            }
            Self::Across(read, write) => write!(f, "{read}, and before its handler ends {write}"),
            Self::Hanging(ask) => write!(f, "begin and leave open: {ask}"),
            Self::Later(seconds) => write!(f, "{seconds} s pass"),
            Self::Settle => write!(f, "all messages arrive"),
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target)?;
        if self.process > 0 {
            write!(f, " [process {}]", self.process)?;
        }
        write!(f, " host: {}{}", if self.https { "https://" } else { "" }, self.host)?;
        for (name, value) in &self.fields {
            write!(f, "; {name}: {value}")?;
        }
        match self.content {
            Content::None => Ok(()),
            content => write!(f, "; {content:?}"),
        }
    }
}
