//! The transport as a driver sees it, with a device that answers when the test says so.

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::{BAR_SIZE, VirtioPci};
use crate::interrupt::{Doorbells, Gsi, MsiMessage, MsiRouter};
use crate::pci::PciFunction;
use crate::virtio::{Activation, ActivationFailed, TransportEvents, VirtioDevice, status};

const BAR: u32 = 0xc000_0000;
const VERSION_1: u64 = 1 << 32;
const INDIRECT: u64 = 1 << 28;

/// A device that notes what it is asked to do.
#[derive(Default)]
struct Device {
    asked: Mutex<Vec<Asked>>,
    events: Mutex<Option<Arc<dyn TransportEvents>>>,
}

#[derive(Debug)]
enum Asked {
    Activate(Activation),
    Reset,
}

impl Device {
    fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Who is told what the device does.
    fn events(&self) -> Arc<dyn TransportEvents> {
        self.events.lock().unwrap().clone().unwrap()
    }
}

impl VirtioDevice for Device {
    fn id(&self) -> &str {
        "disk0"
    }
    fn device_type(&self) -> u32 {
        2
    }
    fn queue_sizes(&self) -> &[u16] {
        &[128, 64]
    }
    fn features(&self) -> u64 {
        VERSION_1 | INDIRECT
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn config_generation(&self) -> u8 {
        0x5a
    }
    fn write_config(&self, _: u64, _: &[u8]) {}
    fn attach(&self, events: Arc<dyn TransportEvents>) {
        *self.events.lock().unwrap() = Some(events);
    }
    fn activate(&self, activation: Activation) {
        self.asked.lock().unwrap().push(Asked::Activate(activation));
    }
    fn reset(&self) {
        self.asked.lock().unwrap().push(Asked::Reset);
    }
}

/// Counts what is wired at the moment.
#[derive(Default)]
struct Wiring {
    doorbells: Mutex<Vec<u64>>,
}

impl Doorbells for Wiring {
    fn attach(&self, address: u64, _: &EventFd) -> io::Result<()> {
        self.doorbells.lock().unwrap().push(address);
        Ok(())
    }
    fn detach(&self, address: u64, _: &EventFd) -> io::Result<()> {
        self.doorbells
            .lock()
            .unwrap()
            .retain(|&other| other != address);
        Ok(())
    }
}

impl MsiRouter for Wiring {
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

/// A driver of the device under test.
struct Driver {
    device: Arc<Device>,
    wiring: Arc<Wiring>,
    function: Arc<VirtioPci>,
}

impl Driver {
    fn new() -> Self {
        let device = Arc::new(Device::default());
        let wiring = Arc::new(Wiring::default());
        let function = VirtioPci::new(device.clone(), BAR, wiring.clone(), wiring.clone()).unwrap();
        Driver {
            device,
            wiring,
            function,
        }
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_bar(offset, &mut data);
        data
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(offset, data);
    }

    fn status(&self) -> u8 {
        self.read::<1>(20)[0]
    }

    fn set_status(&self, bits: u8) {
        self.write(20, &[self.status() | bits]);
    }

