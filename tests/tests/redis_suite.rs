//! The behaviour suite of stores, on a real Redis.

use std::time::Duration;

use larder_core::store::suite::{self, Subject};
use larder_core::{RedisOptions, RedisStore};
use larder_tests::redis_server::RedisServer;

/// With deadlines that a machine with other work to do keeps too: the rules are not about them.
fn subject(server: &RedisServer) -> Subject<RedisStore> {
    let options = RedisOptions::from_url(&server.url()).unwrap();
    let long = Duration::from_secs(5);
    Subject::new(RedisStore::new(options.read_deadline(long).fill_deadline(long).evict_deadline(long)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_of_a_store() {
    let server = RedisServer::start();
    suite::run(&subject(&server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fill_protocol() {
    let server = RedisServer::start();
    suite::run_leases(&subject(&server)).await;
}
