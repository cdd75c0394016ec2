//! An exhaustive check of the memory of evictions, for servers that lose confirmed changes.
//!
//! The model has one key, on a master and on a replica that lags. Two processes evict and replace the value; a third one fills
//! and reads. The master may swap with its replica, and may restart from an old snapshot. Wherever a change of servers can
//! interrupt a process, the process takes a separate step.
//!
//! The rules are those of `core/src/store/redis/failover/change_log.rs`. Two promises are checked in every reachable state:
//!
//! * A read that starts more than one watch period after the servers changed, and after an eviction was confirmed, never returns
//!   the value from before the eviction, in any process.
//! * A process whose connection broke or was redirected never reads a value that it evicted itself, not even within that period.
//!
//! With any rule turned off, a promise is broken. Otherwise the check would prove nothing.

use std::collections::{HashMap, VecDeque};

/// The bounds of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bounds {
    processes: usize,
    /// The number of changes of servers.
    changes: u8,
    /// The number of changes of the database.
    versions: u8,
    /// `true` if there is a fill, and if the processes that evict read too.
    reads: bool,
}

/// Bounds in which a failover may be undone, and an eviction may follow another.
const ONE_PROCESS: Bounds = Bounds { processes: 1, changes: 2, versions: 2, reads: true };

/// Bounds in which one process may repeat an eviction while the other changes the value, and a third one reads.
const TWO_PROCESSES: Bounds = Bounds { processes: 2, changes: 2, versions: 2, reads: false };

/// A rule, which can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// A process asks the servers for their identity once a period, even if it sends no other commands.
    Watch,
    /// The history of writes is part of a server's identity, besides its address and its process.
    HistoryIsIdentity,
    /// Confirmed evictions are remembered, and repeated at a server that may have lost them.
    Remember,
    /// Writes that replaced a value are remembered too.
    RememberWrites,
    /// Repeated evictions are remembered too.
    RememberRepeats,
    /// A reply is discarded if the servers changed since the request.
    SecondLook,
    /// A confirmation doesn't settle an eviction if the servers changed since it was sent.
    CountRecalls,
    /// A repeated eviction revokes the leases of fills.
    RevokeLeases,
    /// A server that continues another's history has it up to a position. Only changes confirmed after that position are
    /// repeated.
    ComparePositions,
    /// A position covers the changes that were confirmed before the process asked for it, and no later ones.
    CountBeforeAsking,
}

const RULES: [Rule; 10] = [
    Rule::Watch,
    Rule::HistoryIsIdentity,
    Rule::Remember,
    Rule::RememberWrites,
    Rule::RememberRepeats,
    Rule::SecondLook,
    Rule::CountRecalls,
    Rule::RevokeLeases,
    Rule::ComparePositions,
    Rule::CountBeforeAsking,
];

/// The value and the lease under the key, on one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Data {
    value: Option<u8>,
    /// `true` if a fill may be committed.
    lease: bool,
}

/// A history of writes, and its position. A server that is promoted or restarts begins a new history, which continues the one
/// that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct History {
    name: u8,
    position: u8,
}

/// The address of a server, and its process: a connection leads to one of these. The history of writes is separate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Identity {
    address: u8,
    run: u8,
}

/// A change that a process makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Change {
    /// The database has this version, and older entries are evicted.
    Evict(u8),
    /// This version replaces the value.
    Set(u8),
    /// A pending eviction is sent again.
    Repeat,
}

/// A change in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Running {
    change: Change,
    /// `true` if the servers changed since it was sent.
    is_recalled: bool,
    /// `true` if the pending eviction was already pending when it was sent.
    settles: bool,
    is_executed: bool,
}

