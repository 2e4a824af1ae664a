//! The connections that are open, and which of them to close.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for its client's next request.
    Idle,
    /// A request's head is arriving.
    Head,
    /// Its head has arrived, and its body is arriving.
    Body,
    /// A request has arrived, and its answer is not known.
    Answering,
    /// An answer is being written.
    Writing,
}

/// One connection.
#[derive(Debug)]
pub struct Entry {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    close: Notify,
    said_all: Notify,
}

impl Entry {
    /// What it is doing.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since.get()
    }

    /// It does something else from now on.
    pub fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }

    /// A request's head is complete. The time for the whole of it goes on.
    pub fn enter_body(&self) {
        if self.phase() != Phase::Head {
            // Its bytes came with those of the request before.
            self.enter(Phase::Head);
        }
        self.phase.set(Phase::Body);
    }

    /// The client has closed its sending half.
    pub fn note_said_all(&self) {
        self.said_all.notify_one();
    }

    /// Returns when the client has closed its sending half.
    pub async fn said_all(&self) {
        self.said_all.notified().await;
    }

    /// Returns when it is to be closed.
    pub async fn to_be_closed(&self) {
        self.close.notified().await;
    }
}

/// All connections.
#[derive(Debug, Default)]
pub struct Table {
    entries: RefCell<Vec<Rc<Entry>>>,
    left: Notify,
}

impl Table {
    /// Makes room for one more connection. None, if all there may be are being answered.
    pub fn admit(&self, most: usize) -> Option<Rc<Entry>> {
        if self.entries.borrow().len() >= most {
            self.close_longest_waiting()?;
        }
        let entry = Rc::new(Entry {
            phase: Cell::new(Phase::Idle),
            since: Cell::new(Instant::now()),
            close: Notify::new(),
            said_all: Notify::new(),
        });
        self.entries.borrow_mut().push(entry.clone());
        Some(entry)
    }

    /// Has the connection closed whose client has been waited for longest.
    pub fn close_longest_waiting(&self) -> Option<()> {
        let victim = {
            let entries = self.entries.borrow();
            let waiting = entries
                .iter()
                .filter(|entry| entry.phase() != Phase::Answering);
            waiting.min_by_key(|entry| entry.since()).cloned()?
        };
        self.remove(&victim);
        victim.close.notify_one();
        Some(())
    }

    /// Has all connections closed that wait for their client's next request. Nothing that it says from now on is read.
    pub fn close_idle(&self) {
        for entry in self.entries.borrow().iter() {
            if entry.phase() == Phase::Idle {
                entry.close.notify_one();
            }
        }
    }

    /// Has all connections closed whose clients take longer than `limit` to send a request or to read an answer.
    pub fn close_slow(&self, limit: Duration) {
        for entry in self.entries.borrow().iter() {
            let bounded = matches!(entry.phase(), Phase::Head | Phase::Body | Phase::Writing);
            if bounded && entry.since().elapsed() > limit {
                entry.close.notify_one();
            }
        }
    }

    /// Forgets a connection.
    pub fn remove(&self, entry: &Rc<Entry>) {
        self.entries
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, entry));
        self.left.notify_one();
    }

    /// Returns when there is no connection left.
    pub async fn emptied(&self) {
        while !self.entries.borrow().is_empty() {
            self.left.notified().await;
        }
    }
}
