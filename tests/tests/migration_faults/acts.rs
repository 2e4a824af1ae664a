//! What is done at a place, while the frame is held.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_tests::fault_proxy::{Act, Then};
use serde_json::Value;

use crate::back_ends::BackEnds;
use crate::party::{Party, lock, within};

/// Longer than anybody waits for an answer.
const LONG: Duration = Duration::from_secs(6);
/// How long there is no way through a connection that was cut.
const DARK: Duration = Duration::from_millis(700);
/// How long a frame is held until somebody has done what was asked for.
const HELD: Duration = Duration::from_secs(2);

/// The frame goes on afterwards.
pub fn pass(act: impl FnOnce() + Send + 'static) -> Act {
    Act::ask(move || {
        act();
        Then::PassOn
    })
}

pub fn cut() -> Act {
    Act::Just(Then::Cut(DARK))
}

pub fn cut_one() -> Act {
    Act::Just(Then::CutThis)
}

pub fn freeze() -> Act {
    Act::Just(Then::Freeze)
}

pub fn kill(party: Arc<Party>) -> Act {
    pass(move || party.kill())
}

pub fn cancel(party: Arc<Party>) -> Act {
    pass(move || {
        let _ = party.put("vm.migration-cancel", &Value::Null);
    })
}

/// The frame waits for the answer, unless it is the frame that is waited for.
pub fn ask(party: Arc<Party>, route: &'static str) -> Act {
    pass(move || {
        let (sender, answered) = channel();
        std::thread::spawn(move || {
            let _ = party.put(route, &Value::Null);
            let _ = sender.send(());
        });
        let _ = answered.recv_timeout(HELD);
    })
}

/// The same, for its end.
pub fn terminate(party: Arc<Party>) -> Act {
    pass(move || {
        party.signal(libc::SIGTERM);
        within(HELD, || (!party.is_alive()).then_some(()));
    })
}

/// For longer than anybody waits; then it goes on.
pub fn stop(party: Arc<Party>, quiet_until: Arc<Mutex<Instant>>) -> Act {
    pass(move || {
        party.signal(libc::SIGSTOP);
        *lock(&quiet_until) = Instant::now() + LONG;
        std::thread::spawn(move || {
            std::thread::sleep(LONG);
            party.signal(libc::SIGCONT);
        });
    })
}

/// The same for a back-end.
pub fn hang(disk: Arc<dyn BackEnds>, quiet_until: Arc<Mutex<Instant>>) -> Act {
    pass(move || {
        disk.hang();
        *lock(&quiet_until) = Instant::now() + LONG;
        std::thread::spawn(move || {
            std::thread::sleep(LONG);
            disk.wake();
        });
    })
}
