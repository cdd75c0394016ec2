#![doc = include_str!("docs/guide.md")]

#[doc = include_str!("docs/concepts.md")]
pub mod concepts {}

#[doc = include_str!("docs/keys.md")]
pub mod keys {}

#[doc = include_str!("docs/groups.md")]
pub mod groups {}

#[doc = include_str!("docs/safety.md")]
pub mod safety {}
