//! Targeted fields, such as `CDN-Cache-Control` (RFC 9213).

use std::convert::Infallible;
use std::error::Error;
use std::fmt;

use http::{HeaderMap, HeaderName};
use sfv::visitor::{DictionaryVisitor, EntryVisitor, Ignored, InnerListVisitor, ItemVisitor, Never};
use sfv::{BareItemFromInput, KeyRef, Parser};

use crate::headers::cache_control::{Qualified, ResponseDirectives, field_names};
use crate::headers::combined;

/// Returns the directives of a targeted field. `None` if it is absent or empty, is no dictionary (RFC 9651 §3.2), or has
/// a known directive whose value is of another type than the directive's: such a field counts as absent (RFC 9213 §2.1).
pub(crate) fn targeted(response: &HeaderMap, name: &HeaderName) -> Option<(ResponseDirectives, Qualified)> {
    if !response.contains_key(name) {
        return None;
    }
    let found =
        Parser::new(&combined(response, name)).parse_dictionary_with_visitor(Dictionary::default()).ok()?;
    (!found.is_empty).then_some((found.directives, found.qualified))
}

struct Dictionary {
    directives: ResponseDirectives,
    qualified: Qualified,
    is_empty: bool,
}

impl Default for Dictionary {
    fn default() -> Self {
        Self { directives: ResponseDirectives::default(), qualified: Qualified::default(), is_empty: true }
    }
}

impl<'de> DictionaryVisitor<'de> for Dictionary {
    type Out = Self;
    type Error = Infallible;

    fn entry(&mut self, key: &'de KeyRef) -> Result<impl EntryVisitor<'de>, Infallible> {
        self.is_empty = false;
        let Self { directives, qualified, .. } = self;
        // Of several members with one name the last counts (RFC 9651 §4.2.2).
        Ok(Some(match key.as_str() {
            "max-age" => Member::Seconds(&mut directives.max_age),
            "s-maxage" => Member::Seconds(&mut directives.s_maxage),
            "stale-while-revalidate" => Member::Seconds(&mut directives.stale_while_revalidate),
            "stale-if-error" => Member::Seconds(&mut directives.stale_if_error),
            "no-store" => Member::Flag(&mut directives.no_store),
            "must-revalidate" => Member::Flag(&mut directives.must_revalidate),
            "proxy-revalidate" => Member::Flag(&mut directives.proxy_revalidate),
            "must-understand" => Member::Flag(&mut directives.must_understand),
            "no-transform" => Member::Flag(&mut directives.no_transform),
            "immutable" => Member::Flag(&mut directives.immutable),
            "public" => Member::Flag(&mut directives.public),
            "no-cache" => Member::Names {
                flag: &mut directives.no_cache,
                whole: &mut qualified.no_cache,
                fields: &mut qualified.fields,
            },
            "private" => Member::Names {
                flag: &mut directives.private,
                whole: &mut qualified.private,
                fields: &mut qualified.fields,
            },
            _ => return Ok(None),
        }))
    }

    fn finish(self) -> Result<Self, Infallible> {
        Ok(self)
    }
}

/// The place of a directive's value.
enum Member<'a> {
    Seconds(&'a mut Option<u64>),
    Flag(&'a mut bool),
    /// A directive that concerns the whole response, or only the fields that it names.
    Names {
        flag: &'a mut bool,
        whole: &'a mut bool,
        fields: &'a mut Vec<HeaderName>,
    },
}

impl<'de> EntryVisitor<'de> for Member<'_> {
    type Error = WrongType;

    fn item(self) -> Result<impl ItemVisitor<'de>, WrongType> {
        Ok(move |item: BareItemFromInput<'de>| {
            match (self, item) {
                (Member::Seconds(seconds), BareItemFromInput::Integer(value)) => {
                    *seconds = Some(u64::try_from(i64::from(value)).map_err(|_| WrongType)?);
                }
                (Member::Flag(flag), BareItemFromInput::Boolean(true)) => *flag = true,
                (Member::Names { flag, whole, .. }, BareItemFromInput::Boolean(true)) => {
                    (*flag, *whole) = (true, true);
                }
                (Member::Names { flag, whole, fields }, BareItemFromInput::String(names)) => {
                    *flag = true;
                    match field_names(names.as_str().as_bytes()) {
                        Some(names) => fields.extend(names),
                        // Without a readable field name, the directive restricts the whole response.
                        None => *whole = true,
                    }
                }
                _ => return Err(WrongType),
            }
            Ok(Ignored)
        })
    }

    fn inner_list(self) -> Result<impl InnerListVisitor<'de>, WrongType> {
        Err::<Never, _>(WrongType)
    }
}

#[derive(Debug)]
struct WrongType;

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value is of another type than the directive's")
    }
}

impl Error for WrongType {}