/// A read in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reading {
    /// `true` if the servers changed since it was sent.
    is_recalled: bool,
    /// The oldest value that it may return.
    floor: u8,
    /// `true` if it started more than a period after the servers changed, and they haven't changed since.
    is_late: bool,
    /// The oldest value that its process has not evicted or replaced.
    own_floor: u8,
    /// The reply, and `true` if its connection had to be opened again.
    answer: Option<(Option<u8>, bool)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Process {
    /// The master at the process's last request.
    known: Identity,
    /// The name of the master's history at that time.
    known_history: u8,
    remembers: bool,
    /// The position of the history when all remembered changes were confirmed.
    covered: Option<u8>,
    /// The position in a reply that is on its way, and `true` if no change was confirmed since the request.
    answer: Option<(u8, bool)>,
    is_pending: bool,
    /// `true` if it has asked for identities since the servers changed.
    has_watched: bool,
    running: Option<Running>,
    reading: Option<Reading>,
    /// This process has evicted or replaced older values, and these changes are confirmed.
    floor: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    /// The entry on each server.
    data: [Data; 2],
    /// The history of each server.
    history: [History; 2],
    master: Identity,
    /// The history that the master's continues, up to the position that the master has.
    continued: Option<History>,
    /// The snapshot that the master saved, if it is still the same server.
    snapshot: Option<(Data, History)>,
    changes: u8,
    /// `true` if more than a period has passed since the servers changed and since the last confirmation.
    is_late: bool,
    /// The version in the database.
    version: u8,
    /// Older values have been evicted or replaced, and these changes are confirmed.
    floor: u8,
    /// The version that the third process will fill with.
    filling: Option<u8>,
    has_filled: bool,
    processes: [Process; TWO_PROCESSES.processes],
    bounds: Bounds,
}

/// A state that breaks a promise.
#[derive(Clone, Copy, Debug)]
struct Stale;

