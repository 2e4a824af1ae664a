//! With the real qemu-storage-daemon.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::harness::{
    Event, HANG, HIGH, LOW, Observer, Report, TestRam, Transport, failure, next, program, started,
};
use super::ring::{Buffer, BufferAccess, Ring};
use crate::vhost_user::{
    Access, BackendSpec, Blk, DeviceState, Limits, Profile, VhostUserDevice, chain,
};
use crate::virtio::{Activation, ActivationFailed, VirtioDevice};

const IMAGE_SIZE: u64 = 8 << 20;

/// How fast the disk is.
#[derive(Clone, Copy)]
enum Speed {
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
struct StorageDaemon {
    child: Child,
    directory: TempDir,
}

impl StorageDaemon {
    fn start(queues: u16, speed: Speed) -> Self {
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

    fn socket(&self) -> PathBuf {
        self.directory.path().join("blk.sock")
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("disk.img")).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the process or lets it go on.
    fn signal(&self, signal: libc::c_int) {
        let pid = self.child.id() as libc::pid_t;
        // SAFETY: kill() takes no pointers; the child has not been waited for, so the pid is its.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn resize(&self, size: u64) {
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

fn spec(socket: &Path, num_queues: u16) -> BackendSpec {
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

struct Running {
    device: Arc<VhostUserDevice>,
    reports: Receiver<Report>,
    events: Receiver<Event>,
}

fn start(spec: BackendSpec, limits: Limits, ram: &TestRam) -> Running {
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
    fn activate(&self, rings: &[&Ring<'_>]) {
        self.device.activate(Activation {
            features: self.device.features() & !(1 << 29),
            queues: rings.iter().map(|ring| ring.queue.clone()).collect(),
        });
        assert_eq!(next(&self.events), Event::Activated(Ok(())));
        assert_eq!(self.device.state(), DeviceState::Active);
    }

    fn reset(&self) {
        self.device.reset();
        assert_eq!(next(&self.events), Event::ResetDone);
        assert_eq!(self.device.state(), DeviceState::Idle);
    }
}

const READ: u32 = 0;
const WRITE: u32 = 1;

/// Places of one request's header, data and status in guest RAM. Data lies above the hole.
struct Places {
    head: u16,
    header: u64,
    data: u64,
    status: u64,
}

fn places(slot: u16) -> Places {
    let offset = u64::from(slot) * 0x1000;
    Places {
        head: slot * 3,
        header: LOW + 0x10_0000 + offset,
        data: HIGH + 0x10_0000 + offset,
        status: LOW + 0x10_0800 + offset,
    }
}

/// Publishes a request for one sector.
fn submit(ring: &mut Ring<'_>, ram: &TestRam, slot: u16, kind: u32, sector: u64) {
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

fn write_sector(ring: &mut Ring<'_>, ram: &TestRam, sector: u64, fill: u8) {
    ram.write(places(0).data, &[fill; 512]);
    submit(ring, ram, 0, WRITE, sector);
    ring.kick();
    ring.wait();
    assert_eq!(ram.read(places(0).status, 1), [0]);
}

fn read_sector(ring: &mut Ring<'_>, ram: &TestRam, sector: u64) -> Vec<u8> {
    ram.write(places(1).data, &[0xee; 512]);
    submit(ring, ram, 1, READ, sector);
    ring.kick();
    ring.wait();
    assert_eq!(ram.read(places(1).status, 1), [0]);
    ram.read(places(1).data, 512)
}

#[test]
fn a_disk_works_before_and_after_a_reset() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut sectors = [0; 8];
    disk.device.read_config(0, &mut sectors);
    assert_eq!(u64::from_le_bytes(sectors), IMAGE_SIZE / 512);

    let mut ring = Ring::new(&ram, 0, LOW);
    // As the Linux driver does when it finds a device.
    disk.reset();
    for round in 1..=3u8 {
        ring.clear();
        disk.activate(&[&ring]);
        write_sector(&mut ring, &ram, 7, round);
        assert_eq!(read_sector(&mut ring, &ram, 7), [round; 512]);
        disk.reset();
    }
    assert_eq!(daemon.image()[7 * 512..8 * 512], [3; 512]);
}

#[test]
fn a_back_end_that_dies_fails_the_device_once() {
    let mut daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    daemon.kill();
    let error = failure(&disk.reports);
    assert!(chain(&error).contains("disk0"), "{}", chain(&error));
    assert!(chain(&error).contains("closed"), "{}", chain(&error));
    assert_eq!(next(&disk.events), Event::Failed);
    assert_eq!(disk.device.state(), DeviceState::Failed);

    disk.device.reset();
    assert_eq!(next(&disk.events), Event::ResetDone);
    disk.device.activate(Activation {
        features: disk.device.features(),
        queues: vec![ring.queue.clone()],
    });
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    assert!(disk.reports.try_recv().is_err());
}

#[test]
fn two_queues_work_and_three_are_too_many() {
    let daemon = StorageDaemon::start(2, Speed::Full);
    let ram = TestRam::new();
    {
        let (observer, reports) = Observer::new();
        VhostUserDevice::start(
            spec(&daemon.socket(), 3),
            Limits::default(),
            Arc::clone(&ram.regions),
            observer,
        )
        .unwrap();
        let error = started(&reports).unwrap_err();
        assert!(!error.is_unreachable());
        assert!(chain(&error).contains("2 queues"), "{}", chain(&error));
    }
    let disk = start(spec(&daemon.socket(), 2), Limits::default(), &ram);
    let mut first = Ring::new(&ram, 0, LOW);
    let mut second = Ring::new(&ram, 1, HIGH);
    disk.activate(&[&first, &second]);
    write_sector(&mut first, &ram, 1, 0x11);
    assert_eq!(read_sector(&mut second, &ram, 1), [0x11; 512]);
}

#[test]
fn a_reset_takes_requests_along_that_nobody_announced() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    ram.write(places(0).data, &[0x5a; 512]);
    // Published, but the vCPU got no further.
    for sector in 0..4 {
        submit(&mut ring, &ram, 0, WRITE, sector);
    }
    disk.reset();
    assert_eq!(ring.used_index(), 4);
}

#[test]
fn a_reset_with_requests_in_flight_waits_for_them() {
    let daemon = StorageDaemon::start(1, Speed::Throttled(4));
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    for slot in 0..5 {
        submit(&mut ring, &ram, slot, WRITE, u64::from(slot));
    }
    ring.kick();
    disk.reset();
    assert_eq!(ring.used_index(), 5);
    for slot in 0..5 {
        assert_eq!(ram.read(places(slot).status, 1), [0]);
    }
    // The daemon has not been hurt by it.
    ring.clear();
    disk.activate(&[&ring]);
    write_sector(&mut ring, &ram, 9, 0x99);
}

#[test]
fn a_resized_image_reaches_the_guest() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    daemon.resize(2 * IMAGE_SIZE);
    assert_eq!(next(&disk.events), Event::ConfigChanged);
    let mut sectors = [0; 8];
    disk.device.read_config(0, &mut sectors);
    assert_eq!(u64::from_le_bytes(sectors), 2 * IMAGE_SIZE / 512);
}

#[test]
fn a_socket_without_a_listener_is_tried_and_then_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let ram = TestRam::new();
    let limits = Limits {
        connect: Duration::from_millis(100),
        ..Limits::default()
    };
    let (observer, reports) = Observer::new();
    let socket = directory.path().join("nobody.sock");
    VhostUserDevice::start(spec(&socket, 1), limits, Arc::clone(&ram.regions), observer).unwrap();
    let error = started(&reports).unwrap_err();
    assert!(error.is_unreachable(), "{}", chain(&error));
}

#[test]
fn dropping_the_device_closes_the_connection() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    // The daemon serves one client at a time: the second is served only when the first has gone.
    let first = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    drop(first.device);
    let began = Instant::now();
    let _second = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    assert!(began.elapsed() < HANG);
}

#[test]
fn ram_in_many_regions_is_told_slot_by_slot() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::in_many_regions();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    assert!(disk.device.negotiated().memory_slots.unwrap() >= ram.regions.len() as u64);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    write_sector(&mut ring, &ram, 3, 0x33);
    assert_eq!(read_sector(&mut ring, &ram, 3), [0x33; 512]);
}

#[test]
fn a_daemon_that_stands_still_is_slow_and_then_dead() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let limits = Limits {
        request: Duration::from_millis(500),
        dead: Duration::from_secs(4),
        ..Limits::default()
    };
    let disk = start(spec(&daemon.socket(), 1), limits, &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    let activation = Activation {
        features: disk.device.features() & !(1 << 29),
        queues: vec![ring.queue.clone()],
    };

    daemon.signal(libc::SIGSTOP);
    disk.device.activate(activation.clone());
    assert!(disk.events.recv_timeout(limits.request * 3 / 2).is_err());
    daemon.signal(libc::SIGCONT);
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    write_sector(&mut ring, &ram, 5, 0x55);
    disk.reset();

    daemon.signal(libc::SIGSTOP);
    disk.device.activate(activation);
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    let line = chain(&failure(&disk.reports));
    assert!(line.contains("taken for dead"), "{line}");
    assert_eq!(disk.device.state(), DeviceState::Failed);
}
