//! Lists of Strings (RFC 9651 §3.1), the form of `Cache-Groups` and `Cache-Group-Invalidation` (RFC 9875).

use std::convert::Infallible;
use std::error::Error;
use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::visitor::{EntryVisitor, Ignored, InnerListVisitor, ItemVisitor, ListVisitor, Never};
use sfv::{BareItemFromInput, ListSerializer, Parser, StringRef};

use crate::headers::combined;

/// Returns the members of a List of Strings, without their parameters. An absent field is an empty list.
///
/// Returns `None` if the field is malformed or has a member of another type: it is then ignored as a whole (RFC 9651 §4.2).
pub(crate) fn string_list(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    if !headers.contains_key(name) {
        return Some(Vec::new());
    }
    Parser::new(&combined(headers, name)).parse_list_with_visitor(Strings::default()).ok()
}

/// Returns the value of a List of Strings. Returns `None` if there are no members, or if one has a character other than the
/// printable ones of ASCII.
pub(crate) fn string_list_value<'a>(members: impl IntoIterator<Item = &'a str>) -> Option<HeaderValue> {
    let mut list = ListSerializer::new();
    for member in members {
        let _no_parameters = list.bare_item(StringRef::from_str(member).ok()?);
    }
    HeaderValue::try_from(list.finish()?).ok()
}

#[derive(Default)]
struct Strings(Vec<String>);

impl<'de> ListVisitor<'de> for Strings {
    type Out = Vec<String>;
    type Error = Infallible;

    fn entry(&mut self) -> Result<impl EntryVisitor<'de>, Infallible> {
        Ok(StringMember(&mut self.0))
    }

    fn finish(self) -> Result<Vec<String>, Infallible> {
        Ok(self.0)
    }
}

struct StringMember<'a>(&'a mut Vec<String>);

impl<'de> EntryVisitor<'de> for StringMember<'_> {
    type Error = NotAString;

    fn item(self) -> Result<impl ItemVisitor<'de>, NotAString> {
        Ok(move |item: BareItemFromInput<'de>| match item {
            BareItemFromInput::String(text) => {
                self.0.push(text.as_str().to_owned());
                Ok(Ignored)
            }
            _ => Err(NotAString),
        })
    }

    fn inner_list(self) -> Result<impl InnerListVisitor<'de>, NotAString> {
        Err::<Never, _>(NotAString)
    }
}

#[derive(Debug)]
struct NotAString;

impl fmt::Display for NotAString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member of the list is no String")
    }
}

impl Error for NotAString {}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: HeaderName = HeaderName::from_static("cache-groups");

    fn list(lines: &[&[u8]]) -> Option<Vec<String>> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(NAME, HeaderValue::from_bytes(line).unwrap());
        }
        string_list(&headers, &NAME)
    }

    #[test]
    fn strings_are_read_from_all_lines_without_parameters() {
        let rows: &[(&[&[u8]], &[&str])] = &[
            (&[], &[]),
            (&[b""], &[]),
            (&[br#""a""#], &["a"]),
            (&[br#"  "a" ,"b"  "#], &["a", "b"]),
            (&[br#""a""#, br#""b", "A""#], &["a", "b", "A"]),
            (&[br#""a";x;y=1;z="q", "b";revalidate"#], &["a", "b"]),
            (&[br#""say \"hi\" \\ now", "a, b", """#], &[r#"say "hi" \ now"#, "a, b", ""]),
        ];
        for (lines, expected) in rows {
            assert_eq!(list(lines).unwrap(), *expected, "{lines:?}");
        }
    }

    #[test]
    fn malformed_list_is_ignored_as_a_whole() {
        let rows: [&[&[u8]]; 18] = [
            &[b"a"],
            &[br#""a", b"#],
            &[br#""a", 1"#],
            &[br#""a", ?1"#],
            &[br#""a", :YQ==:"#],
            &[br#""a", ("b")"#],
            &[br#"("a")"#],
            &[br#""a", %"b""#],
            &[br#""a"#],
            &[br#""a","#],
            &[br#""a",,"b""#],
            &[br#""a" "b""#],
            &[br#""a";X"#],
            &[br#""a\b""#],
            &[br#"'a'"#],
            &["\"caf\u{e9}\"".as_bytes()],
            &[br#""a""#, b"b"],
            &[br#""a""#, b""],
        ];
        for lines in rows {
            assert_eq!(list(lines), None, "{lines:?}");
        }
    }

    #[test]
    fn written_lists_are_read_back() {
        let members = ["a", "", r#"say "hi""#, r"back\slash", "a, b;c"];
        let value = string_list_value(members).unwrap();
        assert_eq!(value, r#""a", "", "say \"hi\"", "back\\slash", "a, b;c""#);
        assert_eq!(list(&[value.as_bytes()]).unwrap(), members);
        assert_eq!(string_list_value([]), None);
        assert_eq!(string_list_value(["a", "caf\u{e9}"]), None);
    }
}
