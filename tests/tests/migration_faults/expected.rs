//! What may come of a row.

use ferry_tests::fault_proxy::{Place, When};
use vm_migration::link::Kind;

use crate::scenario::Left;
use crate::table::{At, Devices, Fault, Owner, Row};

/// Where the guest may be in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Source,
    Destination,
    /// One of them has it: both could.
    Either,
    /// The destination's owner is gone, and nobody says whether it had started the guest.
    Unconfirmed,
    /// The same, or the source had given it up, or heard of the end.
    SourceOrUnconfirmed,
    UnconfirmedOrNobody,
    /// Anything but two.
    AtMostOne,
    /// The source is gone, and the destination had it already, or not yet.
    DestinationOrNobody,
    Nobody,
}

impl Expected {
    pub fn allows(self, left: Left) -> bool {
        match self {
            Expected::Source => left == Left::Source,
            Expected::Destination => left == Left::Destination,
            Expected::Either => matches!(left, Left::Source | Left::Destination),
            Expected::Unconfirmed => left == Left::Unconfirmed,
            Expected::SourceOrUnconfirmed => matches!(left, Left::Source | Left::Unconfirmed),
            Expected::UnconfirmedOrNobody => matches!(left, Left::Unconfirmed | Left::Nobody),
            Expected::AtMostOne => true,
            Expected::DestinationOrNobody => matches!(left, Left::Destination | Left::Nobody),
            Expected::Nobody => left == Left::Nobody,
        }
    }
}

/// What may come of a row.
pub fn expected(row: &Row) -> Expected {
    if is_at(row, Kind::Outcome) {
        // The receiver has not got the commit, and the source is told so.
        return match row.fault {
            Fault::KillSource => Expected::Nobody,
            _ => Expected::Source,
        };
    }
    match (row.fault, row.owner) {
        // The proxy passes on what was sent before.
        (
            Fault::KillDestination | Fault::StopDestinationForGood | Fault::TerminateDestination,
            Owner::Source,
        ) if is_at(row, Kind::Ready) => match row.fault {
            Fault::TerminateDestination => Expected::AtMostOne,
            _ => Expected::SourceOrUnconfirmed,
        },
        (Fault::KillSource | Fault::StopSourceForGood, owner) => killed_source(owner),
        (Fault::KillDestination | Fault::StopDestinationForGood, owner) => {
            killed_destination(owner)
        }
        (Fault::TerminateDestination | Fault::DeleteDestination, Owner::Source) => Expected::Source,
        (Fault::TerminateDestination | Fault::DeleteDestination, _) => Expected::AtMostOne,
        // They only take time, maybe too much of it.
        (
            Fault::StopSource
            | Fault::StopDestination
            | Fault::HangSourceDisk
            | Fault::HangDestinationDisk,
            Owner::Source | Owner::Giving | Owner::Nobody,
        ) => Expected::Either,
        (Fault::KillSourceDisk, Owner::Source) if is_needed(row) => Expected::Source,
        // The guest has left it when that is noticed.
        (Fault::KillSourceDisk, Owner::Nobody) => Expected::Destination,
        (
            Fault::KillSourceDisk | Fault::HangSourceDiskForGood,
            Owner::Source | Owner::Giving | Owner::Nobody,
        ) => Expected::Either,
        (Fault::KillDestinationDisk | Fault::HangDestinationDiskForGood, Owner::Source)
            if is_noticed(row) =>
        {
            Expected::Source
        }
        (
            Fault::KillDestinationDisk | Fault::HangDestinationDiskForGood,
            Owner::Source | Owner::Giving | Owner::Nobody,
        ) => Expected::Either,
        // The sender may ask before the receiver has taken the guest.
        (Fault::StopDestination | Fault::CutOne, Owner::Taking) => Expected::Either,
        // Its end may still be noticed before the guest starts.
        (Fault::KillDestinationDisk, Owner::Taking) => Expected::Either,
        (Fault::CancelDestination, Owner::Giving | Owner::Taking) => Expected::Either,
        (Fault::CancelSource, Owner::Giving) => Expected::Either,
        (Fault::CancelSource, Owner::Nobody) => Expected::Destination,
        // No COMMIT gets there.
        (Fault::Cut | Fault::CutOne | Fault::Freeze, Owner::Giving) => Expected::Source,
        (_, Owner::Source | Owner::Nobody) => Expected::Source,
        (_, Owner::Taking | Owner::Destination | Owner::Settled) => Expected::Destination,
    }
}

fn killed_source(owner: Owner) -> Expected {
    match owner {
        Owner::Source => Expected::Nobody,
        Owner::Giving => Expected::DestinationOrNobody,
        // The proxy passes on what was sent before.
        Owner::Nobody | Owner::Taking | Owner::Destination | Owner::Settled => {
            Expected::Destination
        }
    }
}

fn killed_destination(owner: Owner) -> Expected {
    match owner {
        Owner::Source => Expected::Source,
        Owner::Giving => Expected::SourceOrUnconfirmed,
        Owner::Nobody => Expected::Unconfirmed,
        // A word that was on its way may still arrive.
        Owner::Taking | Owner::Destination | Owner::Settled => Expected::UnconfirmedOrNobody,
    }
}

fn is_at(row: &Row, kind: Kind) -> bool {
    matches!(row.at, At::Frame(place) if place.kind == kind)
}

/// The receiver speaks to its back-ends after this place.
fn is_noticed(row: &Row) -> bool {
    let after_end = |Place { when, kind, .. }| (when, kind) == (When::After, Kind::End);
    let is_after_end = matches!(row.at, At::Frame(place) if after_end(place));
    !is_after_end && !is_at(row, Kind::Ready)
}

/// The sender needs its back-ends after this place: to pause the guest, or to have their state. Later it may notice the end of
/// one in time, or not.
fn is_needed(row: &Row) -> bool {
    let At::Frame(Place { kind, .. }) = row.at else {
        return false;
    };
    match kind {
        // The first chunk of its state is more than there is room for on the way.
        Kind::State | Kind::StateEnd => row.devices == Devices::Scripted,
        Kind::Chunk | Kind::ChunkEnd | Kind::End | Kind::Ready => false,
        _ => true,
    }
}
