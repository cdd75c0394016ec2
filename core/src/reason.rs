//! Reasons for which the cache did not answer or store. `Cache-Status`, logs, metrics and tests use the same words.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal),+ $(,)?) => {
        /// The reason for which a request bypassed the cache, nothing usable was found, or a response was not stored.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])* $name,)+
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Returns the word for the reason. It never changes.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// Returns the meaning in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                // The documentation's lines, each with its leading space.
                match self {
                    $(Self::$name => concat!($($doc),*).trim_ascii_start(),)+
                }
            }
        }
    };
}

reasons! {
    // Reasons about the request: it is not looked up.
    /// Only GET and HEAD are answered from the cache.
    Method = "method",
    /// The request asks to switch protocols.
    Upgrade = "upgrade",
    /// The handler answers with a part of the body, or with 416: only whole bodies are stored.
    Range = "range",
    /// A GET with content: only the handler knows its meaning (RFC 9110 §9.3.1).
    Content = "content",
    /// `If-Match` or `If-Unmodified-Since`: only the origin can answer (RFC 9111 §4.3.2).
    Precondition = "precondition",
    /// The request says `no-store`.
    NoStore = "no-store",
    /// The request carries `Authorization`, and the route was declared neither public nor private.
    Authorization = "authorization",
    /// The request carries `Cookie`, and the route was declared neither public nor private.
    Cookie = "cookie",
    /// The request carries other credentials, such as `X-Api-Key`, and the route was declared neither public nor
    /// private.
    Credentials = "credentials",
    /// The route is private and the request names no principal.
    Anonymous = "anonymous",
    /// The key builder gave no key.
    Keyless = "keyless",

    /// The path isn't spelled canonically, and the router's pattern that led to the handler isn't known: the same
    /// resource under another spelling may have another handler.
    Spelling = "spelling",
    /// The URI was rewritten on its way to the handler, under a prefix that isn't known.
    Rewritten = "rewritten",
    /// The handler is already running for this key: two caches are around it, or it requests its own resource.
    Nested = "nested",

    // Reasons about the lookup: no stored response may be used.
    /// Nothing is stored.
    Absent = "absent",
    /// The stored response has expired.
    Expired = "expired",
    /// The request says `no-cache`.
    NoCache = "no-cache",
    /// The stored response is older than the request's `max-age`.
    MaxAge = "max-age",
    /// The stored response won't stay fresh for as long as the request's `min-fresh` asks.
    MinFresh = "min-fresh",
    /// Other variants of the resource are stored, but not this one.
    Variant = "variant",
    /// The stored bytes are damaged, from another version, or no response.
    Unreadable = "unreadable",
    /// The stored response came from another route with the same key: the router's pattern differs.
    Pattern = "pattern",
    /// The store failed, or took too long.
    Down = "down",
    /// Another request is changing the resource, or its response was just found to be uncacheable.
    Busy = "busy",
    /// Only a part of the body is stored, and not the one that the request asks for.
    Incomplete = "incomplete",
    /// Another request is filling the entry and took too long.
    Waited = "waited",

    // Reasons about the response: it is not stored.
    /// The handler failed.
    Failed = "failed",
    /// Responses with this status are not stored.
    Status = "status",
    /// The request of a write names another method or URI in a field, so its response may belong to another resource.
    Override = "override",
    /// The response sets a cookie.
    SetCookie = "set-cookie",
    /// The handler's own `Cache-Control` says `no-store`, `no-cache` or `private`.
    Withheld = "withheld",
    /// The time to live is zero. In a shared cache: the response has neither a freshness lifetime nor a validator.
    Lifetime = "lifetime",
    /// The response varies by `*`, by too many fields, or, after a write, by any field.
    Vary = "vary",
    /// The length of the body is not known in advance: it may never end.
    Stream = "stream",
    /// The body is larger than the limit.
    Size = "size",
    /// The bodies of other responses use up the memory budget.
    Budget = "budget",
    /// The body is empty, so a write-through has nothing to store.
    Empty = "empty",
    /// The response to a HEAD has no body to store.
    Head = "head",
    /// The body ended with trailers, or with an error.
    Body = "body",
    /// The response has tags that an entry can't have, or the store keeps no entries with tags.
    Tags = "tags",
    /// The key or a tag was evicted, or the key overwritten, while the handler ran.
    Evicted = "evicted",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(feature = "runtime")]
impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let words: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        assert!(words.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    }

    #[test]
    fn every_reason_has_a_sentence() {
        for reason in Reason::ALL {
            let meaning = reason.meaning();
            assert!(meaning.ends_with('.') && !meaning.starts_with(' '), "{meaning:?}");
        }
        assert_eq!(Reason::Keyless.meaning(), "The key builder gave no key.");
    }

    #[test]
    fn reasons_are_numbered_as_they_are_listed() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
