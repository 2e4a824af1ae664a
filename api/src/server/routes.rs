//! The routes that there are. The server finds its way by this table, and the OpenAPI description is made from it.

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The only method that it takes.
    pub method: Method,
    /// The whole path.
    pub path: &'static str,
    /// Which one it is.
    pub route: Route,
    /// Whether other monitors have it.
    pub origin: Origin,
    /// What it does.
    pub summary: &'static str,
}

/// The methods that routes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Asks, and changes nothing.
    Get,
    /// Does something.
    Put,
}

impl Method {
    /// As it stands in a request.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
        }
    }
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Cloud Hypervisor has it.
    Common,
    /// Ferry adds it.
    Ferry,
}

/// All routes; the table says what each is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Ping,
    ShutdownVmm,
    Create,
    Delete,
    Boot,
    Shutdown,
    Reboot,
    PowerButton,
    Pause,
    Resume,
    Info,
    Counters,
    Events,
    AddDisk,
    AddFs,
    RemoveDevice,
    Snapshot,
    Restore,
    Progress,
    Cancel,
    SnapshotRelease,
    SendMigration,
    ReceiveMigration,
    Migration,
    CancelMigration,
    ReclaimMigration,
    Metrics,
}

/// The table.
pub const ROUTES: [Entry; 27] = [
    get(
        "/api/v1/vmm.ping",
        Route::Ping,
        "Ask whether Ferry is there, and which one it is",
    ),
    put(
        "/api/v1/vmm.shutdown",
        Route::ShutdownVmm,
        "End the guest, if any, and then Ferry",
    ),
    put(
        "/api/v1/vm.create",
        Route::Create,
        "Define a virtual machine; nothing is started",
    ),
    put(
        "/api/v1/vm.delete",
        Route::Delete,
        "End the guest, close the back-ends' connections and forget the definition",
    ),
    put(
        "/api/v1/vm.boot",
        Route::Boot,
        "Start the guest that is defined; answered when it runs",
    ),
    put(
        "/api/v1/vm.shutdown",
        Route::Shutdown,
        "End the guest; definition and back-ends' connections stay",
    ),
    put(
        "/api/v1/vm.reboot",
        Route::Reboot,
        "End the guest and start it again",
    ),
    put(
        "/api/v1/vm.power-button",
        Route::PowerButton,
        "Press the guest's power button",
    ),
    put(
        "/api/v1/vm.pause",
        Route::Pause,
        "Stop the guest where it stands, and suspend its devices",
    ),
    put(
        "/api/v1/vm.resume",
        Route::Resume,
        "Let a paused guest go on",
    ),
    get(
        "/api/v1/vm.info",
        Route::Info,
        "Describe the virtual machine",
    ),
    get(
        "/api/v1/vm.counters",
        Route::Counters,
        "Report the counters, by device and name",
    ),
    ferry(
        Method::Get,
        "/api/v1/vm.events",
        Route::Events,
        "Report events after the one of a number; wait for the next one if there are none",
    ),
    put(
        "/api/v1/vm.add-disk",
        Route::AddDisk,
        "Add a disk to a machine that does not run",
    ),
    put(
        "/api/v1/vm.add-fs",
        Route::AddFs,
        "Add a shared directory to a machine that does not run",
    ),
    put(
        "/api/v1/vm.remove-device",
        Route::RemoveDevice,
        "Remove a device from a machine that does not run",
    ),
    put(
        "/api/v1/vm.snapshot",
        Route::Snapshot,
        "Save the guest and what its back-ends hold; answered when the snapshot is on disk",
    ),
    put(
        "/api/v1/vm.restore",
        Route::Restore,
        "Bring a saved guest back; there is no virtual machine yet",
    ),
    ferry(
        Method::Get,
        "/api/v1/vm.progress",
        Route::Progress,
        "Report how a snapshot or restore stands, or how the last one has ended",
    ),
    ferry(
        Method::Put,
        "/api/v1/vm.cancel",
        Route::Cancel,
        "Give the snapshot or restore up that is under way; a guest that was saved goes on",
    ),
    ferry(
        Method::Put,
        "/api/v1/vm.snapshot-release",
        Route::SnapshotRelease,
        "Go on with a snapshot that holds the guest",
    ),
    put(
        "/api/v1/vm.send-migration",
        Route::SendMigration,
        "Send the guest to another Ferry; answered when that has begun",
    ),
    put(
        "/api/v1/vm.receive-migration",
        Route::ReceiveMigration,
        "Receive a guest from another Ferry; there is no virtual machine yet",
    ),
    ferry(
        Method::Get,
        "/api/v1/vm.migration",
        Route::Migration,
        "Report how a migration stands, or how the last one has ended",
    ),
    ferry(
        Method::Put,
        "/api/v1/vm.migration-cancel",
        Route::CancelMigration,
        "Give the migration up that is under way, on either side; a guest that was to be sent goes on",
    ),
    ferry(
        Method::Put,
        "/api/v1/vm.migration-reclaim",
        Route::ReclaimMigration,
        "Take a guest back that was handed over and has certainly never run elsewhere",
    ),
    ferry(
        Method::Get,
        "/metrics",
        Route::Metrics,
        "Report all numbers in Prometheus' text format",
    ),
];

/// The route of a path.
pub fn find(path: &str) -> Option<&'static Entry> {
    ROUTES.iter().find(|entry| entry.path == path)
}

const fn get(path: &'static str, route: Route, summary: &'static str) -> Entry {
    Entry {
        method: Method::Get,
        path,
        route,
        origin: Origin::Common,
        summary,
    }
}

const fn put(path: &'static str, route: Route, summary: &'static str) -> Entry {
    Entry {
        method: Method::Put,
        path,
        route,
        origin: Origin::Common,
        summary,
    }
}

const fn ferry(method: Method, path: &'static str, route: Route, summary: &'static str) -> Entry {
    Entry {
        method,
        path,
        route,
        origin: Origin::Ferry,
        summary,
    }
}
