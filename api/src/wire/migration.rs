//! What clients write to move a guest to another Ferry.

mod progress;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::snapshot::{RestoreDevice, moved_devices, sockets};
use super::{Console, check, list};
use crate::config::validate::Fault;
use crate::migration::{
    self, AfterSend, Carrier, MigrationUrl, Openness, ReceiveRequest, SendRequest,
};
use crate::snapshot::SnapshotRequest;

pub use progress::{
    Migration, MigrationDevice, MigrationPhase, MigrationRam, MigrationRole, MigrationState,
    PeerPhase, PhaseReport,
};

/// How a guest is to be sent to another Ferry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SendMigration {
    /// Where the receiver listens: `unix:/path`, `tcp:host:port` or `tcp:[address]:port`.
    #[schema(required = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_url: Option<String>,
    /// Milliseconds for which the guest may stand still, as it is estimated beforehand; 300 if absent.
    #[schema(minimum = 1, maximum = 3600000)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// Seconds for which RAM may be sent while the guest runs; 3600 if absent.
    #[schema(minimum = 1, maximum = 2678400)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// What is done when that time has passed, also in lower case; Cancel if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_strategy: Option<TimeoutStrategy>,
    /// Connections that RAM travels over; 2 if absent.
    #[schema(minimum = 1, maximum = 16)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// The directory of ca-cert.pem, cert.pem and key.pem, for tcp; without encryption if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_dir: Option<String>,
    /// Whether RAM itself and the connections to back-ends are handed over, within this host and over unix; their contents are sent if
    /// false or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<bool>,
    /// Whether the receiver takes this Ferry's place, with "local": it serves clients on this socket and writes to this event monitor from
    /// then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<bool>,
    /// When RAM travels, also in lower case; only Precopy is supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mode: Option<MigrationMode>,
    /// Whether this Ferry stays, without a virtual machine, when the guest has gone; it ends if false or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preserve_source: Option<bool>,
    /// What is done about back-ends that cannot log what they write to RAM; refuse if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlogged: Option<Unlogged>,
    /// Whether vCPUs are slowed down if the guest dirties RAM faster than it can be sent; false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<bool>,
    /// The most bytes of state that one back-end may have; 16 GiB if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_most: Option<u64>,
}

/// What is done when a guest's RAM has not been sent in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum TimeoutStrategy {
    /// The migration fails, and the guest goes on where it is.
    #[serde(alias = "cancel")]
    Cancel,
    /// The guest is moved all the same, however long it stands still.
    #[serde(alias = "ignore")]
    Ignore,
}

/// When RAM travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MigrationMode {
    /// Before the guest is handed over.
    #[serde(alias = "precopy")]
    Precopy,
    /// Afterwards, which Ferry does not do.
    #[serde(alias = "postcopy")]
    Postcopy,
}

/// What is done about a device whose back-end cannot log what it writes to RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unlogged {
    /// The migration is refused before anything is done.
    Refuse,
    /// All RAM is sent again while the guest stands still.
    Resend,
}

/// How a guest is to be received from another Ferry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReceiveMigration {
    /// Where the sender is waited for: `unix:/path`, `tcp:host:port` or `tcp:[address]:port`.
    #[schema(required = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver_url: Option<String>,
    /// Devices whose back-ends listen elsewhere than on the sender's side, by their names.
    #[schema(value_type = BTreeMap<String, RestoreDevice>, required = false)]
    #[serde(
        default,
        deserialize_with = "list::bounded_map",
        skip_serializing_if = "Option::is_none"
    )]
    pub devices: Option<BTreeMap<String, Option<RestoreDevice>>>,
    /// Where the serial port leads now; where it did if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Console>,
    /// The directory of ca-cert.pem, cert.pem and key.pem, for tcp; without encryption if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_dir: Option<String>,
    /// Whether anybody who reaches a tcp address that is not of the loopback may send, without encryption; false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
    /// The most bytes of state that one back-end may have; 16 GiB if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_most: Option<u64>,
}

