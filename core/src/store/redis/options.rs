//! The options of a Redis store: addresses, credentials, deadlines and limits.

use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo};

use super::address::Address;
use super::tls_options::TlsOptions;
#[cfg(feature = "redis-pool")]
use super::transport::Pool;

/// The shortest deadline. A `WAIT` of zero has no time limit, and tokio's timers count milliseconds.
const SHORTEST_DEADLINE: Duration = Duration::from_millis(1);

/// The longest deadline: a hundred years. `Instant::now() + Duration::MAX` panics.
const LONGEST_DEADLINE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The options of a [`RedisStore`](super::RedisStore): addresses, credentials, deadlines and limits.
///
/// The debug output shows no user name, password or key.
///
/// ```
/// use larder_core::store::redis::RedisOptions;
/// use std::time::Duration;
///
/// let options = RedisOptions::from_url("redis://:secret@cache.internal:6380/2")?
///     .read_deadline(Duration::from_millis(20));
/// assert!(!format!("{options:?}").contains("secret"));
/// # Ok::<(), larder_core::store::redis::RedisUrlError>(())
/// ```
#[derive(Clone)]
pub struct RedisOptions {
    /// Never empty. Several are nodes of a cluster.
    addresses: Vec<Address>,
    pub(super) cluster: bool,
    pub(super) db: u32,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) tls: bool,
    pub(super) tls_options: TlsOptions,
    pub(super) read_deadline: Duration,
    pub(super) fill_deadline: Duration,
    pub(super) evict_deadline: Duration,
    pub(super) connect_deadline: Duration,
    pub(super) close_deadline: Duration,
    pub(super) connections: usize,
    pub(super) replicas: Option<Replicas>,
    pub(super) max_value_bytes: usize,
    pub(super) evict_foreign: bool,
    #[cfg(feature = "redis-pool")]
    pub(super) pool: Option<Pool>,
}

