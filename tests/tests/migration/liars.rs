//! Lies about a guest: none is like that, or not on this host. The receiver says what is wrong, sets nothing aside for it, and takes the
//! next one.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use serde_json::{Value, json};
use vm_migration::Unwatched;
use vm_migration::link::{Purpose, StreamId};
use vm_migration::ownership::{Ownership, Process};
use vm_migration::stream::{decode, encode};

use crate::common::{BUSY_SIZE, TICK, WRITTEN, busy, heir, logging, receiver};
use crate::liar::{Description, Device, Liar, State, save, stream};
use crate::peer::{MIGRATE, waiting, waiting_receiver};

fn liar() -> Liar {
    let guest = waiting(8);
    let there = waiting_receiver(&guest, 8);
    Liar::about(guest, TICK, there, |receive| receive)
}

/// The definition with this in place of something of it.
fn config(description: &Description, pointer: &str, value: Value) -> Vec<u8> {
    description.clone().with(|it| {
        let place = it.config.pointer_mut(pointer);
        *place.expect("a field of that name") = value;
    })
}

#[test]
fn a_guest_that_cannot_be() {
    let mut liar = liar();
    let truth = liar.description.clone();
    let with = |change: fn(&mut Description)| truth.clone().with(change);
    let ram = |bytes: u64| config(&truth, "/memory/size", json!(bytes));
    let cpus = |count: u32| {
        config(
            &truth,
            "/cpus",
            json!({"boot_vcpus": count, "max_vcpus": count}),
        )
    };
    let disks = |count: u32| {
        let disk = |number| json!({"id": format!("d{number}"), "vhost_user": true, "vhost_socket": format!("/nowhere/{number}")});
        truth
            .clone()
            .with(|it| it.config["disks"] = (0..count).map(disk).collect())
    };
    let host = "this host no more than";
    let processors = "another number of processors";
    let devices = "another list of devices";
    let lies = [
        ("size=0 is less than 64M", ram(0)),
        ("not a multiple of the page size", ram(u64::MAX)),
        (host, ram(u64::MAX - 4095)),
        (host, ram(1 << 52)),
        ("boot_vcpus=255", cpus(255)),
        (processors, cpus(2)),
        (processors, with(|it| it.cpuids.clear())),
        (processors, with(|it| it.cpuids = vec![vec![]; 2_000_000])),
        (
            "CPUID has 20000 entries",
            with(|it| {
                let entry = it.cpuids[0][0].clone();
                it.cpuids[0].resize(20_000, entry);
            }),
        ),
        (
            "description of the guest",
            with(|it| it.cpuids[0][0].push(0)),
        ),
        ("1 kHz", with(|it| it.tsc_khz = Some(1))),
        ("no room for more than 31 devices", disks(32)),
        ("more than 256", disks(20_000)),
        (devices, disks(1)),
        (devices, with(|it| it.devices = vec![device("a"); 200_000])),
        (
            devices,
            with(|it| it.devices = vec![device(&"a".repeat(2_000_000))]),
        ),
        ("description of the guest", with(|it| it.arrival = 9)),
        ("cannot be read", with(|it| it.config = json!([0, 1]))),
        (
            "unknown variant",
            config(&truth, "/serial/mode", json!("a".repeat(2_000_000))),
        ),
        ("description of the guest", vec![0xff; 2 << 20]),
        (
            "3 bytes are left over",
            [truth.bytes(), vec![0; 3]].concat(),
        ),
    ];
    for (reason, description) in lies {
        liar.lies_about_its_guest(reason, &description);
    }
    liar.ends_well();
}

fn device(id: &str) -> Device {
    Device {
        id: id.into(),
        ..Device::default()
    }
}

type Change = fn(&mut State);

/// What a section of a state holds.
fn section<'a>(state: &'a mut State, name: &str) -> &'a mut Vec<u8> {
    let mut sections = state.iter_mut();
    let found = sections.find(|(label, _)| label.name == name);
    &mut found.expect("a section of that name").1
}

