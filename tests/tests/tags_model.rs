//! A model check of evictions by tag: leases, nonces, the tag clock and its table, the local tier, keys that vanish, messages that
//! are late, processes that die, and a server that is set back.
//!
//! One entry lies on a server, and the tag clock and its table on another: nothing is atomic across the two. Two processes fill the
//! entry, read it, change the database and evict tag `a`, which the entry always has; tag `b`, which it may have, is evicted beside.
//! Every command is a step of its own, and so is every message. The rules are those of `core/src/tag.rs`,
//! `core/src/store/redis/tags.rs`, `failover/tag_log.rs` and `tiered.rs`.
//!
//! In every state that can be reached:
//!
//! * A read that begins after an eviction of `a` was confirmed never returns a value from before it. A hit in a local tier
//!   does so only while the message about the eviction is on its way, and in the process that evicted not even then.
//! * A fill whose commit is accepted, so that other requests get its value, has no value from before an eviction that was confirmed
//!   before its commit began.
//! * A process whose eviction was not confirmed never reads what it evicted.
//! * After a failover that lost evictions all of this holds again once they are repeated.
//!
//! With one of the rules turned off, one of them fails: otherwise the check would show nothing.
//!
//! Not modelled: expiry (a key that vanishes covers it), hashes in place of tags, several keys, soft evictions (they differ from
//! hard ones only in what an evicted entry may still be used for), servers' clocks that differ by more than a failover takes, and
//! processes that die with an eviction that a later failover loses.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// A rule, to be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The stamp is read before the value is made.
    EarlyStamp,
    /// A table that is made anew has a floor.
    Floor,
    /// A table that is replaced because it is too long gets a higher floor.
    RaiseFloor,
    /// A clock that is made anew has another nonce.
    FreshNonce,
    /// The entry's nonce must be the clock's.
    SameNonce,
    /// The table is read after the clock.
    ClockBeforeTable,
    /// A commit with tags is judged before it is accepted.
    JudgeCommit,
    /// A commit needs its lease.
    Lease,
    /// Epochs follow the time, so that none is used twice.
    EpochIsTime,
    /// A message about the clock ends tagged entries in a tier.
    TierListens,
    /// A value that was read before a message is not kept in a tier after it.
    TierFence,
    /// A process's own eviction doesn't wait for its message.
    OwnEviction,
    /// Entries are bypassed while an eviction is not confirmed.
    Bypass,
    /// An answer that was asked for before a pending eviction was confirmed, or before the servers changed, is not believed.
    SecondLook,
    /// Recent evictions are repeated after a failover.
    Repeat,
}

/// Each rule with a search that needs it.
const RULES: [(Rule, Tags); 15] = [
    (Rule::EarlyStamp, VANISHING),
    (Rule::Floor, VANISHING),
    (Rule::RaiseFloor, VANISHING),
    (Rule::FreshNonce, VANISHING),
    (Rule::SameNonce, VANISHING),
    (Rule::ClockBeforeTable, REMEMBERED),
    (Rule::JudgeCommit, VANISHING),
    (Rule::Lease, LEASES),
    (Rule::EpochIsTime, OVERLAPPING_FAILOVER),
    (Rule::TierListens, TIERS),
    (Rule::TierFence, TIERS),
    (Rule::OwnEviction, TIERS),
    (Rule::Bypass, UNCONFIRMED),
    (Rule::SecondLook, UNCONFIRMED),
    (Rule::Repeat, FAILOVER),
];

/// The bounds of a search, and the rule that is off.
#[derive(Clone, Copy, Debug)]
struct Tags {
    /// The numbers of processes that fill, read and evict.
    fillers: usize,
    readers: usize,
    evictors: usize,
    /// The numbers of changes of the database, evictions of other tags, keys that vanish, processes that die, and failovers.
    versions: u8,
    others: u8,
    drops: u8,
    deaths: u8,
    failovers: u8,
    /// The numbers of fills and reads in each process.
    fills: u8,
    reads: u8,
    has_tier: bool,
    /// `true` if commands may be lost on their way, so that the caller gets no reply.
    is_lossy: bool,
    /// `true` if a plain eviction by key happens beside.
    has_deletes: bool,
    off: Option<Rule>,
}

