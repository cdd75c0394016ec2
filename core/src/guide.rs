#![doc = include_str!("docs/guide.md")]

#[doc = include_str!("docs/concepts.md")]
pub mod concepts {}
