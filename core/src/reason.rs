//! Why the cache did not do more: one word each, the same in `Cache-Status`, logs, metrics and tests.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal),+ $(,)?) => {
        /// Why a request went past the cache, why nothing was found, or why a response was not stored.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])* $name,)+
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The word for it. It never changes.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                // The documentation's own lines, each with the space it begins with.
                match self {
                    $(Self::$name => concat!($($doc),*).trim_ascii_start(),)+
                }
            }
        }
    };
}

reasons! {
    // About the request: it is not looked up.
    /// Only GET and HEAD are answered from the cache.
    Method = "method",
    /// The request asks to switch protocols.
    Upgrade = "upgrade",
    /// The handler answers with a part of the body, or that there is no such part: only the whole is stored.
    Range = "range",
    /// A GET with content: what it means is the handler's business (RFC 9110 §9.3.1).
    Content = "content",
    /// `If-Match` or `If-Unmodified-Since`: only the origin can answer (RFC 9111 §4.3.2).
    Precondition = "precondition",
    /// The request says `no-store`.
    NoStore = "no-store",
    /// It carries `Authorization`, and the route was declared neither public nor private.
    Authorization = "authorization",
    /// It carries `Cookie`, and the route was declared neither public nor private.
    Cookie = "cookie",
    /// It carries other credentials, such as `X-Api-Key`, and the route was declared neither public nor private.
    Credentials = "credentials",
    /// The route is private and the request names nobody.
    Anonymous = "anonymous",
    /// The key builder gave no key.
    Keyless = "keyless",

    /// The path isn't spelled canonically, and the router's pattern that led to the handler isn't known: the same resource
    /// under another spelling may have another handler.
    Spelling = "spelling",
    /// The URI was rewritten on its way to the handler, under a prefix that isn't known.
    Rewritten = "rewritten",
    /// The handler runs already for this key: the same cache is around it twice, or it asks for its own resource.
    Nested = "nested",

    // About the lookup: there is nothing that may be used.
    /// Nothing is stored.
    Absent = "absent",
    /// What was stored has expired.
    Expired = "expired",
    /// The request says `no-cache`.
    NoCache = "no-cache",
    /// What is stored is older than the request's `max-age`.
    MaxAge = "max-age",
    /// What is stored won't stay fresh for as long as the request's `min-fresh` asks.
    MinFresh = "min-fresh",
    /// Other variants of the resource are stored, but not this one.
    Variant = "variant",
    /// What is stored is damaged, from another version, or no response.
    Unreadable = "unreadable",
    /// What is stored came from another route of the same key: the router's pattern is another one.
    Pattern = "pattern",
    /// The store failed, or took too long.
    Down = "down",
    /// Somebody changes the resource right now, or its answer was just found to be uncacheable.
    Busy = "busy",
    /// Only a part of the body is stored, and not the one that is asked for.
    Incomplete = "incomplete",
    /// Another request is filling the entry and took too long.
    Waited = "waited",

    // About the response: it is not stored.
    /// The handler failed.
    Failed = "failed",
    /// Responses with this status are not stored.
    Status = "status",
    /// A write's request names another method or URI in a field, so that its answer may belong elsewhere.
    Override = "override",
    /// The response sets a cookie.
    SetCookie = "set-cookie",
    /// The handler's own `Cache-Control` says `no-store`, `no-cache` or `private`.
    Withheld = "withheld",
    /// A shared cache is told neither how long the response stays fresh nor how to ask whether it still is.
    Lifetime = "lifetime",
    /// The response varies by `*`, or by too many fields, or a write's answer varies at all.
    Vary = "vary",
    /// The length of the body is not known beforehand: it may never end.
    Stream = "stream",
    /// The body is larger than the limit.
    Size = "size",
    /// Too many bytes of other answers are being kept right now.
    Budget = "budget",
    /// The body is empty, and a write-through has nothing to store.
    Empty = "empty",
    /// The answer to a HEAD has no body to store.
    Head = "head",
    /// The body ended with trailers, or with an error.
    Body = "body",
    /// The key was evicted or overwritten while the handler ran.
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