impl RedisOptions {
    /// Creates options for this host and port, with the defaults of all others.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            addresses: vec![Address { host: host.into(), port }],
            cluster: false,
            db: 0,
            username: None,
            password: None,
            tls: false,
            tls_options: TlsOptions::default(),
            read_deadline: Duration::from_millis(50),
            fill_deadline: Duration::from_millis(250),
            evict_deadline: Duration::from_millis(500),
            connect_deadline: Duration::from_millis(500),
            close_deadline: Duration::from_secs(5),
            connections: 1,
            replicas: None,
            max_value_bytes: 1 << 20,
            evict_foreign: false,
            #[cfg(feature = "redis-pool")]
            pool: None,
        }
    }

    /// Creates options that use the application's own pool, with the defaults of all others.
    ///
    /// The pool determines the address, the user, the number of connections and the certificates. Deadlines and the breaker
    /// work as without a pool. A pool costs more than the connection that calls share otherwise: every call waits for a
    /// connection of its own, which the pool checks with a `PING` first. So use it only if the application may have no other
    /// connections.
    ///
    /// A call waits for a connection until its own deadline, also beyond the pool's wait timeout. While other calls get
    /// replies, a timeout of this wait doesn't count towards the breaker.
    ///
    /// The pool doesn't report when it opens a new connection. So while the store remembers changes that a server could
    /// [lose](crate::store::redis#when-redis-loses-what-it-confirmed), it sends `INFO server` and `INFO replication` with each
    /// read, and the answer of another server than before is a miss.
    ///
    /// ```no_run
    /// use deadpool_redis::{Config, Runtime};
    /// use larder_core::{RedisOptions, RedisStore};
    ///
    /// let pool = Config::from_url("redis://127.0.0.1").create_pool(Some(Runtime::Tokio1))?;
    /// let store = RedisStore::new(RedisOptions::from_pool(pool));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "redis-pool")]
    #[must_use]
    pub fn from_pool(pool: deadpool_redis::Pool) -> Self {
        Self { pool: Some(Pool::One(pool)), ..Self::new("pool", 0) }
    }

    /// Creates options that use the application's own pool for a Redis Cluster, with the defaults of all others.
    ///
    /// The notes on [`from_pool`](Self::from_pool) apply here too. The pool hides its nodes, so there is one breaker for all of
    /// them. The pool's client follows redirections and failovers, and determines how long they take.
    ///
    /// Set the pool's timeouts. Without them, a call that opens or checks a connection to a hanging node blocks that
    /// connection for others. Leave `read_from_replicas` off: a replica may still have an entry that its master evicted.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use deadpool_redis::cluster::Config;
    /// use deadpool_redis::{PoolConfig, Runtime, Timeouts};
    /// use larder_core::{RedisOptions, RedisStore};
    ///
    /// let nodes = ["redis://10.0.0.1:7000", "redis://10.0.0.2:7000"].map(str::to_owned);
    /// let mut config = Config::from_urls(nodes);
    /// let mut pool = PoolConfig::new(16);
    /// pool.timeouts = Timeouts {
    ///     wait: Some(Duration::from_millis(200)),
    ///     create: Some(Duration::from_millis(500)),
    ///     recycle: Some(Duration::from_millis(200)),
    /// };
    /// config.pool = Some(pool);
    /// let store = RedisStore::new(RedisOptions::from_cluster_pool(config.create_pool(Some(Runtime::Tokio1))?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "redis-pool")]
    #[must_use]
    pub fn from_cluster_pool(pool: deadpool_redis::cluster::Pool) -> Self {
        Self { pool: Some(Pool::Cluster(pool)), ..Self::new("pool", 0).cluster(true) }
    }

    /// Parses a URL:
    ///
    /// * `redis://[[username]:password@]host[:port][/db]`, or `rediss://…` for TLS. Several hosts, separated by commas, are nodes
    ///   of a [cluster](Self::cluster): `redis://10.0.0.1:7000,10.0.0.2:7000`.
    /// * `redis+unix://[[username]:password@]/path`, or `unix://…`, for a server that listens on a Unix socket.
    ///
    /// The parameters `db`, `username` (or `user`) and `password` (or `pass`) take precedence over the parts before them:
    /// `?db=2`. Any other parameter, and a fragment, is an error. Characters with a meaning in URLs are percent-encoded, also in
    /// a password: `%3F` for `?`.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not such a URL, has an unknown parameter, or names another database than 0 of a cluster.
    /// The error names the parameter and never repeats the URL, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self, RedisUrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(RedisUrlError::Scheme)?;
        let (rest, parameters) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let options = match scheme {
            "redis" => Self::from_hosts(rest)?,
            "rediss" => Self::from_hosts(rest)?.tls(true),
            "redis+unix" | "unix" => Self::from_socket(rest)?,
            _ => return Err(RedisUrlError::Scheme),
        };
        let options = options.with_parameters(parameters)?;
        if options.cluster && options.db != 0 {
            return Err(RedisUrlError::Invalid("a cluster has no other database than 0".into()));
        }
        Ok(options)
    }

    /// Parses `[[username]:password@]host[:port][,host[:port]…][/db]`.
    fn from_hosts(text: &str) -> Result<Self, RedisUrlError> {
        // The client library parses one host only. Commas elsewhere, such as in a password, are kept.
        let end = text.find('/').unwrap_or(text.len());
        let start = text[..end].rfind('@').map_or(0, |at| at + 1);
        let (first, others) = text[start..end].split_once(',').unwrap_or((&text[start..end], ""));
        // The library parses `rediss:` only if it is built with TLS. The rest of the URL is the same.
        let plain = format!("redis://{}{first}{}", &text[..start], &text[end..]);
        let info = plain.into_connection_info().map_err(|error| RedisUrlError::Invalid(error.to_string()))?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else {
            return Err(RedisUrlError::Scheme);
        };
        let settings = info.redis_settings();
        let db =
            u32::try_from(settings.db()).map_err(|_| RedisUrlError::Invalid("negative database".into()))?;
        let mut options = Self {
            db,
            username: settings.username().map(str::to_owned),
            password: settings.password().map(str::to_owned),
            ..Self::new(host.as_str(), *port)
        };
        if first.len() < end - start {
            for other in others.split(',') {
                let address = Address::parse_or(other, DEFAULT_PORT)
                    .ok_or_else(|| RedisUrlError::Invalid("one of the hosts".into()))?;
                options = options.node(address.host, address.port);
            }
        }
        Ok(options)
    }

    /// Parses `[[username]:password@]/path`.
    fn from_socket(text: &str) -> Result<Self, RedisUrlError> {
        if !cfg!(unix) {
            return Err(RedisUrlError::Invalid("this system has no Unix sockets".into()));
        }
        let (login, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        let path = decoded(path)?;
        if path.len() < 2 || path.contains('\0') {
            return Err(RedisUrlError::Invalid("a Unix socket has an absolute path".into()));
        }
        let options = Self::new(path, 0);
        let Some(login) = login.strip_suffix('@') else {
            return match login {
                "" => Ok(options),
                _ => Err(RedisUrlError::Invalid("a Unix socket has no host: unix:///path".into())),
            };
        };
        let (username, password) = match login.split_once(':') {
            Some((username, password)) => (username, Some(password)),
            None => (login, None),
        };
        Ok(Self {
            username: Some(decoded(username)?).filter(|username| !username.is_empty()),
            password: password.map(decoded).transpose()?.filter(|password| !password.is_empty()),
            ..options
        })
    }

    /// Parses `?name=value&…`, or an empty text.
    fn with_parameters(mut self, text: &str) -> Result<Self, RedisUrlError> {
        let invalid = |problem: String| Err(RedisUrlError::Invalid(problem));
        // An `@` means that the text so far was no host, but the beginning of a password.
        if text.contains('@') {
            return invalid("`?`, `#`, and `@` in a parameter, are written %3F, %23 and %40".into());
        }
        let (query, fragment) =
            text.split_once('#').map_or((text, None), |(query, rest)| (query, Some(rest)));
        if let Some(fragment) = fragment {
            return invalid(format!("the fragment {} has no meaning", named(fragment)));
        }
        for parameter in query.trim_start_matches('?').split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = decoded(&value.replace('+', "%20"))?;
            self = match name {
                "db" => match value.parse() {
                    Ok(db) => self.db(db),
                    Err(_) => return invalid("the parameter `db` is not the number of a database".into()),
                },
                "user" | "username" => self.username(value),
                "pass" | "password" => self.password(value),
                name => {
                    let known = "db, username and password are";
                    return invalid(format!("the parameter {} is not known; {known}", named(name)));
                }
            };
        }
        Ok(self)
    }

    /// Enables Redis Cluster. The host is one of its nodes, from which the store learns the others. Off by default.
    ///
    /// The store sends commands to masters only. A cluster has only database 0: with another [`db`](Self::db) every connection
    /// fails.
    #[must_use]
    pub fn cluster(self, cluster: bool) -> Self {
        Self { cluster, ..self }
    }

    /// Adds another node of the [cluster](Self::cluster) to connect to first, in case the others are down. Not every node must
    /// be listed. Turns the cluster mode on.
    #[must_use]
    pub fn node(mut self, host: impl Into<String>, port: u16) -> Self {
        self.addresses.push(Address { host: host.into(), port });
        self.cluster(true)
    }

    /// Sets the number of the database. The default is 0.
    #[must_use]
    pub fn db(self, db: u32) -> Self {
        Self { db, ..self }
    }

    /// Sets the user to log in as. By default it is Redis's default user.
    #[must_use]
    pub fn username(self, username: impl Into<String>) -> Self {
        Self { username: Some(username.into()), ..self }
    }

    /// Sets the password to log in with.
    #[must_use]
    pub fn password(self, password: impl Into<String>) -> Self {
        Self { password: Some(password.into()), ..self }
    }

    /// Enables TLS. Off by default. It needs the feature `redis-tls`. Without the feature every connection fails.
    ///
    /// The server must present a certificate for the host of this store, signed by an authority that the system trusts or by
    /// one of [`ca_certificates`](Self::ca_certificates).
    #[must_use]
    pub fn tls(self, tls: bool) -> Self {
        Self { tls, ..self }
    }

    /// Sets the authorities to trust instead of the system's: certificates in PEM. Turns TLS on.
    ///
    /// Text without a certificate, here and in [`client_certificate`](Self::client_certificate), is no error until the
    /// store connects. Then the store is unavailable, and the log says why.
    #[must_use]
    pub fn ca_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls_options.authorities = Some(pem.into());
        self.tls(true)
    }

    /// Sets the client certificate for servers that ask for one: the certificate with its intermediate certificates, and its
    /// private key, all in PEM. Turns TLS on.
    #[must_use]
    pub fn client_certificate(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls_options.identity = Some((certificate.into(), key.into()));
        self.tls(true)
    }

    /// Sets whether the server's certificate must name the host. On by default. When it is off, any holder of a certificate of a
    /// trusted authority can impersonate the server.
    #[must_use]
    pub fn check_hostname(mut self, check_hostname: bool) -> Self {
        self.tls_options.check_hostname = check_hostname;
        self
    }

    /// Sets the deadline of `get` and `has`. The default is 50 ms. A slower read is a miss.
    ///
    /// Three of these deadlines without an answer open the circuit breaker, unless the connection still delivers bytes.
    /// Concurrent reads of a value of 64 KiB or more share one reply, which is received to its end even after its callers have
    /// timed out. If the network needs longer than this for the largest values, raise it or lower
    /// [`max_value_bytes`](Self::max_value_bytes): a value that never arrives in time is never a hit.
    /// Less than a millisecond, such as zero, counts as one millisecond.
    #[must_use]
    pub fn read_deadline(self, read_deadline: Duration) -> Self {
        Self { read_deadline: bounded(read_deadline), ..self }
    }

    /// Sets the deadline of `set` and of each step of a fill. The default is 250 ms. A fill that times out delivers its response
    /// without storing it, and `set` returns an error. Less than a millisecond, such as zero, counts as one
    /// millisecond.
    #[must_use]
    pub fn fill_deadline(self, fill_deadline: Duration) -> Self {
        Self { fill_deadline: bounded(fill_deadline), ..self }
    }

    /// Sets the deadline of each command of an eviction. The default is 500 ms. Evicting a large group takes several commands.
    /// An eviction that times out returns an error, and is repeated in the background until Redis confirms it. Less than a
    /// millisecond, such as zero, counts as one millisecond.
    #[must_use]
    pub fn evict_deadline(self, evict_deadline: Duration) -> Self {
        Self { evict_deadline: bounded(evict_deadline), ..self }
    }

    /// Sets the deadline for connecting, logging in and a first `PING` together. The default is 500 ms. Less than a
    /// millisecond, such as zero, counts as one millisecond.
    #[must_use]
    pub fn connect_deadline(self, connect_deadline: Duration) -> Self {
        Self { connect_deadline: bounded(connect_deadline), ..self }
    }

    /// Sets how long [`close`](crate::store::CacheStore::close) waits for evictions that Redis has not confirmed. The default is
    /// 5 seconds. With zero, it waits a millisecond at most.
    ///
    /// While Redis can't be reached, evictions are repeated until it can. A process that has ended can't repeat them, so other
    /// processes read the stale entries until these expire. Closing logs the names of the evictions that are left. It doesn't
    /// wait if everything is confirmed.
    #[must_use]
    pub fn close_deadline(self, close_deadline: Duration) -> Self {
        Self { close_deadline: bounded(close_deadline), ..self }
    }

    /// Sets the number of multiplexed connections to the server, or to each node of a cluster, from 1 to 4. The default is 1. One
    /// connection carries more than 100,000 commands a second.
    #[must_use]
    pub fn connections(self, connections: usize) -> Self {
        Self { connections: connections.clamp(1, 4), ..self }
    }

    /// Sets the number of replicas that must confirm each change, and the time limit for this. The default is none, and so is a
    /// `count` of zero.
    ///
    /// A master confirms a change before its replicas have it, so a failover may undo the last changes. With this option,
    /// an eviction, a `set`, a write-through and an [`update`](crate::CacheBackend::update) are confirmed only when this many
    /// replicas have them (`WAIT`). A confirmed change then survives a failover to one of these replicas. It may be lost in a
    /// failover to any other replica, so with several replicas per master, set `count` to all of them.
    ///
    /// If fewer replicas confirm, the master has the change, but the call fails. The entry counts as absent in this process, and
    /// is evicted in the background until enough replicas confirm that, as after any [eviction that was not
    /// confirmed](crate::store::redis#when-redis-is-down). So changed entries are not cached while a replica is down.
    ///
    /// Each change takes two more round trips, one of them to the slowest of these replicas. It may take `timeout` on top of its
    /// own deadline. Less than a millisecond, such as zero, counts as one millisecond. A connection that waits carries no other
    /// commands, so changes have [as many](Self::connections) separate connections to each server, on which they wait for each
    /// other. Reads, and fills of missing entries, don't wait. Deleting a whole prefix waits for each group, and in a cluster for
    /// each key without a group.
    ///
    /// The user must be allowed to run `WAIT`. With a pool, keep `timeout` below the response timeout of its client. A change
    /// occupies one of the pool's connections while it waits.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use larder_core::RedisOptions;
    ///
    /// let options = RedisOptions::new("redis.internal", 6379).wait_for_replicas(1, Duration::from_millis(100));
    /// # drop(options);
    /// ```
    #[must_use]
    pub fn wait_for_replicas(self, count: u32, timeout: Duration) -> Self {
        let timeout = bounded(timeout);
        Self { replicas: (count > 0).then_some(Replicas { count, timeout }), ..self }
    }

    /// Sets the size of the largest value to store, in bytes. The default is 1 MiB. A large value delays all replies behind it on
    /// the connection. A larger value than this is not stored, and removes the entry that it would replace.
    #[must_use]
    pub fn max_value_bytes(self, max_value_bytes: usize) -> Self {
        Self { max_value_bytes, ..self }
    }

    /// Sets whether evicting a group also removes keys of its pattern, `prefix:{group}:…`, that another program wrote, such as
    /// the library that introduced these names. Off by default.
    ///
    /// Larder has an index of its own entries, but other keys must be searched among all keys of the database, page by page.
    /// That doesn't block Redis, but the eviction takes about a second for every million keys in the database (in every master
    /// of a cluster), and the user must be allowed to run `SCAN`. Larder never reads such keys, whether they are removed or not.
    #[must_use]
    pub fn evict_foreign(self, evict_foreign: bool) -> Self {
        Self { evict_foreign, ..self }
    }

    pub(super) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Returns `true` if the server listens on a Unix socket.
    pub(crate) fn is_socket(&self) -> bool {
        self.addresses.iter().any(|address| address.socket().is_some())
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.cluster
    }

    /// Returns `true` if connections come from the application's own pool, so that their addresses are unknown.
    pub(super) fn is_pooled(&self) -> bool {
        #[cfg(feature = "redis-pool")]
        return self.pool.is_some();
        #[cfg(not(feature = "redis-pool"))]
        false
    }

    pub(crate) fn database(&self) -> u32 {
        self.db
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }

    /// Checks the certificates and keys. The error names the fault.
    #[cfg(feature = "redis-tls")]
    pub(crate) fn check_tls(&self) -> Result<(), String> {
        super::tls::Tls::new(&self.tls_options).map(drop)
    }

    pub(super) fn handshake(&self) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default()
            .set_db(i64::from(self.db))
            .set_lib_name("larder", env!("CARGO_PKG_VERSION"));
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        info
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("addresses", &self.addresses)
            .field("cluster", &self.cluster)
            .field("db", &self.db)
            .field("username", &self.username.as_ref().map(|_| "***"))
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("tls", &self.tls)
            .field("check_hostname", &self.tls_options.check_hostname)
            .field("read_deadline", &self.read_deadline)
            .field("fill_deadline", &self.fill_deadline)
            .field("evict_deadline", &self.evict_deadline)
            .field("connect_deadline", &self.connect_deadline)
            .field("close_deadline", &self.close_deadline)
            .field("connections", &self.connections)
            .field("replicas", &self.replicas)
            .field("max_value_bytes", &self.max_value_bytes)
            .field("evict_foreign", &self.evict_foreign)
            .finish()
    }
}

