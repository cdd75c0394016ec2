//! Configuration from environment variables: the store, its address, and the defaults of routes.
//!
//! [`guide::configuration`](crate::guide::configuration) lists the variables.

use std::fmt::Display;
use std::str::FromStr;
#[cfg(feature = "redis")]
use std::time::Duration;

use crate::key::{DEFAULT_PREFIX, KeySpace};
use crate::larder::{Larder, LarderBuilder};
use crate::ttl::Ttl;

#[cfg(feature = "redis")]
use crate::store::redis::address::Address;
#[cfg(feature = "redis")]
use crate::store::redis::options::DEFAULT_PORT;
#[cfg(feature = "redis")]
use crate::store::redis::{RedisOptions, RedisStore};

impl Larder {
    /// A cache as the environment says: Redis with `REDIS_URL` or `REDIS_HOST`, else this process's memory.
    ///
    /// # Errors
    ///
    /// Returns an error if a variable is invalid, or needs a feature that isn't compiled in. The error names the variable
    /// and, unless it may contain a secret, its value.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Creates a cache as [`from_env`](Self::from_env) does, from any source of variables.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`from_env`](Self::from_env).
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use larder_core::Larder;
    ///
    /// let larder = Larder::from_vars(|name| (name == "REDIS_PREFIX").then(|| "shop".to_owned())).unwrap();
    /// assert_eq!(larder.prefix(), "shop:cache");
    /// # }
    /// ```
    pub fn from_vars(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let vars = Vars { lookup };
        vars.refuse_unsupported()?;
        let builder = vars.builder()?;
        match ["REDIS_URL", "REDIS_HOST"].into_iter().find(|name| vars.text(name).is_some()) {
            Some(variable) => vars.redis(builder, variable),
            None => {
                vars.refuse_nowhere()?;
                memory(builder)
            }
        }
    }

    /// Creates a cache on the Redis at this URL: `redis://[[username]:password@]host[:port][/db]`, or any other that
    /// [`RedisOptions::from_url`] accepts. It connects on first use.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL is invalid.
    #[cfg(feature = "redis")]
    pub fn redis(url: &str) -> Result<Self, crate::store::redis::RedisUrlError> {
        Ok(Self::builder().store(RedisStore::new(RedisOptions::from_url(url)?)).build())
    }
}

struct Vars<F> {
    lookup: F,
}

