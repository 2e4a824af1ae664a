//! The table: every place on the wire, and everything that can happen there.

use std::fmt;

use ferry_tests::fault_proxy::{Place, When};
use vm_migration::link::Kind;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillSource,
    KillDestination,
    /// For longer than anybody waits.
    StopSource,
    StopDestination,
    /// The connection breaks, and for a while there is no other.
    Cut,
    /// One of several connections breaks.
    CutOne,
    /// Nothing more gets through, and nobody is told.
    Freeze,
    KillSourceDisk,
    KillDestinationDisk,
    /// For longer than anybody waits.
    HangSourceDisk,
    HangDestinationDisk,
    CancelSource,
    CancelDestination,
    DeleteDestination,
    TerminateDestination,
    /// They never go on: what comes of it has come when they are killed.
    StopSourceForGood,
    StopDestinationForGood,
    HangSourceDiskForGood,
    HangDestinationDiskForGood,
}

impl Fault {
    /// Those that happen everywhere.
    pub const ALL: [Fault; 14] = [
        Fault::KillSource,
        Fault::KillDestination,
        Fault::StopSource,
        Fault::StopDestination,
        Fault::Cut,
        Fault::Freeze,
        Fault::KillSourceDisk,
        Fault::KillDestinationDisk,
        Fault::HangSourceDisk,
        Fault::HangDestinationDisk,
        Fault::CancelSource,
        Fault::CancelDestination,
        Fault::DeleteDestination,
        Fault::TerminateDestination,
    ];

    /// Those that take as long as anybody's patience.
    const FOR_GOOD: [Fault; 4] = [
        Fault::StopSourceForGood,
        Fault::StopDestinationForGood,
        Fault::HangSourceDiskForGood,
        Fault::HangDestinationDiskForGood,
    ];

    pub fn ends_source_disk(self) -> bool {
        matches!(self, Fault::KillSourceDisk | Fault::HangSourceDiskForGood)
    }

    pub fn ends_destination_disk(self) -> bool {
        matches!(
            self,
            Fault::KillDestinationDisk | Fault::HangDestinationDiskForGood
        )
    }

    fn is_of_back_end(self) -> bool {
        matches!(
            self,
            Fault::KillSourceDisk
                | Fault::KillDestinationDisk
                | Fault::HangSourceDisk
                | Fault::HangDestinationDisk
        )
    }
}

/// Whose the guest is when something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// It has not been given up.
    Source,
    /// It is about to be given up.
    Giving,
    /// It has been given up, and the receiver does not know.
    Nobody,
    /// The receiver is about to know.
    Taking,
    /// The receiver has taken it, and the source is still to hear of that.
    Destination,
    /// The source knows.
    Settled,
}

/// What back-ends the guest has, and which of them it works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// A disk that the test drives.
    Scripted,
    /// virtiofsd, with qemu-storage-daemon beside it.
    Share,
    /// qemu-storage-daemon, with virtiofsd beside it.
    Disk,
}

/// Where something happens on the way from the source to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// On a unix socket.
    Frame(Place),
    /// Over TLS, where so many bytes have gone to the destination.
    Byte(u64),
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub devices: Devices,
    pub connections: u32,
    /// What happens first, to make the place come.
    pub before: Option<(Place, Fault)>,
    pub at: At,
    pub owner: Owner,
    pub fault: Fault,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = match self.at {
            At::Frame(Place { when, kind, nth }) => {
                let when = match when {
                    When::Before => "before",
                    When::After => "after",
                };
                match nth {
                    1 => format!("{when} {kind}"),
                    nth => format!("{when} {kind} {nth}"),
                }
            }
            At::Byte(number) => format!("TLS byte {number}"),
        };
        let devices = match self.devices {
            Devices::Scripted => "scripted",
            Devices::Share => "share",
            Devices::Disk => "disk",
        };
        let connections = self.connections;
        write!(f, "{devices:<8} {connections} {at:<17} {:?}", self.fault)
    }
}

/// The places at frames of one kind, and whose the guest is there. A kind without a place here does not compile.
fn places(kind: Kind) -> Vec<(Place, Owner)> {
    use When::{After, Before};
    let at = |when, nth, owner| (Place { when, kind, nth }, owner);
    let source = |when, nth| at(when, nth, Owner::Source);
    match kind {
        Kind::Describe => vec![source(Before, 1), source(After, 1)],
        Kind::Prepared => vec![source(Before, 1), source(After, 1)],
        Kind::Round => vec![source(Before, 1), source(After, 1)],
        Kind::Pages => vec![source(Before, 1), source(After, 2)],
        Kind::State => vec![source(Before, 1)],
        Kind::StateEnd => vec![source(Before, 1), source(After, 1)],
        Kind::Chunk => vec![source(Before, 1), source(After, 1)],
        Kind::ChunkEnd => vec![source(Before, 1)],
        Kind::End => vec![source(Before, 1), source(After, 1)],
        Kind::Ready => vec![source(Before, 1), at(After, 1, Owner::Giving)],
        Kind::Commit => vec![at(Before, 1, Owner::Nobody), at(After, 1, Owner::Taking)],
        Kind::Running => vec![
            at(Before, 1, Owner::Destination),
            at(After, 1, Owner::Settled),
        ],
        Kind::Bye => vec![at(Before, 1, Owner::Settled), at(After, 1, Owner::Settled)],
        // They come only after something else; see `rows`.
        Kind::Outcome => vec![at(Before, 1, Owner::Nobody), at(After, 1, Owner::Giving)],
        Kind::Failed => vec![source(Before, 1), source(After, 1)],
        // Pages that were written and are zero again: for everybody but the one who fills them the same as `Pages`.
        Kind::Zeros => vec![],
        Kind::Synced => vec![source(Before, 1)],
        // For everybody the same as `Pages`; who waits for its answer does so before `Synced`.
        Kind::Sync => vec![],
        // Says nothing.
        Kind::Alive => vec![],
        // Of hand-overs within a host only.
        Kind::Handles => vec![],
    }
}

