//! Tests of whole keys: one key for one request, and none shared by two.

use std::collections::BTreeMap;

use http::Uri;
use proptest::prelude::*;

use super::read_back::{meaning, read_back};
use super::{DEFAULT_PREFIX, KeyError, KeySpace, MAX_SUFFIX, uri_suffix};

fn key(group: Option<&str>, uri: &str) -> String {
    let uri: Uri = uri.parse().unwrap();
    KeySpace::new(DEFAULT_PREFIX, group).unwrap().key_for(&uri).name().to_owned()
}

#[test]
fn the_documented_table() {
    for (group, uri, expected) in [
        (Some("products"), "/api/v1/items", "redis:larder:cache:{products}:api:v1:items"),
        (Some("products"), "/items?z=2&a=1", "redis:larder:cache:{products}:items:a=1:z=2"),
        (None, "/api/v1/items", "redis:larder:cache:api:v1:items"),
        (Some("products"), "/products/7", "redis:larder:cache:{products}:products:7"),
        (Some("products"), "/", "redis:larder:cache:{products}:"),
        (None, "http://example.com/items?a", "redis:larder:cache:items:a="),
        (None, "/items/a%40b?q=a+b&", "redis:larder:cache:items:a@b:q=a%20b"),
        (None, "/items/50%25/caf%c3%a9", "redis:larder:cache:items:50%2525:caf%C3%A9"),
    ] {
        assert_eq!(key(group, uri), expected);
    }
}

#[test]
fn look_alikes_have_keys_of_their_own() {
    let uris = [
        "/a/b",
        "/a:b",
        "/a%253Ab",
        "/a%2Fb",
        "/a%252Fb",
        "/a/b/",
        "//a/b",
        "/a//b",
        "/a|b",
        "/a%257Cb",
        "/",
        "//",
        "/?a",
        "/?=a",
        "/?a&b",
        "/?a=1&a=2",
        "/?a=2&a=1",
        "/?a=1=2",
        "/?a==2",
        "/?a=1&b=2",
        "/?a=1%26b=2",
        "/?a=1:b=2",
        "/?a+b",
        "/?a%2Bb",
        "/a+b",
        "/a%20b",
        "/a=1",
        "/:a=1",
        "/?a%3D=1",
        "/?a?=1",
        "/??a",
        "/?a%25",
        "/?ids[]=1&ids%5B%5D=2",
        "/?ids%5B%5D=2&ids[]=1",
        "/products?limit=2",
        "/products/limit=2",
        "/products:limit=2",
        "/products/?limit=2",
        "/products?limit",
        "/products/%3Flimit",
        "/products",
        "*",
        "/*",
        "example.com:443",
    ];
    let keys: BTreeMap<String, &str> = uris.iter().map(|uri| (key(None, uri), *uri)).collect();
    assert_eq!(keys.len(), uris.len(), "{keys:#?}");
}

#[test]
fn spellings_share_a_key() {
    for (one, other) in [
        ("/p/%37", "/p/7"),
        ("/%7Euser/%2d%5F%2E", "/~user/-_."),
        ("/a%2fb", "/a%2Fb"),
        ("/%c3%a9", "/%C3%A9"),
        ("/a%40b%3A%2C%24%21%27%28%29%2A%2B%3D%26%3B", "/a@b:,$!'()*+=&;"),
        ("/a|b^c", "/a%7Cb%5Ec"),
        ("/%", "/%25"),
        ("/%%33A", "/%253A"),
        ("/?%6Cimit=%32", "/?limit=2"),
        ("/?b=1&%61=2", "/?a=2&b=1"),
        ("/?%62=1&a=2", "/?a=2&b=1"),
        ("/?a+b", "/?a%20b"),
        ("/?a", "/?a="),
        ("/?a&", "/?a"),
        ("/?&&a=1&&b=2&", "/?a=1&b=2"),
        ("/a?", "/a"),
        ("/a?&", "/a"),
        ("/?a=1%3D2", "/?a=1=2"),
        ("/?a=%2f%3f%40%3A", "/?a=/?@:"),
        ("/?ids[]=1&ids%5B%5D=2", "/?ids%5b]=1&ids[%5D=2"),
    ] {
        assert_eq!(key(None, one), key(None, other), "{one}");
    }
    for (one, other) in [
        ("/%2541", "/%41"),
        ("/%%33A", "/%3A"),
        ("/%3%41", "/%3A"),
        ("/a%2Fb", "/a/b"),
        ("/?a%26b", "/?a&b"),
        ("/?a=%2B", "/?a=+"),
        ("/?a%3Db", "/?a=b"),
        ("/?a=%2541", "/?a=%41"),
    ] {
        assert_ne!(key(None, one), key(None, other), "{one}");
    }
}

