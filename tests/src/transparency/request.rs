//! Requests and what else happens to an application.

use http::Method;

/// Content of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// None.
    None,
    /// Bytes whose length is known.
    Sized(&'static str),
    /// Bytes in chunks, of a length that isn't said beforehand.
    Chunked(&'static str),
    /// A chunk, and no end.
    Endless,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which of the processes that share a store it is sent to.
    pub process: usize,
    /// The method.
    pub method: Method,
    /// Path and query as they are spelled on the wire.
    pub target: String,
    /// The host.
    pub host: &'static str,
    /// Whether the scheme is `https`.
    pub https: bool,
    /// Other fields. The value `LAST_ETAG` stands for the last entity tag that was seen.
    pub fields: Vec<(&'static str, String)>,
    /// The content.
    pub content: Content,
}

/// Stands for the last entity tag that was seen.
pub(super) const LAST_ETAG: &str = "@etag";

/// A handler that reads answers a request with this field some time after it read the state.
pub(super) const SLOW: &str = "x-slow";

/// How a write ends is said by this field.
pub(super) const OUTCOME: &str = "x-outcome";

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Op {
    /// A request, and its answer.
    Ask(Ask),
    /// Reads at the same time.
    Together(Vec<Ask>),
    /// A read whose handler has read the state when the write begins, and answers when it is over.
    Across(Ask, Ask),
    /// A request whose content doesn't end, and which is still under way when everything else happens.
    Hanging(Ask),
    /// So many seconds pass.
    Later(u64),
    /// All invalidation messages arrive.
    Settle,
}

impl Ask {
    /// A field, or "".
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// The same without these fields.
    #[must_use]
    pub fn without(&self, is_removed: impl Fn(&str) -> bool) -> Self {
        let mut ask = self.clone();
        ask.fields.retain(|(name, _)| !is_removed(name));
        ask
    }

    /// Whether it changes something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        [Method::PUT, Method::DELETE, Method::POST].contains(&self.method)
    }
}
