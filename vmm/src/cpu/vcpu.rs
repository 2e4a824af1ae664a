//! A vCPU's thread: it runs the guest, and answers what the guest cannot do by itself.
//!
//! It looks at the machine's [`Gate`] between any two exits. To make it look, the owner sends [`kick_signal`]. The
//! handler sets `immediate_exit` in the vCPU's shared page, so that a signal which comes between the look and
//! `KVM_RUN` is not lost.

use std::cell::Cell;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferry_devices::power::PowerRequest;
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::register_signal_handler;

use super::brake::Brake;
use super::clock;
use super::gate::{Gate, NotAllHere, NotParked, Order, Wanted};
use crate::io_space::{ExitCounters, IoSpace};
use crate::memory::loss;

/// Why a guest has ended, as the vCPU saw it that ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It asked for power-off or reset.
    Request(PowerRequest),
    /// A triple fault: the processor gave up.
    TripleFault,
    /// KVM cannot run it any further, for this reason.
    Crash(String),
}

/// What the vCPUs of a machine do first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// They run, and so many ticks of the host's TSC are hidden from the guest.
    Running { hidden_ticks: u64 },
    /// They are parked until they are released, and have run no instruction.
    Parked,
}

/// Why not every vCPU has run an errand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrandError {
    /// Some are not parked, or have ended with their guest.
    #[error("not all vCPUs stand still")]
    NotParked,
    /// Some have not come back in time. They are given their next order once they have.
    #[error("{count} vCPUs did not come back within {limit:?}")]
    Late { count: usize, limit: Duration },
}

/// Bytes of a vCPU thread's stack: its handlers are shallow, and every touched page counts.
const STACK: usize = 256 << 10;

thread_local! {
    /// The shared page of the vCPU that this thread runs, for the signal handler.
    static SHARED_PAGE: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// The signal that makes a vCPU's thread look at its gate.
pub fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let page = SHARED_PAGE.get();
    if !page.is_null() {
        // SAFETY: the pointer is set only while this very thread owns the vCPU and its mapping (see `Run`);
        // KVM reads the byte whenever it enters the guest.
        unsafe { (&raw mut (*page).immediate_exit).write_volatile(1) };
    }
}

/// Installs the handler of the signal that stops vCPUs. Once per process, before the first vCPU.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// The threads of a machine's vCPUs, from the outside. Dropping it ends them.
pub struct Vcpus {
    /// Before the threads, which it signals.
    brake: Option<Brake>,
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
}

impl Vcpus {
    /// Starts a thread for each of `fds`. `ended` is called, at most once from each, when the guest ends by itself.
    ///
    /// # Errors
    /// The vCPU whose thread could not be started, and why. Those before it have ended again.
    pub fn spawn(
        fds: Vec<VcpuFd>,
        io: &Arc<IoSpace>,
        ram: &GuestMemoryMmap,
        begin: Begin,
        ended: impl Fn(GuestEnd) + Clone + Send + 'static,
    ) -> Result<Vcpus, (u8, io::Error)> {
        let (wanted, hidden_ticks) = match begin {
            Begin::Running { hidden_ticks } => (Wanted::Run, hidden_ticks),
            Begin::Parked => (Wanted::Park, 0),
        };
        let gate = Arc::new(Gate::new(fds.len(), wanted, hidden_ticks));
        let mut vcpus = Vcpus {
            brake: None,
            threads: Vec::with_capacity(fds.len()),
            gate,
        };
        for (index, fd) in (0..).zip(fds) {
            let mut run = Run {
                fd,
                index,
                io: io.clone(),
                ram: ram.clone(),
                gate: vcpus.gate.clone(),
                hidden_ticks: 0,
            };
            let ended = ended.clone();
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(STACK)
                .spawn(move || {
                    run.hide(hidden_ticks);
                    let end = run.until_end();
                    if let Some(end) = &end {
                        ended(end.clone());
                    }
                    run.gate.leave(end.as_ref());
                })
                .map_err(|error| (index, error))?;
            vcpus.threads.push(thread);
        }
        Ok(vcpus)
    }

