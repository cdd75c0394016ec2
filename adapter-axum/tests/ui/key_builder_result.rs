use larder_axum::{Larder, cache};

fn main() {
    let _ = cache(&Larder::memory()).key_by(|request| request.uri.path().to_owned());
}
