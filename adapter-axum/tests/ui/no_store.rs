use larder_axum::Larder;

fn main() {
    let _ = Larder::new("redis://localhost");
}
