//! A TCP connection that nobody can look into: something happens after so many bytes of it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferry_tests::fault_proxy::{Act, Then};

use crate::party::{LOOK, lock};

/// Stands between a sender and a receiver; ends when it is dropped.
pub struct Wire {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// The receiver.
    to: String,
    state: Mutex<State>,
    done: Condvar,
}

struct State {
    /// What is to be done when so many bytes have gone to the receiver.
    due: Option<(u64, Act)>,
    is_done: bool,
    passed: u64,
    is_frozen: bool,
    dark_until: Option<Instant>,
    ends: Vec<TcpStream>,
    over: bool,
}

impl Wire {
    /// Leads to `tcp:host:port`.
    pub fn start(to: &str, after: u64, act: Act) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("tcp:{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            to: to.trim_start_matches("tcp:").to_owned(),
            state: Mutex::new(State {
                due: Some((after, act)),
                is_done: false,
                passed: 0,
                is_frozen: false,
                dark_until: None,
                ends: Vec::new(),
                over: false,
            }),
            done: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Wire { url, shared }
    }

    /// Where the sender is to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until what is to be done has been done; false if that takes too long.
    pub fn wait(&self, limit: Duration) -> bool {
        let state = lock(&self.shared.state);
        let waited = self
            .shared
            .done
            .wait_timeout_while(state, limit, |it| !it.is_done);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_done
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.over = true;
        state.close();
    }
}

impl State {
    fn close(&mut self) {
        for end in self.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !lock(&self.state).over {
            match listener.accept() {
                Ok((sender, _)) => drop(self.lead(sender)),
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    fn lead(self: &Arc<Self>, sender: TcpStream) -> io::Result<()> {
        let dark = lock(&self.state).dark_until;
        if dark.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        sender.set_nonblocking(false)?;
        let receiver = TcpStream::connect(&self.to)?;
        let ends = [sender.try_clone()?, receiver.try_clone()?];
        lock(&self.state).ends.extend(ends);
        let back = (receiver.try_clone()?, sender.try_clone()?);
        let there = Arc::clone(self);
        thread::spawn(move || there.pass(sender, receiver, |bytes| there.count(bytes)));
        let here = Arc::clone(self);
        thread::spawn(move || here.pass(back.0, back.1, |_| Ok(())));
        Ok(())
    }

    /// Passes one direction on, to its end.
    fn pass(
        &self,
        mut from: TcpStream,
        mut to: TcpStream,
        mut count: impl FnMut(usize) -> io::Result<()>,
    ) {
        let mut buffer = vec![0; 16 << 10];
        let mut next = || -> io::Result<bool> {
            let read = from.read(&mut buffer)?;
            count(read)?;
            if lock(&self.state).is_frozen {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            to.write_all(&buffer[..read])?;
            Ok(read > 0)
        };
        while next().unwrap_or(false) {}
        if !lock(&self.state).is_frozen {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// Does what is due, before the bytes go on that reach the place.
    fn count(&self, bytes: usize) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.passed += bytes as u64;
        let passed = state.passed;
        let Some((_, act)) = state.due.take_if(|(after, _)| *after <= passed) else {
            return Ok(());
        };
        drop(state);
        let then = act.then();
        let mut state = lock(&self.state);
        match then {
            Then::PassOn | Then::Damage(_) => {}
            Then::Cut(dark) => {
                state.dark_until = Some(Instant::now() + dark);
                state.close();
            }
            Then::CutThis => unreachable!("nobody asks for it here"),
            Then::Freeze => state.is_frozen = true,
        }
        state.is_done = true;
        self.done.notify_all();
        Ok(())
    }
}
