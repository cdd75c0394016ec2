//! The parts in isolation: nanoseconds and, with the feature `allocations`, allocations. Counting them takes time, which the
//! nanoseconds then include.

mod entry;
mod exchange;
mod key;
mod policy;
mod stores;

#[cfg(feature = "allocations")]
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    // The command line overrides this.
    divan::Divan::default().sample_count(500).config_with_args().main();
}
