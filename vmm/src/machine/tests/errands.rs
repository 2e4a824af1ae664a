//! What parked processors do for the machine's owner.

use std::sync::Barrier;

use super::*;

#[test]
fn a_guest_that_is_not_stopped_is_not_saved() {
    let bench = Bench::new();
    let mut machine = unusual(&bench);
    machine.release();
    assert!(matches!(machine.save(), Err(Error::NotStopped)));
    let vcpus = machine.vcpus.as_ref().unwrap();
    assert!(matches!(
        vcpus.each(LIMIT, |_, _| ()),
        Err(ErrandError::NotParked)
    ));
    machine.park().unwrap();
    machine.save().unwrap();
}

#[test]
fn parked_processors_run_errands_at_the_same_time_each_on_its_own_thread() {
    let bench = Bench::new();
    let machine = unusual(&bench);
    let vcpus = machine.vcpus.as_ref().unwrap();
    let together = Arc::new(Barrier::new(2));
    for _ in 0..3 {
        let together = together.clone();
        let names = vcpus.each(LIMIT, move |index, _| {
            together.wait();
            (index, std::thread::current().name().map(str::to_owned))
        });
        let expected = [(0, Some("vcpu0".into())), (1, Some("vcpu1".into()))];
        assert_eq!(names.unwrap(), expected);
    }
}

#[test]
fn an_errand_that_takes_too_long_holds_nobody() {
    let bench = Bench::new();
    let mut machine = unusual(&bench);
    let wait = Arc::new(Barrier::new(2));
    let long = wait.clone();
    let vcpus = machine.vcpus.as_ref().unwrap();
    let late = vcpus.each(Duration::from_millis(50), move |index, _| {
        if index == 1 {
            long.wait();
        }
    });
    // The other one may not have had its turn.
    assert!(matches!(late, Err(ErrandError::Late { count: 1 | 2, .. })));
    machine.release();
    machine.park().unwrap();
    wait.wait();
    let vcpus = machine.vcpus.as_ref().unwrap();
    assert_eq!(vcpus.each(LIMIT, |index, _| index).unwrap(), [0, 1]);
}
