//! A caching reverse proxy: a shared cache (RFC 9111) in front of one origin.
//!
//! `cargo run -p larder-tower --example reverse_proxy` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`) and forwards
//! requests to `ORIGIN` (by default `http://127.0.0.1:8000`). It caches in memory, unless the environment names a Redis.
//! Request and response bodies are streamed, and WebSockets are supported. `RFC9111_DEFAULTS=true` turns off two safety
//! rules that go beyond RFC 9111: responses that set a cookie are stored if they have an explicit lifetime, and a write that
//! ends with a server error evicts nothing. With `INVALID_AGE_IS_STALE=true`, a response whose `Age` isn't one number counts
//! as stale.
//!
//! It never sends a request twice. If a connection breaks after the request was written, the origin may have processed the request,
//! so the response is a 502 or a stale stored response. Interim (1xx) responses are dropped, because hyper's server can't forward
//! them. hyper answers `Expect: 100-continue` itself when the body is read.
//!
//! | module | task |
//! |---|---|
//! | `admission` | refuses or answers requests that must not reach the cache |
//! | `proxy` | forwards requests to the origin |
//! | `fields` | removes and adds header fields for the next hop |
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
    let is_set = |name| env::var(name).is_ok_and(|value| value == "true");
    let (rfc_defaults, invalid_age_is_stale) = (is_set("RFC9111_DEFAULTS"), is_set("INVALID_AGE_IS_STALE"));
    let service = serve::Service::new(&larder, proxy::Proxy::to(&origin)?, |rule| {
        if rfc_defaults {
            rule.set_cookie = SetCookie::IfExplicit;
            rule.evict_on_error = false;
        }
        rule.invalid_age_is_stale = invalid_age_is_stale;
    });
    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    announce(&listener)?;
    serve::serve(listener, service, stop_signal()).await;
    larder.close().await;
    Ok(())
}

/// Waits for ctrl-c or SIGTERM.
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