    /// Makes all vCPUs stand still, with no exit half-answered.
    ///
    /// # Errors
    /// Some did not within `limit`, or the guest has ended; all that are left go on.
    pub fn park(&self, limit: Duration) -> Result<(), NotParked> {
        self.gate.want(Wanted::Park);
        self.signal();
        self.wait_parked(limit)
            .inspect_err(|_| self.gate.want(Wanted::Run))
    }

    /// Waits until all vCPUs that are to be parked stand still.
    ///
    /// # Errors
    /// As [`Vcpus::park`], but they stay as they are.
    pub fn wait_parked(&self, limit: Duration) -> Result<(), NotParked> {
        self.gate.wait_parked(limit)
    }

    /// Lets parked vCPUs go on; so many more ticks of the host's TSC are hidden from the guest.
    pub fn release(&self, hidden_ticks: u64) {
        self.gate.release(hidden_ticks);
    }

    /// Holds vCPUs back for so many percent of their time, at most 99.
    pub fn throttle(&mut self, percent: u8) {
        match (&self.brake, percent) {
            (_, 0) => self.brake = None,
            (Some(brake), _) => brake.set(percent),
            (None, _) => match Brake::new(&self.gate, &self.threads, percent) {
                Ok(brake) => self.brake = Some(brake),
                Err(error) => tracing::warn!("vCPUs cannot be held back: {error}"),
            },
        }
    }

    /// Has every vCPU's own thread run `errand`, all at the same time, while they are parked; returns what each came
    /// back with, by ascending index.
    ///
    /// # Errors
    /// Not all of them are parked, or not all of them were done within `limit`. They are as parked as before.
    pub fn each<T: Send + 'static>(
        &self,
        limit: Duration,
        errand: impl Fn(u8, &VcpuFd) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, ErrandError> {
        let (sender, results) = mpsc::channel();
        let report = move |index, fd: &VcpuFd| {
            // Nobody listens any more if it took too long.
            let _ = sender.send((index, errand(index, fd)));
        };
        self.gate
            .send(Arc::new(report))
            .map_err(|NotAllHere| ErrandError::NotParked)?;
        let deadline = Instant::now() + limit;
        let mut done: Vec<(u8, T)> = Vec::with_capacity(self.threads.len());
        while done.len() < self.threads.len() {
            let rest = deadline.saturating_duration_since(Instant::now());
            match results.recv_timeout(rest) {
                Ok(result) => done.push(result),
                Err(_) => break,
            }
        }
        self.gate.call_off();
        match self.threads.len() - done.len() {
            0 => {
                done.sort_by_key(|(index, _)| *index);
                Ok(done.into_iter().map(|(_, result)| result).collect())
            }
            count => Err(ErrandError::Late { count, limit }),
        }
    }

