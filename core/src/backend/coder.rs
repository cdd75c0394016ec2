//! Coders: conversion of a backend's values to bytes and back.

mod faithful;

use std::error::Error;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::faithful::{Format, MAX_DEPTH};

/// Turns values into bytes and back.
///
/// ```
/// use larder_core::{Coder, CoderError};
/// use serde::{Serialize, de::DeserializeOwned};
///
/// /// JSON that people can read in the store.
/// #[derive(Clone, Copy, Debug)]
/// struct PrettyJson;
///
/// impl Coder for PrettyJson {
///     fn id(&self) -> u8 {
///         128
///     }
///     fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CoderError> {
///         serde_json::to_vec_pretty(value).map_err(CoderError::new)
///     }
///     fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CoderError> {
///         serde_json::from_slice(bytes).map_err(CoderError::new)
///     }
/// }
/// ```
pub trait Coder: Clone + Send + Sync + 'static {
    /// Returns the id that marks values of this coder, so that no other coder reads them. Custom coders use 128 and above.
    fn id(&self) -> u8;

    /// Encodes a value.
    ///
    /// # Errors
    ///
    /// Returns an error if the value can't be encoded, or would be decoded as a different value. [`Json`] and
    /// [`MessagePack`] check for the latter.
    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CoderError>;

    /// Decodes a value.
    ///
    /// # Errors
    ///
    /// Returns an error if the bytes aren't such a value.
    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CoderError>;
}

/// The JSON coder. Its values are readable in the store. The default.
///
/// Numbers are restored to the last bit. A value that JSON would change is an error: a number that isn't finite, `Some` of
/// a value that is written as `null`, a map key that isn't a string or a number, or nesting deeper than 128 levels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Coder for Json {
    fn id(&self) -> u8 {
        1
    }

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CoderError> {
        faithful::check(value, Format::Json).map_err(CoderError::new)?;
        serde_json::to_vec(value).map_err(CoderError::new)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CoderError> {
        serde_json::from_slice(bytes).map_err(CoderError::new)
    }
}

/// The MessagePack coder. It writes field names, so values are as tolerant of added fields as JSON, but smaller and faster.
///
/// Numbers that aren't finite and map keys of any type are restored too. `Some` of a value that is written as `nil`, and
/// nesting deeper than 128 levels, are errors.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessagePack;

impl Coder for MessagePack {
    fn id(&self) -> u8 {
        2
    }

    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CoderError> {
        faithful::check(value, Format::MessagePack).map_err(CoderError::new)?;
        rmp_serde::to_vec_named(value).map_err(CoderError::new)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CoderError> {
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
        deserializer.set_max_depth(MAX_DEPTH);
        T::deserialize(&mut deserializer).map_err(CoderError::new)
    }
}

/// An error while a value is encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[error("the value can't be coded: {0}")]
pub struct CoderError(#[source] Box<dyn Error + Send + Sync>);

impl CoderError {
    /// Wraps a format's own error.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}
