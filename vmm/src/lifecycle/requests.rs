//! What clients ask for.

use ferry_api::config::validate::{Fault, Removal};
use ferry_api::control::{Refusal, RefusalKind, Reply, Request, Response, VmState};

use super::Vmm;
use super::boot::Cause;
use super::pause::Asker;
use super::stop::After;
use super::table::{self, Situation, Verdict};
use super::vm::{Phase, VirtualMachine, Waiters};

impl Vmm {
    pub(super) fn on_request(&mut self, request: Request, reply: Reply) {
        if let Some(info) = &self.succeeded {
            return match request {
                // A client that has connected before. The guest is as it was.
                Request::Info => reply.answer(Ok(Response::Info(info.clone()))),
                Request::Migration => self.carry_out(request, reply),
                _ => {
                    let reason = "another process has taken this one's place, and answers at the same address: ask again";
                    reply.answer(Err(Refusal::new(RefusalKind::Failed, reason)));
                }
            };
        }
        let situation = self.situation();
        match table::verdict(situation, &request) {
            Verdict::Allowed => self.carry_out(request, reply),
            Verdict::Refused(kind) => {
                reply.answer(Err(table::refusal(situation, &request, kind)));
            }
        }
    }

    /// Carries out a request that fits the situation.
    fn carry_out(&mut self, request: Request, reply: Reply) {
        match request {
            Request::Create(config) => {
                self.define(*config);
                reply.answer(Ok(Response::Done));
            }
            Request::Boot => {
                let left = self
                    .vm
                    .as_ref()
                    .map_or(VmState::Created, VirtualMachine::state);
                self.boot(left, Cause::Asked, None, reply.into());
            }
            Request::Info => reply.answer(self.describe()),
            Request::Counters => reply.answer(self.count()),
            Request::Pause => self.pause(Asker::Clients(reply.into())),
            Request::Resume => self.resume(Asker::Clients(reply.into())),
            Request::Shutdown => self.leave(After::Shutdown, reply),
            Request::Reboot => self.leave(After::Restart, reply),
            Request::Delete => self.leave(After::Delete, reply),
            Request::PowerButton => {
                if let Some(Phase::Live(live)) = self.vm.as_ref().map(|vm| &vm.phase) {
                    live.machine.press_power_button();
                }
                self.publish("vm", "power-button", []);
                reply.answer(Ok(Response::Done));
            }
            Request::AddDisk(_) | Request::AddFs(_) | Request::RemoveDevice(_) => {
                reply.answer(self.change_definition(request));
            }
            Request::Snapshot(request) => self.save(*request, reply),
            Request::Restore(request) => self.restore(*request, reply.into()),
            Request::Progress => reply.answer(self.progress()),
            Request::Cancel => match self.situation() {
                Situation::Saving => reply.answer(self.cancel_snapshot()),
                _ => {
                    self.cancel_restore("vm.cancel came");
                    reply.answer(Ok(Response::Done));
                }
            },
            Request::SendMigration(request) => self.send_migration(*request, reply),
            Request::ReceiveMigration(request) => self.receive_migration(*request, reply.into()),
            Request::Migration => reply.answer(self.migration()),
            Request::CancelMigration => match self.situation() {
                Situation::Receiving => {
                    reply.answer(self.cancel_receiving("vm.migration-cancel came"))
                }
                _ => reply.answer(self.cancel_sending()),
            },
            Request::ReclaimMigration => self.reclaim_guest(reply),
            Request::ReleaseHold => reply.answer(self.release_hold()),
            Request::ShutdownVmm => {
                reply.answer(Ok(Response::Done));
                self.quit("vmm.shutdown");
            }
        }
    }

    /// Where the virtual machine stands, snapshots and restores included.
    pub(super) fn situation(&self) -> Situation {
        let Some(vm) = &self.vm else {
            return match (&self.restoring, &self.receiving) {
                (Some(_), _) => Situation::Restoring,
                (None, Some(_)) => Situation::Receiving,
                (None, None) => Situation::Absent,
            };
        };
        let Phase::Live(live) = &vm.phase else {
            return vm.situation();
        };
        match (&self.saving, &self.sending) {
            (Some(saving), _) if saving.is_of(live.boot) => Situation::Saving,
            (_, Some(sending)) if sending.is_of(live.boot) => match sending.is_handed_over() {
                true => Situation::HandedOver,
                false => Situation::Sending,
            },
            _ => vm.situation(),
        }
    }

    /// How the last snapshot or restore stands.
    fn progress(&self) -> Result<Response, Refusal> {
        match &self.meter {
            Some(meter) => Ok(Response::Progress(Box::new(meter.progress()))),
            None => Err(Refusal::new(
                RefusalKind::NotFound,
                "there has been no snapshot and no restore",
            )),
        }
    }

    /// Leaves whatever there is for what is to come after.
    fn leave(&mut self, after: After, reply: Reply) {
        let Some(vm) = &self.vm else {
            // Closes their connections.
            self.reserve.clear();
            return match self.receiving {
                Some(_) => self.leave_receiving(reply),
                None => self.leave_restore(reply),
            };
        };
        match &vm.phase {
            Phase::Created | Phase::Shutdown => {
                self.clean_up(vm.state(), after, None, reply.into());
            }
            Phase::Booting(_) => self.replace_boot(after, reply),
            Phase::Live(_) => self.stop_guest(after, Waiters::from(reply)),
            Phase::Stopping(_) => self.replace_stop(after, reply),
        }
    }

    fn change_definition(&mut self, request: Request) -> Result<Response, Refusal> {
        let Some(vm) = &mut self.vm else {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                "there is no virtual machine",
            ));
        };
        let config = &mut vm.config;
        let (event, id) = match request {
            Request::AddDisk(disk) => {
                config.add_disk(*disk).map_err(misfit)?;
                (
                    "device-added",
                    config.disks.last().map(|disk| &disk.backend.id).cloned(),
                )
            }
            Request::AddFs(share) => {
                config.add_fs(*share).map_err(misfit)?;
                (
                    "device-added",
                    config.fs.last().map(|share| &share.backend.id).cloned(),
                )
            }
            Request::RemoveDevice(id) => match config.remove_device(&id) {
                Removal::Removed => ("device-removed", Some(id)),
                Removal::NoSuchDevice => {
                    return Err(Refusal::new(
                        RefusalKind::NotFound,
                        format!("there is no device {id}"),
                    ));
                }
            },
            _ => return Ok(Response::Done),
        };
        vm.follow_definition(&mut self.keys);
        self.publish("vm", event, [("id", id.unwrap_or_default())]);
        Ok(Response::Done)
    }
}

/// A device that does not fit.
fn misfit(fault: Fault) -> Refusal {
    let kind = match fault {
        Fault::Duplicate { .. } => RefusalKind::Duplicate,
        _ => RefusalKind::Invalid,
    };
    Refusal::new(kind, fault.to_string())
}
