//! Real back-ends for devices that Ferry knows nothing of: those of the vhost-device family.

use std::path::{Path, PathBuf};
use std::process::Command;

use ferry_tests::{Ferry, Listener, Process, tool};
use tempfile::TempDir;

/// A back-end process in a directory of its own.
pub struct VhostDevice {
    _process: Process,
    directory: TempDir,
    socket: PathBuf,
    /// What Ferry has to be told of it.
    options: &'static str,
}

impl VhostDevice {
    /// vhost-device-rng.
    pub fn rng() -> Self {
        let mut command = Command::new(tool("FERRY_VHOST_DEVICE_RNG", "vhost-device-rng"));
        command.args(["--socket-path", "socket"]);
        let options = "device_type=4,id=rng0,num_queues=1,state=none";
        Self::start(command, "socket0", options)
    }

    /// vhost-device-console, which listens on a TCP port of the loopback interface.
    pub fn console(port: u16) -> Self {
        let mut command = Command::new(tool("FERRY_VHOST_DEVICE_CONSOLE", "vhost-device-console"));
        command
            .args(["--socket-path", "socket", "--backend", "network"])
            .args(["--tcp-port", &port.to_string()]);
        // Port 0, and the two queues for control, without which this back-end receives nothing.
        let options = "device_type=3,id=console0,num_queues=4,state=none,drain=[1,3]";
        Self::start(command, "socket0", options)
    }

    /// vhost-device-vsock for a guest with CID 4. What the guest connects to on port P of the host goes to the unix
    /// socket `host_P` in [`VhostDevice::directory`].
    pub fn vsock() -> Self {
        let mut command = Command::new(tool("FERRY_VHOST_DEVICE_VSOCK", "vhost-device-vsock"));
        command.args(["--guest-cid", "4", "--socket", "socket"]);
        command.args(["--uds-path", "host"]);
        let options = "device_type=19,id=vsock0,num_queues=3,state=none";
        Self::start(command, "socket", options)
    }

    fn start(mut command: Command, socket: &str, options: &'static str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        command.current_dir(directory.path());
        VhostDevice {
            _process: Process::start(command, Some(&directory.path().join("log"))),
            socket: directory.path().join(socket),
            directory,
            options,
        }
    }

    /// Gives a machine this device.
    pub fn add_to(&self, ferry: Ferry) -> Ferry {
        ferry.with_device(self, self.options)
    }

    /// The back-end's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Listener for VhostDevice {
    fn socket(&self) -> &Path {
        &self.socket
    }
}
