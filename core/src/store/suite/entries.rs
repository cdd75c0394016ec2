//! Single entries: values, keys, times to live and `delete`.

use std::time::Duration;

use bytes::Bytes;

use super::{AFTER_SHORT, LONG, SHORT, Subject};
use crate::store::CacheStore;

/// `get` answers what `set` wrote, in a group and outside, and nothing for a key never written.
pub async fn a_value_comes_back<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let key = space.key("greeting");
        subject.holds_nothing(&key, "never written").await;
        subject.set(&key, "hello").await;
        subject.holds(&key, "hello", "just written").await;
        subject.holds_nothing(&space.key("other"), "never written").await;
    }
    subject.clean_up().await;
}

/// Values are bytes: empty, with zeros and line ends, not UTF-8.
pub async fn any_bytes_are_a_value<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("bytes");
    let all: Vec<u8> = (0..=255).collect();
    for value in
        [Bytes::new(), Bytes::from_static(b"\0"), Bytes::from_static(b"a\r\n$-1\r\n\0\xff"), Bytes::from(all)]
    {
        subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
        assert_eq!(subject.get(&key).await, Some(value), "not the bytes that were written");
        assert!(subject.store.has(&key).await.unwrap(), "`has` must count an empty value, too");
    }
    assert!(subject.store.delete(&key).await.unwrap());
    subject.clean_up().await;
}

/// A value of a megabyte comes back whole.
pub async fn a_large_value_comes_back<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("large");
    let value: Bytes = (0..1_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    subject.store.set(&key, value.clone(), Some(LONG)).await.unwrap();
    assert!(subject.get(&key).await == Some(value), "a value of 1 MB did not come back as it was");
    subject.clean_up().await;
}

/// `get_head` answers the beginning and the length of what `get` answers, and nothing where that answers nothing.
pub async fn the_head_of_a_value_is_its_beginning<S: CacheStore>(subject: &Subject<S>) {
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

/// `get_range` answers bytes of the value that begins as asked, and nothing once there is another or none.
pub async fn a_range_is_of_the_value_that_begins_so<S: CacheStore>(subject: &Subject<S>) {
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
        assert_eq!(cut(b"", 5..8).await.as_deref(), Some(&b"012"[..]), "every value begins with nothing");
        subject.store.set(&key, new, Some(LONG)).await.unwrap();
        assert_eq!(cut(b"old", 5..8).await, None, "a value that begins otherwise");
        assert_eq!(cut(b"new", 5..8).await.as_deref(), Some(&b"012"[..]));
        subject.store.delete(&key).await.unwrap();
        assert_eq!(cut(b"", 5..8).await, None, "deleted");
        subject.store.set(&key, old, Some(LONG)).await.unwrap();
        subject.store.delete_group(&space).await.unwrap();
        assert_eq!(cut(b"old", 5..8).await, None, "its group was deleted");
    }
    subject.clean_up().await;
}

/// Keys hold any character, and may be as long as they get.
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

/// The same suffix in another group, in no group or under another prefix is another key.
pub async fn look_alike_keys_are_apart<S: CacheStore>(subject: &Subject<S>) {
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

/// `set` writes whatever was there.
pub async fn set_replaces<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    for value in ["first", "second, which is longer", ""] {
        subject.set(&key, value).await;
        subject.holds(&key, value, "the latest `set`").await;
    }
    assert_eq!(subject.store.delete_group(&key.space()).await.unwrap(), 1, "three writes are one entry");
    subject.clean_up().await;
}

/// The time to live is that of the latest write, not of the one before.
pub async fn set_replaces_the_time_to_live<S: CacheStore>(subject: &Subject<S>) {
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
    subject.holds(&longer, "v", "the second write gave it a longer life").await;
    subject.holds(&endless, "v", "the second write gave it an endless life").await;
    subject.holds_nothing(&shorter, "the second write gave it a shorter life").await;
    subject.clean_up().await;
}

/// An entry is there within its time to live and gone after it.
pub async fn a_time_to_live_ends<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let (brief, lasting) = (space.key("brief"), space.key("lasting"));
        subject.store.set(&brief, Bytes::from_static(b"v"), Some(SHORT)).await.unwrap();
        subject.store.set(&lasting, Bytes::from_static(b"v"), Some(LONG)).await.unwrap();
        subject.holds(&lasting, "v", "its time is not over").await;
        subject.advance(AFTER_SHORT).await;
        subject.holds_nothing(&brief, "its time to live is over").await;
        subject.holds(&lasting, "v", "its time is not over").await;
    }
    subject.clean_up().await;
}

/// Without a time to live an entry stays.
pub async fn no_time_to_live_is_no_end<S: CacheStore>(subject: &Subject<S>) {
    for space in [subject.ungrouped(), subject.group("g")] {
        let (key, brief) = (space.key("k"), space.key("brief"));
        subject.store.set(&key, Bytes::from_static(b"v"), None).await.unwrap();
        // What comes and goes in the same group must not take it along.
        subject.store.set(&brief, Bytes::from_static(b"v"), Some(SHORT)).await.unwrap();
        subject.advance(AFTER_SHORT).await;
        subject.holds(&key, "v", "it has no time to live").await;
    }
    subject.clean_up().await;
}

/// A write that is already over removes the entry.
pub async fn a_time_to_live_of_zero_removes<S: CacheStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        subject.store.set(&key, Bytes::from_static(b"v"), Some(Duration::ZERO)).await.unwrap();
        subject.holds_nothing(&key, "it was written with no time to live").await;
        subject.set(&key, "old").await;
        subject.store.set(&key, Bytes::from_static(b"v"), Some(Duration::ZERO)).await.unwrap();
        subject.holds_nothing(&key, "it was overwritten with no time to live").await;
        assert!(!subject.store.delete(&key).await.unwrap(), "there was nothing to delete");
    }
    subject.clean_up().await;
}

/// A time to live that is too long for the store's calendar is as good as none.
pub async fn a_very_long_time_to_live_is_accepted<S: CacheStore>(subject: &Subject<S>) {
    let key = subject.group("g").key("k");
    for ttl in [Duration::from_secs(400 * 24 * 3600), Duration::from_secs(100 * 365 * 24 * 3600)] {
        subject.store.set(&key, Bytes::from_static(b"v"), Some(ttl)).await.unwrap();
        subject.holds(&key, "v", "its time is far off").await;
    }
    subject.clean_up().await;
}

/// `delete` is true once, and false when nothing was there.
pub async fn delete_tells_whether_something_was_there<S: CacheStore>(subject: &Subject<S>) {
    for key in [subject.ungrouped().key("k"), subject.group("g").key("k")] {
        assert!(!subject.store.delete(&key).await.unwrap(), "nothing was written yet");
        subject.set(&key, "v").await;
        assert!(subject.store.delete(&key).await.unwrap(), "a valid entry was there");
        subject.holds_nothing(&key, "deleted").await;
        assert!(!subject.store.delete(&key).await.unwrap(), "it was deleted before");
        subject.set(&key, "again").await;
        subject.holds(&key, "again", "written again after a delete").await;
    }
    subject.clean_up().await;
}

/// `delete` of what expired is false.
pub async fn delete_does_not_count_what_expired<S: CacheStore>(subject: &Subject<S>) {
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

/// `delete` removes one entry.
pub async fn delete_leaves_the_neighbours<S: CacheStore>(subject: &Subject<S>) {
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
