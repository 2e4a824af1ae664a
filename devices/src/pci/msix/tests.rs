//! Vectors as a driver programs them, with an interrupt controller that notes what it is asked for.

use std::sync::Mutex;

use super::*;

/// Records what the interrupt controller was asked for.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
}

impl Recorder {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn note(&self, call: String) -> io::Result<()> {
        self.calls.lock().unwrap().push(call);
        Ok(())
    }
}

impl MsiRouter for Recorder {
    fn allocate(&self) -> io::Result<Gsi> {
        self.note("allocate".into()).map(|()| Gsi(24))
    }
    fn route(&self, gsi: Gsi, message: MsiMessage) -> io::Result<()> {
        self.route_all(&[(gsi, message)])
    }
    fn route_all(&self, routes: &[(Gsi, MsiMessage)]) -> io::Result<()> {
        let routes = routes.iter().map(|(gsi, message)| {
            let MsiMessage { address, data } = message;
            format!("{} {address:#x} {data:#x}", gsi.0)
        });
        let routes: Vec<String> = routes.collect();
        match routes.is_empty() {
            true => Ok(()),
            false => self.note(format!("route {}", routes.join(", "))),
        }
    }
    fn attach(&self, gsi: Gsi, _: &EventFd) -> io::Result<()> {
        self.note(format!("attach {}", gsi.0))
    }
    fn detach(&self, gsi: Gsi, _: &EventFd) -> io::Result<()> {
        self.note(format!("detach {}", gsi.0))
    }
}

struct Fixture {
    router: Arc<Recorder>,
    events: Vec<Arc<EventFd>>,
    msix: MsiX,
}

fn two_sources() -> Fixture {
    let router = Arc::new(Recorder::default());
    let events: Vec<_> = (0..2)
        .map(|_| Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()))
        .collect();
    let msix = MsiX::new(router.clone(), 3, events.clone());
    Fixture {
        router,
        events,
        msix,
    }
}

fn program(msix: &mut MsiX, vector: u64, control: u32) {
    let entry = vector * ENTRY_SIZE;
    msix.write_table(entry, &0xfee0_1000u64.to_le_bytes());
    msix.write_table(entry + 8, &0x41u32.to_le_bytes());
    msix.write_table(entry + 12, &control.to_le_bytes());
}

fn pending(msix: &MsiX) -> u8 {
    let mut bits = [0];
    msix.read_pending(0, &mut bits);
    bits[0]
}

#[test]
fn a_source_is_attached_once_everything_is_unmasked() {
    let Fixture {
        router, mut msix, ..
    } = two_sources();
    msix.bind(Source(0), 1);
    program(&mut msix, 1, 0);
    assert_eq!(router.take(), Vec::<String>::new());
    msix.set_control(CONTROL_ENABLE);
    assert_eq!(
        router.take(),
        ["allocate", "route 24 0xfee01000 0x41", "attach 24"]
    );
    msix.set_control(CONTROL_ENABLE | CONTROL_MASK);
    assert_eq!(router.take(), ["detach 24"]);
    msix.set_control(CONTROL_ENABLE);
    assert_eq!(router.take(), ["attach 24"]);
    msix.write_table(ENTRY_SIZE + 12, &1u32.to_le_bytes());
    assert_eq!(router.take(), ["detach 24"]);
}

#[test]
fn a_signal_to_a_masked_vector_is_pending_and_stays_in_the_eventfd() {
    let Fixture {
        events, mut msix, ..
    } = two_sources();
    msix.set_control(CONTROL_ENABLE);
    msix.bind(Source(1), 2);
    program(&mut msix, 2, ENTRY_MASKED);
    assert_eq!(pending(&msix), 0);
    events[1].write(1).unwrap();
    assert_eq!(pending(&msix), 0b100);
    assert_eq!(pending(&msix), 0b100, "reading takes nothing away");
    // The interrupt controller takes the signal from here on.
    msix.write_table(2 * ENTRY_SIZE + 12, &0u32.to_le_bytes());
    assert_eq!(pending(&msix), 0);
    assert_eq!(events[1].read().unwrap(), 1);
}

#[test]
fn two_sources_may_share_a_vector() {
    let Fixture {
        router, mut msix, ..
    } = two_sources();
    msix.set_control(CONTROL_ENABLE);
    program(&mut msix, 0, 0);
    msix.bind(Source(0), 0);
    msix.bind(Source(1), 0);
    assert_eq!(
        router.take(),
        [
            "allocate",
            "route 24 0xfee01000 0x41",
            "attach 24",
            "attach 24"
        ]
    );
}

#[test]
fn a_vector_that_is_not_there_reads_back_as_none() {
    let Fixture { mut msix, .. } = two_sources();
    assert_eq!(msix.bind(Source(0), 3), NO_VECTOR);
    assert_eq!(msix.vector(Source(0)), NO_VECTOR);
    assert_eq!(msix.bind(Source(0), 2), 2);
}

#[test]
fn a_reset_forgets_bindings_and_pending_signals() {
    let Fixture {
        router,
        events,
        mut msix,
    } = two_sources();
    msix.set_control(CONTROL_ENABLE);
    program(&mut msix, 0, 0);
    msix.bind(Source(0), 0);
    router.take();
    events[0].write(1).unwrap();
    msix.unbind_all();
    assert_eq!(router.take(), ["detach 24"]);
    assert!(events[0].read().is_err(), "the signal is gone");
}

