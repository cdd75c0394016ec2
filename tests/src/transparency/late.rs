//! A proxy to Redis that delays invalidation messages.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// The delay of messages.
pub(super) const LATE: Duration = Duration::from_millis(15);

/// Starts a proxy to this port of the loopback interface, and returns its own port. Data that Redis sends on connections that
/// asked for tracking arrive [`LATE`].
pub(super) async fn proxy(to: u16) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            let tracks = Arc::new(AtomicBool::new(false));
            tokio::spawn(pump(from_client, to_server, Arc::clone(&tracks), true));
            tokio::spawn(pump(from_server, to_client, tracks, false));
        }
    });
    port
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, tracks: Arc<AtomicBool>, is_client: bool) {
    let (late, mut pending) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((due, bytes)) = pending.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let bytes = bytes[..count].to_vec();
        if is_client && bytes.windows(8).any(|window| window.eq_ignore_ascii_case(b"TRACKING")) {
            tracks.store(true, Ordering::SeqCst);
        }
        let is_late = !is_client && tracks.load(Ordering::SeqCst);
        let due = Instant::now() + if is_late { LATE } else { Duration::ZERO };
        if late.send((due, bytes)).is_err() {
            return;
        }
    }
}
