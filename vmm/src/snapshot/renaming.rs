//! What lies elsewhere for a guest that has come from somewhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ferry_api::config::{BackendConfig, SerialConfig, VmConfig};

use super::Error;

/// What is to lie elsewhere.
pub struct Renaming<'a> {
    /// The sockets of devices whose back-ends are not where they were, by the devices' names.
    pub sockets: &'a BTreeMap<String, PathBuf>,
    /// Where the serial port leads, if not where it did.
    pub serial: Option<&'a SerialConfig>,
}

impl Renaming<'_> {
    /// Changes a definition.
    ///
    /// # Errors
    /// There is no such device or serial port, or what comes out is not one that can be.
    pub fn apply(&self, config: &mut VmConfig) -> Result<(), Error> {
        self.rename_sockets(config)?;
        let Some(serial) = self.serial else {
            return Ok(());
        };
        // The guest has a port, or has none.
        let has_port = |serial: &SerialConfig| *serial != SerialConfig::Off;
        if has_port(serial) != has_port(&config.serial) {
            return Err(Error::Serial);
        }
        config.serial = serial.clone();
        Ok(())
    }

    fn rename_sockets(&self, config: &mut VmConfig) -> Result<(), Error> {
        let disks = config.disks.iter_mut().map(|disk| &mut disk.backend);
        let shares = config.fs.iter_mut().map(|share| &mut share.backend);
        let others = config.vhost_user.iter_mut().map(|other| &mut other.backend);
        let mut all: Vec<&mut BackendConfig> = disks.chain(shares).chain(others).collect();
        for (id, socket) in self.sockets {
            match all.iter_mut().find(|backend| backend.id == *id) {
                Some(backend) => backend.socket.clone_from(socket),
                None => return Err(Error::NoSuchDevice(id.clone())),
            }
        }
        // Two devices on one socket would wait for each other's back-end.
        config
            .complete()
            .map_err(|misfit| Error::Sockets(misfit.fault))
    }
}
