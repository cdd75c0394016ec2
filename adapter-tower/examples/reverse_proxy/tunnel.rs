//! WebSockets: copies bytes in both directions once both sides have switched protocols.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

/// Joins two connections until one of them ends. Errors are ignored, because both ends notice them.
pub(crate) fn join(client: OnUpgrade, origin: OnUpgrade) {
    tokio::spawn(async move {
        if let (Ok(client), Ok(origin)) = tokio::join!(client, origin) {
            let _broken = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(origin)).await;
        }
    });
}
