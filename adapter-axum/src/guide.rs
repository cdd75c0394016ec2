#![doc = include_str!("docs/guide.md")]

#[doc = include_str!("docs/setup.md")]
pub mod setup {}

#[doc = include_str!("docs/routes.md")]
pub mod routes {}

#[doc = include_str!("docs/keys.md")]
pub mod keys {}

#[doc = include_str!("docs/groups.md")]
pub mod groups {}

#[doc = include_str!("docs/tags.md")]
pub mod tags {}

#[doc = include_str!("docs/headers.md")]
pub mod headers {}

#[doc = include_str!("docs/safety.md")]
pub mod safety {}

#[doc = include_str!("docs/layers.md")]
pub mod layers {}

#[doc = include_str!("docs/backend.md")]
pub mod backend {}

#[doc = include_str!("docs/combining.md")]
pub mod combining {}

#[doc = include_str!("docs/ttl.md")]
pub mod ttl {}

#[doc = include_str!("docs/telemetry.md")]
pub mod telemetry {}

#[doc = include_str!("docs/testing.md")]
pub mod testing {}

#[doc = include_str!("docs/features.md")]
pub mod features {}
