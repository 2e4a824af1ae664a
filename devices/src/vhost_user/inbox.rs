//! What a device's worker has been asked to do and has not begun.
//!
//! Orders are carried out one at a time, in the order in which they came, whoever gave them. The inbox is bounded. The
//! transport has at most one activation and one reset waiting, the owner one order to suspend and the one to resume that
//! follows it. An order beyond its giver's contract is not taken. Of the guest's writes to the configuration space the oldest
//! are dropped when there are too many.
//!
//! Jobs may be given up one after the other while the worker waits for a back-end that is slow. What they leave behind does
//! not add up, because a newer order clears away what nobody waits for any more ([`Order::is_moot_before`]):
//!
//! - Preparing and its opposite: only the last word counts, so that one of them waits at most. An attempt is never left
//!   prepared because there was no room to say so. The same of beginning a dirty log and of its end.
//! - A move of state that has been given up is not begun, nor asked about.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::BackendSpec;
use super::dirty_log::DirtyLog;
use super::error::{Cause, Error};
use super::live::Live;
use super::moving::{Begin, Check, TransferError, VhostUserStateV1};
use crate::virtio::{Activation, TransportEvents};

/// Orders of the transport that may wait. Two are legal; the rest is for a transport
/// that takes the place of another.
const MAX_FROM_TRANSPORT: usize = 16;

/// Orders of the owner that may wait: a suspension that it has given up, and the resumption that says so. It gives no other
/// before both are answered.
const MAX_FROM_OWNER: usize = 2;

/// Orders of jobs that may wait, as one job goes on at a time: one to prepare or the opposite, whoever gave it; the same of the dirty
/// log; one to move state and the one that gives that up; and telling RAM, a restoration and setting up rings, once for each machine.
const MAX_FROM_JOBS: usize = 7;

/// Writes to the configuration space that may wait.
pub(super) const MAX_WRITES: usize = 16;

/// Something that the worker is to do, and who is told how it ended.
pub(super) enum Order {
    /// Start the rings.
    Activate(Activation, Arc<dyn TransportEvents>),
    /// Stop the rings and forget them.
    Reset(Arc<dyn TransportEvents>),
    /// Stop the rings and remember them.
    Suspend(Done),
    /// Start what was suspended, or go on with a connection that was lent.
    Resume(Done),
    /// Give out the connection as it is, for another process to go on with it.
    Lend(Done<Live>),
    /// Be the only one to have a connection that was lent, and leave the rings as they are.
    Own(Done),
    /// Let the back-end get its state ready to be saved.
    Prepare(Done),
    /// Let it be.
    Unprepare(Done),
    /// Have the back-end note there what it writes to guest RAM.
    StartLog(Arc<DirtyLog>, Done),
    /// Have it do so no more.
    StopLog(Done),
    /// Tell the back-end where guest RAM is.
    TellRam(Done),
    /// Tell the back-end all of the rings but what starts them.
    SetUpRings(Done),
    /// Ask the back-end to move its state.
    BeginState(Begin),
    /// Ask the back-end how that went.
    CheckState(Check),
    /// Give the back-end what was saved, but for its own state.
    Restore(Box<Restoring>, Done),
    /// The back-end's own state will not be there.
    GiveUpLoad(TransferError),
}

/// Who gives orders.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Giver {
    Transport,
    Owner,
    Job,
}

impl Order {
    fn giver(&self) -> Giver {
        match self {
            Order::Activate(..) | Order::Reset(_) => Giver::Transport,
            Order::Suspend(_) | Order::Resume(_) | Order::Lend(_) | Order::Own(_) => Giver::Owner,
            Order::Prepare(_)
            | Order::Unprepare(_)
            | Order::StartLog(..)
            | Order::StopLog(_)
            | Order::TellRam(_)
            | Order::SetUpRings(_)
            | Order::BeginState(_)
            | Order::CheckState(_)
            | Order::Restore(..)
            | Order::GiveUpLoad(_) => Giver::Job,
        }
    }

    /// Whether this order, which waits, need not be carried out if `newer` is to be.
    fn is_moot_before(&self, newer: &Order) -> bool {
        match self {
            // Preparing begins with its opposite.
            Order::Prepare(_) | Order::Unprepare(_) => {
                matches!(newer, Order::Prepare(_) | Order::Unprepare(_))
            }
            // So does a log.
            Order::StartLog(..) | Order::StopLog(_) => {
                matches!(newer, Order::StartLog(..) | Order::StopLog(_))
            }
            Order::BeginState(begin) => begin.given_up.load(Ordering::Acquire),
            Order::CheckState(check) => check.given_up.load(Ordering::Acquire),
            _ => false,
        }
    }

