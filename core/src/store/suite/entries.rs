//! Rules of single entries: values, keys, TTLs and `delete`.

use std::time::Duration;

use bytes::Bytes;

use super::{AFTER_SHORT, LONG, SHORT, Subject};
use crate::store::CacheStore;

/// `get` returns the value that `set` wrote, in a group and outside, and `None` for a key that was never written.
pub async fn written_value_is_read<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("greeting");
        subject.holds_nothing(&key, "never written").await;
        subject.set(&key, "hello").await;
        subject.holds(&key, "hello", "just written").await;
        subject.holds_nothing(&space.key("other"), "never written").await;
    }
    subject.clean_up().await;
}

/// A value may be empty, contain zeros and line ends, and need not be UTF-8.
pub async fn any_bytes_are_a_value<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("bytes");
    let all: Vec<u8> = (0..=255).collect();
    for value in
        [Bytes::new(), Bytes::from_static(b"\0"), Bytes::from_static(b"a\r\n$-1\r\n\0\xff"), Bytes::from(all)]
    {
        subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
        assert_eq!(subject.get(&key).await, Some(value), "not the bytes that were written");
        assert!(subject.store.has(&key).await.unwrap(), "`has` must find an empty value, too");
    }
    assert!(subject.store.delete(&key).await.unwrap());
    subject.clean_up().await;
}

/// A value of a megabyte is returned whole.
pub async fn large_value_is_read<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("large");
    let value: Bytes = (0..1_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
    assert!(subject.get(&key).await == Some(value), "a value of 1 MB was changed");
    subject.clean_up().await;
}

/// `get_head` returns the beginning and the length of the value that `get` returns, and `None` where `get` does.
pub async fn head_is_the_beginning_of_the_value<S: CacheStore>(subject: &Subject<S>) {
    const LIMIT: usize = 100;
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("head");
        let head = async || subject.store.get_head(&key, LIMIT).await.unwrap();
        assert_eq!(head().await, None, "never written");
        for length in [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 10_000] {
            let value: Bytes = (0..length).map(|at| at.to_le_bytes()[0]).collect();
            subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
            let Some(found) = head().await else { panic!("no head of a value of {length} bytes") };
            assert_eq!(found.length, length, "the length of the whole value");
            assert!(found.bytes.len() >= length.min(LIMIT), "less than the limit of {length} bytes");
            assert!(value.starts_with(&found.bytes), "not the beginning of {length} bytes");
        }
        subject.store.delete(&key).await.unwrap();
        assert_eq!(head().await, None, "deleted");
        subject.set(&key, "again").await;
        subject.store.delete_group(&space).await.unwrap();
        assert_eq!(head().await, None, "its group was deleted");
    }
    subject.clean_up().await;
}

/// `get_range` returns bytes of the value that begins with `head`, and `None` if there is another value or none.
pub async fn range_belongs_to_the_value_with_the_given_head<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("range");
        let (old, new) = (Bytes::from_static(b"old: 0123456789"), Bytes::from_static(b"new: 0123456789"));
        let cut = async |head: &'static [u8], range| {
            subject.store.get_range(&key, &Bytes::from_static(head), range).await.unwrap()
        };
        assert_eq!(cut(b"old", 5..8).await, None, "never written");
        subject.store.set(&key, old.clone(), Some(LONG)).await.unwrap();
        for (range, expected) in [
            (0..3, Some("old")),
            (5..8, Some("012")),
            (14..15, Some("9")),
            (0..15, Some("old: 0123456789")),
            (5..5, Some("")),
            (0..0, Some("")),
            (14..16, None),
            (20..21, None),
        ] {
            let found = cut(b"old", range.clone()).await;
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{range:?}");
        }
        assert_eq!(
            cut(b"", 5..8).await.as_deref(),
            Some(&b"012"[..]),
            "every value begins with an empty head"
        );
        subject.store.set(&key, new, Some(LONG)).await.unwrap();
        assert_eq!(cut(b"old", 5..8).await, None, "the value begins with other bytes");
        assert_eq!(cut(b"new", 5..8).await.as_deref(), Some(&b"012"[..]));
        subject.store.delete(&key).await.unwrap();
        assert_eq!(cut(b"", 5..8).await, None, "deleted");
        subject.store.set(&key, old, Some(LONG)).await.unwrap();
        subject.store.delete_group(&space).await.unwrap();
        assert_eq!(cut(b"old", 5..8).await, None, "its group was deleted");
    }
    subject.clean_up().await;
}

