//! Building of a key.

use divan::{Bencher, black_box};
use larder_benches::{PATH, get};
use larder_core::{KeySpace, Kind, Principal, PrincipalSecret, RequestView, Rule};

fn rule() -> Rule {
    Rule::new(Kind::Read, KeySpace::new("redis:larder:cache", Some("products")).expect("a valid group"))
}

fn bench(bencher: Bencher<'_, '_>, uri: &str) {
    let (rule, request) = (rule(), get(uri));
    bencher.bench_local(|| rule.key(black_box(&RequestView::from(&request)), None));
}

#[divan::bench]
fn path(bencher: Bencher<'_, '_>) {
    bench(bencher, "/products/7");
}

#[divan::bench]
fn short_query(bencher: Bencher<'_, '_>) {
    bench(bencher, PATH);
}

#[divan::bench]
fn long_query(bencher: Bencher<'_, '_>) {
    let query: Vec<String> = (0..20).map(|i| format!("filter[{}]=value-{i}", (i * 7) % 20)).collect();
    bench(bencher, &format!("/products?{}", query.join("&")));
}

/// With the hash of the principal.
#[divan::bench]
fn private(bencher: Bencher<'_, '_>) {
    let (rule, request, secret) = (rule(), get(PATH), PrincipalSecret::new(b"secret"));
    bencher.bench_local(|| {
        let principal = Principal::new(&secret, black_box("alice"));
        rule.key(&RequestView::from(&request), Some(principal))
    });
}
