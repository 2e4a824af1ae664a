//! The rules that every configuration keeps, whether it came from the command line or through the API.
//!
//! What is checked here needs nothing but the configuration itself: no file is looked at. Whoever starts the machine
//! meets the outside world's refusals.

mod machine;
mod moved;
mod saved;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use machine::{Misfit, Part, Removal};

use super::{
    BackendConfig, CpusConfig, DiskConfig, FsConfig, GenericConfig, MemoryConfig, PayloadConfig,
    SerialConfig,
};

/// The size of a page, in bytes.
const PAGE: u64 = 4096;
/// What Linux on x86 takes at most, without the terminating zero byte.
const CMDLINE_MOST: usize = 2047;
/// What fits into `sockaddr_un`, without the terminating zero byte.
const SOCKET_PATH_MOST: usize = 107;
/// The longest name of a device, in bytes.
const ID_MOST: usize = 64;
/// The longest tag of a shared directory, in bytes (Virtual I/O Device 1.2, 5.11.4).
const TAG_MOST: usize = 36;

/// Something that is wrong with a part of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A field's value is not one that it takes.
    #[error("{field}={value} {reason}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: String,
        /// Why not, as the rest of a sentence that starts with field and value.
        reason: Cow<'static, str>,
    },
    /// A field that has to be there is absent.
    #[error("{0}= is missing")]
    Missing(&'static str),
    /// A name that another device has already.
    #[error("{field}={value} is used twice{rest}")]
    Duplicate {
        /// The field's name.
        field: &'static str,
        /// The name.
        value: String,
        /// The end of the sentence.
        rest: &'static str,
    },
    /// Values that are fine alone but do not go together.
    #[error("{0}")]
    Conflict(Cow<'static, str>),
}

impl Fault {
    pub(crate) fn value(
        field: &'static str,
        value: impl fmt::Display,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Fault::Value {
            field,
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    /// The same of a socket that has another name where it was written.
    #[must_use]
    pub(crate) fn said_of(self, name: &'static str) -> Self {
        match self {
            Fault::Value {
                field: "socket",
                value,
                reason,
            } => Fault::Value {
                field: name,
                value,
                reason,
            },
            other => other,
        }
    }
}

impl CpusConfig {
    /// How many virtual processors there may be.
    pub const RANGE: RangeInclusive<u8> = 1..=Self::MOST;

    /// Checks both numbers.
    pub fn check(&self) -> Result<(), Fault> {
        within("boot_vcpus", self.boot_vcpus, Self::RANGE)?;
        within("max_vcpus", self.max_vcpus, Self::RANGE)?;
        if self.boot_vcpus > self.max_vcpus {
            let reason = format!("is more than max_vcpus={}", self.max_vcpus);
            return Err(Fault::value("boot_vcpus", self.boot_vcpus, reason));
        }
        Ok(())
    }
}

impl MemoryConfig {
    /// The sizes of huge pages, in bytes.
    pub const HUGE_PAGES: [u64; 2] = [2 << 20, 1 << 30];

    /// Checks the amount, and the page sizes.
    pub fn check(&self) -> Result<(), Fault> {
        let size = self.size;
        if size < Self::LEAST {
            let least = Self::LEAST >> 20;
            return Err(Fault::value("size", size, format!("is less than {least}M")));
        }
        let page = self.page_size()?;
        if !size.is_multiple_of(page) {
            let reason = format!("is not a multiple of the page size, {page} bytes");
            return Err(Fault::value("size", size, reason));
        }
        Ok(())
    }

    /// The page size that the amount of memory has to be a multiple of.
    fn page_size(&self) -> Result<u64, Fault> {
        match self.hugepage_size {
            Some(size) if !Self::HUGE_PAGES.contains(&size) => {
                Err(Fault::value("hugepage_size", size, "is neither 2M nor 1G"))
            }
            Some(_) if !self.hugepages => {
                Err(Fault::Conflict("hugepage_size= needs hugepages=on".into()))
            }
            Some(size) => Ok(size),
            None if self.hugepages => Ok(Self::HUGE_PAGES[0]),
            None => Ok(PAGE),
        }
    }
}

impl PayloadConfig {
    /// Checks what can be checked without opening the files.
    pub fn check(&self) -> Result<(), Fault> {
        check_path("kernel", &self.kernel)?;
        if let Some(initramfs) = &self.initramfs {
            check_path("initramfs", initramfs)?;
        }
        if self.cmdline.contains('\0') {
            return Err(Fault::Conflict("cmdline= holds a zero byte".into()));
        }
        match self.cmdline.len() {
            ..=CMDLINE_MOST => Ok(()),
            length => {
                let text =
                    format!("{length} bytes are too long: a guest takes at most {CMDLINE_MOST}");
                Err(Fault::Conflict(text.into()))
            }
        }
    }
}

impl SerialConfig {
    /// Checks the path, if there is one.
    pub fn check(&self) -> Result<(), Fault> {
        match self {
            Self::Off | Self::Null | Self::Tty | Self::Pty => Ok(()),
            Self::File(path) => check_path("file", path),
            Self::Socket(path) => check_socket_path(path),
        }
    }
}

impl BackendConfig {
    /// How many queues may carry requests.
    pub const QUEUES: RangeInclusive<u16> = 1..=256;
    /// How many descriptors a queue may have.
    pub const QUEUE_SIZES: RangeInclusive<u16> = 2..=32768;

    /// Checks everything. The id may be empty: then [`super::VmConfig::complete`] makes one up.
    pub fn check(&self) -> Result<(), Fault> {
        check_socket_path(&self.socket)?;
        check_id(&self.id)?;
        within("num_queues", self.num_queues, Self::QUEUES)?;
        within("queue_size", self.queue_size, Self::QUEUE_SIZES)?;
        match self.queue_size.is_power_of_two() {
            true => Ok(()),
            false => {
                let reason = "is not a power of two";
                Err(Fault::value("queue_size", self.queue_size, reason))
            }
        }
    }
}

impl DiskConfig {
    /// Checks everything.
    pub fn check(&self) -> Result<(), Fault> {
        self.backend.check()
    }
}

impl FsConfig {
    /// Checks everything.
    pub fn check(&self) -> Result<(), Fault> {
        let tag = &self.tag;
        let reason = match tag.len() {
            0 => "has no value".into(),
            length if length > TAG_MOST => format!("is longer than {TAG_MOST} bytes"),
            _ if tag.contains('\0') => "holds a zero byte".into(),
            _ => return self.backend.check(),
        };
        Err(Fault::value("tag", tag, reason))
    }
}

impl GenericConfig {
    /// The virtio device types that there are (Virtual I/O Device 1.2, 5).
    pub const DEVICE_TYPES: RangeInclusive<u32> = 1..=63;
    /// The largest configuration space, in bytes (vhost-user, "Virtio device config space").
    pub const CONFIG_MOST: usize = 256;

    /// Checks everything.
    pub fn check(&self) -> Result<(), Fault> {
        within("device_type", self.device_type, Self::DEVICE_TYPES)?;
        self.backend.check()?;
        self.check_drain()?;
        match self.config.as_ref().map(Vec::len) {
            Some(0) => Err(Fault::Conflict("config= holds no bytes".into())),
            Some(length) if length > Self::CONFIG_MOST => {
                let text = format!("config= holds more than {} bytes", Self::CONFIG_MOST);
                Err(Fault::Conflict(text.into()))
            }
            _ => Ok(()),
        }
    }

    fn check_drain(&self) -> Result<(), Fault> {
        let num_queues = self.backend.num_queues;
        let mut seen = HashSet::new();
        for queue in &self.drain {
            let reason = if *queue >= num_queues {
                format!("names a queue that is not there: num_queues={num_queues}, counted from 0")
            } else if !seen.insert(*queue) {
                "names a queue twice".into()
            } else {
                continue;
            };
            return Err(Fault::value("drain", queue, reason));
        }
        Ok(())
    }
}

pub(crate) fn within<T: PartialOrd + fmt::Display>(
    field: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), Fault> {
    if range.contains(&value) {
        return Ok(());
    }
    let reason = format!("is not within {} and {}", range.start(), range.end());
    Err(Fault::value(field, value, reason))
}

fn check_id(id: &str) -> Result<(), Fault> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    let reason = if id.len() > ID_MOST {
        format!("is longer than {ID_MOST} bytes")
    } else if !id.chars().all(allowed) {
        "may hold letters, digits, `-`, `_`, `.` and `:`".into()
    } else if id.starts_with("__") {
        "begins with `__`, as only Ferry's own names do".into()
    } else {
        return Ok(());
    };
    Err(Fault::value("id", id, reason))
}

fn check_path(field: &'static str, path: &Path) -> Result<(), Fault> {
    let bytes = path.as_os_str().as_bytes();
    let reason = if bytes.is_empty() {
        "has no value"
    } else if bytes.contains(&0) {
        "holds a zero byte"
    } else {
        return Ok(());
    };
    Err(Fault::value(field, path.display(), reason))
}

fn check_socket_path(path: &Path) -> Result<(), Fault> {
    check_path("socket", path)?;
    match path.as_os_str().len() {
        ..=SOCKET_PATH_MOST => Ok(()),
        length => {
            let reason =
                format!("is {length} bytes long; a socket's path has at most {SOCKET_PATH_MOST}");
            Err(Fault::value("socket", path.display(), reason))
        }
    }
}
