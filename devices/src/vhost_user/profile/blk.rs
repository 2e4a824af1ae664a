//! Disks: virtio-blk (Virtual I/O Device 1.2, 5.2).
//!
//! The configuration space comes from the back-end, save the number of queues, which is what the user asked for. Fields that
//! the back-end's space is too short for take their features with them.

use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SECURE_ERASE,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_migration::Saveability;

use super::{BackendView, Rules, StateTransfer};

/// VIRTIO_BLK_F_LIFETIME, which the bindings lack.
const VIRTIO_BLK_F_LIFETIME: u32 = 15;

/// Offsets into `virtio_blk_config`, in bytes.
const SIZE_MAX: usize = 8;
const BLK_SIZE: usize = 20;
const WRITEBACK: usize = 32;
const NUM_QUEUES: usize = 34;

/// Bytes of `virtio_blk_config` up to and including: num_queues, write_zeroes, secure_erase.
const UP_TO_NUM_QUEUES: u32 = 36;
const UP_TO_WRITE_ZEROES: u32 = 60;
const UP_TO_SECURE_ERASE: u32 = 72;

/// The most sectors of 512 bytes for which a byte offset still is a signed 64-bit number.
const MOST_SECTORS: u64 = (i64::MAX as u64) >> 9;

/// Each feature with the end of what it needs of the configuration space, in bytes.
const FEATURES: [(u32, u32); 13] = [
    (VIRTIO_BLK_F_SIZE_MAX, 12),
    (VIRTIO_BLK_F_SEG_MAX, 16),
    (VIRTIO_BLK_F_GEOMETRY, 20),
    (VIRTIO_BLK_F_RO, 0),
    (VIRTIO_BLK_F_BLK_SIZE, 24),
    (VIRTIO_BLK_F_FLUSH, 0),
    (VIRTIO_BLK_F_TOPOLOGY, 32),
    (VIRTIO_BLK_F_CONFIG_WCE, 33),
    (VIRTIO_BLK_F_MQ, UP_TO_NUM_QUEUES),
    (VIRTIO_BLK_F_DISCARD, 48),
    (VIRTIO_BLK_F_WRITE_ZEROES, UP_TO_WRITE_ZEROES),
    (VIRTIO_BLK_F_LIFETIME, 0),
    (VIRTIO_BLK_F_SECURE_ERASE, UP_TO_SECURE_ERASE),
];

/// What the guest may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write, unless the back-end itself says read-only.
    ReadWrite,
    /// The guest sees a read-only disk.
    ///
    /// If the back-end does not say so itself, this is a request to the guest's driver, not a wall: Ferry is not on the
    /// data path, and a hostile driver could still write. Whoever needs a wall makes the back-end read-only.
    ReadOnly,
}

/// A disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blk {
    /// What the guest may do with it.
    pub access: Access,
}

