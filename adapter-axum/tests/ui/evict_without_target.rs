use axum::{Router, handler::Handler, routing::delete};
use larder_axum::{Larder, cache_evict};

async fn remove() {}

fn main() {
    let larder = Larder::memory();
    let _: Router = Router::new().route("/x", delete(remove.layer(cache_evict(&larder).group("g"))));
}
