//! [`LeaseStore`] as a trait object, so that the store's type doesn't become a type parameter everywhere.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use super::{Abandon, Acquired, Health, Intent, Lease, LeaseStore, StoreError, ValueHead};
use crate::key::{CacheKey, KeySpace};
use crate::tag::{EvictionMode, TagStamp, Tagged, Tags};

/// The boxed future of a store's method.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The object-safe version of [`LeaseStore`]. Every `LeaseStore` implements it.
pub(crate) trait DynStore: Send + Sync + 'static {
    fn get<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, Option<Bytes>>;
    fn get_shared<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, Option<Bytes>>;
    fn try_get(&self, key: &CacheKey) -> Option<Bytes>;
    fn finds_at_once(&self) -> bool;
    fn get_head<'a>(&'a self, key: &'a CacheKey, limit: usize) -> Boxed<'a, Option<ValueHead>>;
    fn get_range<'a>(
        &'a self,
        key: &'a CacheKey,
        head: &'a Bytes,
        range: Range<usize>,
    ) -> Boxed<'a, Option<Bytes>>;
    fn set<'a>(&'a self, key: &'a CacheKey, value: Bytes, ttl: Option<Duration>) -> Boxed<'a, ()>;
    fn delete<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, bool>;
    fn delete_group<'a>(&'a self, group: &'a KeySpace) -> Boxed<'a, u64>;
    fn has<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, bool>;
    fn begin<'a>(&'a self, key: &'a CacheKey, intent: Intent, lease_ttl: Duration) -> Boxed<'a, Acquired>;
    fn commit<'a>(
        &'a self,
        key: &'a CacheKey,
        lease: &'a Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Boxed<'a, bool>;
    fn renew<'a>(&'a self, key: &'a CacheKey, lease: &'a Lease, lease_ttl: Duration) -> Boxed<'a, bool>;
    fn abandon<'a>(&'a self, key: &'a CacheKey, lease: &'a Lease, why: Abandon) -> Boxed<'a, ()>;
    fn tag_clock<'a>(&'a self, space: &'a KeySpace) -> Boxed<'a, Option<TagStamp>>;
    fn set_tagged<'a>(
        &'a self,
        key: &'a CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &'a Tagged,
    ) -> Boxed<'a, ()>;
    fn commit_tagged<'a>(
        &'a self,
        key: &'a CacheKey,
        lease: &'a Lease,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &'a Tagged,
    ) -> Boxed<'a, bool>;
    fn evict_tags<'a>(&'a self, space: &'a KeySpace, tags: &'a Tags, how: EvictionMode) -> Boxed<'a, ()>;
    fn evict_softly<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, ()>;
    fn evict_group_softly<'a>(&'a self, group: &'a KeySpace) -> Boxed<'a, ()>;
    fn changed<'a>(&'a self, key: &'a CacheKey) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
    fn max_value_bytes(&self) -> u64;
    fn health(&self) -> Health;
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

impl<S: LeaseStore> DynStore for S {
    fn get<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, Option<Bytes>> {
        Box::pin(self.get(key))
    }

    fn get_shared<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, Option<Bytes>> {
        Box::pin(self.get_shared(key))
    }

    fn try_get(&self, key: &CacheKey) -> Option<Bytes> {
        self.try_get(key)
    }

    fn finds_at_once(&self) -> bool {
        self.finds_at_once()
    }

    fn get_head<'a>(&'a self, key: &'a CacheKey, limit: usize) -> Boxed<'a, Option<ValueHead>> {
        Box::pin(self.get_head(key, limit))
    }

    fn get_range<'a>(
        &'a self,
        key: &'a CacheKey,
        head: &'a Bytes,
        range: Range<usize>,
    ) -> Boxed<'a, Option<Bytes>> {
        Box::pin(self.get_range(key, head, range))
    }

    fn set<'a>(&'a self, key: &'a CacheKey, value: Bytes, ttl: Option<Duration>) -> Boxed<'a, ()> {
        Box::pin(self.set(key, value, ttl))
    }

    fn delete<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, bool> {
        Box::pin(self.delete(key))
    }

    fn delete_group<'a>(&'a self, group: &'a KeySpace) -> Boxed<'a, u64> {
        Box::pin(self.delete_group(group))
    }

    fn has<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, bool> {
        Box::pin(self.has(key))
    }

    fn begin<'a>(&'a self, key: &'a CacheKey, intent: Intent, lease_ttl: Duration) -> Boxed<'a, Acquired> {
        Box::pin(self.begin(key, intent, lease_ttl))
    }

    fn commit<'a>(
        &'a self,
        key: &'a CacheKey,
        lease: &'a Lease,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Boxed<'a, bool> {
        Box::pin(self.commit(key, lease, value, ttl))
    }

    fn renew<'a>(&'a self, key: &'a CacheKey, lease: &'a Lease, lease_ttl: Duration) -> Boxed<'a, bool> {
        Box::pin(self.renew(key, lease, lease_ttl))
    }

    fn abandon<'a>(&'a self, key: &'a CacheKey, lease: &'a Lease, why: Abandon) -> Boxed<'a, ()> {
        Box::pin(self.abandon(key, lease, why))
    }

    fn tag_clock<'a>(&'a self, space: &'a KeySpace) -> Boxed<'a, Option<TagStamp>> {
        Box::pin(self.tag_clock(space))
    }

    fn set_tagged<'a>(
        &'a self,
        key: &'a CacheKey,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &'a Tagged,
    ) -> Boxed<'a, ()> {
        Box::pin(self.set_tagged(key, value, ttl, tagged))
    }

    fn commit_tagged<'a>(
        &'a self,
        key: &'a CacheKey,
        lease: &'a Lease,
        value: Bytes,
        ttl: Option<Duration>,
        tagged: &'a Tagged,
    ) -> Boxed<'a, bool> {
        Box::pin(self.commit_tagged(key, lease, value, ttl, tagged))
    }

    fn evict_tags<'a>(&'a self, space: &'a KeySpace, tags: &'a Tags, how: EvictionMode) -> Boxed<'a, ()> {
        Box::pin(self.evict_tags(space, tags, how))
    }

    fn evict_softly<'a>(&'a self, key: &'a CacheKey) -> Boxed<'a, ()> {
        Box::pin(self.evict_softly(key))
    }

    fn evict_group_softly<'a>(&'a self, group: &'a KeySpace) -> Boxed<'a, ()> {
        Box::pin(self.evict_group_softly(group))
    }

    fn changed<'a>(&'a self, key: &'a CacheKey) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(self.changed(key))
    }

    fn max_value_bytes(&self) -> u64 {
        self.max_value_bytes()
    }

    fn health(&self) -> Health {
        self.health()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.close())
    }
}
