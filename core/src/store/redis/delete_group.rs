//! Removing many entries at once: a group, or everything of a prefix.

use std::collections::HashMap;

use bytes::Bytes;

use super::change_log::Lost;
use super::client::{Client, Destination};
use super::cluster::Layout;
use super::key_names::{self, Owned};
use super::scripts::{self, ScriptCall};
use super::{RedisInner, RedisStore, random};
use crate::key::KeySpace;
use crate::store::StoreError;

/// How many entries one script looks at. 250 take about a millisecond, which is how long everybody else waits.
const CHUNK: usize = 250;

/// How many keys of the database one step of a scan looks at.
const PAGE: usize = 1000;

impl RedisStore {
    /// Removes a group or a whole prefix, and counts what was valid.
    pub(super) async fn evict_space(&self, space: &KeySpace) -> Result<u64, StoreError> {
        match space.group() {
            Some(group) => self.evict_group(space, group).await,
            None => self.wipe(space.prefix(), &Lost::Everything).await,
        }
    }

    /// Removes what servers lost of a whole prefix.
    pub(super) async fn evict_lost(&self, space: &KeySpace, lost: &Lost) -> Result<u64, StoreError> {
        self.wipe(space.prefix(), lost).await
    }

    /// The first command is the eviction: from there on nothing of the group is valid. The rest gives memory back, also
    /// what earlier evictions of the group left that did not come to their end.
    async fn evict_group(&self, space: &KeySpace, group: &str) -> Result<u64, StoreError> {
        let dropped = self.drop_group(space.prefix(), group).await?;
        let mut count = 0;
        for (doomed, nonce) in &dropped.lists {
            count += self.sweep_listed(space, doomed, nonce).await?;
            self.forget_list(space.prefix(), group, doomed).await?;
        }
        if self.inner.options.evict_foreign {
            count += self.sweep_foreign(space).await?;
        }
        Ok(count)
    }

    /// Removes what a list of entries names, and counts those that were valid under the nonce that they were listed with.
    async fn sweep_listed(&self, space: &KeySpace, doomed: &str, nonce: &Bytes) -> Result<u64, StoreError> {
        let mut count = 0;
        for start in (0..).step_by(CHUNK) {
            let mut range = redis::cmd("ZRANGE");
            range.arg(doomed).arg(start).arg(start + CHUNK - 1);
            let suffixes: Vec<Bytes> =
                self.client().command(Destination::Key(doomed), &range, self.deadline()).await?;
            let entries: Vec<String> = suffixes
                .iter()
                .map(|suffix| format!("{}{}", space.head(), String::from_utf8_lossy(suffix)))
                .collect();
            if !entries.is_empty() {
                count += self.sweep(key_names::nonce(space), Counting::ValidUnder(nonce), &entries).await?;
            }
            if entries.len() < CHUNK {
                break;
            }
        }
        Ok(count)
    }

    /// To be called when everything on the list is gone: until then, the next eviction of the group goes on with it.
    async fn forget_list(&self, prefix: &str, group: &str, doomed: &str) -> Result<(), StoreError> {
        let left = key_names::left(prefix, group);
        let call = ScriptCall { script: &scripts::SWEPT, keys: &[&left, doomed], args: &[] };
        let _: i64 = self.call(call, self.deadline()).await?;
        Ok(())
    }

    /// Removes whatever else is called like an entry of a group, unless it is a valid one.
    async fn sweep_foreign(&self, space: &KeySpace) -> Result<u64, StoreError> {
        let mut count = 0;
        let mut scan = Scan::begin(self, key_names::pattern_of(space.head()), Lost::Everything).await?;
        while let Some(page) = scan.next(self).await? {
            for names in page.chunks(CHUNK) {
                count += self.sweep(key_names::nonce(space), Counting::Everything, names).await?;
            }
        }
        Ok(count)
    }

    /// Removes everything of a prefix in two passes over the database.
    ///
    /// The first takes away leases and nonces, and only the second looks for entries. In one pass, a fill under way
    /// could commit behind the cursor's back, to where the scan had already been, while its lease lay still ahead.
    /// With two, whatever was committed under an older lease is there before the second pass begins, and a scan finds
    /// everything that is there all the time; a fill that begins during the first pass began after this eviction did,
    /// so it may stay or go.
    async fn wipe(&self, prefix: &str, within: &Lost) -> Result<u64, StoreError> {
        let (mut nonces, mut lists) = (HashMap::new(), Vec::new());
        let mut scan = Scan::begin(self, key_names::pattern(prefix), within.clone()).await?;
        while let Some(page) = scan.next(self).await? {
            let mut leases = Vec::new();
            for name in &page {
                match Owned::of(name, prefix) {
                    Some(Owned::Lease) => leases.push(name.as_str()),
                    Some(Owned::Group(group)) if !nonces.contains_key(group) => {
                        let dropped = self.drop_group(prefix, group).await?;
                        nonces.insert(group.to_owned(), dropped.nonce);
                        lists.extend(dropped.lists.into_iter().map(|(doomed, _)| (group.to_owned(), doomed)));
                    }
                    _ => {}
                }
            }
            self.unlink(&leases).await?;
        }

        let mut count = 0;
        // In a cluster too, this begins when the first pass has been everywhere.
        let mut scan = Scan::begin(self, key_names::pattern(prefix), within.clone()).await?;
        while let Some(page) = scan.next(self).await? {
            let mut plain = Vec::new();
            let mut groups: HashMap<&str, Vec<&str>> = HashMap::new();
            for name in &page {
                match Owned::of(name, prefix) {
                    Some(Owned::Plain) => plain.push(name.as_str()),
                    Some(Owned::Grouped(group)) => groups.entry(group).or_default().push(name),
                    _ => {}
                }
            }
            count += self.unlink(&plain).await?;
            for (group, entries) in groups {
                let nonce = format!("{prefix}:{{{group}}}");
                let old = nonces.get(group).cloned().unwrap_or_default();
                for entries in entries.chunks(CHUNK) {
                    count += self.sweep(&nonce, Counting::ValidUnder(&old), entries).await?;
                }
            }
        }
        // The second pass found the entries without them. Should it not come to its end, the next eviction needs them.
        for (group, doomed) in &lists {
            self.forget_list(prefix, group, doomed).await?;
        }
        Ok(count)
    }

