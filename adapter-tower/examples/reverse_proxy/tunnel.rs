//! WebSockets: once both sides agreed to switch, their bytes go back and forth.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

/// Joins two connections until one of them ends. What breaks off is the business of those at its ends.
pub(crate) fn join(client: OnUpgrade, origin: OnUpgrade) {
    tokio::spawn(async move {
        if let (Ok(client), Ok(origin)) = tokio::join!(client, origin) {
            let _broken = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(origin)).await;
        }
    });
}
