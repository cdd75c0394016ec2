//! The options of TLS to Redis.

/// The trusted authorities, the client's certificate, and the check of the server's name.
#[derive(Clone)]
pub(super) struct TlsOptions {
    pub(super) authorities: Option<Vec<u8>>,
    /// A certificate and its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) check_hostname: bool,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self { authorities: None, identity: None, check_hostname: true }
    }
}
