//! Templates of header maps, so that answering with a record of a known form inserts no field into a map.
//!
//! Most records of a route have the same fields in the same order, and few fields whose values differ. Inserting a field hashes its
//! name, which would take most of the time of a hit. A clone of a map hashes nothing. So a route remembers the forms of its records,
//! each with a map for the response and one for a 304, and writes the values of a record into a clone of a map.
//!
//! A map holds only values that are constants. Cloning any other value would increment a reference count that all threads share, so
//! those are slices of the record.

#![cfg_attr(not(feature = "runtime"), expect(dead_code, reason = "only the exchange decodes with templates"))]

use std::fmt;
use std::mem;
use std::ops::Range;
use std::sync::OnceLock;

use bytes::Bytes;
use http::header::{ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{FIELD_FIXED, read_head};
use crate::headers::vary::USUAL_CREDENTIALS;

/// The number of forms that a route remembers. Records of another form are decoded field by field.
const MAX_TEMPLATES: usize = 4;

/// The greatest number of fields whose values differ between the records of a form.
const MAX_VARIABLES: usize = 6;

/// The longest head of a record that a template is made of, in bytes.
const MAX_HEAD: usize = 2048;

const EMPTY: HeaderValue = HeaderValue::from_static("");

/// The forms of one route's records.
#[derive(Default)]
pub(crate) struct HeadTemplates([OnceLock<HeadTemplate>; MAX_TEMPLATES]);

/// The head of a record.
pub(crate) enum RecordHead {
    /// The fields of the record.
    Stored(HeaderMap),
    /// The fields of a response made from the record: also those that aren't stored.
    Response(HeaderMap),
    /// A head from which a 304 can be made, too.
    Templated(TemplatedHead),
}

/// A head that has the form of a template: the values of its variables, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplatedHead {
    template: usize,
    values: Vec<HeaderValue>,
}

/// The use of a head that has the form of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadUse {
    /// The fields of a response.
    Response,
    /// The fields of a response, or of a 304.
    MaybeNotModified,
}

/// A route, as far as templates know it.
pub(crate) trait ResponseFields {
    /// Returns the forms of the route's records.
    fn templates(&self) -> &HeadTemplates;

    /// Returns the fields that each response has besides those of the record. The first one's value is written for each response.
    fn added(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)>;

    /// Returns `true` for the fields of the record that a 304 has too.
    fn is_for_not_modified(&self, name: &HeaderName, has_etag: bool) -> bool;
}

impl HeadTemplates {
    /// Decodes the head at `place`, which must be inside `bytes`. The first record of a form becomes its template.
    pub(super) fn read(
        &self,
        bytes: &Bytes,
        place: Range<usize>,
        answer: HeadUse,
        fields: &impl ResponseFields,
    ) -> Option<RecordHead> {
        let head = bytes.get(place.clone())?;
        for (index, template) in self.0.iter().map_while(OnceLock::get).enumerate() {
            let Some(places) = template.places(head) else { continue };
            let value = |index: usize| {
                let Range { start, end } = places.get(index)?.clone();
                HeaderValue::from_maybe_shared(bytes.slice(place.start + start..place.start + end)).ok()
            };
            return match answer {
                HeadUse::Response => template.response.fill(value, EMPTY).map(RecordHead::Response),
                HeadUse::MaybeNotModified => {
                    let values = (0..template.variables.len()).map(value).collect::<Option<_>>()?;
                    Some(RecordHead::Templated(TemplatedHead { template: index, values }))
                }
            };
        }
        self.learn(bytes, place, fields).map(RecordHead::Stored)
    }

    #[cold]
    fn learn(&self, bytes: &Bytes, place: Range<usize>, fields: &impl ResponseFields) -> Option<HeaderMap> {
        let headers = read_head(bytes, place.clone())?;
        if let Some(free) = self.0.iter().find(|template| template.get().is_none())
            && let Some(template) = HeadTemplate::new(bytes.get(place)?, &headers, fields)
        {
            // Another thread may have set it meanwhile.
            let _ = free.set(template);
        }
        Some(headers)
    }

