//! The messages that move the back-end's state.

use super::{Answer, NO_FD, Session};
use crate::backend::protocol;
use crate::backend::state::{self, Direction};
use crate::backend::wire::Message;

impl Session {
    pub(super) fn begin_transfer(&mut self, message: &mut Message) -> Answer {
        // What was on its way before is given up.
        self.transfer = None;
        for complaint in self.check_state_request(message) {
            self.complain(message, &complaint);
        }
        let direction = match message.u32_at(0) {
            0 => Direction::Save,
            _ => Direction::Load,
        };
        let Some(fd) = message.fds.pop() else {
            return Answer::number(1 | NO_FD);
        };
        match state::begin(&self.shared.store, direction, fd, &self.remote) {
            Ok(begun) => {
                self.transfer = begun.transfer;
                Answer::WithFds(begun.number.to_ne_bytes().to_vec(), begun.fds)
            }
            Err(error) => {
                self.complain(message, &error.to_string());
                Answer::number(1 | NO_FD)
            }
        }
    }

    /// What a strict back-end would find wrong with SET_DEVICE_STATE_FD.
    fn check_state_request(&self, message: &Message) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut expect = |good: bool, complaint: &str| {
            if !good {
                complaints.push(complaint.to_owned());
            }
        };
        let (direction, phase) = (message.u32_at(0), message.u32_at(4));
        expect(
            self.has(protocol::DEVICE_STATE),
            "DEVICE_STATE is not negotiated",
        );
        expect(message.payload.len() == 8, "the payload has another size");
        expect(direction < 2 && phase == 0, "no such direction or phase");
        expect(message.fds.len() == 1, "not one file descriptor");
        expect(
            self.rings.iter().all(|ring| ring.kick.is_none()),
            "a ring runs",
        );
        expect(self.features != 0, "the features are not accepted yet");
        expect(!self.memory.is_empty(), "there is no memory table yet");
        if let Some(fd) = message.fds.first() {
            expect(
                state::takes(fd, direction),
                "the file descriptor is the wrong end",
            );
        }
        complaints
    }

    pub(super) fn check_transfer(&mut self, message: &Message) -> Answer {
        let Some(transfer) = self.transfer.take() else {
            self.complain(message, "no state has been moved");
            return Answer::number(1);
        };
        let (number, complaint) = transfer.check();
        if let Some(complaint) = complaint {
            self.complain(message, &complaint);
        }
        Answer::number(number)
    }
}
