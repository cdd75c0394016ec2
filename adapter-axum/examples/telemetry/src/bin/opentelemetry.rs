//! A program that exports Larder's spans and statistics with OpenTelemetry.
//!
//! `cargo run -p larder-telemetry-examples --bin opentelemetry` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`)
//! and prints the exported data. To send it to a collector, use the exporters of the crate `opentelemetry-otlp` instead
//! of those of `opentelemetry-stdout`.

use std::env;
use std::error::Error;
use std::io::{self, Write as _};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::handler::Handler as _;
use axum::routing::get;
use larder_axum::larder_core::Kind;
use larder_axum::{Larder, Status, cache, cache_evict};
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let tracers = SdkTracerProvider::builder()
        .with_simple_exporter(opentelemetry_stdout::SpanExporter::default())
        .build();
    let spans = tracing_opentelemetry::layer().with_tracer(tracers.tracer("shop"));
    tracing_subscriber::registry().with(spans).init();

    // Entries are in memory, unless the environment names a Redis.
    let larder = Larder::from_env()?;
    let meters = meters(&larder);

    let app = Router::new().route(
        "/products/{id}",
        get(product.layer(cache(&larder).group("products").ttl(60)))
            .delete(product.layer(cache_evict(&larder).group("products").key())),
    );
    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
    axum::serve(listener, app).await?;
    meters.shutdown()?;
    Ok(tracers.shutdown()?)
}

/// Registers metrics that read [`Larder::stats`] on each collection.
fn meters(larder: &Larder) -> SdkMeterProvider {
    let exporter = opentelemetry_stdout::MetricExporter::default();
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(1)).build();
    let meters = SdkMeterProvider::builder().with_reader(reader).build();
    let larder = larder.clone();
    meters
        .meter("larder")
        .u64_observable_counter("larder.requests")
        .with_description("Requests to cached routes, by how they were answered")
        .with_callback(move |counter| {
            for route in larder.stats().routes.into_iter().filter(|route| route.kind == Kind::Read) {
                for status in Status::ALL {
                    let labels = [
                        KeyValue::new("route", route.route.clone()),
                        KeyValue::new("group", route.group.clone().unwrap_or_default()),
                        KeyValue::new("status", status.as_str()),
                    ];
                    counter.observe(route.requests.of(status), &labels);
                }
            }
        })
        .build();
    meters
}

async fn product(Path(id): Path<u64>) -> String {
    tracing::info_span!("handler").in_scope(|| format!("product {id}"))
}
