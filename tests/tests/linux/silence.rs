//! What back-ends hear, as the kernel sees it: their connections, and what they receive and send over them.
//!
//! A back-end waits for its front-end's next message in a system call, or asks for it when its socket has something. So one that makes
//! no such call has got nothing. Tracing that takes root's rights, and no debugger, which would slow everything down.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernel's tracing is.
const TRACING: &str = "/sys/kernel/tracing";
/// Everything that the sockets of these back-ends are used with.
const CALLS: [&str; 8] = [
    "recvmsg", "recvfrom", "recvmmsg", "sendmsg", "sendto", "sendmmsg", "accept4", "shutdown",
];

/// Back-ends that are listened to.
pub struct Silence {
    trace: PathBuf,
    /// Each process, with its sockets: a connection that is made anew is another one.
    sockets: Vec<(u32, BTreeSet<PathBuf>)>,
}

impl Silence {
    /// Of these processes, from now on.
    pub fn of(processes: [u32; 2]) -> Self {
        let tracing = Path::new(TRACING);
        if !tracing.join("instances").exists() {
            let mount = Command::new("mount")
                .args(["-t", "tracefs", "tracefs", TRACING])
                .status();
            assert!(mount.expect("mount").success(), "no tracing");
        }
        // One of its own: whatever else is traced goes on.
        let first = processes[0];
        let trace = tracing.join(format!("instances/ferry-{first}"));
        fs::create_dir(&trace).expect("an instance of tracing, which takes root's rights");
        let silence = Silence {
            trace,
            sockets: processes.map(|it| (it, sockets(it))).to_vec(),
        };
        // Threads that come later, too.
        silence.set("options/event-fork", "1");
        let threads: Vec<String> = processes.into_iter().flat_map(threads).collect();
        silence.set("set_event_pid", &threads.join(" "));
        for call in CALLS {
            for side in ["enter", "exit"] {
                silence.set(&format!("events/syscalls/sys_{side}_{call}/enable"), "1");
            }
        }
        silence
    }

    fn set(&self, name: &str, value: &str) {
        let path = self.trace.join(name);
        fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// What they have received or sent since then.
    pub fn heard(&self) -> Vec<String> {
        let trace = fs::read_to_string(self.trace.join("trace")).expect("the trace");
        let events = trace.lines().filter(|line| !line.starts_with('#'));
        events.map(str::to_owned).collect()
    }

    /// They have heard nothing, and have the connections that they had.
    pub fn is_unbroken(&self) {
        let heard = self.heard();
        assert!(heard.is_empty(), "{}", heard.join("\n"));
        for (process, before) in &self.sockets {
            assert_eq!(&sockets(*process), before, "sockets of process {process}");
        }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // It can be removed only as a whole, and as soon as nothing of it is in use.
        let _ = fs::write(self.trace.join("events/enable"), "0");
        let _ = fs::remove_dir(&self.trace);
    }
}

/// The numbers of a process's threads.
fn threads(process: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let names = threads.map(|thread| thread.expect("a thread").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// A process's sockets, by their numbers, of which the kernel gives none twice.
fn sockets(process: u32) -> BTreeSet<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("its descriptors");
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .collect()
}
