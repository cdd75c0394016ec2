//! The parts in isolation: nanoseconds and, with the feature `allocations`, allocations. Counting them takes time, which
//! is then in the nanoseconds.

mod entry;
mod exchange;
mod key;
mod policy;
mod stores;

#[cfg(feature = "allocations")]
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    // Whatever the command line says counts for more.
    divan::Divan::default().sample_count(500).config_with_args().main();
}
