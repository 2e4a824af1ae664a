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
}

impl Fault {
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

/// What back-ends the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    Scripted,
    Real,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub devices: Devices,
    /// What happens first, to make the place come.
    pub before: Option<(Place, Fault)>,
    pub place: Place,
    pub owner: Owner,
    pub fault: Fault,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { when, kind, nth } = self.place;
        let when = match when {
            When::Before => "before",
            When::After => "after",
        };
        let place = match nth {
            1 => format!("{when} {kind}"),
            nth => format!("{when} {kind} {nth}"),
        };
        write!(f, "{place:<17} {:?}", self.fault)
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

/// With real back-ends: one place for each phase.
pub fn real_rows() -> Vec<Row> {
    let places = [
        (When::Before, Kind::Prepared),
        (When::After, Kind::Chunk),
        (When::After, Kind::End),
        (When::Before, Kind::Commit),
        (When::After, Kind::Commit),
        (When::After, Kind::Running),
    ];
    let faults = [
        Fault::KillSource,
        Fault::KillDestination,
        Fault::StopDestination,
        Fault::Cut,
        Fault::KillDestinationDisk,
        Fault::HangSourceDisk,
        Fault::CancelSource,
    ];
    let is_wanted = |row: &Row| {
        let Place { when, kind, nth } = row.place;
        row.before.is_none()
            && nth == 1
            && places.contains(&(when, kind))
            && faults.contains(&row.fault)
    };
    let rows = rows().into_iter().filter(is_wanted);
    rows.map(|row| Row {
        devices: Devices::Real,
        ..row
    })
    .collect()
}

/// All of it.
pub fn rows() -> Vec<Row> {
    let places = Kind::ALL
        .into_iter()
        .flat_map(|kind| places(kind).into_iter().map(move |it| (before(kind), it)));
    places
        .flat_map(|(before, (place, owner))| {
            Fault::ALL.map(|fault| Row {
                devices: Devices::Scripted,
                before,
                place,
                owner,
                fault,
            })
        })
        .collect()
}
