//! Escaping of the characters that have a meaning in keys.

use std::borrow::Cow;

/// Appends a suffix chosen by a person or a key builder, with the format's characters escaped.
pub(crate) fn write_chosen(out: &mut String, suffix: &str) {
    escape_into(out, suffix, ANYWHERE);
}

/// Appends `|name=value`, for parts that are not in the URI.
pub(crate) fn write_part(out: &mut String, name: &str, value: &str) {
    out.push('|');
    out.push_str(name);
    out.push('=');
    escape_into(out, value, ANYWHERE);
}

/// Appends the canonical spelling of these bytes: those of the class are copied, all others escaped.
pub(super) fn write_canonical(out: &mut String, bytes: &[u8], literal: Class, place: Place) {
    let is_literal = |byte: &u8| CLASSES[usize::from(*byte)] & literal != 0;
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.iter().all(is_literal) => escape_into(out, text, place),
        _ => {
            let mut text = String::with_capacity(bytes.len() + 16);
            for byte in bytes {
                if is_literal(byte) {
                    text.push(char::from(*byte));
                } else {
                    push_escape(&mut text, *byte);
                }
            }
            escape_into(out, &text, place);
        }
    }
}

fn escape_into(out: &mut String, text: &str, place: Place) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if SPECIAL[usize::from(byte)] & place == 0 {
            continue;
        }
        if byte != b'%' || reads_as_escape(&bytes[index + 1..]) {
            // Every escaped byte is ASCII, so these are boundaries of characters.
            out.push_str(&text[copied..index]);
            push_escape(out, byte);
            copied = index + 1;
        }
    }
    out.push_str(&text[copied..]);
}

fn push_escape(out: &mut String, byte: u8) {
    out.push('%');
    out.push(hex_digit(byte >> 4));
    out.push(hex_digit(byte & 0xf));
}

/// Returns `true` if a `%` before `rest` could be read as an escape of this format. These escapes are in upper case.
fn reads_as_escape(rest: &[u8]) -> bool {
    matches!(rest.get(..2), Some(b"25" | b"3A" | b"3D" | b"7B" | b"7C" | b"7D"))
}

const fn hex_digit(nibble: u8) -> char {
    b"0123456789ABCDEF"[(nibble & 0xf) as usize] as char
}

/// Returns the decoded bytes of a segment. A `%` that begins no escape stands for itself.
pub(super) fn decoded_segment(text: &str) -> Cow<'_, [u8]> {
    decoded(text, |byte| byte)
}

/// Returns the bytes of a name or a value after form decoding (<https://url.spec.whatwg.org/#urlencoded-parsing>).
pub(crate) fn decoded_param(text: &str) -> Cow<'_, [u8]> {
    decoded(text, |byte| if byte == b'+' { b' ' } else { byte })
}

fn decoded(text: &str, literal: impl Fn(u8) -> u8) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if bytes.iter().all(|&byte| byte != b'%' && literal(byte) == byte) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match escaped_byte(&bytes[at + 1..]).filter(|_| byte == b'%') {
            Some(escaped) => {
                out.push(escaped);
                at += 3;
            }
            None => {
                out.push(literal(byte));
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

/// Returns the byte that the two digits after a `%` stand for.
pub(super) fn escaped_byte(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? << 4 | digit(1)?).ok()
}

/// The classes of bytes in a canonical spelling.
pub(super) type Class = u8;
/// `pchar` (RFC 3986 §3.3).
pub(super) const PCHAR: Class = 1;
/// Stands for itself in the name of a parameter (RFC 3986 §3.4, without what separates parameters).
pub(super) const IN_NAME: Class = 2;
/// The same in a value, which a `=` doesn't end.
pub(super) const IN_VALUE: Class = 4;
/// Is copied from a path into a key as it is.
pub(super) const PLAIN_SEGMENT: Class = 8;
/// Is copied from a parameter into a key as it is, and isn't the `=` after its name.
pub(super) const PLAIN_PARAM: Class = 16;
/// `pchar`, or the slash between segments.
pub(super) const IN_PATH: Class = 32;

pub(super) const CLASSES: [Class; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let character = byte as u8;
        let unreserved = character.is_ascii_alphanumeric() || matches!(character, b'-' | b'.' | b'_' | b'~');
        let sub_delim =
            matches!(character, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        let pchar = unreserved || sub_delim || matches!(character, b':' | b'@');
        let in_value = (pchar || matches!(character, b'/' | b'?')) && !matches!(character, b'&' | b'+');
        if pchar {
            classes[byte] |= PCHAR;
        }
        if pchar || character == b'/' {
            classes[byte] |= IN_PATH;
        }
        if in_value {
            classes[byte] |= IN_VALUE;
        }
        if in_value && character != b'=' {
            classes[byte] |= IN_NAME;
        }
        if pchar && SPECIAL[byte] & SEGMENT == 0 {
            classes[byte] |= PLAIN_SEGMENT;
        }
        if in_value && character != b'=' && SPECIAL[byte] & PARAM == 0 {
            classes[byte] |= PLAIN_PARAM;
        }
        byte += 1;
    }
    classes
};

/// The place of a text in a key, which decides the characters that must be escaped.
pub(super) type Place = u8;
pub(super) const NOWHERE: Place = 0;
const ANYWHERE: Place = 1;
pub(super) const PARAM: Place = 2;
pub(super) const SEGMENT: Place = 4;

/// The places in which each byte must be escaped.
const SPECIAL: [Place; 256] = {
    let mut special = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        special[byte] = match byte as u8 {
            b'{' | b'}' | b'|' | b'%' => ANYWHERE | PARAM | SEGMENT,
            b':' => PARAM | SEGMENT,
            b'=' => SEGMENT,
            _ => 0,
        };
        byte += 1;
    }
    special
};
