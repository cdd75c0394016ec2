//! Makes a failing case smaller, greedily, as long as it fails in the same way.

use http::Method;

use super::Case;
use super::request::{Ask, Content, Op};
use super::run::{Difference, Stores};
use super::world::{Audience, Place, Query, Shape, Store, Transport, World, Write};

/// Returns the smallest case found that fails in the same way as this one, and its difference. Tries at most `tries` cases.
pub fn shrink(
    stores: &mut Stores,
    case: Case,
    difference: Difference,
    mut tries: usize,
) -> (Case, Difference) {
    let (mut smallest, mut found) = (case, difference);
    // Operations after the difference don't matter.
    smallest.ops.truncate(found.at + 1);
    loop {
        let mut is_smaller = false;
        for candidate in candidates(&smallest) {
            if tries == 0 {
                return (smallest, found);
            }
            if !candidate.world.is_lawful() {
                continue;
            }
            tries -= 1;
            if let Err(difference) = stores.run(&candidate)
                && difference.kind == found.kind
            {
                (smallest, found) = (candidate, difference);
                smallest.ops.truncate(found.at + 1);
                is_smaller = true;
                break;
            }
        }
        if !is_smaller {
            return (smallest, found);
        }
    }
}

fn candidates(case: &Case) -> Vec<Case> {
    let mut all = Vec::new();
    let with_ops = |ops: Vec<Op>| Case { world: case.world.clone(), ops };
    let count = case.ops.len();
    let mut size = count / 2;
    while size > 0 {
        for start in (0..count.saturating_sub(1)).step_by(size) {
            let mut ops = case.ops.clone();
            ops.drain(start..(start + size).min(count - 1));
            all.push(with_ops(ops));
        }
        size /= 2;
    }
    for world in worlds(&case.world) {
        all.push(Case { world, ops: case.ops.clone() });
    }
    for (index, op) in case.ops.iter().enumerate() {
        for op in simpler(op) {
            let mut ops = case.ops.clone();
            ops[index] = op;
            all.push(with_ops(ops));
        }
    }
    all
}

fn simpler(op: &Op) -> Vec<Op> {
    match op {
        Op::Ask(ask) => asks(ask).into_iter().map(Op::Ask).collect(),
        Op::Together(asks) => {
            let without = |index: usize| {
                let mut asks = asks.clone();
                asks.remove(index);
                if asks.len() == 1 { Op::Ask(asks.remove(0)) } else { Op::Together(asks) }
            };
            (0..asks.len()).filter(|_| asks.len() > 1).map(without).collect()
        }
        Op::Across(read, write) => {
            let mut all = vec![Op::Ask(read.clone()), Op::Ask(write.clone())];
            all.extend(asks(read).into_iter().map(|read| Op::Across(read, write.clone())));
            all.extend(asks(write).into_iter().map(|write| Op::Across(read.clone(), write)));
            all
        }
        Op::Hanging(ask) => asks(ask).into_iter().map(Op::Hanging).collect(),
        Op::Later(_) | Op::Settle => Vec::new(),
    }
}

fn asks(ask: &Ask) -> Vec<Ask> {
    let mut all = Vec::new();
    for index in 0..ask.fields.len() {
        let mut simpler = ask.clone();
        simpler.fields.remove(index);
        all.push(simpler);
    }
    let mut change = |is_simpler: bool, change: &dyn Fn(&mut Ask)| {
        if is_simpler {
            let mut simpler = ask.clone();
            change(&mut simpler);
            all.push(simpler);
        }
    };
    change(ask.content != Content::None, &|ask| ask.content = Content::None);
    change(ask.method == Method::HEAD, &|ask| ask.method = Method::GET);
    change(ask.process > 0, &|ask| ask.process = 0);
    change(ask.https, &|ask| ask.https = false);
    change(ask.target.contains('?'), &|ask| {
        ask.target.truncate(ask.target.find('?').unwrap_or_default());
    });
    change(ask.host != "one.example", &|ask| ask.host = "one.example");
    all
}

fn worlds(world: &World) -> Vec<World> {
    let mut all = Vec::new();
    let mut change = |is_simpler: bool, change: &dyn Fn(&mut World)| {
        if is_simpler {
            let mut simpler = world.clone();
            change(&mut simpler);
            all.push(simpler);
        }
    };
    change(world.store != Store::Memory, &|world| world.store = Store::Memory);
    change(world.store == Store::Tier, &|world| world.store = Store::Redis);
    change(world.transport != Transport::Direct, &|world| world.transport = Transport::Direct);
    change(matches!(world.transport, Transport::Socket(_)), &|world| {
        if let Transport::Socket(version) = world.transport {
            world.transport = Transport::Pipe(version);
        }
    });
    change(world.rewrite.is_some(), &|world| world.rewrite = None);
    change(world.fallback.is_some(), &|world| world.fallback = None);
    change(world.inner_fallback.is_some(), &|world| world.inner_fallback = None);
    change(!world.outside.is_empty(), &|world| world.outside.clear());
    change(!world.inside.is_empty(), &|world| world.inside.clear());
    for index in 0..world.outside.len() {
        change(world.outside.len() > 1, &|world| {
            world.outside.remove(index);
        });
    }
    for index in 0..world.inside.len() {
        change(world.inside.len() > 1, &|world| {
            world.inside.remove(index);
        });
    }
    for index in 0..world.mounts.len() {
        change(world.mounts.len() > 1, &|world| {
            world.mounts.remove(index);
        });
    }
    for index in 0..world.routes.len() {
        change(world.routes.len() > 1, &|world| {
            world.routes.remove(index);
        });
    }
    for index in 0..world.all().count() {
        let Some(route) = world.all().nth(index) else { continue };
        let (handler, rule) = (&route.handler, &route.rule);
        let mut of = |is_simpler: bool, change_route: &dyn Fn(&mut super::world::Route)| {
            change(is_simpler, &|world| {
                if let Some(route) = world.all_mut().nth(index) {
                    change_route(route);
                }
            });
        };
        for read in 0..handler.reads.len() {
            of(true, &|route| {
                route.handler.reads.remove(read);
            });
            // A private response depends on its principal, so both are removed at once.
            of(rule.audience != Audience::Undeclared, &|route| {
                route.handler.reads.remove(read);
                route.rule.audience = Audience::Undeclared;
            });
        }
        of(handler.query != Query::Part, &|route| route.handler.query = Query::Part);
        of(handler.shape != Shape::Found, &|route| route.handler.shape = Shape::Found);
        of(handler.cache_control.is_some() && !world.place.is_shared(), &|route| {
            route.handler.cache_control = None
        });
        of(handler.sets_cookie, &|route| route.handler.sets_cookie = false);
        of(handler.etag, &|route| route.handler.etag = false);
        of(handler.last_modified, &|route| route.handler.last_modified = false);
        of(rule.audience != Audience::Undeclared, &|route| route.rule.audience = Audience::Undeclared);
        of(rule.ttl != Some(60), &|route| route.rule.ttl = Some(60));
        of(rule.also, &|route| route.rule.also = false);
        of(rule.stale, &|route| route.rule.stale = false);
        of(rule.by_host, &|route| route.rule.by_host = false);
        of(rule.default_key, &|route| route.rule.default_key = false);
        of(rule.small, &|route| route.rule.small = false);
        of(rule.twice, &|route| route.rule.twice = false);
        of(rule.write != Write::EvictKey, &|route| route.rule.write = Write::EvictKey);
    }
    change(world.place == Place::Router, &|world| world.place = Place::Route);
    change(world.place == Place::SharedMount, &|world| world.place = Place::Shared);
    all
}
