//! Interrupts that wait at the moment of the snapshot: behind a vector's mask, behind the function's, behind a mask while
//! the vector is changed, and in the processor's interrupt controller. Each arrives after the restore.

use ferry_tests::MSIX_WAITS;
use ferry_tests::backend::{Backend, DeviceState};

use crate::common::{Place, back, heir, saved, tiny};

fn none_is_lost(disk: Backend) {
    let place = Place::new();
    let mut disk = disk.start();
    let mut guest = tiny("mode=msix-wait").with_disk(&disk).start();
    for (how, size) in MSIX_WAITS {
        guest.wait_for(&format!("msix-wait how={how}"));
        let left = saved(guest, &place.at(how));
        disk = heir(&disk);
        guest = back(&left, &place.at(how), &disk);
        disk.resize(size);
        guest.wait_for(&format!("msix-waited how={how}"));
    }
    guest.end().succeeded().line("msix-wait requests=20");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn none_is_lost_with_a_stateless_back_end() {
    none_is_lost(Backend::blk("1M"));
}

#[test]
fn none_is_lost_with_a_back_end_that_has_state() {
    none_is_lost(Backend::blk("1M").with_state(DeviceState::new("1M", 6)));
}
