//! Which request fits which situation.
//!
//! This is the whole state machine as a client sees it: `docs/states.md` shows the same table, and a test compares
//! the two. Nothing else decides whether a request is allowed.

use ferry_api::control::{Refusal, RefusalKind, Request};
use ferry_api::snapshot::PauseBy;

/// Where the virtual machine stands, transitions included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Situation {
    /// There is no definition.
    Absent,
    /// Defined, and not booted since.
    Created,
    /// On its way from Created or Shutdown to Running.
    Booting,
    /// On its way from a snapshot to Paused.
    Restoring,
    /// On its way from another Ferry to Running or Paused.
    Receiving,
    /// The guest runs.
    Running,
    /// The vCPUs stand still, and devices are coming to rest.
    Pausing,
    /// All stands still.
    Paused,
    /// A snapshot is being taken: the guest runs still, or stands still, or runs again.
    Saving,
    /// The guest is being sent to another Ferry: it runs still, or stands still.
    Sending,
    /// The guest was handed over to another Ferry, which has not confirmed it. It stands still.
    HandedOver,
    /// The vCPUs run again, and devices are being restarted.
    Resuming,
    /// The guest has ended, and devices are coming to rest before it starts again.
    Rebooting,
    /// The guest has ended, and devices are coming to rest.
    ShuttingDown,
    /// The guest has ended; definition and connections are there.
    Shutdown,
    /// As [`Situation::ShuttingDown`], with nothing to be left.
    Deleting,
}

/// What is done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Allowed,
    /// It is refused.
    Refused(RefusalKind),
}

use Situation::*;
use Verdict::*;

/// Decides.
pub fn verdict(situation: Situation, request: &Request) -> Verdict {
    const FAILED: Verdict = Refused(RefusalKind::Failed);
    match (request, situation) {
        (Request::ShutdownVmm | Request::Progress | Request::Migration, _) => Allowed,
        (Request::Create(_) | Request::Restore(_) | Request::ReceiveMigration(_), Absent) => {
            Allowed
        }
        (Request::Create(_) | Request::Restore(_) | Request::ReceiveMigration(_), _) => FAILED,
        (Request::Delete, Absent) => Allowed,
        (_, Absent) => Refused(RefusalKind::NotFound),
        (Request::Info | Request::Counters, _) => Allowed,
        (Request::Delete, _) => Allowed,
        // For whoever wants to do something with it, it is gone already.
        (_, Deleting) => Refused(RefusalKind::NotFound),
        (Request::Boot, Created | Shutdown) => Allowed,
        (Request::Pause, Running) => Allowed,
        (Request::Resume, Paused) => Allowed,
        (Request::PowerButton, Running | Resuming) => Allowed,
        (Request::Snapshot(_), Paused) => Allowed,
        (Request::Snapshot(how), Running) if how.pause == PauseBy::Ferry => Allowed,
        (Request::Cancel, Saving | Restoring) => Allowed,
        (Request::ReleaseHold, Saving) => Allowed,
        (Request::SendMigration(_), Running | Paused) => Allowed,
        (Request::CancelMigration, Sending | Receiving | Rebooting) => Allowed,
        (Request::ReclaimMigration, HandedOver) => Allowed,
        (
            Request::Shutdown,
            Booting | Running | Pausing | Paused | Saving | Sending | Resuming | Rebooting,
        ) => Allowed,
        (Request::Reboot, Running | Pausing | Paused | Saving | Sending | Resuming) => Allowed,
        (
            Request::AddDisk(_) | Request::AddFs(_) | Request::RemoveDevice(_),
            Created | Shutdown,
        ) => Allowed,
        _ => FAILED,
    }
}

