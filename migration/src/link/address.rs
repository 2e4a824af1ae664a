//! Where a receiver listens, and how long the two wait for each other.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Where a receiver listens, and a sender connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// A name or an IP address, without brackets.
        host: String,
        /// The port. To listen on port 0 is to let the kernel choose.
        port: u16,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// A text is not an address.
#[derive(Debug, thiserror::Error)]
#[error("an address is unix:PATH or tcp:HOST:PORT, with brackets around an IPv6 address")]
pub struct NotAnAddress;

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let rest = text.strip_prefix("tcp:").ok_or(NotAnAddress)?;
        let (host, port) = rest.rsplit_once(':').ok_or(NotAnAddress)?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(address) => address,
            None if host.contains(':') => return Err(NotAnAddress),
            None => host,
        };
        match (host.is_empty(), port.parse()) {
            (false, Ok(port)) => Ok(Address::Tcp {
                host: host.to_owned(),
                port,
            }),
            _ => Err(NotAnAddress),
        }
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        // An IPv4 client of a socket that does both.
        let ip = match address.ip() {
            IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
            ip => ip,
        };
        Address::Tcp {
            host: ip.to_string(),
            port: address.port(),
        }
    }
}

/// How long one side waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until a connection stands and the receiver has answered its preamble.
    pub connect: Duration,
    /// While nothing at all goes in or out. A side that is busy sends `Alive` in between.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(10),
        }
    }
}
