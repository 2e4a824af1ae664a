//! The rules between the parts of a machine: names, sockets and tags are unique, and there is room for all devices.

use std::collections::HashSet;

use super::Fault;
use crate::config::{BackendConfig, DiskConfig, FsConfig, VmConfig};

/// A fault, and the part of the machine it was found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The part.
    pub part: Part,
    /// What is wrong.
    pub fault: Fault,
}

/// The parts of a machine, as far as they have to agree with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Guest RAM.
    Memory,
    /// The disk of this index.
    Disk(usize),
    /// The share of this index.
    Fs(usize),
    /// The device of another type, of this index.
    Generic(usize),
}

impl Part {
    /// How the names begin that devices of this kind are given.
    fn prefix(self) -> &'static str {
        match self {
            Part::Memory => "memory",
            Part::Disk(_) => "disk",
            Part::Fs(_) => "fs",
            Part::Generic(_) => "vhost-user",
        }
    }
}

impl VmConfig {
    /// The most devices that a machine has room for.
    pub const DEVICES_MOST: usize = 31;

    /// Checks that the parts, each of them already checked, fit together, and gives a name to each device without one.
    pub fn complete(&mut self) -> Result<(), Misfit> {
        let mut tags = HashSet::new();
        for (index, device) in self.fs.iter().enumerate() {
            if !tags.insert(&device.tag) {
                return Err(Misfit {
                    part: Part::Fs(index),
                    fault: Fault::Duplicate {
                        field: "tag",
                        value: device.tag.clone(),
                        rest: "",
                    },
                });
            }
        }
        let shared = self.memory.shared;
        let mut backends = self.backends();
        check_unique(&backends)?;
        if let Some(&mut (part, _)) = backends.get_mut(Self::DEVICES_MOST) {
            let most = Self::DEVICES_MOST;
            let text = format!("the machine has no room for more than {most} devices");
            let fault = Fault::Conflict(text.into());
            return Err(Misfit { part, fault });
        }
        for index in 0..backends.len() {
            if backends[index].1.id.is_empty() {
                backends[index].1.id = free_id(backends[index].0.prefix(), &backends);
            }
        }
        if !backends.is_empty() && !shared {
            let text = "shared=off leaves back-ends without guest RAM";
            return Err(Misfit {
                part: Part::Memory,
                fault: Fault::Conflict(text.into()),
            });
        }
        Ok(())
    }

    /// Adds a disk, if it fits.
    pub fn add_disk(&mut self, disk: DiskConfig) -> Result<(), Fault> {
        let mut next = self.clone();
        next.disks.push(disk);
        self.become_checked(next)
    }

    /// Adds a share, if it fits.
    pub fn add_fs(&mut self, fs: FsConfig) -> Result<(), Fault> {
        let mut next = self.clone();
        next.fs.push(fs);
        self.become_checked(next)
    }

    /// Removes the device of this id; says whether there was one.
    pub fn remove_device(&mut self, id: &str) -> Removal {
        let before = self.backends().len();
        self.disks.retain(|device| device.backend.id != id);
        self.fs.retain(|device| device.backend.id != id);
        self.vhost_user.retain(|device| device.backend.id != id);
        match self.backends().len() < before {
            true => Removal::Removed,
            false => Removal::NoSuchDevice,
        }
    }

    fn become_checked(&mut self, mut next: VmConfig) -> Result<(), Fault> {
        next.complete().map_err(|misfit| misfit.fault)?;
        *self = next;
        Ok(())
    }

    fn backends(&mut self) -> Vec<(Part, &mut BackendConfig)> {
        let disks = self.disks.iter_mut().map(|it| &mut it.backend).enumerate();
        let fs = self.fs.iter_mut().map(|it| &mut it.backend).enumerate();
        let generic = self.vhost_user.iter_mut().map(|it| &mut it.backend);
        disks
            .map(|(index, backend)| (Part::Disk(index), backend))
            .chain(fs.map(|(index, backend)| (Part::Fs(index), backend)))
            .chain(
                generic
                    .enumerate()
                    .map(|(index, backend)| (Part::Generic(index), backend)),
            )
            .collect()
    }
}

/// Whether there was a device to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// There was none of this id.
    NoSuchDevice,
}

fn check_unique(devices: &[(Part, &mut BackendConfig)]) -> Result<(), Misfit> {
    let mut ids = HashSet::new();
    let mut sockets = HashSet::new();
    for (part, backend) in devices {
        let fault = if !backend.id.is_empty() && !ids.insert(&backend.id) {
            Fault::Duplicate {
                field: "id",
                value: backend.id.clone(),
                rest: "",
            }
        } else if !sockets.insert(&backend.socket) {
            Fault::Duplicate {
                field: "socket",
                value: backend.socket.display().to_string(),
                rest: ": each device has its own back-end",
            }
        } else {
            continue;
        };
        return Err(Misfit { part: *part, fault });
    }
    Ok(())
}

fn free_id(prefix: &str, devices: &[(Part, &mut BackendConfig)]) -> String {
    let mut number = 0;
    loop {
        let id = format!("{prefix}{number}");
        if devices.iter().all(|(_, backend)| backend.id != id) {
            return id;
        }
        number += 1;
    }
}
