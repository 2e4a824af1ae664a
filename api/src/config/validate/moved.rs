//! The rules for what clients say of migrations.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::saved::check_sockets;
use super::{Fault, check_path, check_socket_path, within};
use crate::migration::{AfterSend, Carrier, MigrationUrl, Openness, ReceiveRequest, SendRequest};

impl SendRequest {
    /// How long a guest may be meant to stand still: up to an hour.
    pub const DOWNTIMES: RangeInclusive<Duration> =
        Duration::from_millis(1)..=Duration::from_secs(3600);
    /// How long RAM may be sent while the guest runs: up to 31 days.
    pub const TIMEOUTS: RangeInclusive<Duration> =
        Duration::from_secs(1)..=Duration::from_secs(31 * 86400);

    /// Checks everything, without a look at the destination. The fields are named as in the API.
    pub fn check(&self) -> Result<(), Fault> {
        check_place("destination_url", &self.destination)?;
        check_tls(self.tls.as_deref(), &self.destination)?;
        self.check_local()?;
        let ms = |time: &Duration| time.as_millis();
        let (least, most) = (Self::DOWNTIMES.start(), Self::DOWNTIMES.end());
        within("downtime_ms", ms(&self.downtime), ms(least)..=ms(most))?;
        let (least, most) = (Self::TIMEOUTS.start(), Self::TIMEOUTS.end());
        let range = least.as_secs()..=most.as_secs();
        within("timeout_s", self.timeout.as_secs(), range)?;
        within("connections", self.connections, 1..=Self::CONNECTIONS_MOST)
    }

    fn check_local(&self) -> Result<(), Fault> {
        match (self.carrier, &self.destination) {
            (carrier, MigrationUrl::Tcp { .. }) if carrier.is_local() => Err(Fault::value(
                "destination_url",
                &self.destination,
                "does not go with local=true: RAM and connections to back-ends can only be handed to a process of this host, \
                 over unix:",
            )),
            (carrier, _) if carrier.is_local() && self.connections > 1 => Err(Fault::value(
                "connections",
                self.connections,
                "does not go with local=true: no RAM is copied",
            )),
            (Carrier::Process, _) if self.after == AfterSend::Stay => Err(Fault::value(
                "preserve_source",
                true,
                "does not go with successor=true: one process takes the other one's place",
            )),
            _ => Ok(()),
        }
    }
}

impl ReceiveRequest {
    /// Checks everything, without a look at the addresses that this host has.
    pub fn check(&self) -> Result<(), Fault> {
        check_place("receiver_url", &self.receiver)?;
        check_tls(self.tls.as_deref(), &self.receiver)?;
        check_sockets(&self.sockets)?;
        match (&self.tls, self.openness) {
            (Some(_), Openness::Insecure) => Err(Fault::Conflict(
                "insecure=true does not go with tls_dir=: either senders show a certificate, or they do not".into(),
            )),
            (None, Openness::Loopback) if !self.receiver.is_local() => Err(Fault::value(
                "receiver_url",
                &self.receiver,
                "may be reached from other hosts, and then anybody there could send a guest, and read one on its way; \
                 give tls_dir=, or insecure=true where the network itself is trusted",
            )),
            _ => Ok(()),
        }
    }
}

fn check_place(field: &'static str, url: &MigrationUrl) -> Result<(), Fault> {
    match url {
        MigrationUrl::Unix(path) => check_socket_path(path).map_err(|fault| fault.said_of(field)),
        // A text from which it could not have been read is for the resolver to refuse.
        MigrationUrl::Tcp { .. } => Ok(()),
    }
}

fn check_tls(directory: Option<&Path>, url: &MigrationUrl) -> Result<(), Fault> {
    let Some(directory) = directory else {
        return Ok(());
    };
    check_path("tls_dir", directory)?;
    match url {
        MigrationUrl::Tcp { .. } => Ok(()),
        MigrationUrl::Unix(_) => Err(Fault::Conflict(
            "tls_dir= is for tcp: alone: who may use a unix socket is said by its directory's mode"
                .into(),
        )),
    }
}
