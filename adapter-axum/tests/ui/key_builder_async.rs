use larder_axum::{Larder, RequestView, cache};

fn main() {
    let _ = cache(&Larder::memory()).key_by_async(|request: &RequestView<'_>| Some(request.uri.path().to_owned()));
}
