//! The log of a `close` with evictions that Redis never confirmed. The only test of its program: `tracing` caches for the whole
//! process which events are enabled.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_core::{CacheStore as _, KeySpace, RedisOptions, RedisStore};
use larder_tests::redis_cluster::key;
use larder_tests::redis_server::RedisServer;
use tokio::time::Instant;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn closing_logs_unconfirmed_evictions_at_its_deadline() {
    const DEADLINE: Duration = Duration::from_millis(300);
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let mut server = RedisServer::start();
    let store = RedisStore::new(RedisOptions::from_url(&server.url()).unwrap().close_deadline(DEADLINE));
    let (settled, left) = (key(None, "settled"), key(None, "left"));
    store.delete(&settled).await.unwrap();
    server.kill();
    store.delete(&left).await.unwrap_err();
    store.delete_group(&KeySpace::new("p", Some("group")).unwrap()).await.unwrap_err();
    let start = Instant::now();
    store.close().await;
    let took = start.elapsed();
    assert!((DEADLINE..DEADLINE + Duration::from_millis(300)).contains(&took), "{took:?}");

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let given_up: Vec<_> = text.lines().filter(|line| line.contains("never confirmed")).collect();
    assert_eq!(given_up.len(), 1, "{text}");
    for name in ["ERROR", "count=2", "p:left", "p:{group}:*"] {
        assert!(given_up[0].contains(name), "{name}: {text}");
    }
    assert!(!given_up[0].contains("settled"), "{text}");
}
