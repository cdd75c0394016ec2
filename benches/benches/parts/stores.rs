//! The functions of the stores.

use std::time::Duration;

use divan::{Bencher, black_box};
use larder_benches::{LARGE, RedisServer, SMALL, TTL, body, runtime};
use larder_core::store::redis::{RedisOptions, RedisStore};
use larder_core::{Acquired, CacheKey, Intent, KeySpace, LeaseStore, MemoryStore};

const SIZES: [usize; 2] = [SMALL, LARGE];
const HOLD: Duration = Duration::from_secs(5);

fn key(group: Option<&str>) -> CacheKey {
    KeySpace::new("redis:larder:cache", group).expect("a valid group").key("products:7")
}

fn get(bencher: Bencher<'_, '_>, store: &impl LeaseStore, group: Option<&str>, len: usize) {
    let (runtime, key) = (runtime(), key(group));
    runtime.block_on(store.set(&key, body(len), Some(TTL))).expect("a store that works");
    // Under one `block_on`, so that the runtime's own cost isn't counted.
    runtime.block_on(async {
        bencher.bench_local(|| futures_util::FutureExt::now_or_never(store.get(black_box(&key))));
    });
}

fn get_waiting(bencher: Bencher<'_, '_>, store: &impl LeaseStore, group: Option<&str>, len: usize) {
    let (runtime, key) = (runtime(), key(group));
    runtime.block_on(store.set(&key, body(len), Some(TTL))).expect("a store that works");
    bencher.bench_local(|| runtime.block_on(store.get(black_box(&key))));
}

fn set(bencher: Bencher<'_, '_>, store: &impl LeaseStore, len: usize) {
    let (runtime, key, body) = (runtime(), key(Some("products")), body(len));
    bencher.bench_local(|| runtime.block_on(store.set(&key, body.clone(), Some(TTL))));
}

fn begin_and_commit(bencher: Bencher<'_, '_>, store: &impl LeaseStore, len: usize) {
    let (runtime, key, body) = (runtime(), key(Some("products")), body(len));
    bencher.bench_local(|| {
        runtime.block_on(async {
            match store.begin(&key, Intent::Refresh, HOLD).await {
                Ok(Acquired::Lease(lease)) => store.commit(&key, &lease, body.clone(), Some(TTL)).await,
                other => panic!("no lease: {other:?}"),
            }
        })
    });
}

mod memory {
    use super::*;

    #[divan::bench(args = SIZES)]
    fn get(bencher: Bencher<'_, '_>, len: usize) {
        super::get(bencher, &MemoryStore::new(), Some("products"), len);
    }

    #[divan::bench(args = SIZES)]
    fn set(bencher: Bencher<'_, '_>, len: usize) {
        super::set(bencher, &MemoryStore::new(), len);
    }

    #[divan::bench(args = SIZES)]
    fn begin_and_commit(bencher: Bencher<'_, '_>, len: usize) {
        super::begin_and_commit(bencher, &MemoryStore::new(), len);
    }
}

/// In sequence over loopback: the cost of a round trip.
mod redis {
    use super::*;

    fn with_redis(bench: impl FnOnce(&RedisStore)) {
        let Some(server) = RedisServer::start() else { return };
        let options = RedisOptions::from_url(&server.url()).expect("a valid URL");
        bench(&RedisStore::new(options));
    }

    #[divan::bench(args = SIZES)]
    fn get_ungrouped(bencher: Bencher<'_, '_>, len: usize) {
        with_redis(|store| super::get_waiting(bencher, store, None, len));
    }

    #[divan::bench(args = SIZES)]
    fn get_grouped(bencher: Bencher<'_, '_>, len: usize) {
        with_redis(|store| super::get_waiting(bencher, store, Some("products"), len));
    }

    #[divan::bench(args = SIZES)]
    fn set(bencher: Bencher<'_, '_>, len: usize) {
        with_redis(|store| super::set(bencher, store, len));
    }

    #[divan::bench(args = SIZES)]
    fn begin_and_commit(bencher: Bencher<'_, '_>, len: usize) {
        with_redis(|store| super::begin_and_commit(bencher, store, len));
    }
}
