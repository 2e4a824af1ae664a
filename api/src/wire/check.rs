//! From what a client wrote to a configuration that keeps the rules.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::{
    Console, ConsoleMode, Cpus, Disk, Fs, Memory, Payload, RemoveDevice, State, VhostUser, VmConfig,
};
use crate::config::text::hex;
use crate::config::validate::{Fault, Misfit, Part, within};
use crate::config::{
    self, BackendConfig, CpusConfig, DiskConfig, FsConfig, GenericConfig, MemoryConfig,
    PayloadConfig, SerialConfig, StateConfig,
};

/// A configuration that breaks a rule: `disks[0]: queue_size=100 is not a power of two`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {fault}")]
pub struct Wrong {
    /// The part, as a path into the JSON.
    pub part: String,
    /// What is wrong with it.
    pub fault: Fault,
}

impl Wrong {
    fn new(part: impl Into<String>, fault: Fault) -> Self {
        Wrong {
            part: part.into(),
            fault,
        }
    }
}

impl From<Misfit> for Wrong {
    fn from(misfit: Misfit) -> Self {
        let part = match misfit.part {
            Part::Memory => "memory".into(),
            Part::Disk(index) => format!("disks[{index}]"),
            Part::Fs(index) => format!("fs[{index}]"),
            Part::Generic(index) => format!("vhost_user[{index}]"),
        };
        Wrong::new(part, misfit.fault)
    }
}

impl VmConfig {
    /// Checks all of it, and gives a name to each device without one.
    pub fn check(self) -> Result<config::VmConfig, Wrong> {
        let payload = self.payload.unwrap_or_default().check();
        let cpus = self.cpus.unwrap_or_default().check();
        let memory = self.memory.unwrap_or_default().check();
        let mut config = config::VmConfig {
            payload: payload.map_err(|fault| Wrong::new("payload", fault))?,
            cpus: cpus.map_err(|fault| Wrong::new("cpus", fault))?,
            memory: memory.map_err(|fault| Wrong::new("memory", fault))?,
            disks: each("disks", self.disks, Disk::check)?,
            fs: each("fs", self.fs, Fs::check)?,
            vhost_user: each("vhost_user", self.vhost_user, VhostUser::check)?,
            serial: serial(self.serial).map_err(|fault| Wrong::new("serial", fault))?,
        };
        console(self.console).map_err(|fault| Wrong::new("console", fault))?;
        config.complete()?;
        Ok(config)
    }
}

fn each<W, C>(
    name: &str,
    list: Option<Vec<W>>,
    check: impl Fn(W) -> Result<C, Fault>,
) -> Result<Vec<C>, Wrong> {
    let items = list.unwrap_or_default().into_iter().enumerate();
    items
        .map(|(index, item)| {
            check(item).map_err(|fault| Wrong::new(format!("{name}[{index}]"), fault))
        })
        .collect()
}

impl Payload {
    fn check(self) -> Result<PayloadConfig, Fault> {
        let payload = PayloadConfig {
            kernel: self.kernel.ok_or(Fault::Missing("kernel"))?.into(),
            initramfs: self.initramfs.map(PathBuf::from),
            cmdline: self.cmdline.unwrap_or_default(),
        };
        payload.check()?;
        Ok(payload)
    }
}

impl Cpus {
    fn check(self) -> Result<CpusConfig, Fault> {
        let boot_vcpus = self.boot_vcpus.unwrap_or(1);
        let max_vcpus = self.max_vcpus.unwrap_or(boot_vcpus);
        let cpus = CpusConfig {
            boot_vcpus: narrow("boot_vcpus", boot_vcpus, CpusConfig::RANGE)?,
            max_vcpus: narrow("max_vcpus", max_vcpus, CpusConfig::RANGE)?,
        };
        cpus.check()?;
        Ok(cpus)
    }
}

impl Memory {
    fn check(self) -> Result<MemoryConfig, Fault> {
        let memory = MemoryConfig {
            size: self.size.unwrap_or(512 << 20),
            shared: self.shared.unwrap_or(true),
            hugepages: self.hugepages.unwrap_or(false),
            hugepage_size: self.hugepage_size,
            prefault: self.prefault.unwrap_or(false),
        };
        memory.check()?;
        Ok(memory)
    }
}

impl Disk {
    /// Checks the disk by itself. Its id stays empty if there is none.
    pub fn check(self) -> Result<DiskConfig, Fault> {
        if self.vhost_user != Some(true) {
            let text = "vhost_user has to be true: Ferry has no built-in disks, a vhost-user back-end has to serve the disk";
            return Err(Fault::Conflict(text.into()));
        }
        let disk = DiskConfig {
            backend: backend(Parts {
                id: self.id,
                socket: self.vhost_socket.ok_or(Fault::Missing("vhost_socket"))?,
                num_queues: self.num_queues,
                queue_size: self.queue_size.unwrap_or(128),
            })?,
            readonly: self.readonly.unwrap_or(false),
        };
        disk.check()
            .map_err(|fault| fault.said_of("vhost_socket"))?;
        Ok(disk)
    }
}