    /// Answers an order, other than those of the transport, that is not carried out.
    pub fn refuse(self, error: &Error) {
        match self {
            Order::Prepare(done)
            | Order::Unprepare(done)
            | Order::StartLog(_, done)
            | Order::StopLog(done)
            | Order::TellRam(done)
            | Order::SetUpRings(done)
            | Order::Restore(_, done) => {
                done.tell(Err(error.clone()));
            }
            Order::BeginState(begin) => begin.done.tell(Err(error.clone())),
            Order::CheckState(check) => check.done.tell(Err(error.clone())),
            Order::Lend(done) => done.tell(Err(error.clone())),
            Order::Activate(..)
            | Order::Reset(_)
            | Order::Suspend(_)
            | Order::Resume(_)
            | Order::Own(_)
            | Order::GiveUpLoad(_) => {}
        }
    }

    /// How many orders of the same giver may wait.
    fn room(&self) -> usize {
        match self.giver() {
            Giver::Transport => MAX_FROM_TRANSPORT,
            Giver::Owner => MAX_FROM_OWNER,
            Giver::Job => MAX_FROM_JOBS,
        }
    }
}

/// What a device is to be restored from.
pub(super) struct Restoring {
    /// How the driver has started it, if it has.
    pub activation: Option<Activation>,
    pub state: VhostUserStateV1,
}

type Tell<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;

/// Who waits for what an order of the owner's or of a job brings. Told exactly once: when it is dropped untold, then that
/// the device is gone.
pub(super) struct Done<T = ()> {
    tell: Option<Tell<T>>,
    device: String,
    socket: PathBuf,
}

impl<T> Done<T> {
    pub fn new(spec: &BackendSpec, tell: impl FnOnce(Result<T, Error>) + Send + 'static) -> Self {
        Done {
            tell: Some(Box::new(tell)),
            device: spec.id.clone(),
            socket: spec.socket.clone(),
        }
    }

    pub fn tell(mut self, outcome: Result<T, Error>) {
        self.tell_once(outcome);
    }

    fn tell_once(&mut self, outcome: Result<T, Error>) {
        if let Some(tell) = self.tell.take() {
            tell(outcome);
        }
    }
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        let error = Error {
            device: std::mem::take(&mut self.device),
            socket: std::mem::take(&mut self.socket),
            cause: Arc::new(Cause::Stopped),
        };
        self.tell_once(Err(error));
    }
}

/// A guest's write to the configuration space.
#[derive(Debug)]
pub(super) struct ConfigWrite {
    pub offset: u32,
    pub data: Vec<u8>,
}

/// What has been posted to the worker.
#[derive(Default)]
pub(super) struct Inbox {
    /// Who is told of what happens without an order.
    pub transport: Option<Arc<dyn TransportEvents>>,
    orders: VecDeque<Order>,
    writes: VecDeque<ConfigWrite>,
    /// The worker has ended.
    closed: bool,
}

impl Inbox {
    /// Takes an order, and returns those that need not be carried out because of it; or gives it back when there is no room or
    /// nobody left to carry it out. What comes back must be dropped or answered only when the inbox is not locked any more.
    pub fn post(&mut self, order: Order) -> Result<VecDeque<Order>, Refused> {
        if self.closed {
            return Err(Refused::Closed(order));
        }
        let giver = order.giver();
        let is_moot = |other: &Order| other.is_moot_before(&order);
        let of_giver = |other: &&Order| other.giver() == giver && !is_moot(other);
        if self.orders.iter().filter(of_giver).count() >= order.room() {
            return Err(Refused::Full(order));
        }
        let (moot, mut waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.orders)
            .into_iter()
            .partition(is_moot);
        waiting.push_back(order);
        self.orders = waiting;
        Ok(moot)
    }

    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Whether an order waits for which `matches` holds.
    pub fn has_order(&self, matches: impl Fn(&Order) -> bool) -> bool {
        self.orders.iter().any(matches)
    }

    /// Takes a write; returns whether an older one was dropped for it.
    pub fn post_write(&mut self, write: ConfigWrite) -> bool {
        let full = self.writes.len() >= MAX_WRITES;
        if full {
            self.writes.pop_front();
        }
        self.writes.push_back(write);
        full
    }

    pub fn next_write(&mut self) -> Option<ConfigWrite> {
        self.writes.pop_front()
    }

    pub fn clear_writes(&mut self) {
        self.writes.clear();
    }

    /// Takes no more orders, and returns those that nobody will carry out, to be dropped when the inbox is
    /// not locked any more.
    pub fn close(&mut self) -> VecDeque<Order> {
        self.closed = true;
        std::mem::take(&mut self.orders)
    }
}

/// An order that was not taken.
pub(super) enum Refused {
    /// Too many of the same giver are waiting.
    Full(Order),
    /// The worker has ended.
    Closed(Order),
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("orders", &self.orders.len())
            .field("writes", &self.writes.len())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
