//! Who may talk to whom.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::path::Path;

/// An authority of certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Authority {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for `name` in a directory, with the authority that it trusts.
    fn pair(&self, name: &str, trusts: &Authority, usage: &[ExtendedKeyUsagePurpose]) -> Place {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = usage.to_vec();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let place = Place::new();
        let write = |file: &str, text: &str| {
            std::fs::write(place.directory.path().join(file), text).unwrap();
        };
        write("ca-cert.pem", &trusts.pem);
        write("cert.pem", &certificate.pem());
        write("key.pem", &key.serialize_pem());
        place
    }

    fn keys(&self, name: &str, trusts: &Authority) -> Tls {
        Tls::load(self.pair(name, trusts, &[]).directory.path()).unwrap()
    }
}

/// Keys that both sides of a test can use.
pub(super) fn keys() -> Tls {
    let authority = Authority::new();
    authority.keys("127.0.0.1", &authority)
}

/// What a sender sees of a receiver, which sees nothing of a sender that it does not take.
fn meet(sender: Option<&Tls>, receiver: Option<&Tls>, host: &str) -> Result<(), Error> {
    let mut listener = Listener::bind(&tcp(), receiver).unwrap();
    let mut address = listener.address().clone();
    if let Address::Tcp { host: at, .. } = &mut address {
        *at = host.to_owned();
    }
    let button = Button::default();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let mut link = listener.accept(&button, None)?;
            link.accept_it()
        });
        let patience = Patience {
            connect: Duration::from_secs(2),
            silence: TOO_LONG,
        };
        let link = Link::connect(
            &address,
            sender,
            ATTEMPT,
            Purpose::Ask,
            patience,
            &Unwatched,
        );
        button.press();
        assert_eq!(accepting.join().unwrap().is_ok(), link.is_ok());
        link.map(drop)
    })
}

#[test]
fn only_certificates_of_the_authority_are_taken() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let host = "127.0.0.1";
    let good = ours.keys(host, &ours);
    meet(Some(&good), Some(&good), host).unwrap();

    let tls = |result: Result<(), Error>| match result {
        Err(Error::Tls { source, .. }) => source.to_string(),
        other => panic!("{other:?}"),
    };
    let stranger = theirs.keys(host, &theirs);
    tls(meet(Some(&good), Some(&stranger), host));
    // The receiver does not take the sender: it trusts, and is not trusted.
    let impostor = theirs.keys(host, &ours);
    tls(meet(Some(&impostor), Some(&good), host));
    tls(meet(Some(&good), Some(&impostor), host));
    // Another host's.
    let elsewhere = ours.keys("10.0.0.1", &ours);
    let error = tls(meet(Some(&good), Some(&elsewhere), host));
    assert!(error.contains("not valid for name"), "{error}");
    let named = ours.keys("localhost", &ours);
    meet(Some(&good), Some(&named), "localhost").unwrap();
    // A receiver takes any name.
    meet(Some(&elsewhere), Some(&good), host).unwrap();
}

#[test]
fn who_uses_tls_talks_to_nobody_who_does_not() {
    let good = keys();
    let error = meet(None, Some(&good), "127.0.0.1").unwrap_err();
    assert!(matches!(error, Error::TlsThere { .. }), "{error}");
    let error = meet(Some(&good), None, "127.0.0.1").unwrap_err();
    assert!(matches!(error, Error::TlsHere { .. }), "{error}");
}

/// A client with the right authority, and nothing to show.
#[test]
fn a_sender_without_a_certificate_is_not_taken() {
    let authority = Authority::new();
    let keys = authority.keys("127.0.0.1", &authority);
    let mut listener = Listener::bind(&tcp(), Some(&keys)).unwrap();
    let Address::Tcp { port, .. } = *listener.address() else {
        panic!("it is TCP");
    };
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    let der = rustls::pki_types::CertificateDer::from_pem_slice(authority.pem.as_bytes());
    roots.add(der.unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let button = Button::default();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept(&button, None).map(drop));
        let name = "127.0.0.1".try_into().unwrap();
        let connection = rustls::ClientConnection::new(config.into(), name).unwrap();
        let socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        let preamble = preamble(Purpose::Ask);
        let mut answer = [0; 48];
        let talked = stream.write_all(&preamble.encode());
        let talked = talked.and_then(|()| stream.read_exact(&mut answer));
        assert!(talked.is_err());
        button.press();
        assert!(accepting.join().unwrap().unwrap_err().is_cancelled());
    });
}

#[test]
fn a_certificate_may_be_for_both_uses() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let authority = Authority::new();
    let load = |usage: &[ExtendedKeyUsagePurpose]| {
        let place = authority.pair("127.0.0.1", &authority, usage);
        Tls::load(place.directory.path()).unwrap()
    };
    let both = load(&[ClientAuth, ServerAuth]);
    meet(Some(&both), Some(&both), "127.0.0.1").unwrap();
    let client = load(&[ClientAuth]);
    meet(Some(&client), Some(&both), "127.0.0.1").unwrap();
    assert!(meet(Some(&both), Some(&client), "127.0.0.1").is_err());
}

#[test]
fn keys_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let load = |break_it: &dyn Fn(&Path)| {
        let place = authority.pair("127.0.0.1", &authority, &[]);
        break_it(place.directory.path());
        Tls::load(place.directory.path()).err().unwrap().to_string()
    };
    for file in ["ca-cert.pem", "cert.pem", "key.pem"] {
        let missing = load(&|directory| std::fs::remove_file(directory.join(file)).unwrap());
        assert!(missing.contains(file), "{missing}");
        let junk = load(&|directory| std::fs::write(directory.join(file), "junk").unwrap());
        assert!(junk.contains(file), "{junk}");
    }
    let other = KeyPair::generate().unwrap().serialize_pem();
    let mixed = load(&|directory| std::fs::write(directory.join("key.pem"), &other).unwrap());
    assert!(mixed.contains("the certificate and the key"), "{mixed}");
}

#[test]
fn a_unix_socket_has_no_tls() {
    let place = Place::new();
    let keys = keys();
    assert!(Listener::bind(&place.address(), Some(&keys)).is_err());
    assert!(connect(&place.address(), Some(&keys), Purpose::Ask).is_err());
}
