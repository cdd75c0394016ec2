//! The eviction of a group in Redis, compared with a script that scans for its keys; and the eviction by a tag.
//!
//! Both evict equally many entries with the same names in turn, from a server with nothing else and from one full of other keys.
//! The table has the median time until no entry of the group is valid, which is the whole script, but only the first of our
//! commands; the time until all entries are removed; and the server's time for the longest command, during which other clients
//! wait.
//!
//! A second table has the eviction by a tag that few and many entries carry: the median and the longest time until Redis confirmed
//! it, and the server's time for the longest command.
//!
//! ```text
//! cargo bench -p larder-benches --bench eviction         a Markdown table
//! cargo bench -p larder-benches --bench eviction -- 21   this many evictions of each group of 1,000
//! ```

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use larder_axum::larder_core::store::redis::{RedisOptions, RedisStore};
use larder_axum::larder_core::tag::{EvictionMode, Tagged, Tags};
use larder_axum::larder_core::{CacheStore as _, KeySpace, LeaseStore as _};
use larder_benches::{RedisServer, SMALL, TTL, body};
use redis::aio::MultiplexedConnection;

/// The number of evictions of a group of 1,000, unless the command line sets it. Larger groups take longer.
const ROUNDS: usize = 11;

/// The number of evictions of a larger group.
const ROUNDS_OF_LARGE: usize = 3;

const GROUPS: [usize; 2] = [1_000, 100_000];

/// The numbers of entries that carry a tag.
const TAGGED: [usize; 2] = [10, 100_000];

/// The number of evictions by each tag.
const TAG_ROUNDS: usize = 200;

const UNRELATED: [usize; 2] = [0, 1_000_000];

/// The script with which the guide of `redis-fastapi` evicts a group, in one call.
const SCAN_AND_UNLINK: &str = include_str!("../src/scan_and_unlink.lua");

fn main() {
    let rounds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(ROUNDS);
    let Some(server) = RedisServer::with_args(&["--enable-debug-command", "yes"]) else {
        println!("No `redis-server` here.");
        return;
    };
    larder_benches::runtime().block_on(async {
        println!("| entries | other keys | invalid after | script | ratio | removed after | longest command | the script's |");
        println!("|--:|--:|--:|--:|--:|--:|--:|--:|");
        let bench = Bench::new(&server).await;
        for unrelated in UNRELATED {
            bench.ask::<()>(&["DEBUG", "POPULATE", &unrelated.to_string(), "unrelated", "8"]).await;
            for entries in GROUPS {
                let rounds = if entries > GROUPS[0] { rounds.min(ROUNDS_OF_LARGE) } else { rounds };
                bench.row(entries, unrelated, rounds).await;
            }
        }
        println!("\n| entries with the tag | confirmed after | longest | longest command |");
        println!("|--:|--:|--:|--:|");
        bench.tag_rows().await;
    });
}

struct Bench {
    store: RedisStore,
    conn: MultiplexedConnection,
    group: KeySpace,
}

impl Bench {
    async fn new(server: &RedisServer) -> Self {
        // The script blocks Redis for longer than any default deadline.
        let long = Duration::from_secs(60);
        let options = RedisOptions::from_url(&server.url()).expect("a valid URL");
        let options =
            options.read_deadline(long).fill_deadline(long).evict_deadline(long).connect_deadline(long);
        let client = redis::Client::open(server.url()).expect("a valid URL");
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let conn = client.get_multiplexed_async_connection_with_config(&config).await.expect("Redis");
        let group = KeySpace::new("redis:larder:cache", Some("products")).expect("a valid group");
        let bench = Self { store: RedisStore::new(options), conn, group };
        bench.ask::<()>(&["CONFIG", "SET", "slowlog-log-slower-than", "50"]).await;
        bench.ask::<()>(&["CONFIG", "SET", "slowlog-max-len", "100000"]).await;
        bench
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        redis::Cmd::new().arg(command).query_async(&mut self.conn.clone()).await.expect("Redis")
    }