/// What makes a kind come that does not come by itself.
fn before(kind: Kind) -> Option<(Place, Fault)> {
    let at = |when, kind| Place { when, kind, nth: 1 };
    match kind {
        Kind::Outcome => Some((at(When::Before, Kind::Commit), Fault::Cut)),
        Kind::Failed => Some((at(When::Before, Kind::Prepared), Fault::CancelSource)),
        _ => None,
    }
}

/// All of it: with a disk that the test drives, with virtiofsd, and, where a back-end ends or hangs, with qemu-storage-daemon.
pub fn rows() -> Vec<Row> {
    let all = [Devices::Scripted, Devices::Share, Devices::Disk];
    let mut rows: Vec<Row> = all.into_iter().flat_map(rows_with).collect();
    rows.extend(rows_over_more());
    rows.extend(rows_for_good());
    // Those that last longest come first: nothing is left to be waited for in the end.
    rows.sort_by_key(|row| row.fault != Fault::Freeze && !Fault::FOR_GOOD.contains(&row.fault));
    rows
}

/// Over two connections, and over TLS.
fn rows_over_more() -> Vec<Row> {
    let frame = |when, kind, nth| At::Frame(Place { when, kind, nth });
    let places = [
        // While the second one is made.
        (2, frame(When::After, Kind::Prepared, 1), Owner::Source),
        (2, frame(When::Before, Kind::Pages, 1), Owner::Source),
        (2, frame(When::After, Kind::Pages, 2), Owner::Source),
        (2, frame(When::Before, Kind::Synced, 1), Owner::Source),
        (2, frame(When::Before, Kind::End, 1), Owner::Source),
        (2, frame(When::Before, Kind::End, 2), Owner::Source),
        (2, frame(When::After, Kind::Ready, 1), Owner::Giving),
        (2, frame(When::Before, Kind::Commit, 1), Owner::Nobody),
        (2, frame(When::After, Kind::Commit, 1), Owner::Taking),
        // When they know each other, a good deal later, and in the midst of the disk's state, which is longer than all that.
        (1, At::Byte(10_000), Owner::Source),
        (1, At::Byte(100_000), Owner::Source),
        (1, At::Byte(800_000), Owner::Source),
        (2, At::Byte(100_000), Owner::Source),
    ];
    let faults = [
        Fault::KillSource,
        Fault::KillDestination,
        Fault::StopDestination,
        Fault::Cut,
        Fault::CutOne,
        Fault::Freeze,
        Fault::CancelSource,
    ];
    let rows = places.into_iter().flat_map(|(connections, at, owner)| {
        faults.map(|fault| Row {
            devices: Devices::Scripted,
            connections,
            before: None,
            at,
            owner,
            fault,
        })
    });
    // Of one connection it is the same as all of them.
    rows.filter(|row| {
        row.fault != Fault::CutOne || row.connections > 1 && matches!(row.at, At::Frame(_))
    })
    .collect()
}

/// Somebody is stopped and never goes on, at a place of each phase.
fn rows_for_good() -> Vec<Row> {
    use When::{After, Before};
    let places = [
        (Before, Kind::Describe, Owner::Source),
        (Before, Kind::Prepared, Owner::Source),
        (Before, Kind::Pages, Owner::Source),
        (Before, Kind::State, Owner::Source),
        (After, Kind::Chunk, Owner::Source),
        (Before, Kind::Ready, Owner::Source),
        (After, Kind::Ready, Owner::Giving),
        (Before, Kind::Commit, Owner::Nobody),
        (After, Kind::Commit, Owner::Taking),
        (Before, Kind::Running, Owner::Destination),
    ];
    let rows = places.into_iter().flat_map(|(when, kind, owner)| {
        let nth = 1;
        Fault::FOR_GOOD.map(|fault| Row {
            devices: Devices::Scripted,
            connections: 1,
            before: None,
            at: At::Frame(Place { when, kind, nth }),
            owner,
            fault,
        })
    });
    rows.collect()
}

fn rows_with(devices: Devices) -> Vec<Row> {
    let places = Kind::ALL
        .into_iter()
        .flat_map(|kind| places(kind).into_iter().map(move |it| (before(kind), it)));
    let rows = places.flat_map(|(before, (place, owner))| {
        Fault::ALL.map(|fault| Row {
            devices,
            connections: 1,
            before,
            at: At::Frame(place),
            owner,
            fault,
        })
    });
    rows.filter(|row| devices != Devices::Disk || row.fault.is_of_back_end())
        .collect()
}