#[test]
fn order_of_parameters_does_not_matter_but_order_of_values_does() {
    assert_eq!(key(None, "/x?b=2&a=1"), key(None, "/x?a=1&b=2"));
    assert_ne!(key(None, "/x?a=2&a=1"), key(None, "/x?a=1&a=2"));
}

#[test]
fn parts_of_a_key_come_back() {
    let space = KeySpace::new("custom:prefix", Some("v2")).unwrap();
    let key = space.key("a{b}|c");
    assert_eq!(key.name(), "custom:prefix:{v2}:a%7Bb%7D%7Cc");
    assert_eq!((key.prefix(), key.group(), key.suffix()), ("custom:prefix", Some("v2"), "a%7Bb%7D%7Cc"));
    assert_eq!(key.space(), space);
    assert_eq!(KeySpace::new("p", None).unwrap().key("x").group(), None);
}

#[test]
fn bad_parts_are_refused_with_their_name() {
    assert_eq!(KeySpace::new("", None), Err(KeyError::Empty { part: "prefix" }));
    assert_eq!(KeySpace::new("p", Some("")), Err(KeyError::Empty { part: "eviction group" }));
    for bad in ["a{", "a}b", "a b", "a\n", "a|b"] {
        assert!(matches!(KeySpace::new("p", Some(bad)), Err(KeyError::Character { .. })), "{bad:?}");
    }
    assert!(matches!(KeySpace::new("p-idx", None), Err(KeyError::Reserved { ending: "-idx", .. })));
}

#[test]
fn long_keys_are_capped_and_stay_apart() {
    let (a, b) =
        (key(None, &format!("/{}a", "x".repeat(3000))), key(None, &format!("/{}b", "x".repeat(3000))));
    assert_ne!(a, b);
    assert!(a.len() < DEFAULT_PREFIX.len() + 1 + MAX_SUFFIX, "{}", a.len());
    let wide = KeySpace::new("p", None).unwrap().key(&"é".repeat(1000));
    assert!(wide.name().contains("|hash="));
}

pub(super) fn target() -> impl Strategy<Value = Uri> {
    // A small alphabet of troublemakers makes collisions likely if they are possible at all.
    "/[ab/:=%|{}&@+2-7A-F]{0,10}(\\?[ab/:=%?|{}&+2-7A-F]{0,10})?"
        .prop_filter_map("not a URI", |text| text.parse::<Uri>().ok())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn keys_are_injective_but_for_spelling(a in target(), b in target()) {
        let space = KeySpace::new(DEFAULT_PREFIX, Some("g")).unwrap();
        prop_assert_eq!(space.key_for(&a) == space.key_for(&b), meaning(&a) == meaning(&b));
    }

    #[test]
    fn a_key_can_be_read_back(uri in target()) {
        let suffix = uri_suffix(&uri);
        prop_assert_eq!(read_back(&suffix), meaning(&uri));
    }

    #[test]
    fn chosen_suffixes_are_injective(a in "[ab%{}|2-7BCD:]{0,8}", b in "[ab%{}|2-7BCD:]{0,8}") {
        let space = KeySpace::new(DEFAULT_PREFIX, None).unwrap();
        prop_assert_eq!(space.key(&a) == space.key(&b), a == b);
    }
}
