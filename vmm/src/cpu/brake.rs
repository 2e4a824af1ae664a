//! Holding vCPUs back for a part of their time, so that a guest writes to RAM more slowly.
//!
//! A thread stops them again and again for a few milliseconds. To the guest it is as if the host were busy: its clocks go on.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::gate::Gate;
use super::vcpu::kick_signal;

/// Of so much time vCPUs get a part.
const PERIOD: Duration = Duration::from_millis(20);

/// The thread that holds vCPUs back. It ends when this is dropped, which has to be before the vCPUs' threads are joined.
pub struct Brake {
    percent: Option<Sender<u8>>,
    thread: Option<JoinHandle<()>>,
}

impl Brake {
    /// Begins to hold back the vCPUs that run on `threads`.
    pub fn new(gate: &Arc<Gate>, threads: &[JoinHandle<()>], percent: u8) -> std::io::Result<Self> {
        let gate = gate.clone();
        let threads: Vec<_> = threads.iter().map(JoinHandle::as_pthread_t).collect();
        let (sender, receiver) = channel();
        let work = move || {
            let mut percent = percent;
            loop {
                let held = PERIOD * u32::from(percent.min(99)) / 100;
                gate.hold(held);
                for thread in &threads {
                    // SAFETY: the thread has not been joined, because the brake ends before; so the id is still its own.
                    unsafe { libc::pthread_kill(*thread, kick_signal()) };
                }
                match receiver.recv_timeout(PERIOD) {
                    Ok(other) => percent = other,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("brake".into())
            .stack_size(64 << 10)
            .spawn(work)?;
        Ok(Brake {
            percent: Some(sender),
            thread: Some(thread),
        })
    }

    /// Holds them back for another part of their time, at most 99 percent.
    pub fn set(&self, percent: u8) {
        if let Some(sender) = &self.percent {
            // It ends only with this.
            let _ = sender.send(percent);
        }
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.percent = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
