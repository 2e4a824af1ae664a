//! Connections that are slow, cancelled or lost, and what does not belong into this RAM.

use super::*;

/// All that changes is on one connection.
#[test]
fn a_connection_without_ram_is_not_silent() {
    // Rounds that have threads, and ones that have none.
    for bytes in [MIB, 4096] {
        one_without_ram_is_not_silent(bytes);
    }
}

fn one_without_ram_is_not_silent(round: u64) {
    let (from, to) = (Ram::new(), Ram::new());
    from.write(0, &pattern(1, MIB as usize));
    let [mut senders, mut receivers] = connected(2);
    let limit = Duration::from_secs(1);
    let target = RamTarget::new(&to.regions(), 2).unwrap();
    senders.iter_mut().for_each(|link| link.set_silence(limit));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let [main, extra] = &mut receivers[..] else {
            panic!("there are two");
        };
        extra.set_silence(limit);
        let extra = scope.spawn(|| {
            let kind = extra.receive_into(&target, &Unwatched).unwrap().kind();
            assert!(ended.load(Ordering::Relaxed));
            kind
        });
        scope.spawn(|| {
            // Rounds that are longer than the limit together.
            let mut dirty = Bitmap::new(MIB);
            dirty.set_range(0, round);
            let started = std::time::Instant::now();
            while started.elapsed() < 2 * limit {
                let regions = from.regions();
                let progress = Progress::default();
                send_dirty(&mut senders, &regions, &dirty, &progress, &Unwatched).unwrap();
            }
            ended.store(true, Ordering::Relaxed);
            end_extra(&mut senders, &Unwatched).unwrap();
            senders[0].send(&Message::StateEnd, &Unwatched).unwrap();
        });
        let kind = main.receive_into(&target, &Unwatched).unwrap().kind();
        assert_eq!(kind, Kind::StateEnd);
        assert_eq!(extra.join().unwrap(), Kind::End);
    });
}

#[test]
fn pages_that_are_out_of_place_are_refused() {
    let refused = |index: u16, message: &Message<'_>| {
        let to = Ram::new();
        let target = RamTarget::new(&to.regions(), 2).unwrap();
        let [mut senders, mut receivers] = connected(2);
        let at = usize::from(index);
        senders[at].send(message, &Unwatched).unwrap();
        let error = receivers[at].receive_into(&target, &Unwatched).unwrap_err();
        let content = |violation: &Violation| matches!(violation, Violation::Content { .. });
        assert!(
            matches!(&error, Error::Protocol { violation, .. } if content(violation)),
            "{message:?}: {error}"
        );
        assert_eq!(to.taken(), 0);
        let again = receivers[at].receive(&Unwatched).unwrap_err();
        assert!(matches!(again, Error::Broken { .. }), "{again}");
    };
    let data = &[1; 8192][..];
    let bytes = data.len() as u64;
    let high_end = HIGH_GPA + HIGH;
    for (index, gpa) in [
        // Outside.
        (1, LOW),
        (1, HIGH_GPA - 4096),
        (1, HIGH_GPA - 8192),
        (1, high_end - 4096),
        (1, high_end),
        (0, 1 << 40),
        (1, u64::MAX - MIB + 1),
        // On the wrong connection.
        (0, MIB),
        (1, 0),
        (1, 2 * MIB),
    ] {
        refused(index, &Message::Pages { gpa, data });
        refused(index, &Message::Zeros { gpa, bytes });
    }
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let ram = Ram::new();
    let [good, _] = ram.regions();
    let refused = |change: &dyn Fn(&mut Region<'_>)| {
        let mut region = good;
        change(&mut region);
        assert!(RamTarget::new(&[region], 1).is_err(), "{region:?}");
    };
    refused(&|region| region.gpa = 1);
    refused(&|region| region.gpa = u64::MAX - 4095);
    refused(&|region| region.part.offset = 100);
    refused(&|region| region.part.bytes += 4096);
    refused(&|region| region.part.offset = u64::MAX - 4095);
}

/// Cancels after so many bytes.
struct After(AtomicU64);

impl Watch for After {
    fn done(&self, bytes: u64) {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(bytes), Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn sending_can_be_cancelled_with_and_without_data() {
    for data in [&b""[..], &pattern(1, LOW as usize)] {
        for connections in [1, 3] {
            let (from, to) = (Ram::new(), Ram::new());
            from.write(0, data);
            let [mut senders, mut receivers] = connected(connections);
            thread::scope(|scope| {
                let receiver = scope.spawn(|| receive_all(&mut receivers, &to));
                let watch = After(AtomicU64::new(2 * MIB));
                let progress = Progress::default();
                let error = send_all(&mut senders, &from.regions(), &progress, &watch);
                assert!(error.unwrap_err().is_cancelled());
                drop(senders);
                assert!(receiver.join().unwrap().is_err());
            });
        }
    }
}

#[test]
fn the_reason_of_a_failure_is_known_whichever_connection_fails_first() {
    the_reason_is_known(None);
    let mut few = Bitmap::new(LOW);
    few.set_range(MIB, 4096);
    the_reason_is_known(Some(&few));
}

/// While rounds of all RAM are sent, or of a few pages.
fn the_reason_is_known(few: Option<&Bitmap>) {
    let from = Ram::new();
    from.write(0, &pattern(1, LOW as usize));
    let [mut senders, receivers] = connected(3);
    thread::scope(|scope| {
        scope.spawn(|| {
            // The extra ones just end.
            let main = receivers.into_iter().next().unwrap();
            thread::sleep(Duration::from_millis(30));
            main.give_up(&crate::link::Failure::new(["it is full"]));
        });
        let (regions, progress) = (from.regions(), Progress::default());
        let error = loop {
            let sent = match few {
                Some(few) => send_dirty(&mut senders, &regions, few, &progress, &Unwatched)
                    .and_then(|sent| catch_up(&mut senders, sent, &Unwatched)),
                None => send_all(&mut senders, &regions, &progress, &Unwatched).map(drop),
            };
            if let Err(error) = sent {
                break error;
            }
        };
        assert!(matches!(error, Error::PeerFailed { .. }), "{error}");
    });
}
