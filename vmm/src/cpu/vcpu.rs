//! A vCPU's thread: it runs the guest, and answers what the guest cannot do by itself.
//!
//! ```text
//!   spawn ──▶ waiting for the start ──▶ running ⇄ answering an exit ──▶ ended
//!                     │                    │                              ▲
//!                     └────────────────────┴── stop: signal + flag ───────┘
//! ```
//!
//! To stop a vCPU, another thread raises the `stop` flag and then sends [`kick_signal`]. The handler sets
//! `immediate_exit` in the vCPU's shared page, so that a signal which comes between the look at the flag and
//! `KVM_RUN` is not lost.

use std::cell::Cell;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ferry_devices::power::PowerRequest;
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::register_signal_handler;

use crate::io_space::{ExitCounters, IoSpace};

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

/// Bytes of a vCPU thread's stack: its handlers are shallow, and every touched page counts.
const STACK: usize = 256 << 10;

thread_local! {
    /// The shared page of the vCPU that this thread runs, for the signal handler.
    static SHARED_PAGE: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

fn kick_signal() -> libc::c_int {
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

/// A vCPU's thread, from the outside.
pub struct Vcpu {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Vcpu {
    /// Starts a thread that runs `fd`. `ended` is called from it, at most once, when the guest ends by itself.
    pub fn spawn(
        index: u8,
        fd: VcpuFd,
        io: Arc<IoSpace>,
        ended: impl FnOnce(GuestEnd) + Send + 'static,
    ) -> io::Result<Vcpu> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut run = Run {
            fd,
            io,
            stop: stop.clone(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK)
            .spawn(move || {
                if let Some(end) = run.until_end() {
                    ended(end);
                }
            })?;
        Ok(Vcpu { thread, stop })
    }

    /// Asks the thread to end; [`Vcpu::join`] waits for it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        // SAFETY: the thread has not been joined, because joining takes the `Vcpu`; so the id is still its own.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), kick_signal()) };
    }

    /// Waits for the thread to end, which [`Vcpu::stop`] makes it do at once: no exit's answer waits for anyone.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a vCPU thread panicked");
        }
    }
}

/// What a vCPU's thread works with.
struct Run {
    fd: VcpuFd,
    io: Arc<IoSpace>,
    stop: Arc<AtomicBool>,
}

impl Run {
    /// Runs until the guest ends (returns why) or is stopped from outside.
    fn until_end(&mut self) -> Option<GuestEnd> {
        SHARED_PAGE.set(self.fd.get_kvm_run());
        let end = loop {
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            if let ControlFlow::Break(end) = self.once() {
                break Some(end);
            }
        };
        SHARED_PAGE.set(std::ptr::null_mut());
        end
    }

    fn once(&mut self) -> ControlFlow<GuestEnd> {
        let io = &self.io;
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                ExitCounters::count(&io.exits.pio);
                io.read_port(port, data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                ExitCounters::count(&io.exits.pio);
                return io.write_port(port, data).map_break(GuestEnd::Request);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                ExitCounters::count(&io.exits.mmio);
                io.read_memory(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                ExitCounters::count(&io.exits.mmio);
                io.write_memory(address, data);
            }
            Ok(VcpuExit::Shutdown) => return ControlFlow::Break(GuestEnd::TripleFault),
            Ok(VcpuExit::Intr) => ExitCounters::count(&io.exits.other),
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
            }
            Err(error) => return self.crash(&format!("KVM_RUN: {error}")),
        }
        ControlFlow::Continue(())
    }

    /// Describes an end that is KVM's or the guest's fault as far as KVM tells.
    fn crash(&mut self, what: &str) -> ControlFlow<GuestEnd> {
        let suberror = {
            let run = self.fd.get_kvm_run();
            // SAFETY: the union's `internal` is plain data in every state; it is meaningful after an internal error.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            (run.exit_reason == kvm_bindings::KVM_EXIT_INTERNAL_ERROR).then_some(internal.suberror)
        };
        let rip = self.fd.get_regs().map(|regs| regs.rip);
        let mut text = what.to_string();
        match suberror {
            Some(1) => text.push_str(" (1: KVM cannot emulate the instruction)"),
            Some(number) => text.push_str(&format!(" ({number})")),
            None => {}
        }
        if let Ok(rip) = rip {
            text.push_str(&format!(" at instruction {rip:#x}"));
        }
        ControlFlow::Break(GuestEnd::Crash(text))
    }
}
