//! Eviction of a group or of a whole prefix.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::client::{Client, Destination};
use super::cluster::Layout;
use super::failover::change_log::Lost;
use super::key_names::{self, Owned};
use super::scripts::{self, ScriptCall};
use super::{RedisInner, RedisStore, random};
use crate::key::KeySpace;
use crate::store::StoreError;

/// The number of entries that one script checks. 250 take about a millisecond, during which Redis serves no other client.
const CHUNK: usize = 250;

/// The number of entries without a group that are made stale at once.
const AT_ONCE: usize = 32;

/// The number of keys that one `SCAN` visits.
const PAGE: usize = 1000;

impl RedisStore {
    /// Removes a group or a whole prefix. Returns the number of valid entries removed.
    pub(super) async fn evict_space(&self, space: &KeySpace) -> Result<u64, StoreError> {
        match space.group() {
            Some(group) => self.evict_group(space, group).await,
            None => self.delete_prefix(space.prefix(), &Lost::Everything).await,
        }
    }

    /// Removes the part of a prefix that lies on the servers that lost changes.
    pub(super) async fn evict_lost(&self, space: &KeySpace, lost: &Lost) -> Result<u64, StoreError> {
        self.delete_prefix(space.prefix(), lost).await
    }

    /// Makes every entry of a group or a whole prefix stale.
    pub(super) async fn soften_space(&self, space: &KeySpace) -> Result<(), StoreError> {
        match space.group() {
            Some(_) => self.soften_group(key_names::nonce(space)).await,
            None => self.soften_prefix(space).await,
        }
    }