/// New eventfds and a new interrupt controller with the state of an old one.
fn moved(old: &MsiX, control: u16) -> Fixture {
    let Fixture { router, events, .. } = two_sources();
    let msix = MsiX::from_state(
        router.clone(),
        events.clone(),
        control,
        &old.save(),
        Wiring::Wired,
    )
    .unwrap();
    Fixture {
        router,
        events,
        msix,
    }
}

/// As many vectors as sources, as every function has.
fn two_vectors() -> Fixture {
    let mut fixture = two_sources();
    fixture.msix = MsiX::new(fixture.router.clone(), 2, fixture.events.clone());
    fixture
}

#[test]
fn a_masked_vector_keeps_its_pending_event_when_it_is_saved_and_delivers_it_once_unmasked() {
    let Fixture {
        events, mut msix, ..
    } = two_vectors();
    msix.set_control(CONTROL_ENABLE);
    program(&mut msix, 1, ENTRY_MASKED);
    msix.bind(Source(1), 1);
    events[1].write(1).unwrap();
    events[1].write(1).unwrap();
    let mut new = moved(&msix, CONTROL_ENABLE);
    assert_eq!(new.msix.save(), msix.save());
    assert_eq!(pending(&new.msix), 0b10);
    assert_eq!(pending(&msix), 0b10, "saving takes nothing away");
    assert_eq!(new.router.take(), Vec::<String>::new());
    new.msix.write_table(ENTRY_SIZE + 12, &0u32.to_le_bytes());
    assert_eq!(
        new.router.take(),
        ["allocate", "route 24 0xfee01000 0x41", "attach 24"]
    );
    assert!(new.events[1].read().is_ok(), "for the controller to take");
}

#[test]
fn a_masked_function_keeps_what_is_pending_too() {
    let Fixture {
        events, mut msix, ..
    } = two_vectors();
    msix.set_control(CONTROL_ENABLE | CONTROL_MASK);
    program(&mut msix, 0, 0);
    msix.bind(Source(0), 0);
    events[0].write(1).unwrap();
    let mut new = moved(&msix, CONTROL_ENABLE | CONTROL_MASK);
    assert_eq!(pending(&new.msix), 0b1);
    assert_eq!(new.router.take(), Vec::<String>::new());
    new.msix.set_control(CONTROL_ENABLE);
    assert_eq!(new.router.take().last().unwrap(), "attach 24");
}

#[test]
fn a_vector_that_can_deliver_is_attached_again_and_what_is_in_flight_belongs_to_the_controller() {
    let Fixture {
        events, mut msix, ..
    } = two_vectors();
    msix.set_control(CONTROL_ENABLE);
    program(&mut msix, 0, 0);
    msix.bind(Source(0), 0);
    // The interrupt controller of this test takes nothing, KVM's does at once.
    events[0].write(1).unwrap();
    let new = moved(&msix, CONTROL_ENABLE);
    assert_eq!(
        new.router.take(),
        ["allocate", "route 24 0xfee01000 0x41", "attach 24"]
    );
    assert!(new.events[0].read().is_err());
}

#[test]
fn vectors_that_can_deliver_are_routed_at_once_and_others_when_they_can() {
    let Fixture { mut msix, .. } = two_vectors();
    msix.set_control(CONTROL_ENABLE);
    program(&mut msix, 0, 0);
    program(&mut msix, 1, 0);
    msix.bind(Source(0), 0);
    msix.bind(Source(1), 1);
    let both = "route 24 0xfee01000 0x41, 24 0xfee01000 0x41";
    let calls = ["allocate", "allocate", both, "attach 24", "attach 24"];
    assert_eq!(moved(&msix, CONTROL_ENABLE).router.take(), calls);
    // A vector that two sources share has one line.
    msix.bind(Source(1), 0);
    let calls = [
        "allocate",
        "route 24 0xfee01000 0x41",
        "attach 24",
        "attach 24",
    ];
    assert_eq!(moved(&msix, CONTROL_ENABLE).router.take(), calls);
    program(&mut msix, 0, ENTRY_MASKED);
    msix.bind(Source(1), 1);
    let mut new = moved(&msix, CONTROL_ENABLE);
    let calls = ["allocate", "route 24 0xfee01000 0x41", "attach 24"];
    assert_eq!(new.router.take(), calls);
    program(&mut new.msix, 0, 0);
    assert_eq!(new.router.take(), calls);
}

#[test]
fn state_of_another_table_is_refused() {
    let Fixture {
        router,
        events,
        msix,
    } = two_vectors();
    let refused = |change: fn(&mut MsiXStateV1)| {
        let mut state = msix.save();
        change(&mut state);
        MsiX::from_state(router.clone(), events.clone(), 0, &state, Wiring::Wired).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|state| state.vectors.truncate(1)));
    assert!(refused(|state| state.sources.truncate(1)));
    assert!(refused(|state| state.sources[0].vector = Some(2)));
}

#[test]
fn accesses_beyond_the_table_are_harmless() {
    let Fixture { mut msix, .. } = two_sources();
    msix.write_table(u64::MAX - 7, &[0xff; 4]);
    msix.write_table(2, &[0xff; 4]);
    msix.write_table(3 * ENTRY_SIZE, &[0xff; 8]);
    let mut data = [1; 8];
    msix.read_table(3 * ENTRY_SIZE, &mut data);
    assert_eq!(data, [0; 8]);
    msix.read_pending(u64::MAX - 1, &mut data[..1]);
}