impl Rules for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_count(&self, requested: u16) -> u32 {
        u32::from(requested)
    }

    fn queues_without_mq(&self) -> Option<u16> {
        Some(1)
    }

    fn config_sizes(&self, backend_features: u64) -> Vec<u32> {
        // Back-ends refuse to serve more than the structure they know.
        let mut sizes = vec![UP_TO_WRITE_ZEROES, UP_TO_NUM_QUEUES];
        if has(backend_features, VIRTIO_BLK_F_SECURE_ERASE) {
            sizes.insert(0, UP_TO_SECURE_ERASE);
        }
        sizes
    }

    fn device_features(&self, view: &BackendView<'_>) -> u64 {
        let config = view.config.unwrap_or_default();
        let mut features = 0;
        for (bit, needs) in FEATURES {
            if config.len() >= needs as usize {
                features |= view.features & (1 << bit);
            }
        }
        // qemu-storage-daemon offers a limit of 0 bytes for a segment, and means none.
        if read_u32(config, SIZE_MAX) == Some(0) {
            features &= !(1 << VIRTIO_BLK_F_SIZE_MAX);
        }
        // The feature says no more than that the field in the configuration space counts, and that is Ferry's.
        features &= !(1 << VIRTIO_BLK_F_MQ);
        if view.requested_queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        if self.access == Access::ReadOnly {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        if has(features, VIRTIO_BLK_F_RO) {
            for writing in [
                VIRTIO_BLK_F_DISCARD,
                VIRTIO_BLK_F_WRITE_ZEROES,
                VIRTIO_BLK_F_SECURE_ERASE,
            ] {
                features &= !(1 << writing);
            }
        }
        features
    }

    fn config(&self, view: &BackendView<'_>) -> Result<Vec<u8>, String> {
        let Some(config) = view.config else {
            return Err(format!(
                "a disk's size comes from its configuration space, of which it does not serve {UP_TO_NUM_QUEUES} \
                 bytes (protocol feature CONFIG); is it a vhost-user-blk back-end?"
            ));
        };
        let sectors = read_u64(config, 0).unwrap_or(0);
        if sectors > MOST_SECTORS {
            return Err(format!("it claims a disk of {sectors} sectors"));
        }
        let block = read_u32(config, BLK_SIZE);
        if let Some(block) = block
            && has(view.features, VIRTIO_BLK_F_BLK_SIZE)
            && (block < 512 || !block.is_power_of_two())
        {
            return Err(format!("it claims blocks of {block} bytes"));
        }
        let mut config = config.to_vec();
        if let Some(field) = config.get_mut(NUM_QUEUES..NUM_QUEUES + 2) {
            field.copy_from_slice(&view.requested_queues.to_le_bytes());
        }
        Ok(config)
    }

    fn caution(&self, view: &BackendView<'_>) -> Option<&'static str> {
        let guarded = has(view.features, VIRTIO_BLK_F_RO) || self.access == Access::ReadWrite;
        (!guarded).then_some(
            "the disk is read-only for the guest, but its back-end would take writes; make it read-only there, too",
        )
    }

    fn writable(&self, features: u64, _config_len: usize) -> Range<usize> {
        if has(features, VIRTIO_BLK_F_CONFIG_WCE) {
            WRITEBACK..WRITEBACK + 1
        } else {
            0..0
        }
    }

    fn drains(&self, _queue: u16) -> bool {
        true
    }

    fn saveability(&self, transfer: StateTransfer) -> Saveability {
        match transfer {
            StateTransfer::Offered => Saveability::Saved,
            // With its queues drained, a disk is its image and its configuration space.
            StateTransfer::Absent => Saveability::Stateless,
        }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

fn read_u32(config: &[u8], at: usize) -> Option<u32> {
    let bytes = config.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn read_u64(config: &[u8], at: usize) -> Option<u64> {
    let bytes = config.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn config() -> Vec<u8> {
        let mut config = vec![0; UP_TO_WRITE_ZEROES as usize];
        config[0..8].copy_from_slice(&2048u64.to_le_bytes());
        config[BLK_SIZE..BLK_SIZE + 4].copy_from_slice(&512u32.to_le_bytes());
        config[NUM_QUEUES] = 8;
        config
    }

    fn view(config: &[u8], requested_queues: u16) -> BackendView<'_> {
        BackendView {
            features: ALL,
            config: Some(config),
            requested_queues,
        }
    }

    const RW: Blk = Blk {
        access: Access::ReadWrite,
    };
    const RO: Blk = Blk {
        access: Access::ReadOnly,
    };

    #[test]
    fn a_segment_limit_of_zero_is_not_offered() {
        let mut config = config();
        let offered = RW.device_features(&view(&config, 1));
        assert!(!has(offered, VIRTIO_BLK_F_SIZE_MAX));
        config[SIZE_MAX] = 1;
        let offered = RW.device_features(&view(&config, 1));
        assert!(has(offered, VIRTIO_BLK_F_SIZE_MAX));
    }

    #[test]
    fn queues_in_the_configuration_space_are_those_asked_for() {
        let config = config();
        let seen = RW.config(&view(&config, 2)).unwrap();
        assert_eq!(&seen[NUM_QUEUES..NUM_QUEUES + 2], &[2, 0]);
        assert!(has(RW.device_features(&view(&config, 2)), VIRTIO_BLK_F_MQ));
        assert!(!has(RW.device_features(&view(&config, 1)), VIRTIO_BLK_F_MQ));
    }

    #[test]
    fn a_read_only_disk_says_so_and_offers_nothing_that_writes() {
        let config = config();
        let plain = BackendView {
            features: 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_FLUSH,
            ..view(&config, 1)
        };
        assert_eq!(
            RO.device_features(&plain),
            1 << VIRTIO_BLK_F_RO | 1 << VIRTIO_BLK_F_FLUSH
        );
        assert_eq!(
            RW.device_features(&plain),
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_FLUSH
        );
    }

    #[test]
    fn a_short_configuration_space_takes_features_with_it() {
        let config = &config()[..UP_TO_NUM_QUEUES as usize];
        let plain = BackendView {
            features: ALL & !(1 << VIRTIO_BLK_F_RO),
            ..view(config, 1)
        };
        let offered = RW.device_features(&plain);
        assert!(!has(offered, VIRTIO_BLK_F_DISCARD));
        assert!(has(offered, VIRTIO_BLK_F_TOPOLOGY));
    }

    #[test]
    fn impossible_disks_are_refused() {
        let mut huge = config();
        huge[0..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(RW.config(&view(&huge, 1)).is_err());
        let mut odd = config();
        odd[BLK_SIZE..BLK_SIZE + 4].copy_from_slice(&513u32.to_le_bytes());
        assert!(RW.config(&view(&odd, 1)).is_err());
        let none = BackendView {
            config: None,
            ..view(&[], 1)
        };
        assert!(RW.config(&none).is_err());
    }
}
