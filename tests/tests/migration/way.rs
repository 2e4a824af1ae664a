//! A way from a sender to a receiver on which something happens at given frames.

use ferry_tests::fault_proxy::{Act, FaultProxy, Place, When};
use tempfile::TempDir;
use vm_migration::link::Kind;

/// Where the first frame of a kind has not yet been passed on.
pub fn before(kind: Kind) -> Place {
    Place {
        when: When::Before,
        kind,
        nth: 1,
    }
}

/// A [`FaultProxy`] and both its ends.
pub struct Way {
    proxy: FaultProxy,
    sender: String,
    receiver: String,
    _directory: TempDir,
}

impl Way {
    /// What is to be done is done in its order.
    pub fn with(due: impl IntoIterator<Item = (Place, Act)>) -> Way {
        let directory = TempDir::new().expect("a temporary directory");
        let [sender, receiver] = ["sender", "receiver"].map(|name| directory.path().join(name));
        let url = |path: &std::path::Path| format!("unix:{}", path.display());
        Way {
            proxy: FaultProxy::start(&sender, &receiver, due),
            sender: url(&sender),
            receiver: url(&receiver),
            _directory: directory,
        }
    }

    /// Where a guest is to be sent to.
    pub fn sender(&self) -> &str {
        &self.sender
    }

    /// Where a guest is to be received at.
    pub fn receiver(&self) -> &str {
        &self.receiver
    }

    /// Lets everybody through again after [`Then::Cut`](ferry_tests::fault_proxy::Then::Cut).
    pub fn open(&self) {
        self.proxy.open();
    }
}
