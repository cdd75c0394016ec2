//! Encoding and decoding of an entry.

use divan::{Bencher, black_box};
use larder_benches::{LARGE, SMALL, body, entry};
use larder_core::Record;

const CASES: [(usize, usize); 4] = [(SMALL, 2), (SMALL, 50), (LARGE, 2), (LARGE, 50)];

#[divan::bench(args = CASES)]
fn encode(bencher: Bencher<'_, '_>, (len, fields): (usize, usize)) {
    let entry = entry(body(len), fields);
    bencher.bench_local(|| black_box(&entry).encode());
}

#[divan::bench(args = CASES)]
fn decode(bencher: Bencher<'_, '_>, (len, fields): (usize, usize)) {
    let bytes = entry(body(len), fields).encode();
    // The first clone of a `Bytes` made from a buffer allocates its counter, which a store has already done.
    drop(bytes.clone());
    bencher.bench_local(|| Record::decode(black_box(&bytes)));
}
