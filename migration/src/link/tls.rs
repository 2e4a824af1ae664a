//! Mutual TLS 1.3: each side shows a certificate that the other one's authority has signed.
//!
//! A directory holds `ca-cert.pem` (authorities), `cert.pem` (this side's certificate, with what it takes to get to an
//! authority) and `key.pem`. The same pair serves a sender and a receiver, so a certificate that restricts its use must
//! allow both, `serverAuth` and `clientAuth`. A sender checks that the receiver's certificate is for the name, or the IP
//! address, that it connects to; a receiver takes any sender that the authority has signed.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore};
use rustls::{ServerConfig, ServerConnection};
use socket2::Socket;

use super::socket;

/// What may wait to be encrypted or written, in bytes.
const BUFFER: usize = 256 << 10;

/// The keys of one side.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The keys of one side cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: pem::Error,
    },
    /// The certificates of the authority cannot be used.
    #[error("cannot trust the authority in {}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Certificate and key do not go together, or are of a kind that is not supported.
    #[error("cannot use the certificate and the key in {}", directory.display())]
    Pair {
        /// The directory.
        directory: PathBuf,
        /// The reason.
        #[source]
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads the files of `directory`.
    ///
    /// # Errors
    /// One is missing, or is not what it should be.
    pub fn load(directory: &Path) -> Result<Tls, TlsError> {
        let authority = directory.join("ca-cert.pem");
        let roots = Arc::new(roots(&authority)?);
        let chain = certificates(&directory.join("cert.pem"))?;
        let key = directory.join("key.pem");
        let key = PrivateKeyDer::from_pem_file(&key)
            .map_err(|source| TlsError::File { path: key, source })?;
        let provider = Arc::new(ring::default_provider());
        let untrusted = |source| TlsError::Authority {
            path: authority.clone(),
            source,
        };
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let clients = clients.map_err(|error| untrusted(error.into()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
        let servers = servers.map_err(|error| untrusted(error.into()))?;
        let wrong = |source| TlsError::Pair {
            directory: directory.to_owned(),
            source,
        };
        Ok(Tls {
            client: Arc::new(
                client(provider.clone(), servers, chain.clone(), key.clone_key()).map_err(wrong)?,
            ),
            server: Arc::new(server(provider, clients, chain, key).map_err(wrong)?),
        })
    }

    pub(super) fn client(&self, host: &str) -> Result<Session, rustls::Error> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| rustls::Error::General(format!("{host} is not a host's name")))?;
        let connection = ClientConnection::new(self.client.clone(), name)?;
        Ok(Session::new(connection.into()))
    }

    pub(super) fn server(&self) -> Result<Session, rustls::Error> {
        let connection = ServerConnection::new(self.server.clone())?;
        Ok(Session::new(connection.into()))
    }
}

type Chain = Vec<CertificateDer<'static>>;

fn client(
    provider: Arc<CryptoProvider>,
    servers: Arc<WebPkiServerVerifier>,
    chain: Chain,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_webpki_verifier(servers)
        .with_client_auth_cert(chain, key)
}

fn server(
    provider: Arc<CryptoProvider>,
    clients: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    chain: Chain,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    // Nobody comes back to a session.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(path: &Path) -> Result<Chain, TlsError> {
    let read = |path| CertificateDer::pem_file_iter(path)?.collect::<Result<Chain, _>>();
    let wrong = |source| TlsError::File {
        path: path.to_owned(),
        source,
    };
    let chain = read(path).map_err(wrong)?;
    match chain.is_empty() {
        true => Err(wrong(pem::Error::NoItemsFound)),
        false => Ok(chain),
    }
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Authority {
                path: path.to_owned(),
                source: source.into(),
            })?;
    }
    Ok(roots)
}

/// How far the TLS of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// It has none.
    Absent,
    /// It is still to be agreed on.
    Begun,
    /// It is agreed on.
    Done,
}

/// Whether bytes that come without TLS begin as its first words do (RFC 8446, 5.1: a record of type handshake, of a version 3.x).
pub(super) fn is_hello(bytes: &[u8]) -> bool {
    bytes.starts_with(&[22, 3])
}

/// The same of its last words, to somebody who does not use it (a record of type alert).
pub(super) fn is_alert(bytes: &[u8]) -> bool {
    bytes.starts_with(&[21, 3])
}

/// One connection's TLS. The handshake happens within the first reads and writes.
pub(super) struct Session {
    connection: Connection,
    /// Bytes that are decrypted and not yet read.
    there: usize,
}

impl Session {
    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(BUFFER));
        Session {
            connection,
            there: 0,
        }
    }

    pub(super) fn has_input(&self) -> bool {
        self.there != 0
    }

    pub(super) fn handshake(&self) -> Handshake {
        match self.connection.is_handshaking() {
            true => Handshake::Begun,
            false => Handshake::Done,
        }
    }

    pub(super) fn has_pending(&self) -> bool {
        self.connection.wants_write()
    }

    pub(super) fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                // The other side ended without saying so: frames say what is whole.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Ok(read) => {
                    self.there = self.there.saturating_sub(read);
                    return Ok(read);
                }
                Err(error) => return Err(error),
            }
            match self.flush(socket) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => (),
            }
            // At the end of input, the reader knows.
            self.connection.read_tls(&mut Input(socket))?;
            match self.connection.process_new_packets() {
                Ok(state) => self.there = state.plaintext_bytes_to_read(),
                Err(wrong) => {
                    // The other side is told why, if that is possible.
                    let _ = self.flush(socket);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
                }
            }
        }
    }

    pub(super) fn write(&mut self, socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken = self.connection.writer().write_vectored(slices)?;
        match self.flush(socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Err(full) if taken == 0 => Err(full),
            // Nothing is taken before the handshake has ended.
            Ok(()) if taken == 0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(taken),
        }
    }

    pub(super) fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut Output(socket))?;
        }
        Ok(())
    }
}

struct Input<'a>(&'a Socket);

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut socket = self.0;
        socket.read(buffer)
    }
}

struct Output<'a>(&'a Socket);

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        socket::send(self.0, &[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        socket::send(self.0, slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
