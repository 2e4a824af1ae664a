//! Real back-ends: each in a process of its own, ended with the test.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::ferry::Listener;
use crate::process::{Process, tool};

/// qemu-storage-daemon with a raw image, yet to be started.
#[derive(Debug)]
pub struct QsdOptions {
    size: u64,
    queues: u16,
    writable: &'static str,
    throttle: Option<u32>,
    image: Option<PathBuf>,
}

impl QsdOptions {
    /// Serves this image instead of a new one. It is made if it is not there.
    pub fn on(mut self, image: &Path) -> Self {
        self.image = Some(image.to_owned());
        self
    }

    /// Request queues.
    pub fn queues(mut self, count: u16) -> Self {
        self.queues = count;
        self
    }

    /// Serves the image read-only.
    pub fn readonly(mut self) -> Self {
        self.writable = "off";
        self
    }

    /// At most so many requests a second.
    pub fn throttle(mut self, iops: u32) -> Self {
        self.throttle = Some(iops);
        self
    }

    /// Starts it.
    pub fn start(self) -> Qsd {
        let directory = TempDir::new().expect("a temporary directory");
        let image = self
            .image
            .unwrap_or_else(|| directory.path().join("disk.img"));
        if !image.exists() {
            File::create(&image)
                .and_then(|file| file.set_len(self.size))
                .expect("an image");
        }
        let socket = directory.path().join("qsd.sock");
        let mut command = Command::new(tool("FERRY_QSD", "qemu-storage-daemon"));
        command.arg("--blockdev").arg(format!(
            "driver=file,node-name=file,filename={}",
            image.display()
        ));
        let mut node = "file";
        if let Some(iops) = self.throttle {
            command
                .arg("--object")
                .arg(format!("throttle-group,id=limits,x-iops-total={iops}"));
            command.args([
                "--blockdev",
                "driver=throttle,node-name=slow,throttle-group=limits,file=file",
            ]);
            node = "slow";
        }
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name={node},addr.type=unix,addr.path={},writable={},num-queues={}",
            socket.display(),
            self.writable,
            self.queues
        ));
        let process = Process::start(command, Some(&directory.path().join("log")));
        Qsd {
            process,
            socket,
            image,
            _directory: directory,
        }
    }
}

/// qemu-storage-daemon at work.
#[derive(Debug)]
pub struct Qsd {
    process: Process,
    socket: PathBuf,
    image: PathBuf,
    _directory: TempDir,
}

impl Qsd {
    /// Serves an empty image of this size ("1M") with one queue, writable. (The methods of
    /// [`QsdOptions`] change that.)
    pub fn serving(size: &str) -> QsdOptions {
        QsdOptions {
            size: crate::units::bytes(size),
            queues: 1,
            writable: "on",
            throttle: None,
            image: None,
        }
    }

    /// The first bytes of the image.
    pub fn read(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        let file = File::open(&self.image).expect("the image");
        file.read_exact_at(&mut data, 0)
            .expect("the image is long enough");
        data
    }

    /// Writes the first bytes of the image.
    pub fn write(&self, data: &[u8]) {
        File::options()
            .write(true)
            .open(&self.image)
            .and_then(|file| file.write_all_at(data, 0))
            .expect("the image");
    }

    /// The image.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// How many front-ends are connected, one at most: then it has other sockets than the one that it listens on.
    pub fn connected(&self) -> usize {
        let descriptors = format!("/proc/{}/fd", self.process.id());
        let descriptors = fs::read_dir(descriptors).expect("its descriptors");
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let sockets = targets.filter(|target| target.to_string_lossy().starts_with("socket:"));
        usize::from(sockets.count() > 1)
    }
}

impl Listener for Qsd {
    fn socket(&self) -> &Path {
        &self.socket
    }
}

/// virtiofsd at work.
#[derive(Debug)]
pub struct Virtiofsd {
    process: Process,
    socket: PathBuf,
    shared: PathBuf,
    _directory: TempDir,
}

/// virtiofsd, yet to be started.
#[derive(Debug)]
pub struct VirtiofsdOptions {
    kind: Kind,
    arguments: Vec<String>,
    shared: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Rust,
    C,
}

impl VirtiofsdOptions {
    /// Shares this directory instead of a new one.
    pub fn sharing(mut self, shared: &Path) -> Self {
        self.shared = Some(shared.to_owned());
        self
    }

    /// One more word on its command line.
    pub fn arg(mut self, word: &str) -> Self {
        self.arguments.push(word.to_owned());
        self
    }

    /// Starts it.
    pub fn start(self) -> Virtiofsd {
        let directory = TempDir::new().expect("a temporary directory");
        let socket = directory.path().join("fs.sock");
        let shared = self.shared.unwrap_or_else(|| {
            let shared = directory.path().join("shared");
            fs::create_dir(&shared).expect("a directory to share");
            shared
        });
        let mut command = match self.kind {
            Kind::Rust => Command::new(tool("FERRY_VIRTIOFSD", "virtiofsd")),
            Kind::C => Command::new(tool("FERRY_OLD_VIRTIOFSD", "old-virtiofsd")),
        };
        command.arg(format!("--socket-path={}", socket.display()));
        let directory_to_share = shared.display();
        match self.kind {
            Kind::Rust => command
                .arg(format!("--shared-dir={directory_to_share}"))
                .args(["--sandbox", "none"]),
            Kind::C => command
                .arg("-o")
                .arg(format!("source={directory_to_share},sandbox=chroot")),
        };
        command.args(self.arguments);
        let process = Process::start(command, Some(&directory.path().join("log")));
        Virtiofsd {
            process,
            socket,
            shared,
            _directory: directory,
        }
    }
}

impl Virtiofsd {
    /// Starts it with an empty directory.
    pub fn start() -> Self {
        Self::options().start()
    }

    /// The one that is written in Rust.
    pub fn options() -> VirtiofsdOptions {
        VirtiofsdOptions {
            kind: Kind::Rust,
            arguments: Vec::new(),
            shared: None,
        }
    }

    /// QEMU's own, of before: it cannot hand its state over.
    pub fn old() -> VirtiofsdOptions {
        VirtiofsdOptions {
            kind: Kind::C,
            ..Self::options()
        }
    }

    /// The shared directory.
    pub fn shared(&self) -> &Path {
        &self.shared
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Listener for Virtiofsd {
    fn socket(&self) -> &Path {
        &self.socket
    }
}
