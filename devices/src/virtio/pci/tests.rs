//! The transport as a driver sees it, with a device that answers when the test says so.

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use vm_migration::stream::{decode, encode};
use vmm_sys_util::eventfd::EventFd;

use super::{BAR_SIZE, VirtioPci, VirtioPciStateV1};
use crate::interrupt::{Doorbells, Gsi, MsiMessage, MsiRouter};
use crate::pci::{PciFunction, RestoreError};
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

    /// The same driver on another machine, with a function made from `state`.
    fn moved(state: &VirtioPciStateV1) -> Result<Self, RestoreError> {
        let device = Arc::new(Device::default());
        let wiring = Arc::new(Wiring::default());
        let function = VirtioPci::from_state(
            device.clone(),
            wiring.clone(),
            wiring.clone(),
            state,
            super::Events::New,
        )?;
        Ok(Driver {
            device,
            wiring,
            function,
        })
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

/// A driver in the middle of its work: a half-written queue selector, a masked and signalled vector, a rung bell.
fn at_work() -> Driver {
    let driver = Driver::new();
    driver.function.write_config(4, &[0b110, 0]);
    driver
        .function
        .write_config(0x10, &0xd000_0000u32.to_le_bytes());
    driver.starts();
    driver.device.events().activated(Ok(()));
    driver.write(22, &1u16.to_le_bytes());
    driver.write(26, &2u16.to_le_bytes());
    driver.write(0x4000, &[0, 0]);
    driver.device.events().config_changed();
    driver
}

#[test]
fn a_driver_goes_on_with_the_function_made_from_its_state() {
    let old = at_work();
    let state = old.function.save().unwrap();
    let asked = old.device.take();
    let [Asked::Activate(before)] = &asked[..] else {
        panic!("{asked:?}")
    };
    let new = Driver::moved(&state).unwrap();
    assert_eq!(new.function.save().unwrap(), state);
    for at in 0..60 {
        assert_eq!(new.read::<1>(at), old.read::<1>(at), "register {at}");
    }
    assert_eq!(new.function.decoded(), Some(0xd000_0000..0xd001_0000));
    assert_eq!(
        *new.wiring.doorbells.lock().unwrap(),
        [0xd000_4000, 0xd000_4004]
    );
    assert!(new.device.take().is_empty(), "the device is not told");
    let after = new.function.activation().unwrap();
    assert_eq!(after.features, before.features);
    let [queue] = &after.queues[..] else {
        panic!("{after:?}")
    };
    assert_eq!(
        (queue.index, queue.size, queue.descriptors),
        (0, 16, GuestAddress(0x1000))
    );
    assert_eq!(queue.kick.read().unwrap(), 1, "the bell still rings");
    assert_eq!(new.read::<1>(0x1000), [2], "the configuration interrupt");
    new.write(20, &[0]);
    assert!(matches!(new.device.take()[..], [Asked::Reset]));
}

#[test]
fn a_function_that_no_driver_has_touched_moves_too() {
    let old = Driver::new();
    let new = Driver::moved(&old.function.save().unwrap()).unwrap();
    assert!(new.function.activation().is_none());
    assert!(new.wiring.doorbells.lock().unwrap().is_empty());
    new.starts();
    assert!(matches!(new.device.take()[..], [Asked::Activate(_)]));
}

#[test]
fn a_device_that_owes_an_answer_is_not_saved_but_named() {
    let driver = Driver::new();
    driver.starts();
    let error = driver.function.save().unwrap_err().to_string();
    assert!(
        error.starts_with("disk0: its driver has started it"),
        "{error}"
    );
    driver.device.events().activated(Ok(()));
    driver.function.save().unwrap();
    driver.write(20, &[0]);
    let error = driver.function.save().unwrap_err().to_string();
    assert!(error.starts_with("disk0: its driver resets it"), "{error}");
    driver.device.events().reset_done();
    driver.function.save().unwrap();
}

#[test]
fn state_of_another_device_is_refused_and_says_why() {
    let refusal = |change: fn(&mut VirtioPciStateV1)| {
        let mut state = at_work().function.save().unwrap();
        change(&mut state);
        let error = Driver::moved(&state).err().expect("a refusal");
        crate::chain(&error)
    };
    let text = refusal(|state| state.device_type = 26);
    assert!(text.contains("type 26 and is one of type 2"), "{text}");
    let text = refusal(|state| state.registers.driver_features |= 1 << 40);
    assert!(text.contains("0x10000000000"), "{text}");
    let text = refusal(|state| state.registers.queues[1].size = 128);
    assert!(
        text.contains("queue 1 had 128 entries and can have 64"),
        "{text}"
    );
    refusal(|state| state.registers.queues[0].size = 0);
    refusal(|state| state.registers.queues.truncate(1));
    refusal(|state| state.kicked.truncate(1));
    refusal(|state| state.config.bytes[0] ^= 1);
    refusal(|state| state.msix.sources[0].vector = Some(3));
}

#[test]
fn saved_state_is_small_and_a_part_of_it_is_refused() {
    let state = at_work().function.save().unwrap();
    let bytes = encode(&state).unwrap();
    assert!(bytes.len() < 1024, "{}", bytes.len());
    assert_eq!(decode::<VirtioPciStateV1>(&bytes).unwrap(), state);
    for length in 0..bytes.len() {
        assert!(decode::<VirtioPciStateV1>(&bytes[..length]).is_err());
    }
}
