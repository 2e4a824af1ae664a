//! The real back-ends, one process each.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::guest::{asset, tail};

/// A back-end process with its socket and whatever it serves. Ends with this value.
pub struct Serving {
    process: Child,
    dir: tempfile::TempDir,
    flag: &'static str,
    value: String,
}

impl Serving {
    /// qemu-storage-daemon with a fresh, empty disk of 64 MiB and that many queues.
    pub fn disk(queues: u16) -> Self {
        Self::disk_with(queues, "on", "")
    }

    /// The same, which takes no writes.
    pub fn read_only_disk() -> Self {
        Self::disk_with(1, "off", ",readonly=on")
    }

    fn disk_with(queues: u16, writable: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = File::create(dir.path().join("disk.img")).expect("create an image");
        image.set_len(64 << 20).expect("size the image");
        let mut command = Command::new(asset("FERRY_QSD"));
        command
            .args(["--blockdev", "driver=file,node-name=disk,filename=disk.img"])
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=socket,\
                 writable={writable},num-queues={queues}"
            ));
        let options = format!("vhost_user=on,num_queues={queues},id=disk0{more}");
        Self::start(dir, command, "--disk", "socket", &options)
    }

    /// virtiofsd with a fresh, empty directory and the tag `share`.
    pub fn share() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("share")).expect("create a directory");
        let mut command = Command::new(asset("FERRY_VIRTIOFSD"));
        command
            .args(["--sandbox", "none", "--socket-path", "socket"])
            .args(["--shared-dir", "share"]);
        Self::start(dir, command, "--fs", "socket", "tag=share,id=share0")
    }

    /// vhost-device-rng.
    pub fn rng() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(asset("FERRY_VHOST_DEVICE_RNG"));
        command.args(["--socket-path", "socket"]);
        let options = "device_type=4,id=rng0,num_queues=1,state=none";
        Self::start(dir, command, "--vhost-user", "socket0", options)
    }

    /// vhost-device-console, which listens on a TCP port of the loopback interface.
    pub fn console(port: u16) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(asset("FERRY_VHOST_DEVICE_CONSOLE"));
        command
            .args(["--socket-path", "socket", "--backend", "network"])
            .args(["--tcp-port", &port.to_string()]);
        // Port 0, and the two queues for control, without which this back-end receives nothing.
        let options = "device_type=3,id=console0,num_queues=4,state=none,drain=[1,3]";
        Self::start(dir, command, "--vhost-user", "socket0", options)
    }

    /// vhost-device-vsock for a guest with CID 4. What the guest connects to on port P of the host goes to the unix
    /// socket `host_P` in [`Serving::dir`].
    pub fn vsock() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(asset("FERRY_VHOST_DEVICE_VSOCK"));
        command.args([
            "--guest-cid",
            "4",
            "--socket",
            "socket",
            "--uds-path",
            "host",
        ]);
        let options = "device_type=19,id=vsock0,num_queues=3,state=none";
        Self::start(dir, command, "--vhost-user", "socket", options)
    }

    fn start(
        dir: tempfile::TempDir,
        mut command: Command,
        flag: &'static str,
        socket: &str,
        options: &str,
    ) -> Self {
        let log = File::create(dir.path().join("log")).expect("create a log");
        command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        // SAFETY: prctl is async-signal-safe; the back-end is to end even if this process is killed.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let value = format!("socket={},{options}", dir.path().join(socket).display());
        Serving {
            process,
            dir,
            flag,
            value,
        }
    }

    /// Ferry's flag for this device, and its value.
    pub fn ferry_arguments(&self) -> [String; 2] {
        [self.flag.into(), self.value.clone()]
    }

    /// A file in the back-end's directory: `disk.img`, `share/…`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The back-end's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself: virtiofsd does when Ferry leaves.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}: {}", self.value, tail(&self.path("log")));
        }
    }
}
