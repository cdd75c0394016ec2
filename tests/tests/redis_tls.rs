//! The Redis store over TLS: trusted authorities, client certificates, and the environment variables for both.

use std::path::Path;
use std::time::Duration;

use larder_core::store::suite::{self, Subject};
use larder_core::{CacheKey, CacheStore, KeySpace, Larder, RedisOptions, RedisStore, StoreError};
use larder_tests::certificates::{Authority, Certificate, text};
use larder_tests::redis_cluster::RedisCluster;
use larder_tests::redis_server::{self, RedisServer, free_port};

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

/// A server that speaks TLS on one port, and without it on another.
struct Secure {
    _server: RedisServer,
    port: u16,
    authority: Authority,
}

impl Secure {
    fn new(names: &str, args: &[&str]) -> Self {
        let authority = Authority::new();
        let Certificate { certificate, key } = authority.server(names);
        let (port, ca) = (free_port(), authority.certificate());
        let port_text = port.to_string();
        let tls = [
            ["--tls-port", &port_text],
            ["--tls-cert-file", text(&certificate)],
            ["--tls-key-file", text(&key)],
            ["--tls-ca-cert-file", text(&ca)],
        ];
        let server = RedisServer::with_args(&[&tls.concat(), args].concat());
        Self { _server: server, port, authority }
    }

    /// A server that asks clients for no certificate.
    fn open_to_all(names: &str) -> Self {
        Self::new(names, &["--tls-auth-clients", "no"])
    }

    fn url(&self, host: &str) -> String {
        format!("rediss://{host}:{}", self.port)
    }

    fn options(&self, host: &str) -> RedisOptions {
        patient(&self.url(host))
    }

    fn trusted(&self, host: &str) -> RedisOptions {
        self.options(host).ca_certificates(read(&self.authority.certificate()))
    }
}

/// Options with long deadlines, for a busy machine.
fn patient(url: &str) -> RedisOptions {
    redis_server::patient(RedisOptions::from_url(url).unwrap())
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn key() -> CacheKey {
    KeySpace::new("p", Some("g")).unwrap().key("a")
}

async fn works(options: RedisOptions) {
    let store = RedisStore::new(options);
    store.set(&key(), "1".into(), MINUTE).await.unwrap();
    assert_eq!(store.get(&key()).await.unwrap().unwrap(), "1");
}

async fn is_refused(options: RedisOptions) {
    let answer = RedisStore::new(options).get(&key()).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn only_trusted_authorities_are_accepted() {
    let server = Secure::open_to_all("DNS:localhost,IP:127.0.0.1");
    works(server.trusted("localhost")).await;
    works(server.trusted("127.0.0.1")).await;
    let both = [read(&Authority::new().certificate()), read(&server.authority.certificate())].concat();
    works(server.options("localhost").ca_certificates(both)).await;
    is_refused(server.options("localhost").ca_certificates(read(&Authority::new().certificate()))).await;
    // The system's authorities don't include the test's.
    is_refused(server.options("localhost")).await;
    is_refused(server.trusted("localhost").tls(false)).await;
    is_refused(server.options("localhost").ca_certificates("nothing")).await;
}

#[tokio::test]
async fn certificate_must_name_the_host() {
    let server = Secure::open_to_all("DNS:elsewhere.example");
    is_refused(server.trusted("localhost")).await;
    is_refused(server.trusted("127.0.0.1")).await;
    works(server.trusted("localhost").check_hostname(false)).await;
    works(server.trusted("127.0.0.1").check_hostname(false)).await;
    // The authority is still checked.
    let stranger = read(&Authority::new().certificate());
    is_refused(server.options("localhost").ca_certificates(stranger).check_hostname(false)).await;
}

#[tokio::test]
async fn client_certificate_is_sent_on_request() {
    let server = Secure::new("DNS:localhost", &["--tls-auth-clients", "yes"]);
    let show = |shown: Certificate| {
        server.trusted("localhost").client_certificate(read(&shown.certificate), read(&shown.key))
    };
    works(show(server.authority.client())).await;
    is_refused(server.trusted("localhost")).await;
    is_refused(show(Authority::new().client())).await;
}

#[tokio::test]
async fn tls_1_2_works() {
    let server = Secure::new("DNS:localhost", &["--tls-auth-clients", "no", "--tls-protocols", "TLSv1.2"]);
    works(server.trusted("localhost")).await;
}

#[tokio::test]
async fn name_and_password_work_over_tls() {
    let user = ["--user", "app", "on", ">s3cret", "~p*", "&*", "+@all", "--user", "default", "off"];
    let server = Secure::new("DNS:localhost", &[&["--tls-auth-clients", "no"][..], &user].concat());
    works(server.trusted("localhost").username("app").password("s3cret")).await;
    is_refused(server.trusted("localhost").username("app").password("wrong")).await;
    is_refused(server.trusted("localhost")).await;
}

#[tokio::test]
async fn environment_variables_configure_tls() {
    let server = Secure::new("DNS:localhost", &["--tls-auth-clients", "yes"]);
    let client = server.authority.client();
    let (ca, port) = (server.authority.certificate(), server.port.to_string());
    let in_parts = [("REDIS_HOST", "localhost"), ("REDIS_PORT", &port), ("REDIS_SSL", "true")];
    let url = server.url("localhost");
    let as_url = [("REDIS_URL", &*url)];
    let files = [
        ("REDIS_SSL_CA_CERTS", text(&ca)),
        ("REDIS_SSL_CERTFILE", text(&client.certificate)),
        ("REDIS_SSL_KEYFILE", text(&client.key)),
        ("REDIS_SOCKET_TIMEOUT", "5"),
        ("REDIS_SOCKET_CONNECT_TIMEOUT", "5"),
    ];
    for place in [&in_parts[..], &as_url] {
        let vars = [place, &files].concat();
        let larder = Larder::from_vars(|name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        });
        let backend = larder.unwrap().backend();
        assert!(backend.set("key", &"value", Duration::from_secs(60)).await);
        assert_eq!(backend.get::<String>("key").await.as_deref(), Some("value"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_passes_the_suite() {
    let server = Secure::open_to_all("DNS:localhost");
    suite::run(&Subject::new(RedisStore::new(server.trusted("localhost")))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_works_in_a_cluster() {
    let authority = Authority::new();
    let certificate = authority.node("IP:127.0.0.1");
    let ca = read(&authority.certificate());
    let start = move || RedisCluster::with_tls(&authority, &certificate);
    let cluster = tokio::task::spawn_blocking(start).await.unwrap();
    is_refused(patient(&cluster.url())).await;
    let store = RedisStore::new(patient(&cluster.url()).ca_certificates(ca));
    // Reaches every master.
    for number in 0..20 {
        let key = KeySpace::new("p", None).unwrap().key(&number.to_string());
        store.set(&key, "1".into(), MINUTE).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap(), "1");
    }
    assert_eq!(store.delete_group(&KeySpace::new("p", None).unwrap()).await.unwrap(), 20);
}