    async fn row(&self, entries: usize, unrelated: usize, rounds: usize) {
        let (mut invalid, mut removed_all, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut our_longest, mut their_longest) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..rounds {
            self.fill(entries).await;
            self.forget_slow_commands().await;
            let started = Instant::now();
            let gone = async {
                let key = self.group.key("products:0");
                while self.store.get(&key).await.expect("Redis").is_some() {}
                started.elapsed()
            };
            let (removed, gone) = futures_util::join!(self.store.delete_group(&self.group), gone);
            removed_all.push(started.elapsed());
            invalid.push(gone);
            assert_eq!(removed.expect("Redis"), entries as u64);
            our_longest = our_longest.max(self.longest_command().await);

            self.fill_for_the_script(entries).await;
            self.forget_slow_commands().await;
            let started = Instant::now();
            let removed: usize = self.ask(&["EVAL", SCAN_AND_UNLINK, "0", "guide:{products}:*"]).await;
            theirs.push(started.elapsed());
            assert_eq!(removed, entries);
            their_longest = their_longest.max(self.longest_command().await);
        }
        let (invalid, removed_all, theirs) = (median(invalid), median(removed_all), median(theirs));
        println!(
            "| {entries} | {unrelated} | {} | {} | {:.1} | {} | {} | {} |",
            millis(invalid),
            millis(theirs),
            theirs.as_secs_f64() / invalid.as_secs_f64(),
            millis(removed_all),
            millis(our_longest),
            millis(their_longest)
        );
    }

    /// Evicts by two tags in turn, so that both meet the same noise. An eviction by a tag takes no work for each entry, so
    /// the entries are stored once. Redis keeps them until they expire.
    async fn tag_rows(&self) {
        let tags = TAGGED.map(|entries| Tags::new([format!("carried-by-{entries}")]).expect("a valid tag"));
        for (entries, tags) in TAGGED.into_iter().zip(&tags) {
            let stamp = self.store.tag_clock(&self.group).await.expect("Redis").expect("a store with tags");
            let (value, tagged) = (body(SMALL), Tagged::new(stamp, tags));
            stream::iter(0..entries)
                .for_each_concurrent(256, async |number| {
                    let key = self.group.key(&format!("{entries}:{number}"));
                    self.store.set_tagged(&key, value.clone(), Some(TTL), &tagged).await.expect("Redis");
                })
                .await;
            let first = self.group.key(&format!("{entries}:0"));
            assert!(self.store.get(&first).await.expect("Redis").is_some(), "the entries are valid");
        }
        let mut times = TAGGED.map(|_| Vec::with_capacity(TAG_ROUNDS));
        let mut longest = TAGGED.map(|_| Duration::ZERO);
        for round in 0..TAG_ROUNDS * 2 {
            let which = round % 2;
            self.forget_slow_commands().await;
            let started = Instant::now();
            self.store.evict_tags(&self.group, &tags[which], EvictionMode::Hard).await.expect("Redis");
            times[which].push(started.elapsed());
            longest[which] = longest[which].max(self.longest_command().await);
        }
        for ((entries, times), longest) in TAGGED.into_iter().zip(times).zip(longest) {
            let first = self.group.key(&format!("{entries}:0"));
            assert!(self.store.get(&first).await.expect("Redis").is_none(), "the entries are evicted");
            let slowest = times.iter().copied().max().unwrap_or_default();
            println!("| {entries} | {} | {} | {} |", millis(median(times)), millis(slowest), millis(longest));
        }
    }

    async fn fill(&self, entries: usize) {
        let value = body(SMALL);
        stream::iter(0..entries)
            .for_each_concurrent(256, async |number| {
                let key = self.group.key(&format!("products:{number}"));
                self.store.set(&key, value.clone(), Some(TTL)).await.expect("Redis");
            })
            .await;
    }

    async fn fill_for_the_script(&self, entries: usize) {
        let value = body(SMALL);
        let numbers: Vec<usize> = (0..entries).collect();
        for chunk in numbers.chunks(1000) {
            let mut pipe = redis::pipe();
            for number in chunk {
                let key = format!("guide:{{products}}:products:{number}");
                pipe.set_ex(key, &value[..], TTL.as_secs()).ignore();
            }
            pipe.query_async::<()>(&mut self.conn.clone()).await.expect("Redis");
        }
    }

    /// Clears the slow log twice: clearing many entries takes long enough to be logged itself.
    async fn forget_slow_commands(&self) {
        for _ in 0..2 {
            self.ask::<()>(&["SLOWLOG", "RESET"]).await;
        }
    }

    /// Returns the server's time for the longest command since the log was cleared.
    async fn longest_command(&self) -> Duration {
        let slow: Vec<Vec<redis::Value>> = self.ask(&["SLOWLOG", "GET", "-1"]).await;
        let micros = slow.into_iter().map(|mut entry| redis::from_redis_value::<u64>(entry.swap_remove(2)));
        Duration::from_micros(micros.map(|micros| micros.expect("a time")).max().unwrap_or_default())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
