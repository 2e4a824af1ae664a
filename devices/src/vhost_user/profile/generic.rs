//! Devices of any other type: the user says what Ferry cannot know.

use std::ops::Range;

use virtio_bindings::virtio_ids::{VIRTIO_ID_CONSOLE, VIRTIO_ID_NET};
use vm_migration::Saveability;

use super::{BackendView, Rules, StateTransfer, needs_transfer};
use crate::vhost_user::frontend::MAX_CONFIG;

/// Feature bits that belong to a device's type: 0 to 23, and from 50 on (Virtual I/O Device 1.2, 2.2).
const TYPE_FEATURES: u64 = 0x00ff_ffff | !((1 << 50) - 1);

/// VIRTIO_CONSOLE_F_MULTIPORT (5.3.3), and the fewest queues with it: port 0's two and the two for control (5.3.2).
const CONSOLE_MULTIPORT: u64 = 1 << 1;
const MULTIPORT_QUEUES: u16 = 4;

/// The features with a field in the configuration space. Of networks: MTU, MAC, STATUS, MQ, HASH_REPORT, RSS and
/// SPEED_DUPLEX; of consoles: SIZE, MULTIPORT and EMERG_WRITE.
const NET_CONFIG_FEATURES: u64 = 1 << 3 | 1 << 5 | 1 << 16 | 1 << 22 | 1 << 57 | 1 << 60 | 1 << 63;
const CONSOLE_CONFIG_FEATURES: u64 = 0b111;

/// What the back-end keeps between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Nothing that has to move with the guest.
    None,
    /// State that has to move, so that the back-end must offer DEVICE_STATE.
    Required,
    /// Not said: the device may be saved only if the back-end offers DEVICE_STATE.
    Unspecified,
}

/// A device of any type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generic {
    /// The virtio device type (Virtual I/O Device 1.2, 5).
    pub device_type: u32,
    /// What the back-end keeps between requests.
    pub state: BackendState,
    /// The queues that carry requests.
    pub drain: Vec<u16>,
    /// The configuration space to present; `None`: the back-end's.
    pub config: Option<Vec<u8>>,
}

impl Rules for Generic {
    fn device_type(&self) -> u32 {
        self.device_type
    }

    fn queue_count(&self, requested: u16) -> u32 {
        u32::from(requested)
    }

    fn queues_without_mq(&self) -> Option<u16> {
        None
    }

    fn config_sizes(&self, _backend_features: u64) -> Vec<u32> {
        if self.config.is_some() {
            return Vec::new();
        }
        match known_config_size(self.device_type) {
            Some(0) => Vec::new(),
            Some(size) => vec![size],
            None => vec![MAX_CONFIG, 128, 64, 32, 16, 8, 4],
        }
    }

    fn device_features(&self, view: &BackendView<'_>) -> u64 {
        let mut features = view.features & TYPE_FEATURES;
        // A driver that accepts it looks for the queues for control, and fails if they are not there.
        if self.device_type == VIRTIO_ID_CONSOLE && view.requested_queues < MULTIPORT_QUEUES {
            features &= !CONSOLE_MULTIPORT;
        }
        features
    }

    fn config(&self, view: &BackendView<'_>) -> Result<Vec<u8>, String> {
        match &self.config {
            Some(given) => Ok(given.clone()),
            None => Ok(view.config.unwrap_or_default().to_vec()),
        }
    }

