//! Records of variants: listing a variant that was stored, and replacing the record when a resource varies by more fields.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::fill::lease::{LeaseGuard, VariantEntry};
use crate::key::CacheKey;
use crate::key::SecondaryKey;
use crate::larder::context::{CacheContext, record_of};
use crate::policy::CommitResult;
use crate::record::Record;
use crate::record::variants::Variants;
use crate::store::{Acquired, Intent};

impl CacheContext {
    /// Adds a variant that was just stored to the record with this id, which bounds the number of variants. If another
    /// request holds the record's lease, the variant stays unlisted.
    ///
    /// Returns [`CommitResult::Revoked`] if that record is gone. The variant was then stored after an eviction of the
    /// resource, and no record refers to it.
    pub(crate) async fn list_variant(
        self: &Arc<Self>,
        base: &CacheKey,
        secondary: SecondaryKey,
        id: u64,
        ttl: Option<Duration>,
    ) -> CommitResult {
        let lease = self.try_acquire(base, Intent::Refresh).await.ok().and_then(Acquired::lease);
        // The record is changed under the lease, and only if it is still the same one: an eviction must not be undone.
        // Variants that other requests listed meanwhile stay.
        let Some(mut found) = self.variants_of(base).await.filter(|found| found.id() == id) else {
            self.delete_variant(base, secondary).await;
            return CommitResult::Revoked;
        };
        let Some(lease) = lease else { return CommitResult::Stored };
        let oldest = found.add(secondary);
        let stored = lease.commit(found.encode(), ttl).await;
        if let Some(oldest) = oldest.filter(|_| stored == CommitResult::Stored) {
            self.delete_variant(base, oldest).await;
        }
        stored
    }

    /// Stores a variant, and replaces the record with the id `instead_of` by one that refers to it, if that record still
    /// exists. `filling` is the lease of the fill that made the variant, on another key than the record's.
    pub(crate) async fn widen(
        self: &Arc<Self>,
        base: &CacheKey,
        filling: LeaseGuard,
        variant: VariantEntry,
        variants: &Variants,
        instead_of: u64,
        ttl: Option<Duration>,
    ) -> CommitResult {
        let Ok(Acquired::Lease(lease)) = self.try_acquire(base, Intent::Refresh).await else {
            return CommitResult::Revoked;
        };
        // In this order: an eviction from here on revokes the lease on the record, and an earlier one that the fill didn't
        // see has revoked the lease of the fill. The record doesn't show it: it may have been written again since.
        if !filling.is_current().await {
            return CommitResult::Revoked;
        }
        let found = self.variants_of(base).await.filter(|found| found.id() == instead_of);
        let Some(found) = found else { return CommitResult::Revoked };
        let stored = lease.commit_first_variant(variant, variants, ttl).await;
        if stored == CommitResult::Stored {
            for orphan in found.secondary_keys() {
                self.delete_variant(base, orphan).await;
            }
        }
        stored
    }

    /// Returns the record of variants under a key, if there is one.
    async fn variants_of(&self, base: &CacheKey) -> Option<Variants> {
        variants_in(&self.store.get(base).await.ok()??)
    }

    /// Removes a variant that no record refers to.
    async fn delete_variant(&self, base: &CacheKey, secondary: SecondaryKey) {
        let key = base.variant(secondary);
        if let Err(error) = self.store.delete(&key).await {
            self.store_failed("delete", key.name(), &error);
        }
    }
}

/// Decodes a record of variants. One that was evicted softly still leads to its variants, which are judged by themselves.
fn variants_in(found: &Bytes) -> Option<Variants> {
    match record_of(found)? {
        Record::Variants(found) => Some(found),
        Record::Response(_) => None,
    }
}
