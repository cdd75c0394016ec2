//! A cached route on plain hyper, without a framework.
//!
//! `cargo run -p larder-tower --example hyper` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`). Request `/time` twice:
//! the second response is the stored one, with `X-Redis-Cache: HIT`.

use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use larder_tower::{Larder, cache};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Entries are in memory, unless the environment names a Redis.
    let larder = Larder::from_env()?;
    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    announce(&listener)?;

    // The layer is applied once, not for each connection, so that a warning about the route is logged once.
    let service =
        ServiceBuilder::new().layer(cache(&larder).group("time").ttl(10).public()).service_fn(route);
    loop {
        let (stream, _) = listener.accept().await?;
        let service = TowerToHyperService::new(service.clone());
        // Errors of a connection concern only its client.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn route(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/time") => Response::new(Full::from(now())),
        _ => {
            let mut answer = Response::new(Full::from("ask for /time\n"));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        }
    };
    Ok(answer)
}

#[expect(clippy::disallowed_methods, reason = "to show what time it was when the handler ran")]
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} seconds since 1970\n", since.as_secs())
}

#[expect(clippy::print_stdout, reason = "the one line that callers wait for")]
fn announce(listener: &TcpListener) -> Result<(), Box<dyn Error>> {
    println!("listening on http://{}", listener.local_addr()?);
    Ok(())
}
