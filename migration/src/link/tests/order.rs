//! Which message comes when.

use super::super::order::{Side, Stage};
use super::*;

/// The table of the module's documentation.
fn allowed(stage: Stage, side: Side) -> &'static [Kind] {
    use Kind::*;
    match (stage, side) {
        (Stage::Over, Side::Receiver) => &[Synced],
        (Stage::Offered | Stage::Over, _) => &[],
        (Stage::Describing, Side::Sender) => &[Alive, Failed, Describe, Handles],
        (Stage::Copying, Side::Sender) => &[
            Alive, Failed, Pages, Zeros, Round, Sync, State, StateEnd, Chunk, ChunkEnd, Handles,
        ],
        (Stage::Saving, Side::Sender) => &[
            Alive, Failed, State, StateEnd, Chunk, ChunkEnd, Handles, End,
        ],
        (Stage::Committing, Side::Sender) => &[Alive, Failed, Commit],
        (Stage::Starting, Side::Sender) => &[Alive],
        (Stage::Closing, Side::Sender) => &[Alive, Failed, Bye],
        (Stage::Joined, Side::Sender) => &[Alive, Failed, Pages, Zeros, Sync, End],
        (Stage::Preparing, Side::Receiver) => &[Alive, Failed, Handles, Prepared],
        (Stage::Copying | Stage::Saving | Stage::Joined, Side::Receiver) => {
            &[Alive, Failed, Synced]
        }
        (Stage::Loading, Side::Receiver) => &[Alive, Failed, Ready, Synced],
        (Stage::Starting, Side::Receiver) => &[Alive, Failed, Running],
        (Stage::Closing, Side::Receiver) => &[Alive],
        (Stage::Asked, Side::Receiver) => &[Alive, Failed, Outcome],
        _ => &[Alive, Failed],
    }
}

#[test]
fn nothing_comes_but_what_the_table_says() {
    for stage in Stage::ALL {
        for side in [Side::Sender, Side::Receiver] {
            for kind in Kind::ALL {
                let admitted = stage.after(side, kind, Last::No).is_some();
                let expected = allowed(stage, side).contains(&kind);
                assert_eq!(admitted, expected, "{kind} from {side:?} while {stage:?}");
            }
        }
    }
}

/// One of each kind.
fn samples() -> Vec<Message<'static>> {
    vec![
        whole(b"again"),
        Message::Pages {
            gpa: 0,
            data: &[1; 4096],
        },
        Message::Zeros {
            gpa: 0,
            bytes: 4096,
        },
        Message::Round { number: 1 },
        Message::Sync,
        Message::Synced,
        Message::State(b"x"),
        Message::StateEnd,
        Message::Chunk {
            device: 0,
            data: b"x",
        },
        Message::ChunkEnd {
            device: 0,
            total: 0,
        },
        Message::End {
            tallies: vec![Tally::default()].into(),
        },
        COMMIT,
        Message::Bye,
        Message::Prepared,
        Message::Ready,
        Message::Running {
            since: 1,
            timings: timings().into(),
        },
        Message::Outcome(Outcome::Running),
    ]
}

#[test]
fn neither_side_sends_out_of_order() {
    for message in samples() {
        let [mut sender, mut receiver] = main_pair();
        let sent = sender.send(&message, &Unwatched);
        assert_eq!(
            sent.is_ok(),
            message.kind() == Kind::Describe,
            "{message:?}"
        );
        assert!(receiver.send(&message, &Unwatched).is_err(), "{message:?}");
    }
}

#[test]
fn the_state_of_devices_is_counted() {
    let refused = |messages: &[Message<'_>]| {
        let [mut sender, _receiver] = copying_pair();
        let (last, before) = messages.split_last().unwrap();
        for message in before {
            sender.send(message, &Unwatched).unwrap();
        }
        let error = sender.send(last, &Unwatched).unwrap_err();
        assert!(
            matches!(error, Error::Protocol { .. }),
            "{messages:?}: {error}"
        );
    };
    let chunk = |device| Message::Chunk {
        device,
        data: b"abc",
    };
    let end = |device, total| Message::ChunkEnd { device, total };
    let all = || Message::End {
        tallies: vec![Tally::default()].into(),
    };
    refused(&[chunk(3), end(3, 2)]);
    refused(&[chunk(3), end(3, 3), chunk(3)]);
    refused(&[end(3, 0), end(3, 0)]);
    refused(&[chunk(DEVICES_MOST)]);
    refused(&[Message::State(b"x"), all()]);
    refused(&[Message::StateEnd, chunk(1), all()]);
    refused(&[Message::StateEnd, Message::State(b"x")]);
    refused(&[Message::StateEnd, Message::StateEnd]);
}

#[test]
fn a_description_has_a_bound() {
    let [mut sender, mut receiver] = main_pair();
    let data = vec![0; FRAME_DATA_MOST];
    let piece = Message::Describe {
        piece: &data,
        last: Last::No,
    };
    thread::scope(|scope| {
        let receiver = scope.spawn(move || while receiver.receive(&Unwatched).is_ok() {});
        for _ in 0..DESCRIPTION_MOST / FRAME_DATA_MOST as u64 {
            sender.send(&piece, &Unwatched).unwrap();
        }
        let error = sender.send(&whole(b"x"), &Unwatched).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        drop(sender);
        receiver.join().unwrap();
    });
}
