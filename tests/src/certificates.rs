//! Certificates made by the `openssl` command, for the servers and clients of a test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A certificate authority. Its files are deleted when it is dropped.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
}

/// The files of a certificate and of its key, both in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority.
    #[must_use]
    pub fn new() -> Self {
        let authority = Self { dir: TempDir::new().expect("a temporary directory") };
        authority.openssl(&[
            &["req", "-x509", "-subj", "/CN=An authority of a test", "-days", "2"],
            &["-out", "ca.pem", "-keyout", "ca.key"],
            FRESH_KEY,
        ]);
        authority
    }

    /// Returns the authority's own certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Signs a certificate for a server with these names, such as `DNS:localhost,IP:127.0.0.1`.
    #[must_use]
    pub fn server(&self, names: &str) -> Certificate {
        self.sign("server", &format!("subjectAltName={names}\nextendedKeyUsage=serverAuth\n"))
    }

    /// Signs a certificate for a cluster node with these names, which is a server and a client.
    #[must_use]
    pub fn node(&self, names: &str) -> Certificate {
        self.sign("node", &format!("subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n"))
    }

    /// Signs a certificate for a client.
    #[must_use]
    pub fn client(&self) -> Certificate {
        self.sign("client", "extendedKeyUsage=clientAuth\n")
    }

    fn sign(&self, name: &str, extensions: &str) -> Certificate {
        let [key, request, signed, ext] =
            ["key", "csr", "pem", "ext"].map(|suffix| format!("{name}.{suffix}"));
        std::fs::write(self.dir.path().join(&ext), extensions).expect("a file");
        let subject = format!("/CN=A {name} of a test");
        self.openssl(&[&["req", "-subj", &subject, "-keyout", &key, "-out", &request], FRESH_KEY]);
        self.openssl(&[
            &["x509", "-req", "-in", &request, "-out", &signed, "-extfile", &ext, "-days", "2"],
            &["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"],
        ]);
        Certificate { certificate: self.dir.path().join(signed), key: self.dir.path().join(key) }
    }

    fn openssl(&self, args: &[&[&str]]) {
        let status = Command::new("openssl")
            .args(args.concat())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("the openssl command").success(), "openssl {args:?} failed");
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

const FRESH_KEY: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// Returns a path as the command line and the environment take it.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
