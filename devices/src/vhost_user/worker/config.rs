//! The configuration space: the guest's writes to the back-end, the back-end's changes to the guest.

use super::Worker;
use crate::vhost_user::error::Cause;
use crate::vhost_user::inbox::ConfigWrite;
use crate::vhost_user::profile::BackendView;

impl Worker {
    pub(super) fn write_config(&mut self, write: &ConfigWrite) -> Result<(), Cause> {
        match self.frontend.set_config(write.offset, &write.data) {
            Err(cause) if cause.is_fatal() => Err(cause),
            Err(cause) => {
                self.log_refusal(cause, "a write to the configuration space was lost");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Fetches the configuration space again if the back-end has announced a change of it.
    pub(super) fn refresh_config(&mut self) -> Result<(), Cause> {
        if self.frontend.connection().take_config_changed() {
            self.shared.counters.config_changes.add();
            self.config_is_stale = true;
        }
        let settled = self.frontend.connection().dead_at().is_none();
        if self.config_is_stale && settled {
            self.config_is_stale = false;
            self.fetch_config()?;
        }
        Ok(())
    }

    /// Fetches the configuration space again and tells the transport if it has changed.
    fn fetch_config(&mut self) -> Result<(), Cause> {
        let size = self.negotiated.config_size;
        if size == 0 {
            return Ok(());
        }
        let fetched = match self.frontend.get_config(size) {
            Ok(fetched) => fetched,
            Err(cause) if cause.is_fatal() => return Err(cause),
            Err(cause) => {
                self.config_is_stale = matches!(cause, Cause::Late { .. });
                self.log_refusal(cause, "the configuration space stays as it was");
                return Ok(());
            }
        };
        let view = BackendView {
            features: self.negotiated.backend_features,
            config: Some(&fetched),
            requested_queues: self.shared.spec.num_queues,
        };
        let config = match self.shared.spec.profile.rules().config(&view) {
            Ok(config) => config,
            Err(reason) => {
                let cause = Cause::Unusable { reason };
                self.log_refusal(cause, "the configuration space stays as it was");
                return Ok(());
            }
        };
        if self.shared.set_config(config)
            && let Some(transport) = self.shared.transport()
        {
            transport.config_changed();
        }
        Ok(())
    }
}
