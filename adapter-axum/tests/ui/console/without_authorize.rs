use larder_axum::{Larder, console};

fn main() {
    let _: axum::Router = console(&Larder::memory());
}