    fn accept(&self, features: u64) {
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        for half in 0..2u32 {
            self.write(8, &half.to_le_bytes());
            self.write(12, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.set_status(status::FEATURES_OK);
    }

    fn set_up_queue(&self, index: u16, descriptors: u64) {
        self.write(22, &index.to_le_bytes());
        self.write(24, &16u16.to_le_bytes());
        for (offset, address) in [(32, descriptors), (40, 0x2000), (48, 0x3000)] {
            self.write(offset, &(address as u32).to_le_bytes());
            self.write(offset + 4, &((address >> 32) as u32).to_le_bytes());
        }
        self.write(28, &1u16.to_le_bytes());
    }

    fn starts(&self) {
        self.accept(VERSION_1);
        self.set_up_queue(0, 0x1000);
        self.set_status(status::DRIVER_OK);
    }
}

#[test]
fn a_driver_starts_the_device_with_the_queues_it_enabled() {
    let driver = Driver::new();
    driver.starts();
    let asked = driver.device.take();
    let [Asked::Activate(activation)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(activation.features, VERSION_1);
    let [queue] = &activation.queues[..] else {
        panic!("{activation:?}")
    };
    assert_eq!((queue.index, queue.size), (0, 16));
    assert_eq!(queue.descriptors, GuestAddress(0x1000));
    driver.device.events().activated(Ok(()));
    assert_eq!(driver.status(), 15);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    for features in [VERSION_1 | 1, INDIRECT] {
        let driver = Driver::new();
        driver.accept(features);
        assert_eq!(driver.status() & status::FEATURES_OK, 0, "{features:#x}");
        driver.set_status(status::DRIVER_OK);
        assert_eq!(driver.status() & status::DRIVER_OK, 0);
        assert!(driver.device.take().is_empty());
    }
}

#[test]
fn the_status_is_not_zero_until_a_reset_has_ended() {
    let driver = Driver::new();
    driver.starts();
    driver.device.events().activated(Ok(()));
    driver.device.take();
    driver.write(20, &[0]);
    assert!(matches!(driver.device.take()[..], [Asked::Reset]));
    assert_ne!(driver.status(), 0);
    driver.write(20, &[0]);
    driver.set_status(status::ACKNOWLEDGE);
    assert!(
        driver.device.take().is_empty(),
        "a second reset is the same reset"
    );
    driver.device.events().reset_done();
    assert_eq!(driver.status(), 0);
    assert_eq!(
        driver.read::<2>(28),
        [0, 0],
        "the queue is not enabled any more"
    );
    driver.starts();
    assert!(matches!(driver.device.take()[..], [Asked::Activate(_)]));
}

#[test]
fn a_reset_during_activation_has_the_last_word() {
    let driver = Driver::new();
    driver.starts();
    driver.write(20, &[0]);
    driver.device.events().activated(Err(ActivationFailed));
    assert_ne!(driver.status(), 0);
    driver.device.events().reset_done();
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_failed_activation_sets_needs_reset_and_tells_the_driver() {
    let driver = Driver::new();
    driver.starts();
    driver.device.events().activated(Err(ActivationFailed));
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    assert_eq!(driver.read::<1>(0x1000), [2], "the configuration interrupt");
    assert_eq!(driver.read::<1>(0x1000), [0], "is cleared by reading");
}

#[test]
fn the_generation_of_the_configuration_is_the_devices() {
    let driver = Driver::new();
    assert_eq!(driver.read::<1>(21), [0x5a]);
    driver.device.events().config_changed();
    assert_eq!(driver.read::<1>(0x1000), [2], "the configuration interrupt");
}

#[test]
fn a_queue_that_is_not_there_has_size_zero() {
    let driver = Driver::new();
    driver.write(22, &2u16.to_le_bytes());
    assert_eq!(driver.read::<2>(24), [0, 0]);
    driver.write(22, &1u16.to_le_bytes());
    assert_eq!(driver.read::<2>(24), 64u16.to_le_bytes());
    for size in [0u16, 3, 128] {
        driver.write(24, &size.to_le_bytes());
        assert_eq!(driver.read::<2>(24), 64u16.to_le_bytes());
    }
}

#[test]
fn doorbells_follow_the_bar() {
    let driver = Driver::new();
    let wired = || driver.wiring.doorbells.lock().unwrap().clone();
    assert!(wired().is_empty());
    driver.function.write_config(4, &[0b110, 0]);
    assert_eq!(wired(), [0xc000_4000, 0xc000_4004]);
    driver
        .function
        .write_config(0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!(wired(), [0xd000_4000, 0xd000_4004]);
    driver.function.write_config(4, &[0, 0]);
    assert!(wired().is_empty());
}

#[test]
fn a_notification_without_an_ioeventfd_is_passed_on_and_counted() {
    let driver = Driver::new();
    driver.starts();
    let asked = driver.device.take();
    let [Asked::Activate(activation)] = &asked[..] else {
        panic!("{asked:?}")
    };
    driver.write(0x4000, &[0, 0]);
    driver.write(0x4000 + 4 * 7, &[0, 0]);
    assert_eq!(activation.queues[0].kick.read().unwrap(), 1);
    assert_eq!(driver.function.doorbell_exits(), 2);
}

#[test]
fn any_access_is_harmless() {
    let driver = Driver::new();
    for offset in 0..u64::from(BAR_SIZE) {
        for length in [1, 2, 4, 8] {
            if offset % length == 0 && offset + length <= u64::from(BAR_SIZE) {
                let mut data = vec![0xff; length as usize];
                driver.function.write_bar(offset, &data);
                driver.function.read_bar(offset, &mut data);
            }
        }
    }
    for offset in 0..256 {
        driver.function.write_config(offset, &[0xff]);
        driver.function.read_config(offset, &mut [0]);
    }
}

#[test]
fn the_window_in_configuration_space_shows_the_bar() {
    let driver = Driver::new();
    let mut at = 0x40u16;
    let capability = |at: u16| {
        let mut head = [0; 4];
        driver.function.read_config(at, &mut head);
        head
    };
    while capability(at)[3] != 5 {
        at = capability(at)[1].into();
    }
    driver.function.write_config(at + 4, &[0]);
    driver.function.write_config(at + 8, &18u32.to_le_bytes());
    driver.function.write_config(at + 12, &2u32.to_le_bytes());
    let mut queues = [0; 4];
    driver.function.read_config(at + 16, &mut queues);
    assert_eq!(queues, [2, 0, 0, 0]);
    driver
        .function
        .write_config(at + 8, &0xffff_fffeu32.to_le_bytes());
    driver.function.read_config(at + 16, &mut queues);
}
