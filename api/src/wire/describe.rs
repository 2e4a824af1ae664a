//! From a configuration to the JSON that would make the same one.

use std::path::Path;

use super::{Console, ConsoleMode, Cpus, Disk, Fs, Memory, Payload, State, VhostUser, VmConfig};
use crate::config::{self, DiskConfig, FsConfig, GenericConfig, SerialConfig, StateConfig};

impl From<&config::VmConfig> for VmConfig {
    fn from(config: &config::VmConfig) -> Self {
        let config::VmConfig {
            payload,
            cpus,
            memory,
            disks,
            fs,
            vhost_user,
            serial,
        } = config;
        VmConfig {
            cpus: Some(Cpus {
                boot_vcpus: Some(cpus.boot_vcpus.into()),
                max_vcpus: Some(cpus.max_vcpus.into()),
            }),
            memory: Some(Memory {
                size: Some(memory.size),
                shared: Some(memory.shared),
                hugepages: Some(memory.hugepages),
                hugepage_size: memory.hugepage_size,
                prefault: Some(memory.prefault),
            }),
            payload: Some(Payload {
                kernel: Some(text(&payload.kernel)),
                initramfs: payload.initramfs.as_deref().map(text),
                cmdline: Some(payload.cmdline.clone()),
            }),
            disks: list(disks),
            fs: list(fs),
            vhost_user: list(vhost_user),
            serial: Some(serial.into()),
            console: Some(Console {
                mode: Some(ConsoleMode::Off),
                ..Console::default()
            }),
        }
    }
}

impl From<&DiskConfig> for Disk {
    fn from(disk: &DiskConfig) -> Self {
        let DiskConfig { backend, readonly } = disk;
        Disk {
            id: name(&backend.id),
            vhost_user: Some(true),
            vhost_socket: Some(text(&backend.socket)),
            num_queues: Some(backend.num_queues.into()),
            queue_size: Some(backend.queue_size.into()),
            readonly: Some(*readonly),
        }
    }
}

impl From<&FsConfig> for Fs {
    fn from(fs: &FsConfig) -> Self {
        let FsConfig { backend, tag } = fs;
        Fs {
            id: name(&backend.id),
            tag: Some(tag.clone()),
            socket: Some(text(&backend.socket)),
            num_queues: Some(backend.num_queues.into()),
            queue_size: Some(backend.queue_size.into()),
        }
    }
}

impl From<&GenericConfig> for VhostUser {
    fn from(device: &GenericConfig) -> Self {
        let GenericConfig {
            backend,
            device_type,
            state,
            drain,
            config,
        } = device;
        VhostUser {
            id: name(&backend.id),
            socket: Some(text(&backend.socket)),
            device_type: Some(*device_type),
            num_queues: Some(backend.num_queues.into()),
            queue_size: Some(backend.queue_size.into()),
            state: match state {
                StateConfig::None => Some(State::None),
                StateConfig::Required => Some(State::Required),
                StateConfig::Unspecified => None,
            },
            drain: (!drain.is_empty()).then(|| drain.clone()),
            config: config.as_deref().map(|bytes| {
                let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
                digits.collect()
            }),
        }
    }
}

impl From<&SerialConfig> for Console {
    fn from(serial: &SerialConfig) -> Self {
        let plain = |mode| Console {
            mode: Some(mode),
            ..Console::default()
        };
        match serial {
            SerialConfig::Off => plain(ConsoleMode::Off),
            SerialConfig::Null => plain(ConsoleMode::Null),
            SerialConfig::Tty => plain(ConsoleMode::Tty),
            SerialConfig::Pty => plain(ConsoleMode::Pty),
            SerialConfig::File(path) => Console {
                file: Some(text(path)),
                ..plain(ConsoleMode::File)
            },
            SerialConfig::Socket(path) => Console {
                socket: Some(text(path)),
                ..plain(ConsoleMode::Socket)
            },
        }
    }
}

/// A list without entries is left out.
fn list<'a, C, W: From<&'a C>>(items: &'a [C]) -> Option<Vec<W>> {
    (!items.is_empty()).then(|| items.iter().map(W::from).collect())
}

fn name(id: &str) -> Option<String> {
    (!id.is_empty()).then(|| id.to_owned())
}

/// JSON has no way to write a path that is not UTF-8: what is not is replaced.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