impl<F: Fn(&str) -> Option<String>> Vars<F> {
    fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    fn parsed<T: FromStr>(&self, name: &'static str, expected: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        match value.trim().parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(ConfigError::invalid(name, &value, expected)),
        }
    }

    #[cfg(feature = "redis")]
    fn seconds(&self, name: &'static str) -> Result<Option<Duration>, ConfigError> {
        let expected = "a number of seconds above 0";
        let Some(seconds) = self.parsed::<f64>(name, expected)? else { return Ok(None) };
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if !duration.is_zero() => Ok(Some(duration)),
            _ => Err(ConfigError::invalid(name, seconds, expected)),
        }
    }

    fn flag(&self, name: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.text(name).map(|value| value.to_ascii_lowercase()).as_deref() {
            None => Ok(None),
            Some("false" | "0" | "no" | "off") => Ok(Some(false)),
            Some("true" | "1" | "yes" | "on") => Ok(Some(true)),
            Some(value) => Err(ConfigError::invalid(name, value, "true or false")),
        }
    }

    /// Reads the file that a variable names.
    #[cfg(feature = "redis-tls")]
    fn file(&self, name: &'static str) -> Result<Option<Vec<u8>>, ConfigError> {
        let Some(path) = self.text(name) else { return Ok(None) };
        match std::fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) => Err(ConfigError::invalid(name, path, format_args!("a file to read, but {error}"))),
        }
    }

    /// Refuses variables that Larder can't honour. Otherwise the cache would silently differ from its configuration.
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        let name = "REDIS_SENTINEL";
        if self.flag(name)? == Some(true) {
            return Err(ConfigError::Unsupported { variable: name });
        }
        Ok(())
    }

    fn local_bytes(&self) -> Result<u64, ConfigError> {
        Ok(self.parsed("REDIS_LOCAL_CACHE_BYTES", "a number of bytes, 0 for none")?.unwrap_or(0))
    }

    /// Refuses options for a connection to Redis without an address: the memory store isn't meant.
    fn refuse_nowhere(&self) -> Result<(), ConfigError> {
        for variable in ["REDIS_CLUSTER", "REDIS_SSL"] {
            if self.flag(variable)? == Some(true) {
                let problem = "needs REDIS_URL or REDIS_HOST, to say where Redis is".to_owned();
                return Err(ConfigError::Secret { variable, problem });
            }
        }
        if self.local_bytes()? > 0 {
            let problem =
                "needs REDIS_URL or REDIS_HOST: without Redis everything is in memory anyway".to_owned();
            return Err(ConfigError::Secret { variable: "REDIS_LOCAL_CACHE_BYTES", problem });
        }
        Ok(())
    }

    fn builder(&self) -> Result<LarderBuilder, ConfigError> {
        let mut builder = Larder::builder();
        if let Some(prefix) = self.text("REDIS_PREFIX") {
            let whole = format!("{prefix}:cache");
            KeySpace::new(&whole, None)
                .map_err(|error| ConfigError::invalid("REDIS_PREFIX", prefix, error))?;
            builder = builder.prefix(&whole);
        } else {
            builder = builder.prefix(DEFAULT_PREFIX);
        }
        if let Some(seconds) =
            self.parsed::<u64>("REDIS_DEFAULT_TTL", "a number of seconds, 0 for no expiry")?
        {
            builder = builder.default_ttl(Ttl::from(seconds));
        }
        Ok(builder)
    }

    #[cfg(feature = "redis")]
    fn redis(&self, builder: LarderBuilder, _: &'static str) -> Result<Larder, ConfigError> {
        let (options, local) = (self.redis_options()?, self.local_bytes()?);
        if local == 0 {
            return Ok(builder.store(RedisStore::new(options)).build());
        }
        if options.is_cluster() {
            let problem =
                "nothing can be kept in this process of a Redis Cluster yet; leave it out or 0".to_owned();
            return Err(ConfigError::Secret { variable: "REDIS_LOCAL_CACHE_BYTES", problem });
        }
        Ok(builder.redis_with_local(options, local).build())
    }

    #[cfg(feature = "redis")]
    fn redis_options(&self) -> Result<RedisOptions, ConfigError> {
        let mut options = match self.text("REDIS_URL") {
            Some(url) => RedisOptions::from_url(&url)
                .map_err(|error| ConfigError::Secret { variable: "REDIS_URL", problem: error.to_string() })?,
            None => self.redis_in_parts()?,
        };
        options = self.tls(self.cluster(options)?)?;
        let expected = "a number of connections above 0";
        if let Some(connections) = self.parsed::<usize>("REDIS_MAX_CONNECTIONS", expected)? {
            if connections == 0 {
                return Err(ConfigError::invalid("REDIS_MAX_CONNECTIONS", connections, expected));
            }
            options = options.connections(connections);
        }
        if let Some(limit) = self.seconds("REDIS_SOCKET_TIMEOUT")? {
            options = options.read_deadline(limit).fill_deadline(limit).evict_deadline(limit);
        }
        if let Some(limit) = self.seconds("REDIS_SOCKET_CONNECT_TIMEOUT")? {
            options = options.connect_deadline(limit);
        }
        Ok(options)
    }

    #[cfg(feature = "redis")]
    fn redis_in_parts(&self) -> Result<RedisOptions, ConfigError> {
        let expected = "a port between 1 and 65535";
        let port = self.parsed("REDIS_PORT", expected)?.unwrap_or(DEFAULT_PORT);
        if port == 0 {
            return Err(ConfigError::invalid("REDIS_PORT", port, expected));
        }
        let hosts = self.text("REDIS_HOST").unwrap_or_default();
        // This is a URL, maybe with a password in it. The password must appear neither in the error nor in a log.
        if hosts.contains(['/', '@']) {
            let problem = "not a host; a URL belongs in REDIS_URL".to_owned();
            return Err(ConfigError::Secret { variable: "REDIS_HOST", problem });
        }
        let address = |host: &str| {
            Address::parse_or(host.trim(), port)
                .ok_or_else(|| ConfigError::invalid("REDIS_HOST", &hosts, "host[:port][,host[:port]…]"))
        };
        // A single host can have any form, for instance an IPv6 address without brackets.
        let mut options = match hosts.split_once(',') {
            None => match address(&hosts) {
                Ok(Address { host, port }) => RedisOptions::new(host, port),
                Err(_) => RedisOptions::new(&*hosts, port),
            },
            Some((first, others)) => {
                let Address { host, port } = address(first)?;
                let mut options = RedisOptions::new(host, port);
                for other in others.split(',') {
                    let Address { host, port } = address(other)?;
                    options = options.node(host, port);
                }
                options
            }
        };
        if let Some(db) = self.parsed("REDIS_DB", "the number of a database")? {
            options = options.db(db);
        }
        if let Some(username) = self.text("REDIS_USERNAME") {
            options = options.username(username);
        }
        if let Some(password) = self.text("REDIS_PASSWORD") {
            options = options.password(password);
        }
        Ok(options)
    }

    #[cfg(feature = "redis")]
    fn cluster(&self, options: RedisOptions) -> Result<RedisOptions, ConfigError> {
        let asked = self.flag("REDIS_CLUSTER")?;
        let place = if self.text("REDIS_URL").is_some() { "REDIS_URL" } else { "REDIS_HOST" };
        if asked == Some(false) && options.is_cluster() {
            let problem = "several hosts are a cluster, which contradicts REDIS_CLUSTER=false".to_owned();
            return Err(ConfigError::Secret { variable: place, problem });
        }
        if options.is_socket() {
            for variable in ["REDIS_CLUSTER", "REDIS_SSL"] {
                if self.flag(variable)? == Some(true) {
                    let problem = "not over a Unix socket, which REDIS_URL names".to_owned();
                    return Err(ConfigError::Secret { variable, problem });
                }
            }
        }
        let options = if asked == Some(true) { options.cluster(true) } else { options };
        if options.is_cluster() && options.database() != 0 {
            let variable = if place == "REDIS_URL" { "REDIS_URL" } else { "REDIS_DB" };
            let problem = format!(
                "database {} together with REDIS_CLUSTER or several hosts: a cluster has no other database than 0",
                options.database()
            );
            return Err(ConfigError::Secret { variable, problem });
        }
        Ok(options)
    }

    #[cfg(feature = "redis-tls")]
    fn tls(&self, mut options: RedisOptions) -> Result<RedisOptions, ConfigError> {
        match self.flag("REDIS_SSL")? {
            Some(true) => options = options.tls(true),
            Some(false) if options.is_tls() => {
                let problem = "rediss:// contradicts REDIS_SSL=false".to_owned();
                return Err(ConfigError::Secret { variable: "REDIS_URL", problem });
            }
            _ => {}
        }
        let check_hostname = self.flag("REDIS_SSL_CHECK_HOSTNAME")?.unwrap_or(true);
        if !options.is_tls() {
            return Ok(options);
        }
        options = options.check_hostname(check_hostname);
        if let Some(pem) = self.file("REDIS_SSL_CA_CERTS")? {
            options = options.ca_certificates(pem);
        }
        let checked = |options: RedisOptions, variable| match options.check_tls() {
            Ok(()) => Ok(options),
            Err(problem) => Err(ConfigError::Secret { variable, problem }),
        };
        options = checked(options, "REDIS_SSL_CA_CERTS")?;
        match (self.file("REDIS_SSL_CERTFILE")?, self.file("REDIS_SSL_KEYFILE")?) {
            (None, None) => {}
            (Some(certificate), Some(key)) => options = options.client_certificate(certificate, key),
            // One file often contains both the certificate and its key.
            (Some(both), None) => options = options.client_certificate(both.clone(), both),
            (None, Some(_)) => {
                let problem = "a key without a certificate: set REDIS_SSL_CERTFILE too".to_owned();
                return Err(ConfigError::Secret { variable: "REDIS_SSL_KEYFILE", problem });
            }
        }
        checked(options, "REDIS_SSL_CERTFILE")
    }

    #[cfg(all(feature = "redis", not(feature = "redis-tls")))]
    fn tls(&self, options: RedisOptions) -> Result<RedisOptions, ConfigError> {
        let why = match (self.flag("REDIS_SSL")?, options.is_tls()) {
            (Some(true), _) => "REDIS_SSL",
            (_, true) => "REDIS_URL (with rediss://)",
            _ => return Ok(options),
        };
        Err(ConfigError::Feature { feature: "redis-tls", why })
    }

    #[cfg(not(feature = "redis"))]
    fn redis(&self, _: LarderBuilder, variable: &'static str) -> Result<Larder, ConfigError> {
        Err(ConfigError::Feature { feature: "redis", why: variable })
    }
}