    fn of(&self, head: &TemplatedHead) -> Option<&HeadTemplate> {
        self.0.get(head.template)?.get()
    }

    /// Returns the fields of the response with this head. `added` is the value of the first added field.
    pub(crate) fn response(&self, head: TemplatedHead, added: HeaderValue) -> HeaderMap {
        self.fill(head, added, |template| &template.response)
    }

    /// Returns the fields of a 304 for the response with this head. `added` is the value of the first added field.
    pub(crate) fn not_modified(&self, head: TemplatedHead, added: HeaderValue) -> HeaderMap {
        self.fill(head, added, |template| &template.not_modified)
    }

    fn fill(
        &self,
        mut head: TemplatedHead,
        added: HeaderValue,
        map: impl FnOnce(&HeadTemplate) -> &MapTemplate,
    ) -> HeaderMap {
        let Some(template) = self.of(&head) else { return HeaderMap::new() };
        let value = |index| head.values.get_mut(index).map(|value| mem::replace(value, EMPTY));
        map(template).fill(value, added).unwrap_or_default()
    }

    /// Returns the `ETag` of a head.
    pub(crate) fn etag<'a>(&self, head: &'a TemplatedHead) -> Option<&'a HeaderValue> {
        head.values.get(self.of(head)?.etag?)
    }

    /// Returns the `Last-Modified` of a head.
    pub(crate) fn last_modified<'a>(&self, head: &'a TemplatedHead) -> Option<&'a HeaderValue> {
        head.values.get(self.of(head)?.last_modified?)
    }
}

/// A clone is empty, because its rule may be changed to one with other fields.
impl Clone for HeadTemplates {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for HeadTemplates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.iter().map_while(OnceLock::get).count();
        f.debug_struct("HeadTemplates").field("known", &known).finish_non_exhaustive()
    }
}

/// The form of a record's head, and the maps for it.
struct HeadTemplate {
    variables: Box<[Variable]>,
    /// The encoded fields after the last variable.
    last: Box<[u8]>,
    /// The positions of these fields among the variables.
    etag: Option<usize>,
    last_modified: Option<usize>,
    response: MapTemplate,
    not_modified: MapTemplate,
}

/// A field whose value each record has for itself.
struct Variable {
    /// The encoded constant fields since the last variable, then the encoded length of this field's name.
    before: Box<[u8]>,
    name: Box<[u8]>,
}

impl HeadTemplate {
    /// Creates the template of a head that was decoded to `headers`. Returns `None` if there can't be one.
    fn new(head: &[u8], headers: &HeaderMap, fields: &impl ResponseFields) -> Option<Self> {
        if head.len() > MAX_HEAD {
            return None;
        }
        let has_etag = headers.contains_key(ETAG);
        let (mut etag, mut last_modified) = (None, None);
        let (mut response, mut not_modified) = (MapTemplate::default(), MapTemplate::default());
        let mut variables: Vec<Variable> = Vec::new();
        let (mut begin, mut run) = (0, 0);
        for (name, value) in headers {
            let at_name = begin + FIELD_FIXED;
            let at_value = at_name + name.as_str().len();
            // A record may hold the values of one name at different places, but a map holds them together.
            if head.get(at_name..at_value)? != name.as_str().as_bytes() {
                return None;
            }
            let is_validator = name == ETAG || name == LAST_MODIFIED;
            let constant = constant(value.as_bytes()).filter(|_| !is_validator);
            response.push(name, constant.as_ref());
            if fields.is_for_not_modified(name, has_etag) {
                not_modified.push(name, constant.as_ref());
            } else if constant.is_none() {
                not_modified.skip();
            }
            let end = at_value + value.len();
            if constant.is_none() {
                if name == ETAG {
                    etag = Some(variables.len());
                } else if name == LAST_MODIFIED {
                    last_modified = Some(variables.len());
                }
                let (before, name) = (head.get(run..begin + 2)?.into(), name.as_str().as_bytes().into());
                variables.push(Variable { before, name });
                run = end;
            }
            begin = end;
        }
        // Several values of a validator have a meaning of their own, and an added field must be the only one of its name.
        let is_single = |name| headers.get_all(name).iter().count() <= 1;
        let is_usable = variables.len() <= MAX_VARIABLES
            && is_single(ETAG)
            && is_single(LAST_MODIFIED)
            && !fields.added().any(|(name, _)| headers.contains_key(name));
        for (name, value) in fields.added() {
            response.map.append(&name, value.clone());
            not_modified.map.append(name, value);
        }
        let last = head.get(run..)?.into();
        let variables = variables.into();
        is_usable.then_some(Self { variables, last, etag, last_modified, response, not_modified })
    }

