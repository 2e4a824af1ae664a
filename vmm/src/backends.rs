//! From the user's configuration to what the vhost-user front-end is told.

use ferry_api::config::{
    BackendConfig, DiskConfig, FsConfig, GenericConfig, StateConfig, Timeouts, VmConfig,
};
use ferry_devices::vhost_user::{
    Access, BackendSpec, BackendState, Blk, Fs, Generic, Limits, Profile,
};

/// What every device's worker needs to know, in the order in which devices come on the bus.
pub fn specs(config: &VmConfig) -> Vec<BackendSpec> {
    let disks = config.disks.iter().map(disk);
    let shares = config.fs.iter().map(share);
    let others = config.vhost_user.iter().map(generic);
    disks.chain(shares).chain(others).collect()
}

/// How long workers wait for their back-ends.
pub fn limits(timeouts: &Timeouts) -> Limits {
    let &Timeouts {
        connect,
        request,
        dead,
    } = timeouts;
    Limits {
        connect,
        request,
        dead,
    }
}

fn disk(disk: &DiskConfig) -> BackendSpec {
    let access = match disk.readonly {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    spec(&disk.backend, Profile::Blk(Blk { access }))
}

fn share(share: &FsConfig) -> BackendSpec {
    let tag = share.tag.clone();
    spec(&share.backend, Profile::Fs(Fs { tag }))
}

fn generic(device: &GenericConfig) -> BackendSpec {
    let state = match device.state {
        StateConfig::None => BackendState::None,
        StateConfig::Required => BackendState::Required,
        StateConfig::Unspecified => BackendState::Unspecified,
    };
    let generic = Generic {
        device_type: device.device_type,
        state,
        drain: device.drain.clone(),
        config: device.config.clone(),
    };
    spec(&device.backend, Profile::Generic(generic))
}

fn spec(backend: &BackendConfig, profile: Profile) -> BackendSpec {
    BackendSpec {
        id: backend.id.clone(),
        socket: backend.socket.clone(),
        num_queues: backend.num_queues,
        queue_size: backend.queue_size,
        profile,
    }
}