    /// Makes everything of a prefix stale, in two passes as [`delete_prefix`](Self::delete_prefix) does: the first one revokes the
    /// leases.
    async fn soften_prefix(&self, space: &KeySpace) -> Result<(), StoreError> {
        let prefix = space.prefix();
        let mut groups = HashSet::new();
        let mut scan = Scan::begin(self, key_names::pattern(prefix), Lost::Everything).await?;
        while let Some(page) = scan.next(self).await? {
            let mut leases = Vec::new();
            for name in &page {
                match Owned::of(name, prefix) {
                    Some(Owned::Lease) => leases.push(name.as_str()),
                    Some(Owned::Group(group)) if groups.insert(group.to_owned()) => {
                        self.soften_group(&format!("{prefix}:{{{group}}}")).await?;
                    }
                    _ => {}
                }
            }
            self.unlink(&leases).await?;
        }
        let mut scan = Scan::begin(self, key_names::pattern(prefix), Lost::Everything).await?;
        while let Some(page) = scan.next(self).await? {
            let mut keys = Vec::new();
            for name in &page {
                if Owned::of(name, prefix) == Some(Owned::Plain) {
                    keys.push(space.key_with(0, |key| key.push_str(&name[space.head().len()..])));
                }
            }
            let softened = keys.into_iter().map(|key| async move { self.soften(&key).await });
            let softened: Vec<_> = stream::iter(softened).buffer_unordered(AT_ONCE).collect().await;
            softened.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    /// Evicts a group. The first command invalidates all its entries. The rest frees their memory, and that of earlier evictions
    /// which were interrupted.
    async fn evict_group(&self, space: &KeySpace, group: &str) -> Result<u64, StoreError> {
        let dropped = self.drop_group(space.prefix(), group).await?;
        let mut count = 0;
        for (detached, nonce) in &dropped.indexes {
            count += self.sweep_index(space, detached, nonce).await?;
            self.forget_index(space.prefix(), group, detached).await?;
        }
        if self.inner.options.evict_foreign {
            count += self.sweep_foreign(space).await?;
        }
        Ok(count)
    }

    /// Removes the entries of a detached index, and counts those that begin with its nonce.
    async fn sweep_index(&self, space: &KeySpace, detached: &str, nonce: &Bytes) -> Result<u64, StoreError> {
        let mut count = 0;
        for start in (0..).step_by(CHUNK) {
            let mut range = redis::cmd("ZRANGE");
            range.arg(detached).arg(start).arg(start + CHUNK - 1);
            let suffixes: Vec<Bytes> =
                self.client().command(Destination::Key(detached), &range, self.deadline()).await?;
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

    /// Removes a detached index whose entries are all gone. As long as it exists, the next eviction of the group continues with
    /// it.
    async fn forget_index(&self, prefix: &str, group: &str, detached: &str) -> Result<(), StoreError> {
        let unfinished = key_names::unfinished(prefix, group);
        let call = ScriptCall { script: &scripts::FORGET_INDEX, keys: &[&unfinished, detached], args: &[] };
        let _: i64 = self.call(call, self.deadline()).await?;
        Ok(())
    }

    /// Removes all other keys whose names look like entries of a group, except valid entries.
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
    /// The first pass removes leases and nonces, and the second one entries. With a single pass, a fill could commit a key that
    /// the cursor has already passed, while its lease still lies ahead. With two, every commit under an older lease has happened
    /// before the second pass begins, and a scan finds all keys that exist during the whole scan. A fill that begins during the
    /// first pass began after this eviction did, so its entry may stay or go.
    async fn delete_prefix(&self, prefix: &str, within: &Lost) -> Result<u64, StoreError> {
        let (mut nonces, mut indexes) = (HashMap::new(), Vec::new());
        let mut scan = Scan::begin(self, key_names::pattern(prefix), within.clone()).await?;
        while let Some(page) = scan.next(self).await? {
            let mut leases = Vec::new();
            for name in &page {
                match Owned::of(name, prefix) {
                    Some(Owned::Lease) => leases.push(name.as_str()),
                    Some(Owned::Group(group)) if !nonces.contains_key(group) => {
                        let dropped = self.drop_group(prefix, group).await?;
                        nonces.insert(group.to_owned(), dropped.nonce);
                        indexes.extend(
                            dropped.indexes.into_iter().map(|(detached, _)| (group.to_owned(), detached)),
                        );
                    }
                    _ => {}
                }
            }
            self.unlink(&leases).await?;
        }

        let mut count = 0;
        // In a cluster too, the second pass begins after the first has visited every node.
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
        // The second pass didn't need the indexes. The next eviction does if this one is interrupted.
        for (group, detached) in &indexes {
            self.forget_index(prefix, group, detached).await?;
        }
        Ok(count)
    }

    /// Invalidates a group: removes its nonce, and detaches its index.
    async fn drop_group(&self, prefix: &str, group: &str) -> Result<InvalidatedGroup, StoreError> {
        let (nonce, index) = (format!("{prefix}:{{{group}}}"), key_names::index(prefix, group));
        let (detached, unfinished) =
            (key_names::tmp_in(prefix, group, &random()?), key_names::unfinished(prefix, group));
        let call = ScriptCall {
            script: &scripts::DROP_GROUP,
            keys: &[&nonce, &index, &detached, &unfinished],
            args: &[],
        };
        let (nonce, indexes): (Bytes, Vec<(String, Bytes)>) =
            self.inner.change_client().script(call, self.deadline()).await?;
        Ok(InvalidatedGroup { nonce, indexes })
    }

    /// Removes the invalid ones of these entries. Returns the number of those that `counting` counts.
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

/// The removed entries that are counted.
enum Counting<'a> {
    /// Those that begin with this nonce, which was the group's until now.
    ValidUnder(&'a Bytes),
    Everything,
}

/// The remains of an invalidated group.
struct InvalidatedGroup {
    /// The former nonce. Empty if there was none.
    nonce: Bytes,
    /// The detached indexes of this and of interrupted evictions, each with the nonce of its entries.
    indexes: Vec<(String, Bytes)>,
}

/// A scan for names that match a pattern, on every node of a cluster.
///
/// A key may move from a node that the scan has not visited to one that it has. So if slots moved meanwhile, there is a second
/// round. It finds every key that moved once: the scan visits the old owner of the key, and the new owner after that. No slot
/// moves twice in so short a time.
struct Scan {
    pattern: String,
    /// Names outside of this are skipped.
    within: Lost,
    layout: Layout,
    /// `true` in the second round.
    is_second_round: bool,
    node: usize,
    cursor: u64,
}

impl Scan {
    async fn begin(store: &RedisStore, pattern: String, within: Lost) -> Result<Self, StoreError> {
        let layout = store.client().layout(&within, store.deadline()).await?;
        Ok(Self { pattern, within, layout, is_second_round: false, node: 0, cursor: 0 })
    }

    /// Returns the next few names, or `None` after the last. A name may come twice.
    async fn next(&mut self, store: &RedisStore) -> Result<Option<Vec<String>>, StoreError> {
        if self.node == self.layout.nodes.len() && !self.start_second_round(store).await? {
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
        // All names of this store are UTF-8.
        let names = names.into_iter().filter_map(|name| String::from_utf8(name.into()).ok());
        Ok(Some(names.filter(|name| self.within.concerns(name)).collect()))
    }

    async fn start_second_round(&mut self, store: &RedisStore) -> Result<bool, StoreError> {
        if self.is_second_round {
            return Ok(false);
        }
        let layout = store.client().layout(&self.within, store.deadline()).await?;
        self.is_second_round = !layout.is_steady_since(&self.layout);
        if self.is_second_round {
            (self.layout, self.node) = (layout, 0);
        }
        Ok(self.is_second_round)
    }
}