type Step = (&'static str, usize, Result<World, Stale>);

impl World {
    fn new(bounds: Bounds) -> Self {
        let data = Data { value: Some(0), lease: false };
        Self {
            data: [data; 2],
            history: [History::default(); 2],
            master: Identity::default(),
            continued: None,
            snapshot: None,
            changes: 0,
            is_late: true,
            version: 0,
            floor: 0,
            filling: None,
            has_filled: false,
            processes: [Process::default(); TWO_PROCESSES.processes],
            bounds,
        }
    }

    fn here(&mut self) -> &mut Data {
        &mut self.data[usize::from(self.master.address)]
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn history_here(&mut self) -> &mut History {
        &mut self.history[usize::from(self.master.address)]
    }

    /// Records that the servers changed. The master has this much of an earlier history.
    fn changed(&mut self, continued: History) {
        self.changes += 1;
        self.is_late = false;
        self.continued = Some(continued);
        *self.history_here() = History { name: self.changes, ..continued };
        for process in &mut self.processes {
            process.has_watched = false;
            if let Some(reading) = &mut process.reading {
                reading.is_late = false;
            }
        }
    }

    /// Sends something for a process, which notices if its connection is broken or redirected. Returns `true` in that case.
    fn reach(&mut self, number: usize, off: Option<Rule>) -> bool {
        let is_another = self.processes[number].known != self.master;
        if is_another {
            self.recall(number, off);
        }
        is_another
    }

    /// Handles a change of the master, which may lack confirmed changes.
    fn recall(&mut self, number: usize, off: Option<Rule>) {
        let (master, history, continued) = (self.master, *self.history_here(), self.continued);
        let process = &mut self.processes[number];
        let reaches = |position| {
            continued.is_some_and(|continued| {
                let is_far_enough = continued.position >= position || off == Some(Rule::ComparePositions);
                continued.name == process.known_history && is_far_enough
            })
        };
        let is_lost = process.remembers && !process.covered.is_some_and(reaches);
        process.is_pending |= is_lost;
        (process.known, process.known_history) = (master, history.name);
        // Lost changes are repeated, so the position covers everything.
        (process.covered, process.answer) = (Some(history.position), None);
        if let Some(running) = &mut process.running {
            running.is_recalled = true;
            // The eviction became pending after the change was sent.
            running.settles &= !is_lost;
        }
        if let Some(reading) = &mut process.reading {
            reading.is_recalled = true;
        }
    }

    /// Removes everything that can't matter any more, so that there are fewer states.
    fn reduced(mut self) -> Self {
        let (here, elsewhere) = (usize::from(self.master.address), usize::from(1 - self.master.address));
        if self.changes == self.bounds.changes {
            (self.data[elsewhere], self.history[elsewhere], self.snapshot) = Default::default();
        }
        let (current, processes) = (self.history[here].name, self.processes);
        let is_known = |name| processes.iter().any(|process| process.known_history == name);
        self.continued = self.continued.filter(|continued| is_known(continued.name));
        let saved = self.snapshot.as_mut().map(|(_, history)| history);
        for history in saved.into_iter().chain(&mut self.history[elsewhere..=elsewhere]) {
            if history.name != current && !is_known(history.name) {
                *history = History { name: u8::MAX, position: 0 };
            }
        }
        for process in &mut self.processes {
            let is_comparable = process.known_history == current
                || self.continued.is_some_and(|continued| continued.name == process.known_history);
            process.covered = process.covered.filter(|_| process.remembers && is_comparable);
        }
        // Positions are only compared, so only their order matters.
        let mut positions: Vec<u8> = self.positions().map(|position| *position).collect();
        positions.sort_unstable();
        positions.dedup();
        for position in self.positions() {
            let rank = positions.binary_search(position).unwrap_or(0);
            *position = u8::try_from(rank).unwrap_or(u8::MAX);
        }
        self
    }

    fn positions(&mut self) -> impl Iterator<Item = &mut u8> {
        let histories = self.history.iter_mut().chain(self.continued.as_mut());
        let histories = histories.chain(self.snapshot.as_mut().map(|(_, history)| history));
        let known = self.processes.iter_mut().flat_map(|process| {
            process.covered.iter_mut().chain(process.answer.as_mut().map(|(position, _)| position))
        });
        histories.map(|history| &mut history.position).chain(known)
    }

    fn steps(self, off: Option<Rule>) -> Vec<Step> {
        let mut steps = self.steps_of_servers(off);
        for number in 0..self.bounds.processes {
            self.steps_of(number, off, &mut steps);
        }
        steps
    }

    fn steps_of_servers(self, off: Option<Rule>) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut step = |name, world: Self| steps.push((name, 0, Ok(world)));
        let (master, replica) = (usize::from(self.master.address), usize::from(1 - self.master.address));
        let may_change = self.changes < self.bounds.changes;
        if may_change
            && (self.data[replica], self.history[replica]) != (self.data[master], self.history[master])
        {
            let caught_up = self.with(|world| {
                world.data[replica] = world.data[master];
                world.history[replica] = world.history[master];
            });
            step("the replica catches up", caught_up);
        }
        let saved = Some((self.data[master], self.history[master]));
        if may_change && self.snapshot != saved {
            step("the master saves a snapshot", self.with(|world| world.snapshot = saved));
        }
        if may_change {
            let failover = self.with(|world| {
                world.master.address = 1 - world.master.address;
                world.snapshot = None;
                world.changed(world.history[replica]);
            });
            step("the replica takes the master's place", failover);
            if let Some((saved, history)) = self.snapshot {
                let restart = self.with(|world| {
                    *world.here() = saved;
                    world.master.run += 1;
                    world.changed(history);
                });
                step("the master restarts from its snapshot", restart);
            }
        }
        // A process with remembered changes asks for identities once a period, and repeats pending evictions within it.
        let is_done = |process: &Process| {
            let must_watch = off != Some(Rule::Watch) && (process.remembers || process.is_pending);
            !process.is_pending && (process.has_watched || !must_watch)
        };
        if !self.is_late && self.processes.iter().all(is_done) {
            step("a period passes", self.with(|world| world.is_late = true));
        }
        if self.bounds.reads
            && !self.has_filled
            && self.data[master].value.is_none()
            && self.filling.is_none()
        {
            let fill = self.with(|world| {
                world.here().lease = true;
                world.filling = Some(world.version);
            });
            step("a fill begins", fill);
        }
        if let Some(version) = self.filling {
            let commit = self.with(|world| {
                if std::mem::take(&mut world.here().lease) {
                    world.here().value = Some(version);
                }
                (world.filling, world.has_filled) = (None, true);
            });
            step("the fill is committed, if its lease holds", commit);
        }
        if self.is_late && self.data[master].value.is_some_and(|value| value < self.floor) {
            steps.push(("another process reads", 0, Err(Stale)));
        }
        steps
    }

    fn steps_of(self, number: usize, off: Option<Rule>, steps: &mut Vec<Step>) {
        let process = self.processes[number];
        let mut step = |name, world: Result<Self, Stale>| steps.push((name, number, world));
        let run = |change| {
            self.with(|world| {
                let process = &mut world.processes[number];
                let settles = process.is_pending;
                process.running = Some(Running { change, is_recalled: false, settles, is_executed: false });
            })
        };
        let is_quiet = !self
            .processes
            .iter()
            .filter_map(|process| process.running)
            .any(|running| running.changes_the_database());
        if process.running.is_none() && is_quiet && self.version < self.bounds.versions {
            let version = self.version + 1;
            let changed = |change| run(change).with(|world| world.version = version);
            step("changes the database and begins to evict", Ok(changed(Change::Evict(version))));
            step("changes the database and begins to replace", Ok(changed(Change::Set(version))));
        }
        if process.is_pending && process.running.is_none() {
            step("begins to repeat an eviction", Ok(run(Change::Repeat)));
        }
        match process.running {
            Some(running) if !running.is_executed => {
                let executed = self.with(|world| {
                    world.reach(number, off);
                    world.history_here().position += 1;
                    let keeps_lease =
                        off == Some(Rule::RevokeLeases) && matches!(running.change, Change::Repeat);
                    let here = world.here();
                    here.lease &= keeps_lease;
                    here.value = match running.change {
                        Change::Set(version) => Some(version),
                        Change::Evict(_) | Change::Repeat => None,
                    };
                    if let Some(running) = &mut world.processes[number].running {
                        running.is_executed = true;
                    }
                });
                step("the master executes the change", Ok(executed));
            }
            Some(running) => {
                step("receives the confirmation", Ok(self.with(|world| world.confirm(number, running, off))))
            }
            None => {}
        }
        let is_uncovered = process.remembers && process.covered.is_none() && process.answer.is_none();
        if (!process.has_watched || is_uncovered) && off != Some(Rule::Watch) {
            let watched = self.with(|world| {
                let history = *world.history_here();
                let has_history =
                    process.known_history == history.name || off == Some(Rule::HistoryIsIdentity);
                if process.known == world.master && has_history {
                    if is_uncovered {
                        world.processes[number].answer = Some((history.position, true));
                    }
                } else {
                    world.recall(number, off);
                }
                world.processes[number].has_watched = true;
            });
            step("asks the servers for their identity", Ok(watched));
        }
        if let Some((position, is_first)) = process.answer {
            let told = self.with(|world| {
                let process = &mut world.processes[number];
                process.answer = None;
                if is_first || off == Some(Rule::CountBeforeAsking) {
                    process.covered = Some(position);
                }
            });
            step("receives the position of the same server", Ok(told));
        }
        self.steps_of_reading(number, off, &mut step);
    }

    fn steps_of_reading(
        self,
        number: usize,
        off: Option<Rule>,
        step: &mut impl FnMut(&'static str, Result<Self, Stale>),
    ) {
        let process = self.processes[number];
        let Some(reading) = process.reading else {
            if self.bounds.reads && !process.is_pending && self.floor > 0 {
                let begun = self.with(|world| {
                    world.processes[number].reading = Some(Reading {
                        is_recalled: false,
                        floor: world.floor,
                        is_late: world.is_late,
                        own_floor: process.floor,
                        answer: None,
                    });
                });
                step("begins to read", Ok(begun));
            }
            return;
        };
        let Some((value, was_redialled)) = reading.answer else {
            let answered = self.with(|world| {
                let was_redialled = world.reach(number, off);
                let value = world.here().value;
                if let Some(reading) = &mut world.processes[number].reading {
                    reading.answer = Some((value, was_redialled));
                }
            });
            return step("the master answers the read", Ok(answered));
        };
        let is_believed = off == Some(Rule::SecondLook) || !(process.is_pending || reading.is_recalled);
        let is_older = |floor| value.is_some_and(|value| value < floor);
        let is_stale =
            (reading.is_late && is_older(reading.floor)) || (was_redialled && is_older(reading.own_floor));
        if is_believed && is_stale {
            return step("believes the answer", Err(Stale));
        }
        step("has read", Ok(self.with(|world| world.processes[number].reading = None)));
    }

    /// Delivers the reply to a change.
    fn confirm(&mut self, number: usize, running: Running, off: Option<Rule>) {
        let process = &mut self.processes[number];
        process.running = None;
        let (version, is_remembered) = match running.change {
            Change::Evict(version) => (Some(version), true),
            Change::Set(version) => (Some(version), off != Some(Rule::RememberWrites)),
            Change::Repeat => (None, off != Some(Rule::RememberRepeats)),
        };
        if off != Some(Rule::CountRecalls) && running.is_recalled {
            process.is_pending = true;
        } else {
            process.is_pending &= !running.settles;
            process.remembers |= is_remembered && off != Some(Rule::Remember);
            process.covered = None;
            process.answer = process.answer.map(|(position, _)| (position, false));
        }
        if let Some(version) = version {
            process.floor = version;
            self.floor = version;
            self.is_late = false;
            for reading in self.processes.iter_mut().filter_map(|process| process.reading.as_mut()) {
                reading.is_late &= reading.floor == version;
            }
        }
    }
}

impl Running {
    fn changes_the_database(self) -> bool {
        !matches!(self.change, Change::Repeat)
    }
}

/// Visits every reachable state. Returns their number, or the steps to a state that breaks a promise.
fn check(bounds: Bounds, off: Option<Rule>) -> Result<usize, Vec<String>> {
    let start = World::new(bounds);
    let mut seen = HashMap::from([(start, None)]);
    let mut next = VecDeque::from([start]);
    while let Some(world) = next.pop_front() {
        for (name, process, step) in world.steps(off) {
            match step {
                Ok(after) => {
                    let after = after.reduced();
                    seen.entry(after).or_insert_with(|| {
                        next.push_back(after);
                        Some((world, name, process))
                    });
                }
                Err(Stale) => {
                    let mut path = vec![format!("{process}: {name}")];
                    let mut world = world;
                    while let Some((before, name, process)) = seen[&world] {
                        path.push(format!("{process}: {name}"));
                        world = before;
                    }
                    path.reverse();
                    return Err(path);
                }
            }
        }
    }
    Ok(seen.len())
}

fn check_everything(bounds: Bounds) {
    let states = check(bounds, None).unwrap_or_else(|path| panic!("{}", path.join("\n")));
    assert!(states > 100_000, "{states} states are too few to say anything");
    println!("{states} states");
}

#[test]
fn evicted_values_stay_evicted_with_one_process() {
    check_everything(ONE_PROCESS);
}

#[test]
fn evicted_values_stay_evicted_with_two_processes() {
    check_everything(TWO_PROCESSES);
}

#[test]
fn failover_without_losses_repeats_no_evictions() {
    let mut world = World::new(ONE_PROCESS);
    let before = [
        "changes the database and begins to replace",
        "the master executes the change",
        "receives the confirmation",
        "asks the servers for their identity",
        "receives the position of the same server",
        "the replica catches up",
        "the replica takes the master's place",
        "asks the servers for their identity",
    ];
    for name in before {
        let step = world.steps(None).into_iter().find(|(other, ..)| *other == name);
        let (.., Ok(next)) = step.unwrap_or_else(|| panic!("no step: {name}")) else { panic!("{name}") };
        world = next;
    }
    let process = world.processes[0];
    assert!(process.known == world.master && process.remembers && !process.is_pending);
}

#[test]
fn each_rule_is_needed() {
    for rule in RULES {
        let path = check(ONE_PROCESS, Some(rule)).expect_err(&format!("nothing is stale without {rule:?}"));
        println!("without {rule:?}:\n    {}", path.join("\n    "));
    }
}
