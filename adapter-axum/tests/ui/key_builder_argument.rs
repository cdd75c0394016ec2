use axum::http::Uri;
use larder_axum::{Larder, cache};

fn main() {
    let _ = cache(&Larder::memory()).key_by(|uri: &Uri| Some(uri.path().to_owned()));
}
