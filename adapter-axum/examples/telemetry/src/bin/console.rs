//! A small shop with a console.
//!
//! `cargo run -p larder-telemetry-examples --bin console` listens on `LISTEN_ADDR` (by default `127.0.0.1:3000`). Open
//! `/login` there, which stands for a real login page, and then `/admin/cache`.

use std::env;
use std::error::Error;
use std::io::{self, Write as _};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::handler::Handler as _;
use axum::http::header::{AUTHORIZATION, COOKIE, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use larder_axum::{Larder, RequestView, cache, cache_evict, cache_put, console};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    // Entries are in memory, unless the environment names a Redis.
    let larder = Larder::from_env()?;
    let app = Router::new()
        .route(
            "/products/{id}",
            get(product.layer(cache(&larder).group("products").ttl(60).public()))
                .put(product.layer(cache_put(&larder).group("products").ttl(60).public()))
                .delete(product.layer(cache_evict(&larder).group("products").key())),
        )
        .route("/news", get(news.layer(cache(&larder).group("news").ttl(2).stale_while_revalidate(MINUTE))))
        .route("/me", get(me.layer(cache(&larder).ttl(60).private())))
        .route("/basket", get(basket.layer(cache(&larder).ttl(60))))
        .route("/broken", get(broken.layer(cache(&larder).ttl(60))))
        .route("/login", get(log_in))
        .nest("/admin/cache", console(&larder, is_staff));

    let address = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    writeln!(io::stdout(), "listening on http://{}", listener.local_addr()?)?;
    Ok(axum::serve(listener, app).await?)
}

const MINUTE: Duration = Duration::from_secs(60);

/// Returns `true` if the request may see the console and evict. A real application would check its session here.
fn is_staff(request: &RequestView<'_>) -> bool {
    let cookies = request.headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    cookies.flat_map(|cookies| cookies.split("; ")).any(|cookie| cookie == "staff=yes")
}

async fn log_in() -> impl IntoResponse {
    (
        StatusCode::SEE_OTHER,
        [(SET_COOKIE, "staff=yes; HttpOnly; SameSite=Strict; Path=/admin"), (LOCATION, "/admin/cache")],
    )
}

async fn product(Path(id): Path<u64>) -> String {
    tokio::time::sleep(Duration::from_millis(15)).await;
    format!("product {id}")
}

async fn news() -> &'static str {
    tokio::time::sleep(Duration::from_millis(40)).await;
    "news"
}

async fn me(headers: HeaderMap) -> String {
    format!("{:?}", headers.get(AUTHORIZATION))
}

async fn basket() -> impl IntoResponse {
    ([(SET_COOKIE, "basket=1")], "a basket")
}

async fn broken() -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}
