//! qemu-storage-daemon, a device behind it, and requests for that.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tempfile::TempDir;

use super::harness::{
    Event, HANG, HIGH, LOW, Observer, Report, TestRam, Transport, next, program, started,
};
use super::ring::{Buffer, BufferAccess, Ring};
use crate::chain;
use crate::vhost_user::{Access, BackendSpec, Blk, DeviceState, Limits, Profile, VhostUserDevice};
use crate::virtio::{Activation, VirtioDevice};

pub const IMAGE_SIZE: u64 = 8 << 20;

/// How fast the disk is.
#[derive(Clone, Copy)]
pub enum Speed {
    Full,
    /// Requests a second.
    Throttled(u32),
}

impl Speed {
    fn objects(self) -> Vec<String> {
        match self {
            Speed::Full => Vec::new(),
            Speed::Throttled(rate) => vec![
                "--object".into(),
                format!("throttle-group,id=group,x-iops-total={rate},x-iops-total-max={rate}"),
            ],
        }
    }

    fn top_node(self) -> &'static str {
        match self {
            Speed::Full => "driver=raw,node-name=disk,file=file",
            Speed::Throttled(_) => "driver=throttle,node-name=disk,throttle-group=group,file=file",
        }
    }
}

/// A running qemu-storage-daemon, ended when dropped.
pub struct StorageDaemon {
    child: Child,
    directory: TempDir,
}

impl StorageDaemon {
    pub fn start(queues: u16, speed: Speed) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        File::create(path("disk.img"))
            .unwrap()
            .set_len(IMAGE_SIZE)
            .unwrap();
        let mut command = Command::new(program("FERRY_QSD", "qemu-storage-daemon"));
        command.args(speed.objects());
        let child = command
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=file,filename={}",
                path("disk.img").display()
            ))
            .arg("--blockdev")
            .arg(speed.top_node())
            .arg("--chardev")
            .arg(format!(
                "socket,id=qmp,path={},server=on,wait=off",
                path("qmp.sock").display()
            ))
            .arg("--monitor")
            .arg("chardev=qmp")
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues={queues}",
                path("blk.sock").display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon (or FERRY_QSD) is needed; `cargo xtask test` provides it");
        StorageDaemon { child, directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("blk.sock")
    }

    pub fn image(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("disk.img")).unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the process or lets it go on.
    pub fn signal(&self, signal: libc::c_int) {
        super::harness::signal(self.child.id(), signal);
    }

    pub fn resize(&self, size: u64) {
        let stream = UnixStream::connect(self.directory.path().join("qmp.sock")).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut ask = |command: String| {
            (&stream).write_all(command.as_bytes()).unwrap();
            loop {
                let line = lines.next().unwrap().unwrap();
                assert!(!line.contains("\"error\""), "{line}");
                if line.contains("\"return\"") {
                    break;
                }
            }
        };
        ask("{\"execute\":\"qmp_capabilities\"}".into());
        ask(format!(
            "{{\"execute\":\"block_resize\",\"arguments\":{{\"node-name\":\"disk\",\"size\":{size}}}}}"
        ));
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn spec(socket: &Path, num_queues: u16) -> BackendSpec {
    BackendSpec {
        id: "disk0".into(),
        socket: socket.to_owned(),
        num_queues,
        queue_size: 128,
        profile: Profile::Blk(Blk {
            access: Access::ReadWrite,
        }),
    }
}

pub struct Running {
    pub device: Arc<VhostUserDevice>,
    pub reports: Receiver<Report>,
    pub events: Receiver<Event>,
}

pub fn start(spec: BackendSpec, limits: Limits, ram: &TestRam) -> Running {
    // The daemon may take long to start on a busy machine.
    let limits = Limits {
        connect: HANG,
        ..limits
    };
    let (observer, reports) = Observer::new();
    VhostUserDevice::start(spec, limits, Arc::clone(&ram.regions), observer).unwrap();
    let device = match started(&reports) {
        Ok(device) => device,
        Err(error) => panic!("{}", chain(&error)),
    };
    let (transport, events) = Transport::new();
    device.attach(transport);
    Running {
        device,
        reports,
        events,
    }
}

impl Running {
    pub fn activate(&self, rings: &[&Ring<'_>]) {
        self.device.activate(Activation {
            features: self.device.features() & !(1 << 29),
            queues: rings.iter().map(|ring| ring.queue.clone()).collect(),
        });
        assert_eq!(next(&self.events), Event::Activated(Ok(())));
        assert_eq!(self.device.state(), DeviceState::Active);
    }

    pub fn reset(&self) {
        self.device.reset();
        assert_eq!(next(&self.events), Event::ResetDone);
        assert_eq!(self.device.state(), DeviceState::Idle);
    }
}

pub const READ: u32 = 0;
pub const WRITE: u32 = 1;

/// Places of one request's header, data and status in guest RAM. Data lies above the hole.
pub struct Places {
    pub head: u16,
    pub header: u64,
    pub data: u64,
    pub status: u64,
}

pub fn places(slot: u16) -> Places {
    let offset = u64::from(slot) * 0x1000;
    Places {
        head: slot * 3,
        header: LOW + 0x10_0000 + offset,
        data: HIGH + 0x10_0000 + offset,
        status: LOW + 0x10_0800 + offset,
    }
}

/// Publishes a request for one sector.
pub fn submit(ring: &mut Ring<'_>, ram: &TestRam, slot: u16, kind: u32, sector: u64) {
    let places = places(slot);
    let mut header = kind.to_le_bytes().to_vec();
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&sector.to_le_bytes());
    ram.write(places.header, &header);
    ram.write(places.status, &[0xff]);
    let data_access = match kind {
        READ => BufferAccess::DeviceWrites,
        _ => BufferAccess::DeviceReads,
    };
    let buffer = |address, length, access| Buffer {
        address,
        length,
        access,
    };
    ring.publish(
        places.head,
        &[
            buffer(places.header, 16, BufferAccess::DeviceReads),
            buffer(places.data, 512, data_access),
            buffer(places.status, 1, BufferAccess::DeviceWrites),
        ],
    );
}

pub fn write_sector(ring: &mut Ring<'_>, ram: &TestRam, sector: u64, fill: u8) {
    ram.write(places(0).data, &[fill; 512]);
    submit(ring, ram, 0, WRITE, sector);
    ring.kick();
    ring.wait();
    assert_eq!(ram.read(places(0).status, 1), [0]);
}

pub fn read_sector(ring: &mut Ring<'_>, ram: &TestRam, sector: u64) -> Vec<u8> {
    ram.write(places(1).data, &[0xee; 512]);
    submit(ring, ram, 1, READ, sector);
    ring.kick();
    ring.wait();
    assert_eq!(ram.read(places(1).status, 1), [0]);
    ram.read(places(1).data, 512)
}