/// The replicas that confirm each change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replicas {
    pub(super) count: u32,
    /// The limit of the wait for them.
    pub(super) timeout: Duration,
}

fn bounded(deadline: Duration) -> Duration {
    deadline.clamp(SHORTEST_DEADLINE, LONGEST_DEADLINE)
}

/// The port of Redis if none is given.
pub(crate) const DEFAULT_PORT: u16 = 6379;

/// Decodes percent-encoded text.
fn decoded(text: &str) -> Result<String, RedisUrlError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| RedisUrlError::Invalid("not UTF-8".into()))
}

/// Quotes the name of a parameter if it looks like one. Other text may be a misplaced secret, and is not repeated.
fn named(name: &str) -> String {
    let is_name = (1..=40).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if is_name { format!("`{name}`") } else { "that is given".to_owned() }
}

/// An error in the URL of a Redis server. It never contains the URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RedisUrlError {
    /// The URL begins with none of `redis://`, `rediss://`, `redis+unix://` and `unix://`.
    #[error("a Redis URL begins with redis://, rediss://, redis+unix:// or unix://")]
    Scheme,
    /// The rest of the URL is invalid. The text names the problem.
    #[error("not a valid Redis URL: {0}")]
    Invalid(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_has_user_password_host_port_and_database() {
        let options = RedisOptions::from_url("rediss://al%20ice:p%40ss@example.com:7000/3").unwrap();
        assert_eq!(
            (format!("{:?}", options.addresses), options.db, options.tls),
            ("[example.com:7000]".to_owned(), 3, true)
        );
        assert_eq!(
            (options.username.as_deref(), options.password.as_deref()),
            (Some("al ice"), Some("p@ss"))
        );
        let options = RedisOptions::from_url("redis://localhost").unwrap();
        assert_eq!(
            (format!("{:?}", options.addresses), options.db, options.tls),
            ("[localhost:6379]".to_owned(), 0, false)
        );
        let options = RedisOptions::from_url("redis://[::1]:1").unwrap();
        assert_eq!(options.addresses, [Address { host: "::1".to_owned(), port: 1 }]);
        assert!(!options.cluster);
    }

    #[test]
    fn deadlines_are_between_a_millisecond_and_a_century() {
        let deadlines = |deadline| {
            let options =
                RedisOptions::new("localhost", 6379).read_deadline(deadline).fill_deadline(deadline);
            let options = options.evict_deadline(deadline).connect_deadline(deadline);
            let options = options.close_deadline(deadline).wait_for_replicas(1, deadline);
            let wait = options.replicas.unwrap().timeout;
            let RedisOptions { read_deadline, fill_deadline, evict_deadline, connect_deadline, .. } = options;
            [read_deadline, fill_deadline, evict_deadline, connect_deadline, options.close_deadline, wait]
        };
        let millisecond = Duration::from_millis(1);
        assert_eq!(deadlines(Duration::ZERO), [millisecond; 6]);
        assert_eq!(deadlines(Duration::from_nanos(1)), [millisecond; 6]);
        assert_eq!(deadlines(millisecond * 20), [millisecond * 20; 6]);
        assert_eq!(deadlines(Duration::MAX), [LONGEST_DEADLINE; 6]);
        assert!(RedisOptions::new("localhost", 6379).wait_for_replicas(0, millisecond).replicas.is_none());
    }

    #[test]
    fn known_parameters_apply_and_unknown_ones_are_errors_that_name_them() {
        let options =
            RedisOptions::from_url("redis://bob:x@h/1?db=2&username=al+ice&password=p%40s%2Bs").unwrap();
        assert_eq!(options.db, 2);
        assert_eq!(
            (options.username.as_deref(), options.password.as_deref()),
            (Some("al ice"), Some("p@s+s"))
        );
        let options = RedisOptions::from_url("rediss://h:7?&user=alice&pass=x&").unwrap();
        assert_eq!((format!("{:?}", options.addresses), options.tls), ("[h:7]".to_owned(), true));
        assert_eq!((options.username.as_deref(), options.password.as_deref()), (Some("alice"), Some("x")));
        assert!(RedisOptions::from_url("redis://a,b?db=0").unwrap().cluster);
        for (url, named) in [
            ("redis://h?protocol=resp3", "`protocol`"),
            ("redis://h/2?ssl_cert_reqs=none", "`ssl_cert_reqs`"),
            ("redis://h?db=1&timeout=5", "`timeout`"),
            ("redis://h?DB=1", "`DB`"),
            ("redis://h?db=x", "`db`"),
            ("redis://h#insecure", "`insecure`"),
            ("redis://h?db=1#insecure", "`insecure`"),
            ("unix:///run/redis.sock?virtual_host=1", "`virtual_host`"),
        ] {
            let error = RedisOptions::from_url(url).unwrap_err().to_string();
            assert!(error.contains(named), "{url}: {error}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn socket_url_has_a_path() {
        for scheme in ["unix", "redis+unix"] {
            let url = format!("{scheme}://al%20ice:p%40ss@/run/re%20dis.sock?db=3");
            let options = RedisOptions::from_url(&url).unwrap();
            assert_eq!(
                (format!("{:?}", options.addresses), options.db),
                ("[/run/re dis.sock]".to_owned(), 3)
            );
            assert_eq!(
                (options.username.as_deref(), options.password.as_deref()),
                (Some("al ice"), Some("p@ss"))
            );
            assert!(options.is_socket() && !options.tls && !options.cluster);
        }
        let options = RedisOptions::from_url("unix:///s?pass=x").unwrap();
        assert_eq!((options.username.as_deref(), options.password.as_deref()), (None, Some("x")));
    }

    #[test]
    fn several_hosts_enable_cluster_mode() {
        let options = RedisOptions::from_url("redis://al,ice:p,w@a:1,b,[::1]:3/0").unwrap();
        assert_eq!(format!("{:?}", options.addresses), "[a:1, b:6379, ::1:3]");
        assert!(options.cluster);
        assert_eq!((options.username.as_deref(), options.password.as_deref()), (Some("al,ice"), Some("p,w")));
        let more = RedisOptions::new("a", 1).node("b", 2);
        assert_eq!(format!("{:?}", more.addresses), "[a:1, b:2]");
        assert!(more.cluster && !more.cluster(false).cluster);
    }

    #[test]
    fn invalid_url_is_an_error_that_does_not_repeat_it() {
        for bad in [
            "",
            "localhost:6379",
            "http://secret@localhost",
            "redis://",
            "redis://:secret@h/x",
            "redis://:secret@h:99999999",
            "redis://:secret@h/-1",
            "redis+unix://secret",
            "redis+unix://secret/path",
            "unix://",
            "unix:///",
            "unix://host:6379/path",
            "unix:///path?protocol=secret",
            "redis://:se?cret@h",
            "redis://:pass?secret=x@h",
            "redis://h#secret word",
            "redis://h?secret word",
            "redis://h?db=secret",
            "redis://h?db=-1",
            "redis://h?db=",
            "redis://h?password=%ff",
            "redis://a,b?db=2",
            "redis://:secret@a,b/3",
            "redis://:secret@a,",
            "redis://:secret@a,b:x",
            "redis://:secret@a,b:0",
        ] {
            let error = RedisOptions::from_url(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn debug_output_hides_secrets() {
        let options = RedisOptions::new("h", 1)
            .username("alice")
            .password("secret")
            .client_certificate("alice's certificate", "secret key");
        let printed = format!("{options:?} {options:#?}");
        assert!(!printed.contains("secret") && !printed.contains("alice"), "{printed}");
    }
}