impl SendMigration {
    /// Checks all that can be checked without a look at the destination.
    pub fn check(self) -> Result<SendRequest, Fault> {
        if self.memory_mode == Some(MigrationMode::Postcopy) {
            let reason = "is not supported: a guest whose RAM is on two hosts is lost with either; write Precopy";
            return Err(Fault::value("memory_mode", "Postcopy", reason));
        }
        let most = SendRequest::CONNECTIONS_MOST;
        let connections = match self.connections {
            Some(number) => check::narrow("connections", number, 1..=most)?,
            None if self.local == Some(true) => 1,
            None => SendRequest::CONNECTIONS,
        };
        let request = SendRequest {
            destination: place("destination_url", self.destination_url)?,
            carrier: match (self.local, self.successor) {
                (Some(true), Some(true)) => Carrier::Process,
                (_, Some(true)) => {
                    let reason =
                        "goes only with local=true: the socket is handed to a process of this host";
                    return Err(Fault::value("successor", true, reason));
                }
                (Some(true), _) => Carrier::Descriptors,
                (None | Some(false), _) => Carrier::Contents,
            },
            downtime: self
                .downtime_ms
                .map_or(SendRequest::DOWNTIME, Duration::from_millis),
            timeout: self
                .timeout_s
                .map_or(SendRequest::TIMEOUT, Duration::from_secs),
            timeout_strategy: match self.timeout_strategy {
                None | Some(TimeoutStrategy::Cancel) => migration::TimeoutStrategy::Cancel,
                Some(TimeoutStrategy::Ignore) => migration::TimeoutStrategy::Ignore,
            },
            connections,
            tls: self.tls_dir.map(Into::into),
            unlogged: match self.unlogged {
                None | Some(Unlogged::Refuse) => migration::Unlogged::Refuse,
                Some(Unlogged::Resend) => migration::Unlogged::Resend,
            },
            throttle: match self.throttle {
                None | Some(false) => migration::Throttle::Off,
                Some(true) => migration::Throttle::On,
            },
            state_most: self.state_most.unwrap_or(SnapshotRequest::STATE_MOST),
            after: match self.preserve_source {
                None | Some(false) => AfterSend::Exit,
                Some(true) => AfterSend::Stay,
            },
        };
        request.check()?;
        Ok(request)
    }
}

impl From<&SendRequest> for SendMigration {
    fn from(request: &SendRequest) -> Self {
        let SendRequest {
            destination,
            carrier,
            downtime,
            timeout,
            timeout_strategy,
            connections,
            tls,
            unlogged,
            throttle,
            state_most,
            after,
        } = request;
        SendMigration {
            destination_url: Some(destination.to_string()),
            downtime_ms: Some(super::millis(*downtime)),
            timeout_s: Some(timeout.as_secs()),
            timeout_strategy: Some(match timeout_strategy {
                migration::TimeoutStrategy::Cancel => TimeoutStrategy::Cancel,
                migration::TimeoutStrategy::Ignore => TimeoutStrategy::Ignore,
            }),
            connections: Some((*connections).into()),
            tls_dir: tls.as_ref().map(|it| it.to_string_lossy().into_owned()),
            local: carrier.is_local().then_some(true),
            successor: (*carrier == Carrier::Process).then_some(true),
            memory_mode: None,
            preserve_source: Some(*after == AfterSend::Stay),
            unlogged: Some(match unlogged {
                migration::Unlogged::Refuse => Unlogged::Refuse,
                migration::Unlogged::Resend => Unlogged::Resend,
            }),
            throttle: Some(*throttle == migration::Throttle::On),
            state_most: Some(*state_most),
        }
    }
}

impl ReceiveMigration {
    /// Checks all that can be checked without a look at the addresses that this host has.
    pub fn check(self) -> Result<ReceiveRequest, Fault> {
        let request = ReceiveRequest {
            receiver: place("receiver_url", self.receiver_url)?,
            sockets: sockets(self.devices),
            serial: self
                .serial
                .map(|serial| check::serial(Some(serial)))
                .transpose()?,
            tls: self.tls_dir.map(Into::into),
            openness: match self.insecure {
                None | Some(false) => Openness::Loopback,
                Some(true) => Openness::Insecure,
            },
            state_most: self.state_most.unwrap_or(SnapshotRequest::STATE_MOST),
        };
        request.check()?;
        Ok(request)
    }
}

impl From<&ReceiveRequest> for ReceiveMigration {
    fn from(request: &ReceiveRequest) -> Self {
        let ReceiveRequest {
            receiver,
            sockets,
            serial,
            tls,
            openness,
            state_most,
        } = request;
        ReceiveMigration {
            receiver_url: Some(receiver.to_string()),
            devices: moved_devices(sockets),
            serial: serial.as_ref().map(Console::from),
            tls_dir: tls.as_ref().map(|it| it.to_string_lossy().into_owned()),
            insecure: Some(*openness == Openness::Insecure),
            state_most: Some(*state_most),
        }
    }
}

fn place(field: &'static str, url: Option<String>) -> Result<MigrationUrl, Fault> {
    let url = url.ok_or(Fault::Missing(field))?;
    url.parse()
        .map_err(|wrong: migration::WrongMigrationUrl| Fault::value(field, &url, wrong.to_string()))
}