    fn signal(&self) {
        for thread in &self.threads {
            // SAFETY: the thread has not been joined, because joining takes its handle; so the id is still its own.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        }
    }
}

impl Drop for Vcpus {
    // No exit's answer waits for anyone, so this does not take long.
    fn drop(&mut self) {
        self.brake = None;
        self.gate.want(Wanted::End);
        self.signal();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

/// What a vCPU's thread works with.
struct Run {
    fd: VcpuFd,
    index: u8,
    io: Arc<IoSpace>,
    ram: GuestMemoryMmap,
    gate: Arc<Gate>,
    /// Ticks of the host's TSC that this vCPU's offset hides already.
    hidden_ticks: u64,
}

/// What came of one entry into the guest.
enum Exit {
    /// KVM has handed over an access or the like, and it has been answered.
    Answered,
    /// A signal, or `immediate_exit`, made KVM return: the guest stands between two instructions.
    Interrupted,
    /// The guest has ended.
    Ended(GuestEnd),
}

impl Run {
    /// Runs until the guest ends (returns why) or is ended from outside.
    fn until_end(&mut self) -> Option<GuestEnd> {
        SHARED_PAGE.set(self.fd.get_kvm_run());
        let end = loop {
            if self.gate.wants_attention() {
                match self.attend() {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(end) => break end,
                }
            }
            if let Exit::Ended(end) = self.once() {
                break Some(end);
            }
        };
        SHARED_PAGE.set(std::ptr::null_mut());
        end
    }

    /// Does what the gate wants. The answer to the last exit is first given to the guest, so that the vCPU's state is
    /// whole while it is parked.
    fn attend(&mut self) -> ControlFlow<Option<GuestEnd>> {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            match self.once() {
                Exit::Answered => {}
                Exit::Interrupted => break,
                Exit::Ended(end) => return ControlFlow::Break(Some(end)),
            }
        }
        let (index, fd) = (self.index, &self.fd);
        match self.gate.pass(|errand| errand(index, fd)) {
            Order::End => return ControlFlow::Break(None),
            Order::Run { hidden_ticks } => self.hide(hidden_ticks),
        }
        ControlFlow::Continue(())
    }

    /// Hides so many ticks of the host's TSC in all, and tells the guest of the pause that they are.
    fn hide(&mut self, ticks: u64) {
        let more = ticks.wrapping_sub(self.hidden_ticks);
        if more == 0 {
            return;
        }
        self.hidden_ticks = ticks;
        clock::announce_pause(&self.fd);
        if let Err(error) = clock::hide_ticks(&self.fd, more) {
            tracing::warn!("a vCPU's time stamp counter could not be set back: {error}");
        }
    }

    fn once(&mut self) -> Exit {
        let io = &self.io;
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                ExitCounters::count(&io.exits.pio);
                io.read_port(port, data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                ExitCounters::count(&io.exits.pio);
                if let ControlFlow::Break(request) = io.write_port(port, data) {
                    return Exit::Ended(GuestEnd::Request(request));
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                ExitCounters::count(&io.exits.mmio);
                if self.ram.address_in_range(GuestAddress(address)) {
                    return self.no_ram_at(address);
                }
                io.read_memory(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                ExitCounters::count(&io.exits.mmio);
                if self.ram.address_in_range(GuestAddress(address)) {
                    return self.no_ram_at(address);
                }
                io.write_memory(address, data);
            }
            Ok(VcpuExit::Shutdown) if loss::describe(&self.ram).is_some() => {
                return self.crash("triple fault");
            }
            Ok(VcpuExit::Shutdown) => return Exit::Ended(GuestEnd::TripleFault),
            Ok(VcpuExit::Intr) => {
                ExitCounters::count(&io.exits.other);
                self.fd.set_kvm_immediate_exit(0);
                return Exit::Interrupted;
            }
            Ok(VcpuExit::InternalError) => return self.crash("internal error"),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return self.crash(&format!(
                    "the processor refused to enter the guest ({reason:#x})"
                ));
            }
            Ok(exit) => {
                let exit = format!("unexpected exit {exit:?}");
                return self.crash(&exit);
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                ExitCounters::count(&io.exits.other);
                self.fd.set_kvm_immediate_exit(0);
                return Exit::Interrupted;
            }
            Err(error) if error.errno() == libc::EFAULT => {
                return self.crash("its RAM cannot be reached: the storage has failed or is full");
            }
            Err(error) => return self.crash(&format!("KVM_RUN: {error}")),
        }
        Exit::Answered
    }

    /// KVM takes what it cannot reach for a device, if it has to do the access by itself.
    fn no_ram_at(&mut self, address: u64) -> Exit {
        self.crash(&format!("its RAM cannot be reached at {address:#x}"))
    }

    /// Describes an end that is KVM's or the guest's fault as far as KVM tells.
    fn crash(&mut self, what: &str) -> Exit {
        let suberror = {
            let run = self.fd.get_kvm_run();
            // SAFETY: the union's `internal` is plain data in every state; it is meaningful after an internal error.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            (run.exit_reason == kvm_bindings::KVM_EXIT_INTERNAL_ERROR).then_some(internal.suberror)
        };
        let rip = self.fd.get_regs().map(|regs| regs.rip);
        let mut text = match loss::describe(&self.ram) {
            // Whatever KVM says, it comes from that.
            Some(loss) => format!("{loss}: {what}"),
            None => what.to_string(),
        };
        match suberror {
            Some(1) => text.push_str(" (1: KVM cannot emulate the instruction)"),
            Some(number) => text.push_str(&format!(" ({number})")),
            None => {}
        }
        if let Ok(rip) = rip {
            text.push_str(&format!(" at instruction {rip:#x}"));
        }
        Exit::Ended(GuestEnd::Crash(text))
    }
}