/// A key may contain any character, and have any length.
pub async fn any_characters_are_a_key<S: CacheStore>(subject: &Subject<S>) {
    let long = "long/".repeat(1000);
    let longer = format!("{long}er");
    let suffixes = [
        "",
        " ",
        "a b",
        "a\r\nb",
        "\0",
        "*",
        "?[a-z]",
        "{x}",
        "%",
        "\\",
        "'\"",
        "a:b",
        "|",
        "grüße:世界:🦀",
        &long,
        &longer,
    ];
    for space in [subject.ungrouped(), subject.group("g"), subject.group("größe")] {
        for suffix in suffixes {
            let key = space.key(suffix);
            subject.store.set(&key, Bytes::from(suffix.to_owned()), Some(LONG)).await.unwrap();
        }
        for suffix in suffixes {
            subject.holds(&space.key(suffix), suffix, "written under an unusual key").await;
        }
        for suffix in suffixes {
            assert!(
                subject.store.delete(&space.key(suffix)).await.unwrap(),
                "{suffix:?} could not be deleted"
            );
            subject.holds_nothing(&space.key(suffix), "deleted").await;
        }
    }
    subject.clean_up().await;
}

/// The same suffix in another group, without a group or under another prefix is another key.
pub async fn similar_keys_are_distinct<S: CacheStore>(subject: &Subject<S>) {
    let spaces = [
        (subject.ungrouped(), "ungrouped"),
        (subject.group("a"), "group a"),
        (subject.group("ab"), "group ab"),
        (subject.group("A"), "group A"),
        (subject.elsewhere(None), "elsewhere"),
        (subject.elsewhere(Some("a")), "elsewhere, group a"),
    ];
    for (space, value) in &spaces {
        subject.set(&space.key("same"), value).await;
    }
    for (space, value) in &spaces {
        subject.holds(&space.key("same"), value, "others have the same suffix").await;
        for near in ["sam", "same:", "same:7", "Same"] {
            subject.holds_nothing(&space.key(near), "only a similar key was written").await;
        }
    }
    subject.clean_up().await;
}

/// `set` replaces the value, longer or shorter.
pub async fn set_replaces_the_value<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    for value in ["first", "second, which is longer", ""] {
        subject.set(&key, value).await;
        subject.holds(&key, value, "the latest `set`").await;
    }
    assert_eq!(subject.store.delete_group(&key.space()).await.unwrap(), 1, "three writes are one entry");
    subject.clean_up().await;
}

/// The TTL is that of the latest write, not of the one before.
pub async fn set_replaces_the_ttl<S: CacheStore>(subject: &Subject<S>) {
    let (longer, endless, shorter) = (
        subject.group("g").key("longer"),
        subject.ungrouped().key("endless"),
        subject.group("g").key("shorter"),
    );
    let value = Bytes::from_static(b"v");
    for (key, first, second) in
        [(&longer, Some(SHORT), Some(LONG)), (&endless, Some(SHORT), None), (&shorter, None, Some(SHORT))]
    {
        subject.store.set(key, value.clone(), first).await.unwrap();
        subject.store.set(key, value.clone(), second).await.unwrap();
    }
    subject.advance(AFTER_SHORT).await;
    subject.holds(&longer, "v", "the second write had a longer TTL").await;
    subject.holds(&endless, "v", "the second write had no TTL").await;
    subject.holds_nothing(&shorter, "the second write had a shorter TTL").await;
    subject.clean_up().await;
}

