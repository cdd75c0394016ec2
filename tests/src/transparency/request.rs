//! Requests and the other events of a case.

use http::Method;

/// The content of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// No content.
    None,
    /// Bytes with a `Content-Length`.
    Sized(&'static str),
    /// Bytes in chunks, without a `Content-Length`.
    Chunked(&'static str),
    /// A chunk, after which the content never ends.
    Endless,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The process that it is sent to, among those that share a store.
    pub process: usize,
    /// The method.
    pub method: Method,
    /// The path and the query as they are sent.
    pub target: String,
    /// The host.
    pub host: &'static str,
    /// `true` for `https`.
    pub https: bool,
    /// The other fields. The value `LAST_ETAG` stands for the last entity tag of a response.
    pub fields: Vec<(&'static str, String)>,
    /// The content.
    pub content: Content,
}

/// Stands for the last entity tag of a response.
pub(super) const LAST_ETAG: &str = "@etag";

/// A request field that makes a reading handler respond some time after it read the state.
pub(super) const SLOW: &str = "x-slow";

/// A request field that sets the outcome of a write.
pub(super) const OUTCOME: &str = "x-outcome";

/// An event of a case.
#[derive(Clone, Debug)]
pub enum Op {
    /// A request.
    Ask(Ask),
    /// Concurrent reads.
    Together(Vec<Ask>),
    /// A read and a write. The handler of the read reads the state before the write, and responds after it.
    Across(Ask, Ask),
    /// A request whose content doesn't end. It stays open during the rest of the case.
    Hanging(Ask),
    /// This number of seconds passes.
    Later(u64),
    /// All invalidation messages arrive.
    Settle,
}

impl Ask {
    /// Returns a field, or "".
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// Returns a copy without these fields.
    #[must_use]
    pub fn without(&self, is_removed: impl Fn(&str) -> bool) -> Self {
        let mut ask = self.clone();
        ask.fields.retain(|(name, _)| !is_removed(name));
        ask
    }

    /// Returns `true` if the request may change something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        [Method::PUT, Method::DELETE, Method::POST].contains(&self.method)
    }
}
