//! `unix:/path` and `tcp:host:port`, by which clients name the place where two sides of a migration meet.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::MigrationUrl;

/// The longest name of a host (RFC 1035, 2.3.4), in bytes.
const HOST_MOST: usize = 253;

/// A text that names no place where a migration could meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongMigrationUrl {
    /// Neither of the two kinds that there are.
    #[error("is neither unix:/path nor tcp:host:port")]
    Kind,
    /// `unix:` and nothing else.
    #[error("names no socket; write unix:/path")]
    NoPath,
    /// A character that no path may hold.
    #[error("holds a zero byte")]
    Zero,
    /// No colon, or nothing behind it.
    #[error("names no port; write tcp:host:port")]
    NoPort,
    /// Not one of the ports that there are.
    #[error("holds a port that is no number within 1 and 65535")]
    Port,
    /// Nothing between the colons.
    #[error("names no host; write tcp:host:port")]
    NoHost,
    /// Characters that no name and no address has.
    #[error("holds neither a host's name nor its address; write tcp:host:port, without slashes")]
    Host,
    /// An address whose colons are not told from the port's.
    #[error("holds an IPv6 address without brackets; write tcp:[address]:port")]
    Brackets,
}

impl FromStr for MigrationUrl {
    type Err = WrongMigrationUrl;

    /// A path is taken as it stands: a relative one begins in Ferry's directory.
    fn from_str(url: &str) -> Result<Self, WrongMigrationUrl> {
        let (kind, rest) = url.split_once(':').ok_or(WrongMigrationUrl::Kind)?;
        if kind.eq_ignore_ascii_case("unix") {
            return unix(rest);
        }
        match kind.eq_ignore_ascii_case("tcp") {
            true => tcp(rest),
            false => Err(WrongMigrationUrl::Kind),
        }
    }
}

fn unix(path: &str) -> Result<MigrationUrl, WrongMigrationUrl> {
    match path {
        "" => Err(WrongMigrationUrl::NoPath),
        path if path.contains('\0') => Err(WrongMigrationUrl::Zero),
        path => Ok(MigrationUrl::Unix(path.into())),
    }
}

fn tcp(rest: &str) -> Result<MigrationUrl, WrongMigrationUrl> {
    let (host, port) = rest.rsplit_once(':').ok_or(WrongMigrationUrl::NoPort)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner
            .strip_suffix(']')
            .filter(|address| is_address(address))
            .ok_or(WrongMigrationUrl::Host)?,
        None if host.is_empty() => return Err(WrongMigrationUrl::NoHost),
        None if host.contains(':') => return Err(WrongMigrationUrl::Brackets),
        None if host.len() > HOST_MOST || !host.chars().all(is_in_names) => {
            return Err(WrongMigrationUrl::Host);
        }
        None => host,
    };
    if port.is_empty() {
        return Err(WrongMigrationUrl::NoPort);
    }
    // `parse` takes a sign as well.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|port| digits && *port != 0);
    Ok(MigrationUrl::Tcp {
        host: host.to_owned(),
        port: port.ok_or(WrongMigrationUrl::Port)?,
    })
}

/// An IPv6 address, of which one of a link tells which link (RFC 4007, 11).
fn is_address(text: &str) -> bool {
    let (address, link) = text.split_once('%').unwrap_or((text, "0"));
    address.parse::<Ipv6Addr>().is_ok() && !link.is_empty() && link.chars().all(is_in_names)
}

fn is_in_names(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '.' | '_')
}

impl MigrationUrl {
    /// Whether only this host reaches it. Of a name, `localhost` alone is known to do so without asking anybody.
    pub fn is_local(&self) -> bool {
        match self {
            MigrationUrl::Unix(_) => true,
            MigrationUrl::Tcp { host, .. } => match host.parse::<IpAddr>() {
                Ok(address) => address.to_canonical().is_loopback(),
                Err(_) => host.eq_ignore_ascii_case("localhost"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16) -> MigrationUrl {
        let host = host.into();
        MigrationUrl::Tcp { host, port }
    }

    #[test]
    fn places_are_named_in_two_ways() {
        for (url, place) in [
            (
                "unix:/run/a b%20:1",
                MigrationUrl::Unix("/run/a b%20:1".into()),
            ),
            ("UNIX:s", MigrationUrl::Unix("s".into())),
            ("tcp:host-1.example_2:4000", tcp("host-1.example_2", 4000)),
            ("TCP:127.0.0.1:1", tcp("127.0.0.1", 1)),
            ("tcp:[::1]:65535", tcp("::1", 65535)),
            ("tcp:[fe80::1%eth0]:7", tcp("fe80::1%eth0", 7)),
        ] {
            assert_eq!(url.parse(), Ok(place), "{url}");
        }
    }

    #[test]
    fn what_names_no_place_is_told_why() {
        use WrongMigrationUrl as Wrong;
        let long = format!("tcp:{}:1", "x".repeat(254));
        for (url, reason) in [
            ("", Wrong::Kind),
            ("/run/s", Wrong::Kind),
            ("file:///s", Wrong::Kind),
            ("unix:", Wrong::NoPath),
            ("unix:/a\0", Wrong::Zero),
            ("tcp:host", Wrong::NoPort),
            ("tcp:host:", Wrong::NoPort),
            ("tcp:host:0", Wrong::Port),
            ("tcp:host:+80", Wrong::Port),
            ("tcp:host:65536", Wrong::Port),
            ("tcp::4000", Wrong::NoHost),
            ("tcp://host:4000", Wrong::Host),
            ("tcp:a b:4000", Wrong::Host),
            ("tcp:::1:4000", Wrong::Brackets),
            ("tcp:[::1:4000", Wrong::Host),
            ("tcp:[host]:4000", Wrong::Host),
            ("tcp:[fe80::1%]:4000", Wrong::Host),
            (&long, Wrong::Host),
        ] {
            assert_eq!(url.parse::<MigrationUrl>(), Err(reason), "{url}");
        }
    }

    #[test]
    fn a_place_is_local_only_where_that_is_certain() {
        for (url, local) in [
            ("unix:/s", true),
            ("tcp:127.0.0.1:1", true),
            ("tcp:127.9.9.9:1", true),
            ("tcp:[::1]:1", true),
            ("tcp:[::ffff:127.0.0.1]:1", true),
            ("tcp:LocalHost:1", true),
            ("tcp:0.0.0.0:1", false),
            ("tcp:[::]:1", false),
            ("tcp:10.0.0.1:1", false),
            ("tcp:[fe80::1%lo]:1", false),
            ("tcp:localhost.example:1", false),
            ("tcp:127.1:1", false),
            ("tcp:host:1", false),
        ] {
            assert_eq!(
                url.parse::<MigrationUrl>().unwrap().is_local(),
                local,
                "{url}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_comes_back(text in "(unix:|tcp:(\\[)?)?[a-z0-9:.%\\]/]{0,20}(:[0-9]{1,5})?") {
            if let Ok(url) = text.parse::<MigrationUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url));
            }
        }
    }
}
