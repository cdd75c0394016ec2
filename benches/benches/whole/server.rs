//! A server on its own thread, whose processor time can be read.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

/// A server that runs until the process ends.
pub(crate) struct Server {
    address: SocketAddr,
    /// The file in which Linux reports the thread's processor time.
    schedstat: Option<PathBuf>,
}

impl Server {
    pub(crate) fn start(app: Router) -> Self {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            larder_benches::runtime().block_on(async move {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
                let address = listener.local_addr().expect("its address");
                let thread = fs::read_link("/proc/thread-self").ok();
                let schedstat = thread.map(|thread| PathBuf::from("/proc").join(thread).join("schedstat"));
                sender.send(Self { address, schedstat }).expect("a waiting receiver");
                let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a socket"));
                axum::serve(listener, app).await.expect("a server that runs");
            });
        });
        receiver.recv().expect("a server that starts")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the processor time of its thread, or zero if it can't be read.
    pub(crate) fn cpu(&self) -> Duration {
        let read = |path: &PathBuf| fs::read_to_string(path).ok()?.split(' ').next()?.parse().ok();
        Duration::from_nanos(self.schedstat.as_ref().and_then(read).unwrap_or_default())
    }
}
