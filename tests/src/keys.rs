//! Certificates for Ferrys that speak TLS.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// An authority of certificates.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Authority {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A `tls_dir` for a host.
    pub fn keys(&self, host: &str) -> Keys {
        let params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer);
        let directory = TempDir::new().expect("a temporary directory");
        let files = [
            ("ca-cert.pem", self.pem.clone()),
            ("cert.pem", signed.expect("a certificate").pem()),
            ("key.pem", key.serialize_pem()),
        ];
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).expect("a file");
        }
        Keys(directory)
    }
}

/// The directory with a host's certificate and key; goes when it is dropped.
pub struct Keys(TempDir);

impl Keys {
    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
