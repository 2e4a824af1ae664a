//! Shared directories: virtio-fs (Virtual I/O Device 1.2, 5.11).
//!
//! Queue 0 is for high-priority requests, the others are request queues. The configuration space holds nothing but the tag
//! and the number of request queues; the user decides both, so Ferry makes it up and never asks.

use std::ops::Range;

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vm_migration::Saveability;

use super::{BackendView, Rules, StateTransfer, needs_transfer};

/// The longest tag, in bytes.
pub const MAX_TAG: usize = 36;

/// A shared directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fs {
    /// The name the guest mounts it by, 1 to [`MAX_TAG`] bytes.
    pub tag: String,
}

impl Rules for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_count(&self, requested: u16) -> u32 {
        u32::from(requested) + 1
    }

    fn queues_without_mq(&self) -> Option<u16> {
        Some(2)
    }

    fn config_sizes(&self, _backend_features: u64) -> Vec<u32> {
        Vec::new()
    }

    fn device_features(&self, _view: &BackendView<'_>) -> u64 {
        // The one there is, NOTIFICATION, brings a queue of its own, which no back-end has.
        0
    }

    fn config(&self, view: &BackendView<'_>) -> Result<Vec<u8>, String> {
        if self.tag.is_empty() || self.tag.len() > MAX_TAG {
            return Err(format!(
                "the tag has {} bytes, and must have 1 to {MAX_TAG}",
                self.tag.len()
            ));
        }
        let mut config = vec![0; MAX_TAG];
        config[..self.tag.len()].copy_from_slice(self.tag.as_bytes());
        config.extend_from_slice(&u32::from(view.requested_queues).to_le_bytes());
        Ok(config)
    }

    fn caution(&self, _view: &BackendView<'_>) -> Option<&'static str> {
        None
    }

    fn writable(&self, _features: u64, _config_len: usize) -> Range<usize> {
        0..0
    }

    fn drains(&self, _queue: u16) -> bool {
        true
    }

    fn saveability(&self, transfer: StateTransfer) -> Saveability {
        needs_transfer(transfer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_is_tag_and_queues() {
        let fs = Fs {
            tag: "shared".into(),
        };
        let view = BackendView {
            features: 0,
            config: None,
            requested_queues: 3,
        };
        let config = fs.config(&view).unwrap();
        assert_eq!(config.len(), 40);
        assert_eq!(&config[..7], b"shared\0");
        assert_eq!(&config[36..], &[3, 0, 0, 0]);
        assert_eq!(fs.queue_count(3), 4);
    }

    #[test]
    fn a_tag_that_does_not_fit_is_refused() {
        let view = BackendView {
            features: 0,
            config: None,
            requested_queues: 1,
        };
        for tag in [String::new(), "x".repeat(37)] {
            assert!(Fs { tag }.config(&view).is_err());
        }
        let tag = "x".repeat(36);
        assert!(Fs { tag }.config(&view).is_ok());
    }
}