const NONE: Tags = Tags {
    fillers: 0,
    readers: 0,
    evictors: 0,
    versions: 0,
    others: 0,
    drops: 0,
    deaths: 0,
    failovers: 0,
    fills: 0,
    reads: 0,
    has_tier: false,
    is_lossy: false,
    has_deletes: false,
    off: None,
};

/// Keys vanish, and a table becomes too long.
const VANISHING: Tags = Tags {
    fillers: 1,
    readers: 1,
    evictors: 1,
    versions: 1,
    others: 1,
    drops: 1,
    fills: 2,
    reads: 1,
    ..NONE
};

/// A judgement is remembered for the next read, and each reader has one.
const REMEMBERED: Tags =
    Tags { fillers: 1, readers: 2, evictors: 1, versions: 1, others: 1, fills: 1, reads: 2, ..NONE };

/// Either of two processes evicts, dies or gets no reply.
const UNCONFIRMED: Tags = Tags {
    fillers: 2,
    readers: 1,
    evictors: 2,
    versions: 1,
    deaths: 1,
    fills: 1,
    reads: 1,
    is_lossy: true,
    ..NONE
};

/// Two tiers, with messages that are late.
const TIERS: Tags = Tags {
    fillers: 1,
    readers: 2,
    evictors: 1,
    versions: 1,
    others: 0,
    fills: 1,
    reads: 1,
    has_tier: true,
    ..NONE
};

/// A failover that loses evictions, and reads after it.
const FAILOVER: Tags =
    Tags { fillers: 1, readers: 1, evictors: 1, versions: 1, failovers: 1, fills: 2, reads: 1, ..NONE };

/// A failover that loses evictions, and fills that overlap.
const OVERLAPPING_FAILOVER: Tags =
    Tags { fillers: 2, evictors: 1, versions: 2, failovers: 1, fills: 1, ..NONE };

/// Leases that are revoked by an eviction of the key.
const LEASES: Tags = Tags {
    fillers: 2,
    evictors: 1,
    readers: 1,
    versions: 1,
    drops: 1,
    fills: 1,
    reads: 1,
    has_deletes: true,
    ..NONE
};

