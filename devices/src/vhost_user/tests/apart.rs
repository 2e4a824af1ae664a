//! Taking a machine apart: what is dropped is gone, connections included.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;

use vmm_sys_util::eventfd::EventFd;

use super::harness::{HANG, Observer, TestRam, eventually, started};
use super::peer::Peer;
use crate::interrupt::{Doorbells, Gsi, MsiMessage, MsiRouter};
use crate::vhost_user::{DeviceState, Limits, VhostUserDevice};
use crate::virtio::pci::VirtioPci;

const BAR: u32 = 0xc000_0000;

/// A hypervisor that lets everything be done and does nothing.
struct Machine;

impl MsiRouter for Machine {
    fn allocate(&self) -> io::Result<Gsi> {
        Ok(Gsi(24))
    }
    fn route(&self, _: Gsi, _: MsiMessage) -> io::Result<()> {
        Ok(())
    }
    fn attach(&self, _: Gsi, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn detach(&self, _: Gsi, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

impl Doorbells for Machine {
    fn attach(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn detach(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

fn function(device: &Arc<VhostUserDevice>, machine: &Arc<Machine>) -> Arc<VirtioPci> {
    VirtioPci::new(device.clone(), BAR, machine.clone(), machine.clone()).unwrap()
}

#[test]
fn dropping_the_parts_of_a_machine_closes_the_connection() {
    let ram = TestRam::new();
    let peer = Peer::honest();
    let (observer, reports) = Observer::new();
    VhostUserDevice::start(
        peer.disk(),
        Limits::default(),
        Arc::clone(&ram.regions),
        observer,
    )
    .unwrap();
    let device = started(&reports).unwrap();
    let machine = Arc::new(Machine);
    // A reboot: the device gets a new function, and the old one goes, with what it holds of the machine.
    let old = function(&device, &machine);
    drop(old);
    assert_eq!(Arc::strong_count(&machine), 1);
    let new = function(&device, &machine);
    assert_eq!(device.state(), DeviceState::Idle);

    drop(device);
    drop(new);
    assert_eq!(Arc::strong_count(&machine), 1);
    // The worker ends, and with it goes the observer; the peer's thread ends with the connection.
    assert!(matches!(
        reports.recv_timeout(HANG),
        Err(RecvTimeoutError::Disconnected)
    ));
    eventually("the connection is open", || {
        matches!(
            peer.seen.try_recv(),
            Err(std::sync::mpsc::TryRecvError::Disconnected)
        )
    });
}
