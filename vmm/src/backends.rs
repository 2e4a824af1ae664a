//! From the user's configuration to what the vhost-user front-end is told.

use ferry_api::config::{Timeouts, VmConfig};
use ferry_devices::vhost_user::{BackendSpec, Limits};

/// What every device's worker needs to know, in the order in which devices come on the bus.
pub fn specs(_config: &VmConfig) -> Vec<BackendSpec> {
    Vec::new()
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