const SCENARIOS: [(&str, Tags); 7] = [
    ("vanishing", VANISHING),
    ("remembered", REMEMBERED),
    ("unconfirmed", UNCONFIRMED),
    ("tiers", TIERS),
    ("failover", FAILOVER),
    ("overlapping failover", OVERLAPPING_FAILOVER),
    ("leases", LEASES),
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Clock {
    nonce: u8,
    epoch: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Table {
    nonce: u8,
    floor: u8,
    /// The epochs of the tags' last evictions.
    evicted: [u8; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    stamp: Clock,
    has_b: bool,
    version: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Fill {
    #[default]
    Idle,
    /// It has a lease, and the clock if it read that early.
    Leased(Option<Clock>),
    /// The handler has read the database.
    Ran(Option<Clock>, u8),
    /// The flight is closed and the commit is on its way. The last number counts the evictions that were confirmed before.
    Committing(Entry, u8),
    /// The entry is stored, and has to be judged.
    Stored(Entry, u8),
    /// The same, once the clock was read.
    Judging(Entry, u8, Option<Clock>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Read {
    #[default]
    Idle,
    /// It has begun. In these, the numbers are the oldest version that it may return.
    Begun(Since),
    Entry(Since, Entry),
    Clock(Since, Option<Clock>),
    /// The clock has moved since the entry's stamp: clock and table are asked.
    Asking(Since, Entry),
    Asked(Since, Entry, Option<Clock>),
    /// The table was read first, against the rule.
    TableFirst(Since, Entry, Option<Table>),
    Judged(Since, Entry),
}

/// The state when a read began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Since {
    confirmed: u8,
    /// Versions below this one were evicted by the process, confirmed or not.
    own: u8,
    /// `true` if no message about the clock came in since.
    is_current: bool,
    /// `true` if the servers haven't changed since.
    is_believed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Evict {
    #[default]
    Idle,
    /// The database holds this version.
    Changed(u8),
    /// The script is on its way.
    Sent(u8),
    /// The script ran. `true` if the servers changed since.
    Ran(u8, bool),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Process {
    fill: Fill,
    fills: u8,
    read: Read,
    reads: u8,
    evict: Evict,
    /// The entry that was judged fresh last, and the epoch up to which it is.
    judged: Option<(Entry2, u8)>,
    /// A copy in the tier, and whether no message about the clock came in since it was read.
    tier: Option<(u8, bool)>,
    /// Messages about the clock that haven't arrived.
    messages: u8,
    /// Versions below this one were evicted by this process, confirmed or not.
    own: u8,
    /// An eviction that isn't confirmed.
    is_pending: bool,
    /// An eviction that a server may lose.
    remembers: bool,
}

/// The parts of an entry's header: its stamp, and `true` if it has tag `b`.
type Entry2 = (Clock, bool);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    clock: Option<Clock>,
    table: Option<Table>,
    entry: Option<Entry>,
    /// The process that holds the lease on the entry.
    lease: Option<u8>,
    /// The clock and the table on a replica.
    replica: (Option<Clock>, Option<Table>),
    /// Advances with each eviction.
    time: u8,
    nonces: u8,
    database: u8,
    /// Versions below this one were evicted, and these evictions are confirmed.
    confirmed: u8,
    /// `true` while evictions that a failover lost are not repeated.
    is_excused: bool,
    others: u8,
    drops: u8,
    deaths: u8,
    failovers: u8,
    processes: [Process; 2],
    /// The promise that was broken, if one was.
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    ClockVanishes,
    TableVanishes,
    EntryVanishes,
    LeaseEnds,
    OtherTagIsEvicted,
    TableBecomesTooLong,
    Replicates,
    FailsOver,
    Dies(usize),
    TakesLease(usize),
    RunsHandler(usize),
    BeginsCommit(usize, bool),
    Commits(usize),
    CommitIsLost(usize),
    JudgesCommit(usize),
    BeginsRead(usize),
    ReadsEntry(usize),
    ReadsClock(usize),
    AsksClock(usize),
    AsksTable(usize),
    Returns(usize),
    HitsTier(usize),
    ChangesDatabase(usize),
    SendsEviction(usize),
    Evicts(usize),
    EvictionIsLost(usize),
    IsTold(usize),
    Repeats(usize),
    MessageArrives(usize),
    Deletes(usize),
}

impl Tags {
    fn is_on(&self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    /// The state of a clock, which is made if there is none.
    fn clock_or_new(&self, world: &mut World) -> Clock {
        if world.clock.is_none() {
            if self.is_on(Rule::FreshNonce) || world.nonces == 0 {
                world.nonces += 1;
            }
            let epoch = if self.is_on(Rule::FreshNonce) { world.time } else { 0 };
            world.clock = Some(Clock { nonce: world.nonces, epoch });
        }
        world.clock.unwrap_or_default()
    }

    /// The script of an eviction by tag.
    fn evict(&self, world: &mut World, tag: usize) {
        let Some(clock) = world.clock else {
            world.table = None;
            return;
        };
        world.time += 1;
        let epoch =
            if self.is_on(Rule::EpochIsTime) { world.time.max(clock.epoch + 1) } else { clock.epoch + 1 };
        let mut table = world.table.filter(|table| table.nonce == clock.nonce).unwrap_or(Table {
            nonce: clock.nonce,
            floor: if self.is_on(Rule::Floor) { clock.epoch } else { 0 },
            evicted: [0; 2],
        });
        table.evicted[tag] = epoch;
        world.clock = Some(Clock { epoch, ..clock });
        world.table = Some(table);
        self.tell(world);
    }

    /// The clock changed: each tier will receive a message.
    fn tell(&self, world: &mut World) {
        if self.has_tier {
            for process in &mut world.processes[..self.readers] {
                process.messages += 1;
            }
        }
    }

    /// Judges by the clock alone. `None` if the table has to be asked.
    fn judge_by_clock(&self, entry: Entry, clock: Option<Clock>) -> Option<bool> {
        match clock {
            Some(clock) if clock.nonce == entry.stamp.nonce || !self.is_on(Rule::SameNonce) => {
                (entry.stamp.epoch >= clock.epoch).then_some(true)
            }
            _ => Some(false),
        }
    }

    fn judge_by_table(&self, entry: Entry, table: Option<Table>) -> bool {
        let Some(table) = table else { return false };
        let stamp = entry.stamp;
        table.nonce == stamp.nonce
            && table.floor <= stamp.epoch
            && table.evicted[0] <= stamp.epoch
            && (!entry.has_b || table.evicted[1] <= stamp.epoch)
    }

    /// The state of a read once it has an entry and a clock.
    fn judged(&self, process: &Process, since: Since, entry: Entry, clock: Option<Clock>) -> Read {
        match self.judge_by_clock(entry, clock) {
            Some(true) => Read::Judged(since, entry),
            Some(false) => Read::Idle,
            None => {
                let until = process.judged.filter(|(header, _)| *header == (entry.stamp, entry.has_b));
                match (until, clock) {
                    (Some((_, until)), Some(clock)) if until >= clock.epoch => Read::Judged(since, entry),
                    _ => Read::Asking(since, entry),
                }
            }
        }
    }

    /// The servers changed. What this process evicted may be lost.
    fn recall(&self, world: &mut World) {
        for process in &mut world.processes {
            process.tier = None;
            process.messages = 0;
            if let Evict::Ran(_, is_recalled) = &mut process.evict {
                *is_recalled = true;
            }
            if self.is_on(Rule::SecondLook)
                && let Some(since) = since_of(&mut process.read)
            {
                since.is_believed = false;
            }
            if process.remembers && self.is_on(Rule::Repeat) {
                process.is_pending = true;
                world.is_excused = true;
            }
        }
    }

    fn check_read(&self, world: &mut World, since: Since, version: u8) {
        if !world.is_excused && version < since.confirmed {
            world.broken = Some("a read returned what was evicted");
        }
        if version < since.own {
            world.broken = Some("a process read what it evicted");
        }
    }
}

fn since_of(read: &mut Read) -> Option<&mut Since> {
    match read {
        Read::Idle => None,
        Read::Begun(since)
        | Read::Entry(since, _)
        | Read::Clock(since, _)
        | Read::Asking(since, _)
        | Read::Asked(since, ..)
        | Read::TableFirst(since, ..)
        | Read::Judged(since, _) => Some(since),
    }
}

impl Model for Tags {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            clock: None,
            table: None,
            entry: None,
            lease: None,
            replica: (None, None),
            time: 1,
            nonces: 0,
            database: 0,
            confirmed: 0,
            is_excused: false,
            others: 0,
            drops: 0,
            deaths: 0,
            failovers: 0,
            processes: [Process::default(); 2],
            broken: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        if world.drops < self.drops {
            steps.extend(world.clock.map(|_| Step::ClockVanishes));
            steps.extend(world.table.map(|_| Step::TableVanishes));
            steps.extend(world.entry.map(|_| Step::EntryVanishes));
            steps.extend(world.lease.map(|_| Step::LeaseEnds));
        }
        if world.others < self.others && world.clock.is_some() {
            steps.push(Step::OtherTagIsEvicted);
            steps.extend(world.table.map(|_| Step::TableBecomesTooLong));
        }
        if world.failovers < self.failovers {
            if world.replica != (world.clock, world.table) {
                steps.push(Step::Replicates);
            }
            steps.push(Step::FailsOver);
        }
        for (number, process) in world.processes.iter().enumerate() {
            if world.deaths < self.deaths && *process != Process::default() {
                steps.push(Step::Dies(number));
            }
            if number < self.fillers {
                match process.fill {
                    Fill::Idle if process.fills < self.fills && world.lease.is_none() => {
                        steps.push(Step::TakesLease(number));
                    }
                    Fill::Idle => {}
                    Fill::Leased(_) => steps.push(Step::RunsHandler(number)),
                    Fill::Ran(..) => {
                        steps.extend([false, true].map(|has_b| Step::BeginsCommit(number, has_b)))
                    }
                    Fill::Committing(..) => {
                        steps.push(Step::Commits(number));
                        if self.is_lossy {
                            steps.push(Step::CommitIsLost(number));
                        }
                    }
                    Fill::Stored(..) | Fill::Judging(..) => steps.push(Step::JudgesCommit(number)),
                }
            }
            if number < self.readers {
                match process.read {
                    Read::Idle if process.reads < self.reads => steps.push(Step::BeginsRead(number)),
                    Read::Idle => {}
                    Read::Begun(_) => steps.extend([Step::ReadsEntry(number), Step::ReadsClock(number)]),
                    Read::Entry(..) => steps.push(Step::ReadsClock(number)),
                    Read::Clock(..) => steps.push(Step::ReadsEntry(number)),
                    Read::Asking(..) if self.is_on(Rule::ClockBeforeTable) => {
                        steps.push(Step::AsksClock(number))
                    }
                    Read::Asking(..) | Read::Asked(..) => steps.push(Step::AsksTable(number)),
                    Read::TableFirst(..) => steps.push(Step::AsksClock(number)),
                    Read::Judged(..) => steps.push(Step::Returns(number)),
                }
                if process.tier.is_some_and(|(_, is_current)| is_current) {
                    steps.push(Step::HitsTier(number));
                }
                if process.messages > 0 {
                    steps.push(Step::MessageArrives(number));
                }
            }
            if number < self.evictors {
                match process.evict {
                    Evict::Idle if world.database < self.versions => {
                        steps.push(Step::ChangesDatabase(number))
                    }
                    Evict::Idle => {}
                    Evict::Changed(_) => steps.push(Step::SendsEviction(number)),
                    Evict::Sent(_) => {
                        steps.push(Step::Evicts(number));
                        if self.is_lossy {
                            steps.push(Step::EvictionIsLost(number));
                        }
                    }
                    Evict::Ran(..) => {
                        steps.push(Step::IsTold(number));
                        if self.is_lossy {
                            steps.push(Step::EvictionIsLost(number));
                        }
                    }
                }
                if process.is_pending {
                    steps.push(Step::Repeats(number));
                }
            }
            if self.has_deletes && matches!(process.evict, Evict::Changed(_)) {
                steps.push(Step::Deletes(number));
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut world = *world;
        let world = &mut world;
        match step {
            Step::ClockVanishes => {
                (world.clock, world.drops) = (None, world.drops + 1);
                self.tell(world);
            }
            Step::TableVanishes => (world.table, world.drops) = (None, world.drops + 1),
            Step::EntryVanishes => (world.entry, world.drops) = (None, world.drops + 1),
            Step::LeaseEnds => (world.lease, world.drops) = (None, world.drops + 1),
            Step::OtherTagIsEvicted => {
                world.others += 1;
                self.evict(world, 1);
            }
            Step::TableBecomesTooLong => {
                world.others += 1;
                self.evict(world, 1);
                if let (Some(clock), Some(table)) = (world.clock, world.table) {
                    let floor = if self.is_on(Rule::RaiseFloor) { clock.epoch } else { table.floor };
                    world.table = Some(Table { floor, evicted: [0, clock.epoch], ..table });
                }
            }
            Step::Replicates => world.replica = (world.clock, world.table),
            Step::FailsOver => {
                world.failovers += 1;
                (world.clock, world.table) = world.replica;
                self.recall(world);
            }
            Step::Dies(number) => {
                world.deaths += 1;
                let Process { fills, reads, .. } = world.processes[number];
                world.processes[number] = Process { fills, reads, ..Process::default() };
            }
            Step::TakesLease(number) => {
                world.lease = Some(number as u8);
                let stamp = self.is_on(Rule::EarlyStamp).then(|| self.clock_or_new(world));
                let process = &mut world.processes[number];
                (process.fill, process.fills) = (Fill::Leased(stamp), process.fills + 1);
            }
            Step::RunsHandler(number) => {
                let Fill::Leased(stamp) = world.processes[number].fill else { return None };
                world.processes[number].fill = Fill::Ran(stamp, world.database);
            }
            Step::BeginsCommit(number, has_b) => {
                let Fill::Ran(stamp, version) = world.processes[number].fill else { return None };
                let stamp = stamp.unwrap_or_else(|| self.clock_or_new(world));
                let entry = Entry { stamp, has_b, version };
                world.processes[number].fill = Fill::Committing(entry, world.confirmed);
            }
            Step::Commits(number) => {
                let Fill::Committing(entry, confirmed) = world.processes[number].fill else { return None };
                let is_current = world.lease == Some(number as u8) || !self.is_on(Rule::Lease);
                world.processes[number].fill = Fill::Idle;
                if is_current {
                    (world.entry, world.lease) = (Some(entry), None);
                    world.processes[number].fill = Fill::Stored(entry, confirmed);
                }
            }
            Step::CommitIsLost(number) => world.processes[number].fill = Fill::Idle,
            Step::JudgesCommit(number) => {
                let mut accepted = None;
                world.processes[number].fill = match world.processes[number].fill {
                    Fill::Stored(entry, confirmed) => match self.judge_by_clock(entry, world.clock) {
                        _ if !self.is_on(Rule::JudgeCommit) => {
                            accepted = Some((entry, confirmed));
                            Fill::Idle
                        }
                        Some(true) => {
                            accepted = Some((entry, confirmed));
                            Fill::Idle
                        }
                        Some(false) => Fill::Idle,
                        None => Fill::Judging(entry, confirmed, world.clock),
                    },
                    Fill::Judging(entry, confirmed, _) => {
                        if self.judge_by_table(entry, world.table) {
                            accepted = Some((entry, confirmed));
                        }
                        Fill::Idle
                    }
                    _ => return None,
                };
                if accepted.is_some_and(|(entry, confirmed)| entry.version < confirmed) && !world.is_excused {
                    world.broken = Some("a fill was accepted with what was evicted");
                }
            }
            Step::BeginsRead(number) => {
                let process = &mut world.processes[number];
                let (own, confirmed) = (process.own, world.confirmed);
                let since = Since { confirmed, own, is_current: true, is_believed: true };
                (process.read, process.reads) = (Read::Begun(since), process.reads + 1);
            }
            Step::ReadsEntry(number) => {
                let process = &mut world.processes[number];
                process.read = match (process.read, world.entry) {
                    (Read::Begun(since), Some(entry)) => Read::Entry(since, entry),
                    (Read::Clock(since, clock), Some(entry)) => self.judged(process, since, entry, clock),
                    _ => Read::Idle,
                };
            }
            Step::ReadsClock(number) => {
                let process = &mut world.processes[number];
                process.read = match process.read {
                    Read::Begun(since) => Read::Clock(since, world.clock),
                    Read::Entry(since, entry) => self.judged(process, since, entry, world.clock),
                    _ => return None,
                };
            }
            Step::AsksClock(number) => {
                let process = &mut world.processes[number];
                process.read = match process.read {
                    Read::Asking(since, entry) => match self.judge_by_clock(entry, world.clock) {
                        Some(true) => Read::Judged(since, entry),
                        Some(false) => Read::Idle,
                        None => Read::Asked(since, entry, world.clock),
                    },
                    Read::TableFirst(since, entry, table) => match self.judge_by_clock(entry, world.clock) {
                        Some(true) => Read::Judged(since, entry),
                        None if self.judge_by_table(entry, table) => {
                            process.judged =
                                world.clock.map(|clock| ((entry.stamp, entry.has_b), clock.epoch));
                            Read::Judged(since, entry)
                        }
                        _ => Read::Idle,
                    },
                    _ => return None,
                };
            }
            Step::AsksTable(number) => {
                let process = &mut world.processes[number];
                process.read = match process.read {
                    Read::Asking(since, entry) => Read::TableFirst(since, entry, world.table),
                    Read::Asked(since, entry, clock) if self.judge_by_table(entry, world.table) => {
                        process.judged = clock.map(|clock| ((entry.stamp, entry.has_b), clock.epoch));
                        Read::Judged(since, entry)
                    }
                    Read::Asked(..) => Read::Idle,
                    _ => return None,
                };
            }
            Step::Returns(number) => {
                let Read::Judged(since, entry) = world.processes[number].read else { return None };
                let process = &mut world.processes[number];
                process.read = Read::Idle;
                let is_bypassed = process.is_pending && self.is_on(Rule::Bypass);
                if since.is_believed && !is_bypassed {
                    if self.has_tier && (since.is_current || !self.is_on(Rule::TierFence)) {
                        process.tier = Some((entry.version, true));
                    }
                    self.check_read(world, since, entry.version);
                }
            }
            Step::HitsTier(number) => {
                let process = world.processes[number];
                let (version, _) = process.tier?;
                if version < process.own {
                    world.broken = Some("a tier returned what its process evicted");
                }
                if process.messages == 0 && version < world.confirmed && !world.is_excused {
                    world.broken = Some("a tier returned what was evicted, though it was told");
                }
            }
            Step::ChangesDatabase(number) => {
                world.database += 1;
                world.processes[number].evict = Evict::Changed(world.database);
            }
            Step::SendsEviction(number) => {
                let process = &mut world.processes[number];
                let Evict::Changed(version) = process.evict else { return None };
                process.evict = Evict::Sent(version);
                if self.is_on(Rule::OwnEviction) {
                    end_copies(process);
                }
            }
            Step::Evicts(number) => {
                let Evict::Sent(version) = world.processes[number].evict else { return None };
                self.evict(world, 0);
                world.processes[number].evict = Evict::Ran(version, false);
            }
            Step::EvictionIsLost(number) => {
                let process = &mut world.processes[number];
                let (Evict::Sent(version) | Evict::Ran(version, _)) = process.evict else { return None };
                process.evict = Evict::Idle;
                process.own = process.own.max(version);
                process.is_pending = true;
                if self.is_on(Rule::OwnEviction) {
                    end_copies(process);
                }
            }
            Step::IsTold(number) => {
                let process = &mut world.processes[number];
                let Evict::Ran(version, is_recalled) = process.evict else { return None };
                process.evict = Evict::Idle;
                process.own = process.own.max(version);
                world.confirmed = world.confirmed.max(version);
                if is_recalled && self.is_on(Rule::Repeat) {
                    process.is_pending = true;
                    world.is_excused = true;
                } else {
                    process.remembers = true;
                }
                if self.is_on(Rule::OwnEviction) {
                    end_copies(&mut world.processes[number]);
                }
            }
            Step::Repeats(number) => {
                self.evict(world, 0);
                let process = &mut world.processes[number];
                (process.is_pending, process.remembers) = (false, true);
                if self.is_on(Rule::SecondLook)
                    && let Some(since) = since_of(&mut process.read)
                {
                    since.is_believed = false;
                }
                if self.failovers > 0 {
                    world.is_excused = world.processes.iter().any(|process| process.is_pending);
                }
            }
            Step::MessageArrives(number) => {
                let process = &mut world.processes[number];
                process.messages -= 1;
                if self.is_on(Rule::TierListens) {
                    end_copies(process);
                }
            }
            Step::Deletes(number) => {
                let Evict::Changed(version) = world.processes[number].evict else { return None };
                (world.entry, world.lease) = (None, None);
                world.processes[number].evict = Evict::Idle;
                world.confirmed = world.confirmed.max(version);
            }
        }
        Some(*world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(PROMISE, |_, world: &World| world.broken.is_none()),
            Property::sometimes("a value is read", |model: &Self, world: &World| {
                model.readers == 0
                    || world.processes.iter().any(|process| matches!(process.read, Read::Judged(..)))
            }),
            Property::sometimes("the table is asked", |model: &Self, world: &World| {
                model.readers == 0
                    || model.versions + model.others < 2
                    || world.processes.iter().any(|process| matches!(process.read, Read::Asking(..)))
            }),
        ]
    }
}

/// The tier copies values from before an eviction, and so do reads in progress.
fn end_copies(process: &mut Process) {
    if let Some((_, is_current)) = &mut process.tier {
        *is_current = false;
    }
    if let Some(since) = since_of(&mut process.read) {
        since.is_current = false;
    }
}

/// The property that must hold in every state.
const PROMISE: &str = "nothing evicted comes back";

/// Looks at every state that can be reached.
fn check_everything(name: &str, model: Tags) {
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

#[test]
fn nothing_evicted_by_tag_comes_back() {
    for (name, model) in SCENARIOS {
        check_everything(name, model);
    }
}

#[test]
fn each_rule_is_needed() {
    for (rule, model) in RULES {
        let model = Tags { off: Some(rule), ..model };
        let until = HasDiscoveries::AnyOf([PROMISE].into());
        let checker = model.checker().threads(2).finish_when(until).spawn_bfs().join();
        let path = checker.discovery(PROMISE).unwrap_or_else(|| panic!("nothing is stale without {rule:?}"));
        println!(
            "without {rule:?}, after {} states: {:?}",
            checker.unique_state_count(),
            path.into_actions()
        );
    }
}

/// The same with two of each actor and more of everything.
#[test]
#[ignore = "takes many minutes and gigabytes"]
fn nothing_evicted_by_tag_comes_back_in_larger_worlds() {
    for (name, model) in SCENARIOS {
        let model = Tags {
            readers: 2,
            evictors: 2,
            versions: 2,
            drops: (model.drops * 2).max(1),
            others: 1,
            ..model
        };
        check_everything(name, model);
    }
}