/// Says why a request does not fit.
pub fn refusal(situation: Situation, request: &Request, kind: RefusalKind) -> Refusal {
    let hot_plug = matches!(
        request,
        Request::AddDisk(_) | Request::AddFs(_) | Request::RemoveDevice(_)
    );
    let makes_one = matches!(
        request,
        Request::Create(_) | Request::Restore(_) | Request::ReceiveMigration(_)
    );
    let reason = match situation {
        Running | Pausing | Paused | Saving | Sending | HandedOver | Resuming | Rebooting
        | Booting | Restoring | Receiving
            if hot_plug =>
        {
            "devices of a guest that runs or is paused cannot be changed: not supported yet; \
             shut the guest down first"
        }
        Receiving if makes_one => "a guest is being received already: cancel that first",
        HandedOver if matches!(request, Request::CancelMigration) => {
            "the guest was handed over already: it can only be taken back (vm.migration-reclaim), if it is certain that it \
             has never run elsewhere"
        }
        _ if matches!(request, Request::CancelMigration) => "no migration is under way",
        _ if matches!(request, Request::ReclaimMigration) => {
            "no guest has been handed over that could be taken back"
        }
        Absent => "there is no virtual machine: create one first",
        Deleting if makes_one => {
            "what was here is still being taken down, for which its back-ends have up to twice --dead-timeout: try again later"
        }
        HandedOver if makes_one => {
            "the guest that was here was handed over, and nobody has said that it runs there: delete it first, or take it back"
        }
        Created if makes_one => "there is a virtual machine already: delete it first",
        _ if makes_one => "there is a virtual machine already: shut it down and delete it first",
        Created => "the guest has not been booted",
        Saving if matches!(request, Request::Snapshot(_)) => {
            "another snapshot of the guest is being taken"
        }
        _ if matches!(request, Request::Cancel | Request::ReleaseHold) => {
            "no snapshot or restore is under way"
        }
        Running if matches!(request, Request::Snapshot(_)) => {
            "the guest is running; pause it first, or ask for a snapshot with \"pause\": true"
        }
        Booting => "the guest is being booted",
        Restoring => "the guest is being restored",
        Receiving => "a guest is being received",
        Running => "the guest is running",
        Pausing => "the guest is being paused",
        Paused => "the guest is paused",
        Saving => "a snapshot of the guest is being taken",
        Sending => "the guest is being sent to another Ferry",
        HandedOver => {
            "the guest was handed over to another Ferry, which has not confirmed that it runs there"
        }
        Resuming => "the guest is being resumed",
        Rebooting => "the guest is being rebooted",
        ShuttingDown => "the guest is being shut down",
        Shutdown => "the guest has been shut down",
        Deleting => "the virtual machine is being deleted",
    };
    Refusal::new(
        kind,
        format!("{} is not possible now: {reason}", name(request)),
    )
}

/// A request's name in the API.
pub fn name(request: &Request) -> &'static str {
    match request {
        Request::Create(_) => "vm.create",
        Request::Boot => "vm.boot",
        Request::Info => "vm.info",
        Request::Counters => "vm.counters",
        Request::Pause => "vm.pause",
        Request::Resume => "vm.resume",
        Request::Shutdown => "vm.shutdown",
        Request::Reboot => "vm.reboot",
        Request::PowerButton => "vm.power-button",
        Request::Delete => "vm.delete",
        Request::AddDisk(_) => "vm.add-disk",
        Request::AddFs(_) => "vm.add-fs",
        Request::RemoveDevice(_) => "vm.remove-device",
        Request::Snapshot(_) => "vm.snapshot",
        Request::Restore(_) => "vm.restore",
        Request::Progress => "vm.progress",
        Request::Cancel => "vm.cancel",
        Request::ReleaseHold => "vm.snapshot-release",
        Request::SendMigration(_) => "vm.send-migration",
        Request::ReceiveMigration(_) => "vm.receive-migration",
        Request::Migration => "vm.migration",
        Request::CancelMigration => "vm.migration-cancel",
        Request::ReclaimMigration => "vm.migration-reclaim",
        Request::ShutdownVmm => "vmm.shutdown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTATION: &str = include_str!("../../../docs/states.md");
    const SITUATIONS: [Situation; 16] = [
        Absent,
        Created,
        Booting,
        Restoring,
        Receiving,
        Running,
        Pausing,
        Paused,
        Saving,
        Sending,
        HandedOver,
        Resuming,
        Rebooting,
        ShuttingDown,
        Shutdown,
        Deleting,
    ];

    fn cell(verdict: Verdict) -> &'static str {
        match verdict {
            Allowed => "yes",
            Refused(RefusalKind::Invalid) => "400",
            Refused(RefusalKind::NotFound) => "404",
            Refused(RefusalKind::Duplicate) => "409",
            Refused(RefusalKind::Failed) => "500",
        }
    }

    #[test]
    fn the_documentation_shows_this_table() {
        let header = "| | absent | Created | booting | restoring | receiving | Running | pausing | Paused \
                      | saving | sending | handed over | resuming | rebooting | shutting down | Shutdown | deleting |";
        assert!(DOCUMENTATION.contains(header), "{header}");
        for request in crate::lifecycle::tests::requests() {
            let mut row = format!("| {} |", name(&request));
            for situation in SITUATIONS {
                row += &format!(" {} |", cell(verdict(situation, &request)));
            }
            assert!(DOCUMENTATION.contains(&row), "{row}");
        }
    }

    #[test]
    fn every_refusal_names_the_request_and_the_reason() {
        for request in crate::lifecycle::tests::requests() {
            for situation in SITUATIONS {
                if let Refused(kind) = verdict(situation, &request) {
                    let refusal = refusal(situation, &request, kind);
                    assert!(refusal.chain[0].starts_with(name(&request)), "{refusal:?}");
                }
            }
        }
    }
}
