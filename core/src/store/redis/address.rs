//! The address of a server: a host and a port, or a Unix socket.

use std::fmt;

/// The address of a server: a host and a port, or the path of a Unix socket as the host. No host begins with a slash.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Returns the path if it is a Unix socket.
    pub(super) fn socket(&self) -> Option<&str> {
        self.host.starts_with('/').then_some(&*self.host)
    }

    /// Parses `host:port` as nodes of a cluster write it: the host may be empty, and an IPv6 address has no brackets.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }

    /// Parses `host[:port]` of a URL, with a default port. An IPv6 address has brackets.
    pub(crate) fn parse_or(text: &str, port: u16) -> Option<Self> {
        let (host, rest) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some(split) => split,
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match rest.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0)?,
            None if rest.is_empty() => port,
            None => return None,
        };
        let is_host = !host.is_empty() && !host.contains(['/', '@', ' ']);
        is_host.then(|| Self { host: host.to_owned(), port })
    }

    /// Adds the host of the node that sent this address if it has none.
    pub(super) fn beside(mut self, neighbour: &Self) -> Self {
        if self.host.is_empty() {
            self.host.clone_from(&neighbour.host);
        }
        self
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket() {
            Some(path) => f.write_str(path),
            None => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
