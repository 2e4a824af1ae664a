//! How a migration stands, as clients get to see it.
//!
//! All times are milliseconds with up to three decimals, because of a good downtime little would be left without them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::migration;

/// How a migration stands, or how the last one has ended. Times are in milliseconds, with up to three decimals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    /// Which side this is.
    pub role: MigrationRole,
    /// Where the other side is, or is waited for.
    pub url: String,
    /// The attempt, 32 hexadecimal digits, the same on both sides; absent as long as there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub attempt: String,
    /// How it stands.
    pub state: MigrationState,
    /// The phase that is under way, or the last one.
    pub phase: MigrationPhase,
    /// The phases so far, in their order.
    #[serde(default)]
    pub phases: Vec<PhaseReport>,
    /// What the other side has done while the guest stood still, as it says.
    #[serde(default)]
    pub peer_phases: Vec<PeerPhase>,
    /// Since it was asked for, until its end.
    pub elapsed_ms: f64,
    /// How often RAM has been gone through, from 1.
    pub round: u32,
    /// The guest's RAM.
    pub ram: MigrationRam,
    /// How much of their time vCPUs are held back.
    pub throttle_percent: u8,
    /// How long the guest is to stand still, by the last estimate; absent as long as there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_estimate_ms: Option<f64>,
    /// How long the guest has stood still, so far; absent as long as it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<f64>,
    /// The devices whose back-ends have state, by name.
    #[serde(default)]
    pub devices: BTreeMap<String, MigrationDevice>,
    /// Why it has failed, outermost first; absent unless it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub error: Vec<String>,
}

/// A side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationRole {
    /// The guest is here before.
    Send,
    /// The guest is here afterwards.
    Receive,
}

/// How a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationState {
    /// It goes on.
    UnderWay,
    /// The guest has been handed over, and nobody has said yet that it runs there. It does not run here.
    Unconfirmed,
    /// It has succeeded.
    Done,
    /// It has failed, or was given up.
    Failed,
}

/// A part of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationPhase {
    /// The receiver waits for a sender.
    Listen,
    /// Everything is looked at that may stand in the way, and the receiver is connected to.
    Connect,
    /// The receiver connects to its back-ends and sets RAM aside; the sender's back-ends begin to log.
    Prepare,
    /// RAM travels while the guest runs.
    Precopy,
    /// vCPUs stop, and devices come to rest.
    Pause,
    /// The last of RAM travels.
    Ram,
    /// The machine's own state does.
    Machine,
    /// The back-ends' state does.
    Devices,
    /// The receiver says that it has everything, and that everything is right.
    Ready,
    /// The guest is handed over.
    Commit,
    /// The guest has been handed over, and nobody has said yet that it runs there.
    Unconfirmed,
    /// Devices and vCPUs go on.
    Resume,
    /// The guest runs there. The receiver says so, and the sender releases what it had.
    Release,
}

/// A phase, and what it has taken.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PhaseReport {
    /// The phase.
    pub phase: MigrationPhase,
    /// How long, so far if it goes on.
    pub ms: f64,
}

/// A phase of the other side, and what it has taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerPhase {
    /// As the other side calls it.
    pub phase: String,
    /// How long.
    pub ms: f64,
}

/// How much of the guest's RAM has travelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationRam {
    /// Bytes of guest RAM.
    pub total_bytes: u64,
    /// Bytes that have travelled, some of them more than once.
    pub sent_bytes: u64,
    /// Bytes that are still to be sent, as far as it is known.
    pub remaining_bytes: u64,
    /// The rate, lately; 0 as long as none is known.
    pub bytes_per_second: u64,
    /// How much the guest has dirtied in a second, lately.
    pub dirty_bytes_per_second: u64,
}

/// How far the state of one back-end is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationDevice {
    /// Bytes of state so far.
    pub bytes: u64,
    /// How long it has taken so far.
    pub ms: f64,
    /// Whether the back-end has said that it was all, and that it is right.
    pub checked: bool,
}

impl From<&migration::MigrationProgress> for Migration {
    fn from(progress: &migration::MigrationProgress) -> Self {
        let migration::MigrationProgress {
            role,
            url,
            attempt,
            state,
            phase,
            phases,
            peer_phases,
            elapsed,
            round,
            ram_total,
            ram_sent,
            ram_remaining,
            ram_rate,
            dirty_rate,
            throttle,
            downtime_estimate,
            downtime,
            devices,
            error,
        } = progress;
        let own = |(phase, time): &(migration::Phase, Duration)| PhaseReport {
            phase: (*phase).into(),
            ms: millis(*time),
        };
        let peer = |(phase, time): &(String, Duration)| PeerPhase {
            phase: phase.clone(),
            ms: millis(*time),
        };
        let device = |device: &migration::DeviceProgress| {
            let report = MigrationDevice {
                bytes: device.bytes,
                ms: millis(device.elapsed),
                checked: device.checked,
            };
            (device.id.clone(), report)
        };
        Migration {
            role: match role {
                migration::Role::Send => MigrationRole::Send,
                migration::Role::Receive => MigrationRole::Receive,
            },
            url: url.to_string(),
            attempt: attempt.clone(),
            state: match state {
                migration::MigrationState::UnderWay => MigrationState::UnderWay,
                migration::MigrationState::Unconfirmed => MigrationState::Unconfirmed,
                migration::MigrationState::Done => MigrationState::Done,
                migration::MigrationState::Failed => MigrationState::Failed,
            },
            phase: (*phase).into(),
            phases: phases.iter().map(own).collect(),
            peer_phases: peer_phases.iter().map(peer).collect(),
            elapsed_ms: millis(*elapsed),
            round: *round,
            ram: MigrationRam {
                total_bytes: *ram_total,
                sent_bytes: *ram_sent,
                remaining_bytes: *ram_remaining,
                bytes_per_second: *ram_rate,
                dirty_bytes_per_second: *dirty_rate,
            },
            throttle_percent: *throttle,
            downtime_estimate_ms: downtime_estimate.map(millis),
            downtime_ms: downtime.map(millis),
            devices: devices.iter().map(device).collect(),
            error: error.clone(),
        }
    }
}

impl From<migration::Phase> for MigrationPhase {
    fn from(phase: migration::Phase) -> Self {
        match phase {
            migration::Phase::Listen => MigrationPhase::Listen,
            migration::Phase::Connect => MigrationPhase::Connect,
            migration::Phase::Prepare => MigrationPhase::Prepare,
            migration::Phase::Precopy => MigrationPhase::Precopy,
            migration::Phase::Pause => MigrationPhase::Pause,
            migration::Phase::Ram => MigrationPhase::Ram,
            migration::Phase::Machine => MigrationPhase::Machine,
            migration::Phase::Devices => MigrationPhase::Devices,
            migration::Phase::Ready => MigrationPhase::Ready,
            migration::Phase::Commit => MigrationPhase::Commit,
            migration::Phase::Unconfirmed => MigrationPhase::Unconfirmed,
            migration::Phase::Resume => MigrationPhase::Resume,
            migration::Phase::Release => MigrationPhase::Release,
        }
    }
}

/// Milliseconds, down to whole microseconds.
fn millis(time: Duration) -> f64 {
    // Whole numbers of microseconds are exact up to some 285 years.
    time.as_micros() as f64 / 1000.0
}
