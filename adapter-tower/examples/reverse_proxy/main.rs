//! A caching reverse proxy: a shared cache (RFC 9111) in front of one origin.
//!
//! `cargo run -p larder-tower --example reverse_proxy` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`) and asks
//! `ORIGIN` (by default `http://127.0.0.1:8000`). It caches in memory, unless the environment names a Redis. Bodies stream both
//! ways, and WebSockets pass. `RFC9111_DEFAULTS=true` gives up what Larder does for safety beyond RFC 9111: answers that set a cookie
//! are stored if they say how long they are fresh, and a write that ends in a server error evicts nothing.
//!
//! It never sends a request twice: when a connection breaks after the request was written, the origin may or may not have
//! acted on it, so that the answer is 502, or a stale one that is stored. Interim (1xx) responses end here, for hyper's server
//! can't send them on; `Expect: 100-continue` it answers itself, as soon as the body is asked for.
//!
//! | module | |
//! |---|---|
//! | `admission` | refuses or answers what must not get as far as the cache |
//! | `proxy` | sends what the cache doesn't answer to the origin |
//! | `fields` | which header fields go on to the next hop |
//! | `tunnel` | WebSockets |
//! | `serve` | connections of clients |

mod admission;
mod fields;
mod proxy;
mod serve;
mod tunnel;

use std::env;
use std::error::Error;

use larder_tower::Larder;
use larder_tower::larder_core::shared::SetCookie;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let larder = Larder::from_env()?;
    let origin = env::var("ORIGIN").unwrap_or_else(|_| "http://127.0.0.1:8000".to_owned());
    let by_the_letter = env::var("RFC9111_DEFAULTS").is_ok_and(|value| value == "true");
    let service = serve::Service::new(&larder, proxy::Proxy::to(&origin)?, |rule| {
        if by_the_letter {
            rule.set_cookie = SetCookie::IfExplicit;
            rule.evict_on_error = false;
        }
    });
    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    announce(&listener)?;
    serve::serve(listener, service, stop_signal()).await;
    larder.close().await;
    Ok(())
}

/// Until a signal asks the proxy to stop: Ctrl-C, or what service managers send.
async fn stop_signal() {
    let terminated = async {
        #[cfg(unix)]
        if let Ok(mut signals) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            signals.recv().await;
            return;
        }
        std::future::pending().await
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

#[expect(clippy::print_stdout, reason = "the one line that callers wait for")]
fn announce(listener: &TcpListener) -> Result<(), Box<dyn Error>> {
    println!("listening on http://{}", listener.local_addr()?);
    Ok(())
}
