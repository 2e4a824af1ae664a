//! What stands in a manifest. Field names are those of the JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::stream::{Form, SectionSummary, StreamId, StreamSummary};

/// A whole manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format of the snapshot, the same number as in the header of its state.
    pub format: u16,
    /// The id of the snapshot, the same as in the header of its state.
    pub id: StreamId,
    /// What was saved.
    pub snapshot: Description,
    /// The guest's RAM, by rising addresses.
    pub memory: Vec<Region>,
    /// The file that holds the state.
    pub state: State,
}

/// What was saved, as the one who saved it describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The version of Ferry that wrote it.
    pub ferry: String,
    /// When, in UTC; see [`rfc3339`].
    pub created: String,
    /// What became of the guest.
    pub after: After,
    /// How long the guest was paused for it, in milliseconds.
    pub paused_ms: u64,
    /// Its processors.
    pub cpu: Cpu,
    /// Its devices.
    pub devices: Vec<Device>,
}

/// What became of the guest after it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// It stayed paused.
    Paused,
    /// It went on: its disks and shares have moved on since.
    Resume,
    /// It was stopped: its disks and shares are as they were.
    Stop,
}

/// A guest's processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// How many there are.
    pub count: u32,
    /// The frequency of the time stamp counter, in kHz.
    pub tsc_khz: u32,
    /// The names of the features that the guest has seen.
    pub features: Vec<String>,
    /// Whatever else is worth knowing: vendor, family, model.
    pub details: BTreeMap<String, String>,
}

/// A region of RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// The file that holds it.
    pub file: String,
    /// The section that holds its checksums.
    pub section: String,
    /// Its address in the guest.
    pub guest_address: u64,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its name.
    pub id: String,
    /// Its virtio device type: 2 is blk, 26 is fs.
    pub virtio_type: u32,
    /// What a disk holds, in bytes.
    pub capacity: Option<u64>,
    /// Its configuration space.
    pub config: Hex,
    /// How many queues it has.
    pub queues: u16,
    /// The sizes of the queues as the driver has set them.
    pub queue_sizes: Vec<u16>,
    /// The negotiated virtio features.
    pub features: Bits,
    /// The negotiated vhost-user protocol features.
    pub protocol_features: Bits,
    /// What of it was saved.
    pub state: DeviceState,
}

/// What was saved of a device, apart from its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum DeviceState {
    /// The state of its back-end.
    Saved {
        /// Its size, in bytes.
        bytes: u64,
    },
    /// There was none.
    Stateless,
}

/// The file that holds the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Its name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// The digest at its end.
    pub digest: Bits,
    /// Its sections, in their order.
    pub sections: Vec<Section>,
}

/// A section of the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// How its data is encoded.
    pub form: Form,
    /// The kind of state.
    pub schema: String,
    /// The version of the schema.
    pub version: u16,
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
    /// The digest at its end.
    pub digest: Bits,
}

impl From<&SectionSummary> for Section {
    fn from(summary: &SectionSummary) -> Self {
        let SectionSummary {
            label,
            offset,
            bytes,
            digest,
        } = summary;
        Section {
            name: label.name.clone(),
            form: label.form,
            schema: label.schema.clone(),
            version: label.version,
            offset: *offset,
            bytes: *bytes,
            digest: Bits(*digest),
        }
    }
}

impl State {
    pub(crate) fn new(file: &str, summary: &StreamSummary) -> Self {
        State {
            file: file.to_owned(),
            bytes: summary.bytes,
            digest: Bits(summary.digest),
            sections: summary.sections.iter().map(Section::from).collect(),
        }
    }
}

/// 64 bits, a digest or a set of features; in JSON a text, because its numbers are not precise everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bits(pub u64);

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:016x}", self.0)
    }
}

impl From<Bits> for String {
    fn from(value: Bits) -> Self {
        format!("{value:?}")
    }
}

impl TryFrom<String> for Bits {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "64 bits are written as 0x and 16 lower-case hexadecimal digits";
        let digits = text.strip_prefix("0x").ok_or(EXPECTED)?;
        let value = u64::from_str_radix(digits, 16).map_err(|_| EXPECTED)?;
        match String::from(Bits(value)) == text {
            true => Ok(Bits(value)),
            false => Err(EXPECTED),
        }
    }
}

/// Bytes, in JSON as hexadecimal digits.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Hex(pub Vec<u8>);

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Hex> for String {
    fn from(value: Hex) -> Self {
        format!("{value:?}")
    }
}

impl TryFrom<String> for Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let pair = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(pair).collect();
        let value = Hex(bytes.ok_or("bytes are written as pairs of hexadecimal digits")?);
        match String::from(value.clone()) == text {
            true => Ok(value),
            false => Err("hexadecimal digits are lower-case"),
        }
    }
}

impl Serialize for StreamId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StreamId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A time as text, to the second: `2026-02-03T04:05:06Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Days are counted from 1 March of the year 0, so that a leap day is the last of its year; 400 years have 146097 days.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = match month < 10 {
        true => (month + 3, 0),
        false => (month - 9, 1),
    };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