#[test]
fn a_state_that_no_machine_has() {
    let mut liar = liar();
    let truth = liar.state.clone();
    let with = |change: Change| {
        let mut state = truth.clone();
        change(&mut state);
        move |attempt| stream(&state, attempt)
    };
    liar.lies_about_its_state("more than a machine can have", |_| vec![0; (16 << 20) + 1]);
    liar.lies_about_its_state("header of the saved state", |_| vec![0; 1000]);
    liar.lies_about_its_state("another attempt", |_| stream(&truth, StreamId([7; 16])));
    liar.lies_about_its_state("cut off", |attempt| {
        let bytes = stream(&truth, attempt);
        bytes[..bytes.len() / 2].to_vec()
    });
    let lies: [(&str, Change); 8] = [
        ("section vcpu/0 of the saved state: it is larger", |it| {
            section(it, "vcpu/0").resize(1 << 20, 0)
        }),
        ("section chips of the saved state: its data", |it| {
            section(it, "chips").truncate(9)
        }),
        (
            "section clock of the saved state: section generation is in its place",
            |it| it.retain(|(label, _)| label.name != "clock"),
        ),
        ("number of vCPUs", |it| {
            let (mut label, data) = it[0].clone();
            label.name = "vcpu/1".into();
            it.insert(1, (label, data));
        }),
        ("number of vCPUs", |it| drop(it.remove(0))),
        ("where there is no RAM", |it| {
            *section(it, "generation") = encode(&(u64::MAX, 9u32)).unwrap()
        }),
        ("which is none of the I/O APIC", |it| {
            *section(it, "generation") = encode(&(0x1000u64, 99u32)).unwrap()
        }),
        ("nothing here has such a section", |it| {
            let (mut label, data) = it[0].clone();
            label.name = "more".into();
            it.push((label, data));
        }),
    ];
    for (reason, change) in lies {
        liar.lies_about_its_state(reason, with(change));
    }
    liar.ends_well();
}

/// How many places of each section are spoilt.
const PLACES: usize = 6;
/// Ways to spoil a byte of a section, or what comes from there on.
const SPOILS: [fn(&mut Vec<u8>, usize); 4] = [
    |data, at| data[at] ^= 0x10,
    |data, at| data[at] = 0xff,
    |data, at| drop(data.splice(at..at, [0x7f; 9])),
    |data, at| data.truncate(at),
];

/// Whatever state it is given, the receiver refuses it or is ready; KVM and devices do not look at everything.
#[test]
fn a_state_with_some_wrong_bytes() {
    let disk = logging(BUSY_SIZE).start();
    let next = heir(&disk).start();
    let guest = busy(&disk);
    let there = receiver(&guest);
    let mut liar = Liar::about(guest, WRITTEN, there, |it| it.device("disk0", &next));
    let description = liar.description.bytes();
    // RAM is not sent, so that rings are at their beginning.
    let device = section(&mut liar.state, "device/disk0");
    let (features, config, mut rings, rest): (u64, Vec<u8>, Vec<(u16, u16)>, u8) =
        decode(device).unwrap();
    rings.iter_mut().for_each(|(_, base)| *base = 0);
    *device = encode(&(features, config, rings, rest)).unwrap();
    let (mut ready, mut refused) = (0, 0);
    for section in 0..liar.state.len() {
        let length = liar.state[section].1.len();
        for (number, spoil) in SPOILS.iter().cycle().take(PLACES).enumerate() {
            let mut state = liar.state.clone();
            spoil(&mut state[section].1, length * number / PLACES);
            let (spoken, answer) = liar.speaks(MIGRATE, |link| {
                save(link, &description, |attempt| stream(&state, attempt))
            });
            match spoken {
                Ok(()) => ready += 1,
                Err(_) => refused += 1,
            }
            answer.expect_err("no guest has come");
        }
    }
    assert!(ready > 0 && refused > 0, "{ready} and {refused}");
    liar.ends_well();
}

/// Whoever can connect to a unix socket may also bring descriptors.
#[test]
fn a_hand_over_that_is_none() {
    let mut liar = liar();
    let (guest, truth) = (liar.description.bytes(), liar.state.clone());
    // No serial port, nothing of the process.
    let with_files = |files: u8| [&guest[..], &[files, 0, 0]].concat();
    let file = |bytes: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file
    };
    let same = |handle: BorrowedFd<'_>| File::from(handle.try_clone_to_owned().unwrap());
    let ownership = || same(Ownership::new().unwrap().handle());
    let process = || same(Process::this().unwrap().handle());
    let lies = [
        ("number of descriptors", 0, vec![]),
        (
            "number of descriptors",
            255,
            vec![process(), ownership(), file(64 << 20)],
        ),
        (
            "number of descriptors",
            0,
            vec![process(), ownership(), file(64 << 20)],
        ),
        ("says whose the guest is", 0, vec![process(), file(4096)]),
        ("0 RAM files", 0, vec![process(), ownership()]),
        (
            "2 RAM files",
            2,
            vec![process(), ownership(), file(1 << 20), file(1 << 20)],
        ),
        (
            "has 4096 bytes",
            1,
            vec![process(), ownership(), file(4096)],
        ),
        (
            "section standstill",
            1,
            vec![process(), ownership(), file(64 << 20)],
        ),
    ];
    for (reason, files, handles) in lies {
        liar.is_refused(Purpose::HandOver, reason, |link| {
            let handles: Vec<_> = handles.iter().map(AsFd::as_fd).collect();
            link.send_handles(&handles, &Unwatched)?;
            save(link, &with_files(files), |attempt| stream(&truth, attempt))
        });
    }
    liar.ends_well();
}