#[cfg(feature = "memory")]
fn memory(builder: LarderBuilder) -> Result<Larder, ConfigError> {
    let store = crate::store::MemoryStore::new();
    Ok(builder.store(store).build())
}

#[cfg(not(feature = "memory"))]
fn memory(_: LarderBuilder) -> Result<Larder, ConfigError> {
    Err(ConfigError::Feature { feature: "memory", why: "the absence of REDIS_URL and REDIS_HOST" })
}

/// An invalid configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An invalid value.
    #[error("{variable}={value:?}: expected {expected}")]
    Invalid {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// A description of valid values.
        expected: String,
    },
    /// An invalid value of a variable that may contain a secret.
    #[error("{variable}: {problem}")]
    Secret {
        /// The variable.
        variable: &'static str,
        /// The problem, without the value.
        problem: String,
    },
    /// A variable that isn't supported.
    #[error("{variable} is not supported")]
    Unsupported {
        /// The variable.
        variable: &'static str,
    },
    /// A variable that needs a feature that isn't compiled in.
    #[error("{why} needs the feature `{feature}` of larder")]
    Feature {
        /// The feature.
        feature: &'static str,
        /// The reason for which it is needed.
        why: &'static str,
    },
}

impl ConfigError {
    fn invalid(variable: &'static str, value: impl Display, expected: impl Display) -> Self {
        Self::Invalid { variable, value: value.to_string(), expected: expected.to_string() }
    }
}