    /// Returns the places of the variables' values in a head, if it has this form.
    #[inline]
    fn places(&self, head: &[u8]) -> Option<[Range<usize>; MAX_VARIABLES]> {
        let mut places = [const { 0..0 }; MAX_VARIABLES];
        let mut rest = head;
        for (variable, place) in self.variables.iter().zip(&mut places) {
            let (len, after) = rest.strip_prefix(&*variable.before)?.split_first_chunk()?;
            rest = after.strip_prefix(&*variable.name)?;
            let begin = head.len() - rest.len();
            rest = rest.get(u32::from_be_bytes(*len) as usize..)?;
            *place = begin..head.len() - rest.len();
        }
        (rest == &*self.last).then_some(places)
    }
}

/// A map with the constants of a template, and empty values for the others.
#[derive(Default)]
struct MapTemplate {
    map: HeaderMap,
    /// For each variable, the number of constants since the last one in the map. `None` if the map leaves it out.
    variables: Vec<Option<usize>>,
    /// The number of constants since the last variable.
    constants: usize,
}

impl MapTemplate {
    fn push(&mut self, name: &HeaderName, constant: Option<&HeaderValue>) {
        match constant {
            Some(value) => {
                self.map.append(name, value.clone());
                self.constants += 1;
            }
            None => {
                self.map.append(name, EMPTY);
                self.variables.push(Some(mem::take(&mut self.constants)));
            }
        }
    }

    fn skip(&mut self) {
        self.variables.push(None);
    }

    /// Returns the map with these values of the variables, or `None` if one is missing.
    #[inline]
    fn fill(
        &self,
        mut value: impl FnMut(usize) -> Option<HeaderValue>,
        added: HeaderValue,
    ) -> Option<HeaderMap> {
        let mut map = self.map.clone();
        let mut places = map.values_mut();
        for (index, constants) in self.variables.iter().enumerate() {
            if let Some(constants) = constants {
                *places.nth(*constants)? = value(index)?;
            }
        }
        *places.nth(self.constants)? = added;
        Some(map)
    }
}

/// Returns the value as a constant, if it is one that many responses have.
fn constant(value: &[u8]) -> Option<HeaderValue> {
    const USUAL: [&str; 24] = [
        USUAL_CREDENTIALS,
        "*",
        "Accept-Encoding",
        "application/javascript",
        "application/json",
        "application/json; charset=utf-8",
        "application/octet-stream",
        "application/problem+json",
        "application/xml",
        "br",
        "bytes",
        "gzip",
        "image/jpeg",
        "image/png",
        "image/svg+xml",
        "image/webp",
        "nosniff",
        "text/css; charset=utf-8",
        "text/html",
        "text/html; charset=utf-8",
        "text/javascript",
        "text/plain",
        "text/plain; charset=utf-8",
        "zstd",
    ];
    USUAL.into_iter().find(|usual| usual.as_bytes() == value).map(HeaderValue::from_static)
}
