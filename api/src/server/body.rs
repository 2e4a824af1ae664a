//! Requests' bodies: read to their end, kept as far as there is room.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;

use hyper::body::{Body, Incoming};

use super::action::Failure;

/// How much of a body that is too large is read and thrown away, in bytes.
const DISCARD_MOST: u64 = 64 << 20;

/// The memory that bodies may take together.
#[derive(Debug)]
pub struct Budget(Cell<usize>);

impl Budget {
    /// All of it is free.
    pub fn new(bytes: usize) -> Self {
        Budget(Cell::new(bytes))
    }
}

/// A body in memory.
#[derive(Debug)]
pub struct Held {
    bytes: Vec<u8>,
    taken: usize,
    budget: Rc<Budget>,
}

impl Held {
    fn new(budget: &Rc<Budget>) -> Self {
        Held {
            bytes: Vec::new(),
            taken: 0,
            budget: budget.clone(),
        }
    }

    /// Appends, if there is room.
    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let capacity = needed.next_power_of_two();
            let more = capacity - self.taken;
            self.budget.0.set(self.budget.0.get().checked_sub(more)?);
            self.taken = capacity;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        Some(())
    }

    /// The body.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.0.set(self.budget.0.get() + self.taken);
    }
}

/// Reads a body to its end, also one that is too large: a client that has not sent all of it does not read the answer.
pub async fn read(
    incoming: &mut Incoming,
    budget: &Rc<Budget>,
    most: usize,
) -> Result<Held, Failure> {
    let mut held = Held::new(budget);
    let mut length: u64 = 0;
    let mut failure = None;
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *incoming).poll_frame(context));
        let bytes = match frame.await {
            None => break,
            Some(Err(_)) => return Err(cut_off()),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        length = length.saturating_add(bytes.len() as u64);
        if length > DISCARD_MOST {
            break;
        }
        if failure.is_none() {
            failure = if length > most as u64 {
                let text = format!("the request's body is longer than {most} bytes");
                Some(Failure::new(413, text))
            } else if held.push(&bytes).is_none() {
                let text = "Ferry has no memory left for requests' bodies: try again";
                Some(Failure::new(503, text))
            } else {
                continue;
            };
            held = Held::new(budget);
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(held),
    }
}

/// The client took too long.
pub fn late() -> Failure {
    Failure::new(408, "the request's body has not arrived in time")
}

/// The client has ended before its body did.
pub fn cut_off() -> Failure {
    Failure::new(400, "the request's body is not complete")
}
