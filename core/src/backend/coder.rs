//! How a backend's values become bytes.

mod faithful;

use std::error::Error;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::faithful::Format;

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
    /// Marks the bytes, so that one coder never reads another's. Coders of your own use 128 and above.
    fn id(&self) -> u8;

    /// The bytes of a value.
    ///
    /// # Errors
    ///
    /// When the value has no such bytes, or would be read back as another one. [`Json`] and [`MessagePack`] refuse that.
    fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, CoderError>;

    /// The value of bytes.
    ///
    /// # Errors
    ///
    /// When they are no such value.
    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, CoderError>;
}

/// JSON: readable in the store, the default.
///
/// Numbers come back to the last bit. What JSON would turn into something else is an error: numbers that aren't finite, `Some` of
/// what is written as `null`, keys of a map that are no strings or numbers, and values nested deeper than 128 levels.
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

/// How deep values may be nested, the same as in JSON. The format's own limit is more than the stack of a thread bears,
/// and bytes from a store must never end the process.
const MAX_DEPTH: usize = 128;

/// MessagePack, with the names of fields: smaller and faster than JSON, and as tolerant of added fields.
///
/// Numbers that aren't finite and keys of any type come back too. `Some` of what is written as `nil`, and values nested deeper
/// than 128 levels, are an error.
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

/// A value that can't be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[error("the value can't be coded: {0}")]
pub struct CoderError(#[source] Box<dyn Error + Send + Sync>);

impl CoderError {
    /// Wraps a format's own error.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}
