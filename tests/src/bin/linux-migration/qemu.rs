//! The same guest in QEMU, as near to Ferry's as QEMU's machines come: kernel, initramfs, command line, KVM, devices and
//! back-ends are the same. A migration is asked for with nothing but its defaults, an unlimited bandwidth, and the same limit
//! of the downtime.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ferry_tests::{LINUX_COMMAND_LINE, Linux, Listener, Process, complete_lines};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{BackEnds, DOWNTIME_MS, Moving, SCRIPT, turns};

/// What has not happened by then never will.
const LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(50);
/// How often it is looked whether a guest has moved: seldom, because who answers needs a processor, too.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes a second that no socket reaches.
const UNLIMITED: u64 = 1 << 40;

/// A guest in QEMU.
pub struct Qemu {
    monitor: Monitor,
    boot: Boot,
}

/// What all of a guest's QEMUs have in common.
struct Boot {
    program: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    /// How many have been started.
    count: u32,
    directory: TempDir,
}

/// One QEMU.
struct Monitor {
    process: Process,
    qmp: Qmp,
    _back_ends: BackEnds,
}

impl Qemu {
    /// Boots it.
    pub fn boot(program: &Path, back_ends: BackEnds) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut boot = Boot {
            program: program.to_owned(),
            kernel: Linux::new(SCRIPT).kernel(),
            initramfs: Linux::new(SCRIPT).write_initramfs(directory.path()),
            count: 0,
            directory,
        };
        let monitor = boot.start(back_ends, &[]);
        Self { monitor, boot }
    }

    fn serial(&self) -> Vec<ferry_tests::Line> {
        let said = fs::read(self.boot.serial()).unwrap_or_default();
        complete_lines(&String::from_utf8_lossy(&said))
    }

    /// Waits for the end of a migration.
    fn migrated(&mut self) -> Value {
        self.wait_until("end of the migration", LOOK, |qemu| {
            let report = qemu.monitor.qmp.ask("query-migrate", json!({}));
            match report["status"].as_str() {
                Some("completed") => Some(report),
                Some("failed" | "cancelled") => panic!("QEMU has not moved its guest: {report}"),
                _ => None,
            }
        })
    }

    fn wait_until<T>(
        &mut self,
        what: &str,
        poll: Duration,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let ended = self.monitor.process.child().try_wait().ok().flatten();
            if ended.is_some() || begin.elapsed() > LIMIT {
                panic!("QEMU: no {what} ({ended:?}): {:?}", self.serial());
            }
            thread::sleep(poll);
        }
    }
}

impl Moving for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn turns(&self) -> u64 {
        turns(&self.serial())
    }

    fn wait_for_turns(&mut self, count: u64) {
        self.wait_until("devices that are used", POLL, |qemu| {
            (qemu.turns() >= count).then_some(())
        });
    }

    fn pause(&mut self) {
        self.monitor.qmp.ask("stop", json!({}));
    }

    fn resume(&mut self) {
        self.monitor.qmp.ask("cont", json!({}));
    }

    fn move_to(&mut self, next: BackEnds) -> Value {
        let mut receiver = self.boot.start(next, &["-incoming", "defer"]);
        let socket = self.boot.path("migration");
        let way = json!({"uri": format!("unix:{}", socket.display())});
        receiver.qmp.ask("migrate-incoming", way.clone());
        let parameters = json!({"max-bandwidth": UNLIMITED, "downtime-limit": DOWNTIME_MS});
        let sender = &mut self.monitor.qmp;
        sender.ask("migrate-set-parameters", parameters);
        sender.ask("migrate", way);
        let mut report = self.migrated();
        report["version"] = self.monitor.qmp.version.clone();
        let stopped = self.monitor.qmp.time_of("STOP");
        report["silence"] = json!(receiver.qmp.time_of("RESUME") - stopped);
        self.monitor = receiver;
        report
    }

    fn end(mut self: Box<Self>) {
        let status = self.monitor.process.wait(LIMIT);
        let serial = self.serial();
        assert!(
            status.is_some_and(|status| status.success())
                && serial.iter().any(|line| line.0.contains("ferry: test: ok")),
            "QEMU's guest has not ended well ({status:?}): {serial:?}"
        );
    }
}