    fn caution(&self, view: &BackendView<'_>) -> Option<&'static str> {
        let missing = self.config.is_none() && view.config.is_none_or(<[u8]>::is_empty);
        (missing && needs_config(self.device_type, view.features)).then_some(
            "a device of this type has a configuration space, and the back-end serves none: the guest reads zeros, and \
             its driver may fail; give the space with config=",
        )
    }

    fn writable(&self, _features: u64, config_len: usize) -> Range<usize> {
        match self.config {
            Some(_) => 0..0,
            None => 0..config_len,
        }
    }

    fn drains(&self, queue: u16) -> bool {
        self.drain.contains(&queue)
    }

    fn saveability(&self, transfer: StateTransfer) -> Saveability {
        match self.state {
            BackendState::None => Saveability::Stateless,
            BackendState::Required | BackendState::Unspecified => needs_transfer(transfer),
        }
    }
}

/// The size in bytes of the configuration space of a type whose back-ends insist on it; 0: it has none.
fn known_config_size(device_type: u32) -> Option<u32> {
    let size = match device_type {
        1 => 12,      // network: mac, status, max_virtqueue_pairs, mtu
        3 => 12,      // console
        4 => 0,       // entropy
        8 => 36,      // SCSI host
        18 => 136,    // input
        19 => 8,      // socket
        25 => 12,     // sound
        26 => 40,     // file system
        27 => 16,     // persistent memory
        32 | 34 => 0, // SCMI, I2C
        41 => 8,      // GPIO
        _ => return None,
    };
    Some(size)
}

/// Whether a driver of this type reads the configuration space, if the device has `features`.
fn needs_config(device_type: u32, features: u64) -> bool {
    match device_type {
        // Each field comes with a feature (5.1.4, 5.3.4).
        VIRTIO_ID_NET => features & NET_CONFIG_FEATURES != 0,
        VIRTIO_ID_CONSOLE => features & CONSOLE_CONFIG_FEATURES != 0,
        other => known_config_size(other).is_some_and(|size| size > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic() -> Generic {
        Generic {
            device_type: 19,
            state: BackendState::Unspecified,
            drain: vec![1],
            config: None,
        }
    }

    #[test]
    fn a_console_without_queues_for_control_has_one_port() {
        let multiport = |device_type, requested_queues| {
            let view = BackendView {
                features: u64::MAX,
                config: None,
                requested_queues,
            };
            let device = Generic {
                device_type,
                ..generic()
            };
            device.device_features(&view) & CONSOLE_MULTIPORT != 0
        };
        assert!(!multiport(VIRTIO_ID_CONSOLE, 2));
        assert!(multiport(VIRTIO_ID_CONSOLE, 4));
        assert!(multiport(19, 2));
    }

    #[test]
    fn only_the_types_own_features_pass() {
        let view = BackendView {
            features: u64::MAX,
            config: None,
            requested_queues: 1,
        };
        let offered = generic().device_features(&view);
        for bit in 0..64 {
            let own = !(24..50).contains(&bit);
            assert_eq!(offered & (1 << bit) != 0, own, "bit {bit}");
        }
    }

    #[test]
    fn a_given_configuration_space_wins() {
        let given = Generic {
            config: Some(vec![1, 2, 3]),
            ..generic()
        };
        let view = BackendView {
            features: 0,
            config: Some(&[9; 8]),
            requested_queues: 1,
        };
        assert!(given.config_sizes(0).is_empty());
        assert_eq!(given.config(&view).unwrap(), [1, 2, 3]);
        assert_eq!(generic().config(&view).unwrap(), [9; 8]);
    }

    #[test]
    fn an_undeclared_device_is_saved_only_with_device_state() {
        let unspecified = generic();
        assert_eq!(
            unspecified.saveability(StateTransfer::Offered),
            Saveability::Saved
        );
        assert!(matches!(
            unspecified.saveability(StateTransfer::Absent),
            Saveability::Unsupported(_)
        ));
        let stateless = Generic {
            state: BackendState::None,
            ..generic()
        };
        assert_eq!(
            stateless.saveability(StateTransfer::Absent),
            Saveability::Stateless
        );
    }

    #[test]
    fn a_configuration_space_that_is_missing_is_told_if_the_driver_would_read_it() {
        let told = |device_type, features, config| {
            let view = BackendView {
                features,
                config,
                requested_queues: 1,
            };
            let device = Generic {
                device_type,
                ..generic()
            };
            device.caution(&view).is_some()
        };
        // A socket's address, and what an input device is.
        for device_type in [19, 18] {
            assert!(told(device_type, 0, None));
            assert!(told(device_type, 0, Some(&[])));
            assert!(!told(device_type, 0, Some(&[1; 8])));
        }
        // Entropy has none; of an unknown type nothing is known.
        assert!(!told(4, u64::MAX, None));
        assert!(!told(63, u64::MAX, None));
        // A network with a MAC address of the device's, and one without.
        assert!(told(1, 1 << 5, None));
        assert!(!told(1, 1 << 32, None));
        let given = Generic {
            config: Some(vec![3; 8]),
            ..generic()
        };
        let view = BackendView {
            features: 0,
            config: None,
            requested_queues: 1,
        };
        assert_eq!(given.caution(&view), None);
    }
}