    async fn drop_group(&self, prefix: &str, group: &str) -> Result<Dropped, StoreError> {
        let (nonce, index) = (format!("{prefix}:{{{group}}}"), key_names::index(prefix, group));
        let (doomed, left) = (key_names::tmp_in(prefix, group, &random()?), key_names::left(prefix, group));
        let call =
            ScriptCall { script: &scripts::DROP_GROUP, keys: &[&nonce, &index, &doomed, &left], args: &[] };
        let (nonce, lists): (Bytes, Vec<(String, Bytes)>) =
            self.inner.change_client().script(call, self.deadline()).await?;
        Ok(Dropped { nonce, lists })
    }

    /// Removes those of these entries that are not valid.
    async fn sweep<S: AsRef<str>>(
        &self,
        nonce: &str,
        counting: Counting<'_>,
        entries: &[S],
    ) -> Result<u64, StoreError> {
        let keys: Vec<&str> = std::iter::once(nonce).chain(entries.iter().map(AsRef::as_ref)).collect();
        let args: &[&[u8]] = match counting {
            Counting::ValidUnder(old) => &[old],
            Counting::Everything => &[b"", b"all"],
        };
        self.call(ScriptCall { script: &scripts::SWEEP, keys: &keys, args }, self.deadline()).await
    }

    async fn unlink(&self, names: &[&str]) -> Result<u64, StoreError> {
        self.inner.change_client().unlink(names, self.deadline()).await
    }

    fn client(&self) -> &Client {
        &self.inner.client
    }

    fn deadline(&self) -> std::time::Duration {
        let RedisInner { options, .. } = &*self.inner;
        options.evict_deadline
    }
}

/// What of the entries that are removed counts.
enum Counting<'a> {
    /// What was valid until then: this was the nonce.
    ValidUnder(&'a Bytes),
    Everything,
}

/// What is left of a group that was invalidated.
struct Dropped {
    /// The nonce that was valid until then, or nothing.
    nonce: Bytes,
    /// Where its index is now, if it had one, and those that earlier evictions left: each with the nonce of its entries.
    lists: Vec<(String, Bytes)>,
}

/// A walk over the names in the database that may be a prefix's, on every node of a cluster.
///
/// A key that moves between two nodes might be missed: gone where the walk has not been yet, and come where it has
/// already been. So if slots moved meanwhile the walk goes round once more. A key that moved once is then found
/// whatever its way was: where it came from is looked at, and where it went is looked at after that. No slot moves twice
/// in so short a time.
struct Scan {
    pattern: String,
    /// Where to look.
    within: Lost,
    layout: Layout,
    /// Whether this is the second round.
    again: bool,
    node: usize,
    cursor: u64,
}

impl Scan {
    async fn begin(store: &RedisStore, pattern: String, within: Lost) -> Result<Self, StoreError> {
        let layout = store.client().layout(&within, store.deadline()).await?;
        Ok(Self { pattern, within, layout, again: false, node: 0, cursor: 0 })
    }

    /// The next few names, or `None` after the last. A name may come twice.
    async fn next(&mut self, store: &RedisStore) -> Result<Option<Vec<String>>, StoreError> {
        if self.node == self.layout.nodes.len() && !self.goes_round_again(store).await? {
            return Ok(None);
        }
        let Some(node) = self.layout.nodes.get(self.node) else { return Ok(None) };
        let mut scan = redis::cmd("SCAN");
        scan.arg(self.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(PAGE);
        let (next, names): (u64, Vec<Bytes>) =
            store.client().command(Destination::Node(node), &scan, store.deadline()).await?;
        self.cursor = next;
        if next == 0 {
            self.node += 1;
        }
        // Every name of ours is UTF-8.
        let names = names.into_iter().filter_map(|name| String::from_utf8(name.into()).ok());
        Ok(Some(names.filter(|name| self.within.concerns(name)).collect()))
    }

    async fn goes_round_again(&mut self, store: &RedisStore) -> Result<bool, StoreError> {
        if self.again {
            return Ok(false);
        }
        let layout = store.client().layout(&self.within, store.deadline()).await?;
        self.again = !layout.is_steady_since(&self.layout);
        if self.again {
            (self.layout, self.node) = (layout, 0);
        }
        Ok(self.again)
    }
}
