//! A sender whose words arrive as they were meant, and are not true: it has overheard what a Ferry says of a guest, and says something else.

use ferry_tests::{Answer, Guest, Receive, Send};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_migration::Unwatched;
use vm_migration::link::{Error, FRAME_DATA_MOST, Kind, Last, Link, Message, Purpose, StreamId};
use vm_migration::pages::end_main;
use vm_migration::stream::{Label, StreamReader, StreamWriter, decode, encode};

use crate::common::has_bounds;
use crate::peer::{MIGRATE, accept, answer, dial, listener};

/// What is said of a guest beforehand, as it is encoded.
#[derive(Clone)]
pub struct Description {
    pub config: Value,
    /// By processor, what it says of itself: KVM's entries.
    pub cpuids: Vec<Vec<Vec<u8>>>,
    pub tsc_khz: Option<u32>,
    pub devices: Vec<Device>,
    pub arrival: u8,
}

/// What is said of a device, in the order in which it is said.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Device {
    pub id: String,
    pub virtio_type: u32,
    pub config: Vec<u8>,
    pub queues: u16,
    pub features: u64,
    pub protocol_features: u64,
}

impl Description {
    fn read(bytes: &[u8]) -> Self {
        let (config, cpuids, tsc_khz, devices, arrival): (String, _, _, _, _) =
            decode(bytes).unwrap();
        Description {
            config: serde_json::from_str(&config).unwrap(),
            cpuids,
            tsc_khz,
            devices,
            arrival,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let Description {
            config,
            cpuids,
            tsc_khz,
            devices,
            arrival,
        } = self;
        encode(&(config.to_string(), cpuids, tsc_khz, devices, arrival)).unwrap()
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Vec<u8> {
        change(&mut self);
        self.bytes()
    }
}

/// The sections of a machine's state.
pub type State = Vec<(Label, Vec<u8>)>;

fn read_state(bytes: &[u8]) -> State {
    let mut stream = StreamReader::new(bytes).unwrap();
    let mut state = Vec::new();
    while let Some(mut section) = stream.next_section().unwrap() {
        let label = section.label().clone();
        state.push((label, section.read_all(bytes.len()).unwrap()));
        section.finish().unwrap();
    }
    state
}

pub fn stream(state: &State, attempt: StreamId) -> Vec<u8> {
    let mut stream = StreamWriter::new(Vec::new(), attempt).unwrap();
    for (label, data) in state {
        let mut section = stream.begin(label.clone()).unwrap();
        section.append(data).unwrap();
        section.finish().unwrap();
    }
    stream.finish().unwrap().0
}

/// A guest that runs, what its Ferry has said of it to somebody, and a receiver that is told something else.
pub struct Liar {
    guest: Guest,
    there: Guest,
    url: String,
    receive: Receive,
    /// What the guest says when it goes on.
    sign: &'static str,
    pub description: Description,
    pub state: State,
}

impl Liar {
    /// A receiver that is told of this guest, which says `sign` now and then. `receive` adds to what it is asked for.
    pub fn about(
        mut guest: Guest,
        sign: &'static str,
        there: Guest,
        receive: impl FnOnce(Receive) -> Receive,
    ) -> Self {
        let own = guest.unix_url();
        let mut listener = listener(&own);
        guest.send(&Send::to(&own).connections(1));
        let (description, state) = hear_out(accept(&mut listener));
        guest.wait_for_failure(&[]);
        guest.goes_on(sign);
        let url = guest.unix_url();
        Liar {
            receive: receive(Receive::at(&url)),
            there,
            url,
            sign,
            description: Description::read(&description),
            state: read_state(&state),
            guest,
        }
    }

    /// Has somebody speak to the receiver: what it heard from there, and what became of the attempt. There is no guest.
    pub fn speaks(
        &mut self,
        purpose: Purpose,
        speak: impl FnOnce(&mut Link) -> Result<(), Error>,
    ) -> (Result<(), Error>, Answer) {
        let received = self.there.listen(&self.receive);
        let attempt = StreamId::draw().unwrap();
        let mut link = dial(&self.url, attempt, purpose).unwrap();
        let spoken = speak(&mut link);
        drop(link);
        let answer = received.answer();
        assert!(self.there.api().get("vm.info").is_err(), "{answer:?}");
        has_bounds(&self.there);
        (spoken, answer)
    }

    /// The same, and nobody is believed: the reason is said here and there.
    pub fn is_refused(
        &mut self,
        purpose: Purpose,
        reason: &str,
        speak: impl FnOnce(&mut Link) -> Result<(), Error>,
    ) {
        let (spoken, answer) = self.speaks(purpose, speak);
        let told = ferry_api::chain(&spoken.expect_err(reason)).join(": ");
        let said = answer.expect_err(reason).join(": ");
        for text in [told, said, self.last_event()] {
            assert!(text.contains(reason), "no '{reason}' in: {text}");
            assert!(text.len() < 4000, "{} bytes: {text}", text.len());
        }
    }

    /// Why the last attempt has failed.
    fn last_event(&self) -> String {
        let events = self.there.whole_events();
        let last = events.iter().rfind(|it| it["event"] == "receive-failed");
        last.expect("an event")["properties"]["reason"].to_string()
    }

    pub fn lies_about_its_guest(&mut self, reason: &str, description: &[u8]) {
        self.is_refused(MIGRATE, reason, |link| {
            describe(link, description)?;
            link.receive(&Unwatched).map(drop)
        });
    }

    pub fn lies_about_its_state(&mut self, reason: &str, state: impl FnOnce(StreamId) -> Vec<u8>) {
        let description = self.description.bytes();
        self.is_refused(MIGRATE, reason, |link| save(link, &description, state));
    }

    /// The guest is where it was, and then goes there.
    pub fn ends_well(mut self) {
        self.guest.goes_on(self.sign);
        let received = self.there.listen(&self.receive);
        self.guest.send(&Send::to(&self.url));
        received.answer().expect("a guest");
        self.guest.departed();
        self.there.goes_on(self.sign);
    }
}

/// Takes a guest's description and state, and nothing else.
fn hear_out(mut link: Link) -> (Vec<u8>, Vec<u8>) {
    let (mut description, mut state) = (Vec::new(), Vec::new());
    loop {
        match link.receive(&Unwatched).unwrap() {
            Message::Describe { piece, last } => {
                description.extend_from_slice(piece);
                if last == Last::Yes {
                    link.send(&Message::Prepared, &Unwatched).unwrap();
                }
            }
            Message::State(piece) => state.extend_from_slice(piece),
            Message::StateEnd => return (description, state),
            message => {
                let kind = message.kind();
                answer(&mut link, kind);
            }
        }
    }
}

pub fn describe(link: &mut Link, description: &[u8]) -> Result<(), Error> {
    let pieces = description.chunks(FRAME_DATA_MOST);
    let count = pieces.len();
    for (piece, number) in pieces.zip(1..) {
        let last = if number == count { Last::Yes } else { Last::No };
        link.send(&Message::Describe { piece, last }, &Unwatched)?;
    }
    Ok(())
}

/// Sends all of a guest but its RAM, and waits until the receiver is ready.
pub fn save(
    link: &mut Link,
    description: &[u8],
    state: impl FnOnce(StreamId) -> Vec<u8>,
) -> Result<(), Error> {
    describe(link, description)?;
    while link.receive(&Unwatched)?.kind() != Kind::Prepared {}
    for piece in state(link.attempt()).chunks(FRAME_DATA_MOST) {
        link.send(&Message::State(piece), &Unwatched)?;
    }
    link.send(&Message::StateEnd, &Unwatched)?;
    end_main(std::slice::from_mut(link), &Unwatched)?;
    let ready = link.receive(&Unwatched)?.kind();
    assert_eq!(ready, Kind::Ready);
    Ok(())
}
