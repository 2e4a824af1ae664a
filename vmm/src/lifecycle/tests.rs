//! What the tests of this folder share.

use std::path::PathBuf;

use ferry_api::config::{
    BackendConfig, CpusConfig, DiskConfig, FsConfig, MemoryConfig, PayloadConfig, SerialConfig,
    VmConfig,
};
use ferry_api::control::Request;
use ferry_api::migration::{MigrationUrl, Openness, ReceiveRequest, SendRequest};
use ferry_api::snapshot::{After, MemoryMode, PauseBy, RestoreRequest, SnapshotRequest, Start};

fn backend(id: &str) -> BackendConfig {
    BackendConfig {
        id: id.into(),
        socket: PathBuf::from("/nowhere"),
        num_queues: 1,
        queue_size: 128,
    }
}

fn disk(id: &str) -> DiskConfig {
    DiskConfig {
        backend: backend(id),
        readonly: false,
    }
}

fn share(id: &str) -> FsConfig {
    FsConfig {
        backend: backend(id),
        tag: "share".into(),
    }
}

fn config() -> VmConfig {
    VmConfig {
        payload: PayloadConfig {
            kernel: PathBuf::from("/nowhere"),
            initramfs: None,
            cmdline: String::new(),
        },
        cpus: CpusConfig {
            boot_vcpus: 1,
            max_vcpus: 1,
        },
        memory: MemoryConfig {
            size: 64 << 20,
            shared: true,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
        },
        disks: Vec::new(),
        fs: Vec::new(),
        vhost_user: Vec::new(),
        serial: SerialConfig::Off,
    }
}

/// One of each.
pub fn requests() -> Vec<Request> {
    vec![
        Request::Create(Box::new(config())),
        Request::Boot,
        Request::Info,
        Request::Counters,
        Request::Pause,
        Request::Resume,
        Request::Shutdown,
        Request::Reboot,
        Request::PowerButton,
        Request::Delete,
        Request::AddDisk(Box::new(disk("disk0"))),
        Request::AddFs(Box::new(share("fs0"))),
        Request::RemoveDevice("disk0".into()),
        Request::Snapshot(Box::new(SnapshotRequest {
            destination: PathBuf::from("/nowhere"),
            pause: PauseBy::Ferry,
            after: After::AsBefore,
            hold: None,
            prepare: SnapshotRequest::PREPARE,
            state_most: SnapshotRequest::STATE_MOST,
        })),
        Request::Restore(Box::new(RestoreRequest {
            source: PathBuf::from("/nowhere"),
            memory: MemoryMode::Copy,
            start: Start::Paused,
            sockets: Default::default(),
            serial: None,
        })),
        Request::Progress,
        Request::Cancel,
        Request::ReleaseHold,
        Request::SendMigration(Box::new(SendRequest::to(MigrationUrl::Unix(
            "/nowhere".into(),
        )))),
        Request::ReceiveMigration(Box::new(ReceiveRequest {
            receiver: MigrationUrl::Unix("/nowhere".into()),
            sockets: Default::default(),
            serial: None,
            tls: None,
            openness: Openness::Loopback,
            state_most: SnapshotRequest::STATE_MOST,
        })),
        Request::Migration,
        Request::CancelMigration,
        Request::ReclaimMigration,
        Request::ShutdownVmm,
    ]
}