impl Boot {
    /// A path for the last QEMU that was started.
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}-{}", self.count))
    }

    /// All of them append what their guest says.
    fn serial(&self) -> PathBuf {
        self.directory.path().join("serial")
    }

    fn start(&mut self, back_ends: BackEnds, more: &[&str]) -> Monitor {
        self.count += 1;
        let qmp = self.path("qmp");
        let (disk, share) = (back_ends.disk.socket(), back_ends.share.socket());
        let mut command = Command::new(&self.program);
        command
            .args(["-machine", "q35,accel=kvm,memory-backend=ram"])
            .args(["-cpu", "host", "-smp", "1", "-m", "512M"])
            .args(["-object", "memory-backend-memfd,id=ram,size=512M,share=on"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", LINUX_COMMAND_LINE])
            .arg("-chardev")
            .arg(format!(
                "file,id=serial,append=on,path={}",
                self.serial().display()
            ))
            .args(["-serial", "chardev:serial"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", qmp.display()))
            .arg("-chardev")
            .arg(format!("socket,id=disk,path={}", disk.display()))
            .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"])
            .arg("-chardev")
            .arg(format!("socket,id=share,path={}", share.display()))
            .args(["-device", "vhost-user-fs-pci,chardev=share,tag=share"])
            .args(more);
        // QEMU tries only once.
        listens(disk);
        listens(share);
        let mut process = Process::start(command, Some(&self.path("log")));
        let qmp = Qmp::connect(&qmp, &mut process);
        Monitor {
            process,
            qmp,
            _back_ends: back_ends,
        }
    }
}

/// Waits until somebody listens there, without a connection: it would be a back-end's only one.
fn listens(socket: &Path) {
    const ACCEPTS: &str = "00010000";
    let begin = Instant::now();
    let listens = || {
        let sockets = fs::read_to_string("/proc/net/unix").expect("a list of sockets");
        sockets.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.nth(3) == Some(ACCEPTS) && words.next_back().map(Path::new) == Some(socket)
        })
    };
    while !listens() {
        assert!(
            begin.elapsed() < LIMIT,
            "nobody listens on {}",
            socket.display()
        );
        thread::sleep(POLL);
    }
}

/// A connection to QEMU's monitor (`docs/interop/qmp-spec.rst`).
struct Qmp {
    stream: BufReader<UnixStream>,
    /// All that have come.
    events: Vec<Value>,
    /// "10.0.2"
    version: Value,
}

impl Qmp {
    fn connect(socket: &Path, process: &mut Process) -> Self {
        let begin = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                break stream;
            }
            let ended = process.child().try_wait().ok().flatten();
            if ended.is_some() || begin.elapsed() > LIMIT {
                panic!("QEMU has not started ({ended:?})");
            }
            thread::sleep(POLL);
        };
        stream.set_read_timeout(Some(LIMIT)).expect("a deadline");
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: Vec::new(),
            version: Value::Null,
        };
        let number = qmp.read()["QMP"]["version"]["qemu"].take();
        qmp.version = json!(format!(
            "{}.{}.{}",
            number["major"], number["minor"], number["micro"]
        ));
        qmp.ask("qmp_capabilities", json!({}));
        qmp
    }

    /// Panics if QEMU refuses.
    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.stream.get_ref(), "{request}").expect("QEMU reads");
        loop {
            let mut answer = self.read();
            if let Some(result) = answer.get_mut("return") {
                return result.take();
            }
            if let Some(error) = answer.get("error") {
                panic!("QEMU refuses {command}: {error}");
            }
            self.events.push(answer);
        }
    }

    /// When an event last came, in milliseconds by the host's clock. It is waited for, if it has not come yet.
    fn time_of(&mut self, event: &str) -> f64 {
        loop {
            let mut events = self.events.iter().rev();
            if let Some(event) = events.find(|it| it["event"] == event) {
                let part = |name: &str| event["timestamp"][name].as_f64();
                let seconds = part("seconds").expect("a time");
                return seconds * 1e3 + part("microseconds").expect("a time") / 1e3;
            }
            let next = self.read();
            self.events.push(next);
        }
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("QEMU answers");
        serde_json::from_str(&line).expect("QEMU answers in JSON")
    }
}
