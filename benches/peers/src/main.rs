//! Compares Larder with other response caches. `benches/peers/run` builds and runs this program; see benches/README.md.

mod app;
mod client;
mod compare;
mod contender;
mod growth;
mod plot;
mod process;
mod report;
mod safety;

use contender::Contender;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let quick = args.iter().any(|arg| arg == "--quick");
    let runtime = larder_benches::runtime();
    match args.first().map(String::as_str) {
        Some("serve") => {
            let contender = Contender::from_id(&args[1]).expect("a contender");
            let redis = args.get(3).map_or("", String::as_str);
            runtime.block_on(process::serve(contender, args[2].parse().expect("an address"), redis));
        }
        Some("safety") => report::safety(&runtime.block_on(safety::matrix()), quick),
        Some("compare") => compare::run(quick),
        Some("growth") => growth::run(quick),
        _ => {
            eprintln!("larder-peers: safety, compare or growth, and --quick to try it out");
            std::process::exit(2);
        }
    }
}
