//! The log line when a cache is set up. Alone in its program: `tracing` caches for the whole process whether a line is wanted.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use larder_core::{Larder, MemoryStore};

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Two services with one prefix on one Redis serve each other's entries. The logs of both show the prefix.
#[test]
fn start_up_line_names_the_prefix() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let _ = Larder::builder().prefix("shop:cache").store(MemoryStore::new()).build();
        let _ = Larder::redis("redis://127.0.0.1:1").unwrap();
    });
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for line in [r#"prefix="shop:cache" store="memory""#, r#"prefix="redis:larder:cache" store="redis""#] {
        assert!(log.contains(line), "{log}");
    }
}
