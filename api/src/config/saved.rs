//! A configuration as it is kept beside a saved guest: the API's own JSON.
//!
//! It is read by the rules that hold for every configuration, and fields that are not known are passed over: a later
//! Ferry may have more.

use std::path::PathBuf;

use super::{SerialConfig, VmConfig};
use crate::wire;

/// A kept configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It is not the JSON of a configuration.
    #[error("the saved configuration cannot be read")]
    Json(#[source] serde_json::Error),
    /// It breaks a rule.
    #[error("the saved configuration is wrong")]
    Wrong(#[source] wire::Wrong),
}

impl VmConfig {
    /// The same, with all paths absolute: whoever reads it may work in another directory.
    pub fn with_absolute_paths(mut self) -> Self {
        let absolute = |path: &mut PathBuf| {
            // It fails for an empty path only, and where there is no working directory.
            if let Ok(whole) = std::path::absolute(&path) {
                *path = whole;
            }
        };
        absolute(&mut self.payload.kernel);
        self.payload.initramfs.iter_mut().for_each(absolute);
        let disks = self.disks.iter_mut().map(|disk| &mut disk.backend);
        let shares = self.fs.iter_mut().map(|share| &mut share.backend);
        let others = self.vhost_user.iter_mut().map(|other| &mut other.backend);
        disks
            .chain(shares)
            .chain(others)
            .for_each(|backend| absolute(&mut backend.socket));
        if let SerialConfig::File(path) | SerialConfig::Socket(path) = &mut self.serial {
            absolute(path);
        }
        self
    }

    /// The configuration as JSON, which [`VmConfig::from_json`] reads as the same one. Of a path that is not UTF-8, for
    /// which JSON has no form, what is not is replaced.
    pub fn to_json(&self) -> String {
        // Made of ASCII alone.
        String::from_utf8(crate::json::ascii(&wire::VmConfig::from(self))).unwrap_or_default()
    }

    /// Reads what [`VmConfig::to_json`] has written.
    ///
    /// # Errors
    /// It is not JSON, or breaks one of the rules for configurations.
    pub fn from_json(text: &str) -> Result<VmConfig, SavedError> {
        let config: wire::VmConfig = serde_json::from_str(text).map_err(SavedError::Json)?;
        config.check().map_err(SavedError::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{
        BackendConfig, CpusConfig, DiskConfig, FsConfig, GenericConfig, MemoryConfig,
        PayloadConfig, StateConfig,
    };

    use super::*;

    fn backend(id: &str, num_queues: u16) -> BackendConfig {
        BackendConfig {
            id: id.into(),
            socket: format!("/run/ä b/{id}.sock").into(),
            num_queues,
            queue_size: 256,
        }
    }

    fn generic(id: &str, state: StateConfig, config: Option<Vec<u8>>) -> GenericConfig {
        GenericConfig {
            backend: backend(id, 3),
            device_type: 19,
            state,
            drain: vec![0, 2],
            config,
        }
    }

    fn everything() -> VmConfig {
        VmConfig {
            payload: PayloadConfig {
                kernel: "/boot/vmlinuz".into(),
                initramfs: Some("/boot/initrd \"1\"".into()),
                cmdline: "root=/dev/vda\tx".into(),
            },
            cpus: CpusConfig {
                boot_vcpus: 3,
                max_vcpus: 8,
            },
            memory: MemoryConfig {
                size: 3 << 30,
                shared: true,
                hugepages: true,
                hugepage_size: Some(1 << 30),
                prefault: true,
            },
            disks: vec![
                DiskConfig {
                    backend: backend("root", 4),
                    readonly: true,
                },
                DiskConfig {
                    backend: backend("data", 1),
                    readonly: false,
                },
            ],
            fs: vec![FsConfig {
                backend: backend("home", 1),
                tag: "höme".into(),
            }],
            vhost_user: vec![
                generic("vsock", StateConfig::Required, None),
                generic("rng", StateConfig::None, Some(vec![0, 255])),
                generic("other", StateConfig::Unspecified, None),
            ],
            serial: SerialConfig::Socket("/run/serial".into()),
        }
    }

    fn comes_back(config: &VmConfig) {
        let text = config.to_json();
        assert_eq!(&VmConfig::from_json(&text).unwrap(), config, "{text}");
    }

    #[test]
    fn what_is_kept_comes_back() {
        let mut config = everything();
        comes_back(&config);
        for serial in [
            SerialConfig::Off,
            SerialConfig::Null,
            SerialConfig::Tty,
            SerialConfig::Pty,
            SerialConfig::File("/log".into()),
        ] {
            config.serial = serial;
            comes_back(&config);
        }
        config.memory.hugepage_size = None;
        comes_back(&config);
        config.memory.hugepages = false;
        comes_back(&config);
        config.payload.initramfs = None;
        (config.disks, config.fs, config.vhost_user) = Default::default();
        config.memory.shared = false;
        comes_back(&config);
    }

    #[test]
    fn a_later_ferry_may_say_more() {
        let mut value: serde_json::Value = serde_json::from_str(&everything().to_json()).unwrap();
        value["another"] = true.into();
        value["disks"][0]["another"] = 1.into();
        assert_eq!(
            VmConfig::from_json(&value.to_string()).unwrap(),
            everything()
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for text in ["", "{", "{\"cpus\": 1}"] {
            let error = VmConfig::from_json(text).unwrap_err();
            assert!(matches!(error, SavedError::Json(_)), "{text}: {error}");
        }
        let text = everything().to_json().replace("256", "255");
        let error = VmConfig::from_json(&text).unwrap_err();
        assert_eq!(
            crate::chain(&error),
            [
                "the saved configuration is wrong",
                "disks[0]: queue_size=255 is not a power of two"
            ]
        );
    }
}
