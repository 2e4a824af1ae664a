//! Saving the state inside a back-end.

use super::harness::TestRam;
use super::moving::{PATIENT, blob, honestly, save, suspended, with_state};
use super::suspend::{outcome, resume, suspend};
use crate::vhost_user::{DeviceState, Limits};

#[test]
fn states_of_any_size_are_saved_again_and_again() {
    const MIB: usize = 1 << 20;
    for size in [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3] {
        let ram = TestRam::new();
        let state = blob(size);
        let stateful = with_state(state.clone(), honestly());
        let share = suspended(stateful.script, Limits::default(), &ram);
        assert!(share.device.carries_state());
        for _ in 0..2 {
            assert!(save(&share.device, &PATIENT).unwrap() == state, "{size}");
            assert_eq!(share.device.state(), DeviceState::Suspended);
            let moved = ["SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"];
            assert_eq!(share.codes(), moved);
            outcome(&resume(&share.device)).unwrap();
            outcome(&suspend(&share.device)).unwrap();
            share.codes();
        }
        share.is_well();
    }
}
