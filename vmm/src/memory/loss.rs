//! Guest RAM that goes away under a running guest.
//!
//! Nobody can resize a sealed memfd. But RAM files of a snapshot that became guest RAM can be cut off by any back-end that
//! maps them, their storage can fail, and a clone may find no room for a page that it is to have of its own. Then
//!
//! - the guest's accesses make `KVM_RUN` fail, or come back as accesses to a device: [`describe`] says why, and the guest
//!   has crashed;
//! - Ferry's own accesses raise SIGBUS. There is nothing to go on with, so Ferry says so and ends with [`STATUS`].
//!
//! While RAM is received, a page that a back-end has taken out of it raises SIGBUS as well; that one is made anew.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vm_migration::pages::make_missing;
use vmm_sys_util::signal::register_signal_handler;

use crate::terminal;

/// Ferry's exit status: a failure, as after any crash of a guest.
const STATUS: libc::c_int = 1;
const WORD: &[u8] =
    b"ferry: the guest's RAM is gone: its file was cut off, or its storage has failed or is full\n";

/// Whether a region's file has become shorter than the region; says which one, and by how much.
pub fn describe(ram: &GuestMemoryMmap) -> Option<String> {
    ram.iter().find_map(|region| {
        let file = region.file_offset()?;
        let left = file.file().metadata().ok()?.len();
        let left = left.saturating_sub(file.start());
        (left < region.len()).then(|| {
            let GuestAddress(start) = region.start_addr();
            let bytes = region.len();
            format!(
                "the file of its RAM at {start:#x} was cut off: {left} of {bytes} bytes are left"
            )
        })
    })
}

/// Ferry's own addresses where guest RAM is mapped, for the signal handler. Both zero: free.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// Two regions for the guest and two for the one before it, whose RAM may still be given back; and some more for tests,
/// which have several guests at once.
static SLOTS: [Slot; 64] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; 64];
static HANDLER: Once = Once::new();

/// For as long as this lives, a SIGBUS in a mapping of guest RAM ends Ferry in an orderly manner.
pub struct Watched {
    taken: Vec<&'static Slot>,
}

impl Watched {
    /// Watches all of `ram`.
    pub fn new(ram: &GuestMemoryMmap) -> Self {
        HANDLER.call_once(|| {
            if let Err(error) = register_signal_handler(libc::SIGBUS, on_bus_error) {
                tracing::warn!("cannot handle the loss of guest RAM: {error}");
            }
        });
        let taken = ram.iter().filter_map(|region| {
            let start = region.as_ptr() as usize;
            let claim = |slot: &&Slot| {
                slot.start
                    .compare_exchange(0, start, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            };
            // With none left, a loss is a crash of Ferry.
            let slot = SLOTS.iter().find(claim)?;
            slot.end
                .store(start + region.len() as usize, Ordering::SeqCst);
            Some(slot)
        });
        Watched {
            taken: taken.collect(),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for slot in &self.taken {
            slot.end.store(0, Ordering::SeqCst);
            slot.start.store(0, Ordering::SeqCst);
        }
    }
}

/// Only what a signal handler may do: atomics, and system calls.
extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives handlers with SA_SIGINFO a valid pointer, and a SIGBUS has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    if make_missing(address) {
        return;
    }
    let is_ram = SLOTS.iter().any(|slot| {
        let start = slot.start.load(Ordering::SeqCst);
        start != 0 && (start..slot.end.load(Ordering::SeqCst)).contains(&address)
    });
    if is_ram {
        terminal::restore_in_handler();
        // SAFETY: `write` reads a constant, and `_exit` does not return. Both may be called here.
        unsafe {
            libc::write(libc::STDERR_FILENO, WORD.as_ptr().cast(), WORD.len());
            libc::_exit(STATUS);
        }
    }
    // The instruction is tried again, and then ends Ferry as if there were no handler.
    // SAFETY: the call may be made here, and has no memory arguments.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};

    use ferry_api::config::MemoryConfig;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::GuestRam;

    const BYTES: u64 = 64 << 20;

    fn ram() -> (GuestRam, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES).unwrap();
        let config = MemoryConfig {
            size: BYTES,
            shared: true,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
        };
        let ram = GuestRam::from_files(&config, vec![file.try_clone().unwrap()]).unwrap();
        (ram, file)
    }

    /// Runs a test of this module in a process of its own, which knows by a variable that it is one.
    fn in_a_process(test: &str) -> Option<Output> {
        const VARIABLE: &str = "FERRY_TEST_LOSES_RAM";
        if std::env::var_os(VARIABLE).is_some() {
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: the limit is valid, and is about core dumps only.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
            return None;
        }
        let name = format!("memory::loss::tests::{test}");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env(VARIABLE, "1")
            .output();
        Some(output.unwrap())
    }

    #[test]
    fn an_access_of_ferrys_own_ends_it_with_a_word() {
        let Some(output) = in_a_process("an_access_of_ferrys_own_ends_it_with_a_word") else {
            let (ram, file) = ram();
            ram.mapping().write_obj(1u8, GuestAddress(0x5000)).unwrap();
            file.set_len(0x5000).unwrap();
            ram.mapping().write_obj(1u8, GuestAddress(0x4000)).unwrap();
            let _ = ram.mapping().read_obj::<u8>(GuestAddress(0x5000));
            return;
        };
        assert_eq!(output.status.code(), Some(STATUS), "{output:?}");
        assert!(output.stderr.ends_with(WORD), "{output:?}");
    }

    #[test]
    fn other_accesses_are_crashes_as_ever() {
        let Some(output) = in_a_process("other_accesses_are_crashes_as_ever") else {
            let (guest, file) = ram();
            // Another mapping of the same file is not guest RAM.
            let other = guest
                .mapping()
                .iter()
                .next()
                .unwrap()
                .file_offset()
                .unwrap();
            let other = vm_memory::MmapRegion::<()>::from_file(other.clone(), BYTES as usize);
            file.set_len(0).unwrap();
            // SAFETY: the address is that of a mapping; that nothing is behind it any more is what this is about.
            unsafe { other.unwrap().as_ptr().read_volatile() };
            return;
        };
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    }

    #[test]
    fn a_file_that_is_too_short_is_described() {
        let (ram, file) = ram();
        assert_eq!(describe(ram.mapping()), None);
        file.set_len(BYTES + 1).unwrap();
        assert_eq!(describe(ram.mapping()), None);
        file.set_len(0x5000).unwrap();
        let text = describe(ram.mapping()).unwrap();
        assert!(
            text.contains("at 0x0 was cut off: 20480 of 67108864"),
            "{text}"
        );
    }
}