#[cfg(all(test, feature = "redis", feature = "memory"))]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<Larder, ConfigError> {
        Larder::from_vars(|name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn good_configurations() {
        for vars in [
            &[][..],
            &[("REDIS_URL", "")],
            &[("REDIS_URL", "redis://localhost:7000/1"), ("REDIS_MAX_CONNECTIONS", "2")],
            &[
                ("REDIS_HOST", "localhost"),
                ("REDIS_PORT", "7000"),
                ("REDIS_DB", "3"),
                ("REDIS_PASSWORD", "p"),
            ],
            &[("REDIS_HOST", "localhost"), ("REDIS_SOCKET_TIMEOUT", "0.5"), ("REDIS_SSL", "false")],
            &[("REDIS_DEFAULT_TTL", "300"), ("REDIS_LOCAL_CACHE_BYTES", "0")],
            &[("REDIS_URL", "redis://a:7000,b:7001")],
            &[("REDIS_URL", "redis://a:7000,b/0"), ("REDIS_CLUSTER", "true")],
            &[("REDIS_URL", "redis://a"), ("REDIS_CLUSTER", "true")],
            &[("REDIS_URL", "redis://a/3"), ("REDIS_CLUSTER", "false"), ("REDIS_DB", "1")],
            &[("REDIS_HOST", "a:7000, b,[::1]:7002"), ("REDIS_CLUSTER", "yes"), ("REDIS_DB", "0")],
            &[("REDIS_HOST", "::1")],
        ] {
            assert!(from(vars).is_ok(), "{vars:?}: {:?}", from(vars).err());
        }
        assert_eq!(from(&[]).unwrap().prefix(), "redis:larder:cache");
        assert_eq!(from(&[("REDIS_PREFIX", "shop")]).unwrap().prefix(), "shop:cache");
    }

    #[test]
    fn every_variable_has_its_effect() {
        let base = || RedisOptions::new("h", 6379);
        let millis = Duration::from_millis;
        for (name, value, expected) in [
            ("REDIS_HOST", "other", RedisOptions::new("other", 6379)),
            ("REDIS_HOST", "a,b:7001", RedisOptions::new("a", 6379).node("b", 7001)),
            ("REDIS_URL", "redis://other:7000/2", RedisOptions::new("other", 7000).db(2)),
            ("REDIS_URL", "redis://other:7000/1?db=2", RedisOptions::new("other", 7000).db(2)),
            ("REDIS_URL", "unix:///run/redis.sock?db=2", RedisOptions::new("/run/redis.sock", 0).db(2)),
            ("REDIS_PORT", "7000", RedisOptions::new("h", 7000)),
            ("REDIS_DB", "3", base().db(3)),
            ("REDIS_USERNAME", "alice", base().username("alice")),
            ("REDIS_PASSWORD", "secret", base().password("secret")),
            ("REDIS_CLUSTER", "true", base().cluster(true)),
            ("REDIS_MAX_CONNECTIONS", "3", base().connections(3)),
            ("REDIS_MAX_CONNECTIONS", "50", base().connections(4)),
            (
                "REDIS_SOCKET_TIMEOUT",
                "0.02",
                base().read_deadline(millis(20)).fill_deadline(millis(20)).evict_deadline(millis(20)),
            ),
            ("REDIS_SOCKET_CONNECT_TIMEOUT", "2", base().connect_deadline(millis(2000))),
        ] {
            let lookup = |asked: &str| match asked {
                _ if asked == name => Some(value.to_owned()),
                "REDIS_HOST" => Some("h".to_owned()),
                _ => None,
            };
            let options = Vars { lookup }.redis_options().unwrap();
            assert_eq!(format!("{options:?}"), format!("{expected:?}"), "{name}={value}");
        }
        let larder = from(&[("REDIS_PREFIX", "shop"), ("REDIS_DEFAULT_TTL", "300")]).unwrap();
        assert_eq!(larder.prefix(), "shop:cache");
        assert_eq!(larder.context.defaults.ttl, Ttl::from(300));
    }

    #[test]
    fn bad_ones_are_told_by_name_and_value() {
        for (vars, expected) in [
            (&[("REDIS_DEFAULT_TTL", "-1")][..], "REDIS_DEFAULT_TTL=\"-1\""),
            (&[("REDIS_HOST", "h"), ("REDIS_PORT", "70000")], "REDIS_PORT=\"70000\""),
            (&[("REDIS_HOST", "h"), ("REDIS_PORT", "0")], "REDIS_PORT=\"0\""),
            (&[("REDIS_HOST", "h"), ("REDIS_DB", "x")], "REDIS_DB=\"x\""),
            (&[("REDIS_HOST", "h"), ("REDIS_MAX_CONNECTIONS", "0")], "REDIS_MAX_CONNECTIONS=\"0\""),
            (&[("REDIS_HOST", "h"), ("REDIS_SOCKET_TIMEOUT", "-2")], "REDIS_SOCKET_TIMEOUT=\"-2\""),
            (&[("REDIS_HOST", "h"), ("REDIS_SOCKET_TIMEOUT", "NaN")], "REDIS_SOCKET_TIMEOUT=\"NaN\""),
            (&[("REDIS_PREFIX", "a{b")], "REDIS_PREFIX=\"a{b\""),
            (&[("REDIS_HOST", "h"), ("REDIS_CLUSTER", "perhaps")], "REDIS_CLUSTER=\"perhaps\""),
            (&[("REDIS_CLUSTER", "true")], "REDIS_CLUSTER"),
            (&[("REDIS_HOST", "a,b"), ("REDIS_CLUSTER", "false")], "REDIS_HOST: several"),
            (&[("REDIS_HOST", "a,b:x")], "REDIS_HOST=\"a,b:x\""),
            (&[("REDIS_HOST", "a,")], "REDIS_HOST=\"a,\""),
            (&[("REDIS_HOST", "redis://:secret@a")], "REDIS_HOST: not a host"),
            (&[("REDIS_HOST", "redis://:secret@a,b")], "REDIS_HOST: not a host"),
            (&[("REDIS_HOST", ":secret@a")], "REDIS_HOST: not a host"),
            (&[("REDIS_HOST", "a,b"), ("REDIS_DB", "2")], "REDIS_DB: database 2 together with REDIS_CLUSTER"),
            (&[("REDIS_URL", "redis://:secret@a/2"), ("REDIS_CLUSTER", "1")], "REDIS_URL: database 2"),
            (&[("REDIS_URL", "redis://:secret@a,b/2")], "REDIS_URL: not a valid"),
            (
                &[("REDIS_HOST", "h"), ("REDIS_SOCKET_CONNECT_TIMEOUT", "soon")],
                "REDIS_SOCKET_CONNECT_TIMEOUT=\"soon\"",
            ),
            (&[("REDIS_LOCAL_CACHE_BYTES", "1 MB")], "REDIS_LOCAL_CACHE_BYTES=\"1 MB\""),
            (&[("REDIS_DEFAULT_TTL", "5m")], "REDIS_DEFAULT_TTL=\"5m\""),
            (&[("REDIS_SENTINEL", "true")], "REDIS_SENTINEL"),
            (&[("REDIS_LOCAL_CACHE_BYTES", "1")], "REDIS_LOCAL_CACHE_BYTES"),
            (&[("REDIS_URL", "http://secret@x")], "REDIS_URL"),
            (
                &[("REDIS_URL", "redis://:secret@x?protocol=3")],
                "REDIS_URL: not a valid Redis URL: the parameter `protocol`",
            ),
            (&[("REDIS_URL", "unix:///secret"), ("REDIS_SSL", "true")], "REDIS_SSL: not over a Unix socket"),
            (
                &[("REDIS_URL", "unix:///secret"), ("REDIS_CLUSTER", "1")],
                "REDIS_CLUSTER: not over a Unix socket",
            ),
            (&[("REDIS_HOST", "h"), ("REDIS_SSL", "maybe")], "REDIS_SSL=\"maybe\""),
        ] {
            let message = from(vars).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    #[cfg(not(feature = "redis-tls"))]
    fn tls_that_is_not_compiled_in() {
        for vars in [&[("REDIS_URL", "rediss://h")][..], &[("REDIS_HOST", "h"), ("REDIS_SSL", "true")]] {
            let error = from(vars).unwrap_err();
            assert!(matches!(error, ConfigError::Feature { feature: "redis-tls", .. }), "{error}");
        }
    }

    #[test]
    #[cfg(feature = "redis-tls")]
    fn files_for_tls() {
        let dir = tempfile::tempdir().unwrap();
        let [missing, empty] = ["missing", "empty"].map(|name| dir.path().join(name).display().to_string());
        std::fs::write(&empty, "nothing secret").unwrap();
        let (missing, empty) = (&*missing, &*empty);
        for name in ["REDIS_SSL_CA_CERTS", "REDIS_SSL_CERTFILE", "REDIS_SSL_KEYFILE"] {
            let message = from(&[("REDIS_URL", "rediss://h"), (name, missing)]).unwrap_err().to_string();
            assert!(message.starts_with(name) && message.contains(missing), "{message}");
            assert!(from(&[("REDIS_URL", "redis://h"), (name, missing)]).is_ok(), "unused without TLS");
        }
        for (vars, expected) in [
            (&[("REDIS_SSL_CA_CERTS", empty)][..], "REDIS_SSL_CA_CERTS: "),
            (&[("REDIS_SSL_CERTFILE", empty)], "REDIS_SSL_CERTFILE: "),
            (&[("REDIS_SSL_KEYFILE", empty)], "REDIS_SSL_KEYFILE: "),
            (&[("REDIS_SSL_CHECK_HOSTNAME", "x")], "REDIS_SSL_CHECK_HOSTNAME=\"x\""),
        ] {
            let vars = [&[("REDIS_HOST", "h"), ("REDIS_SSL", "true")], vars].concat();
            let message = from(&vars).unwrap_err().to_string();
            assert!(message.starts_with(expected) && !message.contains("secret"), "{message}");
        }
        let contradiction = from(&[("REDIS_URL", "rediss://h"), ("REDIS_SSL", "false")]);
        assert!(contradiction.unwrap_err().to_string().contains("REDIS_SSL=false"));
        assert!(from(&[("REDIS_URL", "rediss://h"), ("REDIS_SSL_CHECK_HOSTNAME", "no")]).is_ok());
    }
}
