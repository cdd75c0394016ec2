//! A check that a value can be read back unchanged.
//!
//! The check is a serializer that writes nothing. It doesn't allocate, and costs less than the encoding. It finds problems
//! that depend on the value. Problems that depend only on the type, such as a skipped field, show in an author's first
//! test.

use std::fmt;

use serde::ser::{self, Serialize, Serializer};

/// Maximum nesting depth of values, the same as in JSON. The format's own limit can overflow a thread's stack, and bytes
/// from a store must never abort the process.
pub(super) const MAX_DEPTH: usize = 128;

/// The format that the value will be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// JSON, which writes numbers that aren't finite as `null`.
    Json,
    MessagePack,
}

/// Returns an error if the value wouldn't be read back unchanged.
pub(super) fn check<T: Serialize + ?Sized>(value: &T, format: Format) -> Result<(), Unfaithful> {
    value.serialize(Walk { format, depth: 0, in_some: false })
}

/// The reason why a value wouldn't be read back unchanged.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfaithful {
    #[error("JSON has no number that is not finite")]
    NotFinite,
    #[error("`Some` of what is written as null is read as `None`")]
    SomeNull,
    #[error("values are nested {MAX_DEPTH} levels deep at most")]
    Depth,
    /// The value's own `Serialize` failed.
    #[error("{0}")]
    Other(String),
}

impl ser::Error for Unfaithful {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Other(message.to_string())
    }
}

type Checked = Result<(), Unfaithful>;

/// A position in a value.
#[derive(Clone, Copy)]
struct Walk {
    format: Format,
    /// The number of arrays and objects around it.
    depth: usize,
    /// `true` if it is the content of a `Some`.
    in_some: bool,
}

impl Walk {
    /// Returns the position inside `levels` more arrays and objects.
    fn inside(self, levels: usize) -> Result<Self, Unfaithful> {
        let depth = self.depth + levels;
        if depth >= MAX_DEPTH { Err(Unfaithful::Depth) } else { Ok(Self { depth, in_some: false, ..self }) }
    }

    /// Returns the position inside an enum variant. JSON reads a variant as an object; MessagePack doesn't count it as a
    /// level.
    fn variant(self, levels: usize) -> Result<Self, Unfaithful> {
        self.inside(levels + usize::from(self.format == Format::Json))
    }

    fn null(self) -> Checked {
        if self.in_some { Err(Unfaithful::SomeNull) } else { Ok(()) }
    }

    fn float(self, is_finite: bool) -> Checked {
        if self.format == Format::Json && !is_finite { Err(Unfaithful::NotFinite) } else { Ok(()) }
    }
}

/// Scalar values that every format reads back.
macro_rules! faithful {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(self, _: $type) -> Checked {
            Ok(())
        })*
    };
}

