//! The behaviour suite of stores, on a real Redis.

use larder_core::store::suite::{self, Subject};
use larder_core::{RedisOptions, RedisStore};
use larder_tests::redis_server::{RedisServer, patient};

fn subject(server: &RedisServer) -> Subject<RedisStore> {
    Subject::new(RedisStore::new(patient(RedisOptions::from_url(&server.url()).unwrap())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_passes_the_suite() {
    let server = RedisServer::start();
    suite::run(&subject(&server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_passes_the_lease_suite() {
    let server = RedisServer::start();
    suite::run_leases(&subject(&server)).await;
}
