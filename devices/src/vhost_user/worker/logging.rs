//! LOG_ALL: back-ends that note what they write, and that get their state ready to be saved.
//!
//! One feature bit means both. So what begins a log has the back-end collect its state anew, too; and while there is a log, what only
//! prepares a save changes nothing, because clearing LOG_ALL for a moment would lose what is written in it.
//!
//! ```text
//!               SET_LOG_BASE, LOG_ALL cleared, LOG_ALL set
//!   no log ────────────────────────────────────────────────▶ logged ◀──┐ after a reset: features, memory table,
//!     ▲                       LOG_ALL cleared                   │  └──────┘ SET_LOG_BASE, LOG_ALL set, rings
//!     └─────────────────────────────────────────────────────────┘
//! ```
//!
//! A device that has no driver remembers the log until it has one. A back-end that does not take the log then does not cost the guest
//! its device; the log is worth nothing any more, which whoever saves the device is told.

use std::sync::Arc;

use vhost::vhost_user::VhostUserVirtioFeatures;

use super::Worker;
use super::session::{Service, Session};
use crate::vhost_user::dirty_log::DirtyLog;
use crate::vhost_user::error::Cause;
use crate::vhost_user::memory::RamRegion;

impl Worker {
    /// Has the back-end begin anew to get its state ready: what it had collected, an earlier save has used up.
    pub(super) fn prepare(&mut self) -> Result<(), Cause> {
        let runs = |session: &&Session| session.service == Service::Complete;
        let Some(session) = self.session.as_ref().filter(runs) else {
            return Ok(());
        };
        if self.log.is_some() || !self.negotiated.offers_preparation() {
            return Ok(());
        }
        let features = session.features;
        self.settle()?;
        self.renew_log_all(features)
    }

    /// Clears LOG_ALL if it was set for no log.
    pub(super) fn unprepare(&mut self, session: &Session) -> Result<(), Cause> {
        if !self.log_all || self.log.is_some() {
            return Ok(());
        }
        let features = self.negotiated.acknowledge(session.features);
        match self.frontend.set_features(features) {
            Err(cause @ Cause::Refused { .. }) => {
                self.log_refusal(cause, "the back-end stays prepared to be saved");
            }
            other => other?,
        }
        self.log_all = false;
        Ok(())
    }

    /// The same for the session there is.
    pub(super) fn unprepare_session(&mut self) -> Result<(), Cause> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        let outcome = self.unprepare(&session);
        self.session = Some(session);
        outcome
    }

    /// Has the back-end note what it writes; now, if it has rings, and from every later activation on.
    pub(super) fn start_log(&mut self, log: Arc<DirtyLog>) -> Result<(), Cause> {
        self.log = None;
        self.shared.set_unlogged(None);
        if !self.negotiated.offers_log() {
            return Err(Cause::Unusable {
                reason:
                    "it does not offer LOG_ALL and LOG_SHMFD, so that what it writes is not known"
                        .into(),
            });
        }
        let given = |session: &&Session| !session.rings.is_empty();
        if let Some(session) = self.session.as_ref().filter(given) {
            if session.service == Service::Unloaded {
                let reason = "it is being restored".into();
                return Err(Cause::NotAtRest { reason });
            }
            check_cover(&log, &session.ram)?;
            let features = session.features;
            self.settle()?;
            self.frontend.set_log_base(&log)?;
            self.renew_log_all(features)?;
        }
        self.log = Some(log);
        Ok(())
    }

    pub(super) fn stop_log(&mut self) -> Result<(), Cause> {
        self.log = None;
        self.shared.set_unlogged(None);
        self.unprepare_session()
    }

    /// Has the back-end note what it writes from the first ring on, if there is a log. It has just been told `features` and `ram`.
    pub(super) fn log_new_session(
        &mut self,
        features: u64,
        ram: &[RamRegion],
    ) -> Result<(), Cause> {
        let Some(log) = self.log.clone() else {
            return Ok(());
        };
        let outcome = check_cover(&log, ram)
            .and_then(|()| self.frontend.set_log_base(&log))
            .and_then(|()| self.set_log_all(features));
        match outcome {
            Err(cause @ (Cause::Refused { .. } | Cause::BadSetup { .. })) => {
                let error = self.shared.error_from(cause);
                tracing::warn!(
                    device = self.shared.spec.id,
                    "what the back-end writes is not known, so that this migration will fail: {}",
                    crate::chain(&error)
                );
                self.shared.set_unlogged(Some(error));
                Ok(())
            }
            other => other,
        }
    }

    /// Clears LOG_ALL, then sets it; all other features stay.
    fn renew_log_all(&mut self, features: u64) -> Result<(), Cause> {
        let accepted = self.negotiated.acknowledge(features);
        self.frontend.set_features(accepted)?;
        self.set_log_all(features)?;
        self.frontend.fence()
    }

    fn set_log_all(&mut self, features: u64) -> Result<(), Cause> {
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        // Whether it arrives may stay unknown.
        self.log_all = true;
        let accepted = self.negotiated.acknowledge(features);
        self.frontend.set_features(accepted | log_all)
    }
}

/// A back-end must not be given a log in which it has no place for a page: libvhost-user ends its process then.
fn check_cover(log: &DirtyLog, ram: &[RamRegion]) -> Result<(), Cause> {
    match log.covers(ram) {
        true => Ok(()),
        false => Err(Cause::BadSetup {
            reason: "the dirty log does not cover all of guest RAM".into(),
        }),
    }
}