impl Serializer for Walk {
    type Ok = ();
    type Error = Unfaithful;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    faithful! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128,
        serialize_char: char, serialize_str: &str, serialize_bytes: &[u8]
    }

    fn serialize_f32(self, number: f32) -> Checked {
        self.float(number.is_finite())
    }

    fn serialize_f64(self, number: f64) -> Checked {
        self.float(number.is_finite())
    }

    fn serialize_none(self) -> Checked {
        self.null()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Checked {
        value.serialize(Self { in_some: true, ..self })
    }

    fn serialize_unit(self) -> Checked {
        self.null()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Checked {
        // MessagePack writes an empty array.
        if self.format == Format::Json { self.null() } else { Ok(()) }
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Checked {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Checked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Checked {
        value.serialize(self.variant(0)?)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Unfaithful> {
        self.inside(1)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Unfaithful> {
        self.inside(1)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Unfaithful> {
        self.inside(1)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Unfaithful> {
        self.variant(1)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Unfaithful> {
        self.inside(1)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Unfaithful> {
        self.inside(1)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Unfaithful> {
        self.variant(1)
    }

    fn collect_str<T: fmt::Display + ?Sized>(self, _: &T) -> Checked {
        Ok(())
    }

    fn is_human_readable(&self) -> bool {
        self.format == Format::Json
    }
}

/// Sequences of values.
macro_rules! rows {
    ($($row:ident $element:ident),*) => {
        $(impl ser::$row for Walk {
            type Ok = ();
            type Error = Unfaithful;

            fn $element<T: Serialize + ?Sized>(&mut self, value: &T) -> Checked {
                value.serialize(*self)
            }

            fn end(self) -> Checked {
                Ok(())
            }
        })*
    };
}

rows! {
    SerializeSeq serialize_element, SerializeTuple serialize_element, SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
}

/// Values with field names.
macro_rules! records {
    ($($record:ident),*) => {
        $(impl ser::$record for Walk {
            type Ok = ();
            type Error = Unfaithful;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Checked {
                value.serialize(*self)
            }

            fn end(self) -> Checked {
                Ok(())
            }
        })*
    };
}

records! { SerializeStruct, SerializeStructVariant }

impl ser::SerializeMap for Walk {
    type Ok = ();
    type Error = Unfaithful;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Checked {
        key.serialize(*self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Checked {
        value.serialize(*self)
    }

    fn end(self) -> Checked {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};

    use super::super::{Coder, Json, MessagePack};
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Unit;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped<T>(T);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Tree {
        Leaf,
        Number(f64),
        Pair(i8, Option<char>),
        Named { left: Box<Tree>, right: Option<u128> },
        Boxed(Box<Tree>),
        Seq(Vec<Tree>),
    }

    fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(
        coder: &impl Coder,
        value: &T,
    ) -> bool {
        coder
            .encode(value)
            .ok()
            .and_then(|bytes| coder.decode::<T>(&bytes).ok())
            .is_some_and(|back| back == *value)
    }

    /// Asserts that accepted values are read back unchanged, and that others are refused.
    fn on_both<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, expected: [bool; 2]) {
        assert_eq!(Json.encode(value).is_ok(), expected[0], "JSON {value:?}");
        assert_eq!(MessagePack.encode(value).is_ok(), expected[1], "MessagePack {value:?}");
        assert_eq!(comes_back(&Json, value), expected[0], "JSON {value:?}");
        assert_eq!(comes_back(&MessagePack, value), expected[1], "MessagePack {value:?}");
    }

    #[test]
    fn accepted_values_round_trip() {
        for number in [0.0, -0.0, 1.577_777_777_777_000_1, f64::MAX, f64::MIN_POSITIVE, 5e-324] {
            on_both(&number, [true; 2]);
            on_both(&Some(vec![Tree::Number(number)]), [true; 2]);
        }
        on_both(&[f32::MAX, f32::MIN_POSITIVE, 0.1, 16_777_217.0], [true; 2]);
        on_both(&(u128::MAX, i128::MIN, u64::MAX, i64::MIN), [true; 2]);
        on_both(&BTreeMap::from([(1u8, "one".to_owned()), (2, String::new())]), [true; 2]);
        on_both(
            &BTreeMap::from([('a', Some(())), ('b', None)]).keys().copied().collect::<Vec<_>>(),
            [true; 2],
        );
        on_both(&(Unit, (), Wrapped(None::<u8>), Some(0), None::<u8>), [true; 2]);
        on_both(&Tree::Named { left: Box::new(Tree::Pair(-1, None)), right: Some(7) }, [true; 2]);
        on_both(&vec![Tree::Leaf, Tree::Boxed(Box::new(Tree::Seq(vec![Tree::Leaf])))], [true; 2]);
        on_both(&std::time::Duration::from_millis(1500), [true; 2]);
        on_both(&"127.0.0.1".parse::<std::net::IpAddr>().unwrap(), [true; 2]);
        on_both(&Some(Some(Some(1))), [true; 2]);
        on_both(&"\0\u{fffd}\"\\\u{10ffff}".to_owned(), [true; 2]);
    }

    #[test]
    fn values_that_json_writes_as_null_are_refused() {
        for number in [f64::INFINITY, f64::NEG_INFINITY] {
            on_both(&number, [false, true]);
            on_both(&Some(number), [false, true]);
            on_both(&BTreeMap::from([("k".to_owned(), vec![Wrapped(number)])]), [false, true]);
            on_both(&Tree::Number(number), [false, true]);
        }
        assert!(Json.encode(&f32::NAN).is_err() && Json.encode(&Some(f64::NAN)).is_err());
        assert!(MessagePack.decode::<f64>(&MessagePack.encode(&f64::NAN).unwrap()).unwrap().is_nan());
    }

    #[test]
    fn some_of_a_null_value_is_refused() {
        on_both(&Some(None::<u8>), [false; 2]);
        on_both(&Some(()), [false; 2]);
        on_both(&Some(Wrapped(None::<u8>)), [false; 2]);
        on_both(&vec![Some(Some(1)), None, Some(None)], [false; 2]);
        on_both(&Some(Unit), [false, true]);
    }

    #[test]
    fn keys_that_json_lacks_are_refused() {
        on_both(&BTreeMap::from([((1, 2), 3)]), [false, true]);
        on_both(&BTreeMap::from([(vec![1], 3)]), [false, true]);
    }

    #[test]
    fn too_deeply_nested_values_are_refused() {
        let seqs = |depth| (1..depth).fold(Tree::Seq(vec![]), |tree, _| Tree::Seq(vec![tree]));
        let boxes = |depth| (0..depth).fold(Tree::Leaf, |tree, _| Tree::Boxed(Box::new(tree)));
        let vecs = |depth| (1..depth).fold(serde_json::json!([]), |value, _| serde_json::json!([value]));
        for depth in 1..300 {
            on_both(&seqs(depth), [2 * depth < MAX_DEPTH, depth < MAX_DEPTH]);
            on_both(&vecs(depth), [depth < MAX_DEPTH; 2]);
        }
        for depth in [1, 126, 127, 128, 300] {
            on_both(&boxes(depth), [depth < MAX_DEPTH, true]);
        }
    }
}