impl Fs {
    /// Checks the share by itself. Its id stays empty if there is none.
    pub fn check(self) -> Result<FsConfig, Fault> {
        let fs = FsConfig {
            tag: self.tag.ok_or(Fault::Missing("tag"))?,
            backend: backend(Parts {
                id: self.id,
                socket: self.socket.ok_or(Fault::Missing("socket"))?,
                num_queues: self.num_queues,
                queue_size: self.queue_size.unwrap_or(1024),
            })?,
        };
        fs.check()?;
        Ok(fs)
    }
}

impl VhostUser {
    fn check(self) -> Result<GenericConfig, Fault> {
        let config = match self.config.as_deref() {
            None => None,
            Some(text) => Some(hex(text).ok_or_else(|| Fault::Value {
                field: "config",
                value: text.to_owned(),
                reason: "is not made of pairs of hexadecimal digits".into(),
            })?),
        };
        let device = GenericConfig {
            device_type: self.device_type.ok_or(Fault::Missing("device_type"))?,
            backend: backend(Parts {
                id: self.id,
                socket: self.socket.ok_or(Fault::Missing("socket"))?,
                num_queues: self.num_queues,
                queue_size: self.queue_size.unwrap_or(128),
            })?,
            state: match self.state {
                None => StateConfig::Unspecified,
                Some(State::None) => StateConfig::None,
                Some(State::Required) => StateConfig::Required,
            },
            drain: self.drain.unwrap_or_default(),
            config,
        };
        device.check()?;
        Ok(device)
    }
}

/// What the JSON of every device holds.
struct Parts {
    id: Option<String>,
    socket: String,
    num_queues: Option<u32>,
    queue_size: u32,
}

fn backend(parts: Parts) -> Result<BackendConfig, Fault> {
    let num_queues = parts.num_queues.unwrap_or(1);
    Ok(BackendConfig {
        id: id(parts.id)?,
        socket: parts.socket.into(),
        num_queues: narrow("num_queues", num_queues, BackendConfig::QUEUES)?,
        queue_size: narrow("queue_size", parts.queue_size, BackendConfig::QUEUE_SIZES)?,
    })
}

/// A number in the type that the configuration has for it.
pub(super) fn narrow<T>(
    field: &'static str,
    value: u32,
    range: RangeInclusive<T>,
) -> Result<T, Fault>
where
    T: TryFrom<u32> + Copy + Into<u32>,
{
    let (least, most) = ((*range.start()).into(), (*range.end()).into());
    within(field, value, least..=most)?;
    T::try_from(value).map_err(|_| Fault::Missing(field))
}

/// An empty id is a mistake; an absent one is not.
fn id(id: Option<String>) -> Result<String, Fault> {
    match id {
        Some(id) if id.is_empty() => Err(Fault::Value {
            field: "id",
            value: id,
            reason: "has no value".into(),
        }),
        id => Ok(id.unwrap_or_default()),
    }
}

impl RemoveDevice {
    /// The name of the device.
    pub fn check(self) -> Result<String, Fault> {
        self.id.ok_or(Fault::Missing("id"))
    }
}

pub(super) fn serial(serial: Option<Console>) -> Result<SerialConfig, Fault> {
    let Some(serial) = serial else {
        return Ok(SerialConfig::Null);
    };
    let mode = match serial.mode {
        None if serial.file.is_some() || serial.socket.is_some() => {
            return Err(Fault::Missing("mode"));
        }
        mode => mode.unwrap_or(ConsoleMode::Null),
    };
    let serial = match mode {
        ConsoleMode::Off => SerialConfig::Off,
        ConsoleMode::Null => SerialConfig::Null,
        ConsoleMode::Tty => SerialConfig::Tty,
        ConsoleMode::Pty => SerialConfig::Pty,
        ConsoleMode::File => SerialConfig::File(serial.file.ok_or(Fault::Missing("file"))?.into()),
        ConsoleMode::Socket => {
            SerialConfig::Socket(serial.socket.ok_or(Fault::Missing("socket"))?.into())
        }
    };
    serial.check()?;
    Ok(serial)
}

fn console(console: Option<Console>) -> Result<(), Fault> {
    match console.and_then(|console| console.mode) {
        None | Some(ConsoleMode::Off | ConsoleMode::Null) => Ok(()),
        Some(mode) => Err(Fault::Value {
            field: "mode",
            value: format!("{mode:?}"),
            reason: "is not possible: Ferry has no virtio console of its own; write Off, and use serial, \
                     or vhost_user with device_type 3"
                .into(),
        }),
    }
}