/// An entry is valid within its TTL, and absent after it.
pub async fn entry_expires_after_its_ttl<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let (brief, lasting) = (space.key("brief"), space.key("lasting"));
        subject.store.set(&brief, Bytes::from_static(b"v"), Some(SHORT)).await.unwrap();
        subject.store.set(&lasting, Bytes::from_static(b"v"), Some(LONG)).await.unwrap();
        subject.holds(&lasting, "v", "its TTL is not over").await;
        subject.advance(AFTER_SHORT).await;
        subject.holds_nothing(&brief, "its TTL is over").await;
        subject.holds(&lasting, "v", "its TTL is not over").await;
    }
    subject.clean_up().await;
}

/// An entry without a TTL doesn't expire.
pub async fn entry_without_a_ttl_does_not_expire<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let (key, brief) = (space.key("k"), space.key("brief"));
        subject.store.set(&key, Bytes::from_static(b"v"), None).await.unwrap();
        // Another entry of the group that expires must not affect it.
        subject.store.set(&brief, Bytes::from_static(b"v"), Some(SHORT)).await.unwrap();
        subject.advance(AFTER_SHORT).await;
        subject.holds(&key, "v", "it has no TTL").await;
    }
    subject.clean_up().await;
}

/// A write with a TTL of zero removes the entry.
pub async fn zero_ttl_removes_the_entry<S: CacheStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.store.set(&key, Bytes::from_static(b"v"), Some(Duration::ZERO)).await.unwrap();
        subject.holds_nothing(&key, "it was written with a TTL of zero").await;
        subject.set(&key, "old").await;
        subject.store.set(&key, Bytes::from_static(b"v"), Some(Duration::ZERO)).await.unwrap();
        subject.holds_nothing(&key, "it was overwritten with a TTL of zero").await;
        assert!(!subject.store.delete(&key).await.unwrap(), "there was no entry");
    }
    subject.clean_up().await;
}

/// A TTL that exceeds the store's range is accepted.
pub async fn very_long_ttl_is_accepted<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    for ttl in [Duration::from_secs(400 * 24 * 3600), Duration::from_secs(100 * 365 * 24 * 3600)] {
        subject.store.set(&key, Bytes::from_static(b"v"), Some(ttl)).await.unwrap();
        subject.holds(&key, "v", "its TTL is not over").await;
    }
    subject.clean_up().await;
}

/// `delete` returns `true` if there was a valid entry, and `false` otherwise.
pub async fn delete_returns_whether_a_valid_entry_was_there<S: CacheStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        assert!(!subject.store.delete(&key).await.unwrap(), "the key was never written");
        subject.set(&key, "v").await;
        assert!(subject.store.delete(&key).await.unwrap(), "a valid entry was there");
        subject.holds_nothing(&key, "deleted").await;
        assert!(!subject.store.delete(&key).await.unwrap(), "it was deleted before");
        subject.set(&key, "again").await;
        subject.holds(&key, "again", "written again after a delete").await;
    }
    subject.clean_up().await;
}

/// `delete` of an expired entry returns `false`.
pub async fn delete_of_an_expired_entry_returns_false<S: CacheStore>(subject: &Subject<S>) {
    let keys = [subject.ungrouped().key("k"), subject.group("g").key("k")];
    for key in &keys {
        subject.store.set(key, Bytes::from_static(b"v"), Some(SHORT)).await.unwrap();
    }
    subject.advance(AFTER_SHORT).await;
    for key in &keys {
        assert!(!subject.store.delete(key).await.unwrap(), "{key} had expired");
    }
    subject.clean_up().await;
}

/// `delete` removes one entry and no other.
pub async fn delete_keeps_other_keys<S: CacheStore>(subject: &Subject<S>) {
    let neighbours = [
        subject.group("g").key("products:70"),
        subject.group("g").key("products:7:reviews"),
        subject.group("g").key("products"),
        subject.group("h").key("products:7"),
        subject.ungrouped().key("products:7"),
        subject.elsewhere(Some("g")).key("products:7"),
    ];
    for key in &neighbours {
        subject.set(key, "v").await;
    }
    let key = subject.group("g").key("products:7");
    subject.set(&key, "v").await;
    assert!(subject.store.delete(&key).await.unwrap());
    for key in &neighbours {
        subject.holds(key, "v", "only products:7 of group g was deleted").await;
    }
    subject.clean_up().await;
}
