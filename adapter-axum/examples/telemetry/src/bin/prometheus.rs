//! A program that exports Larder's metrics to Prometheus.
//!
//! `cargo run -p larder-telemetry-examples --bin prometheus` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`).
//! Request `/products/7` a few times, and then `/metrics`.

use std::env;
use std::error::Error;
use std::io::{self, Write as _};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::handler::Handler as _;
use axum::routing::get;
use larder_axum::{Larder, cache, cache_evict};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;

/// Upper bounds of the histogram buckets of durations, in seconds.
const SECONDS: [f64; 9] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 1.0, 10.0];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Installed before the first request, because earlier counts would be lost.
    let recorder = PrometheusBuilder::new().set_buckets(&SECONDS)?.install_recorder()?;

    // Entries are in memory, unless the environment names a Redis.
    let larder = Larder::from_env()?;
    let app = Router::new()
        .route(
            "/products/{id}",
            get(product.layer(cache(&larder).group("products").ttl(60)))
                .delete(product.layer(cache_evict(&larder).group("products").key())),
        )
        .route("/metrics", get(move || async move { recorder.render() }));

    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
    Ok(axum::serve(listener, app).await?)
}

async fn product(Path(id): Path<u64>) -> String {
    tokio::time::sleep(Duration::from_millis(20)).await;
    format!("product {id}")
}
