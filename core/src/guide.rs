#![doc = include_str!("docs/guide.md")]

#[doc = include_str!("docs/concepts.md")]
pub mod concepts {}

#[doc = include_str!("docs/configuration.md")]
pub mod configuration {}

#[doc = include_str!("docs/keys.md")]
pub mod keys {}

#[doc = include_str!("docs/groups.md")]
pub mod groups {}

#[doc = include_str!("docs/tags.md")]
pub mod tags {}

#[doc = include_str!("docs/backend.md")]
pub mod backend {}

#[doc = include_str!("docs/safety.md")]
pub mod safety {}

#[doc = include_str!("docs/redis.md")]
pub mod redis {}

#[doc = include_str!("docs/local.md")]
pub mod local {}

#[doc = include_str!("docs/shared.md")]
pub mod shared {}

#[doc = include_str!("docs/conformance.md")]
pub mod conformance {}

#[doc = include_str!("docs/telemetry.md")]
pub mod telemetry {}

#[doc = include_str!("docs/testing.md")]
pub mod testing {}

#[doc = include_str!("docs/stores.md")]
pub mod stores {}

#[doc = include_str!("docs/adapters.md")]
pub mod adapters {}

#[doc = include_str!("docs/from_python.md")]
pub mod from_python {}

#[doc = include_str!("docs/from_tower.md")]
pub mod from_tower {}
