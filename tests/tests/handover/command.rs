//! `ferryctl handover`, when it works, and above all when it does not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ferry_tests::{Qsd, ferry_binary, ferryctl};

use crate::place::{ECHO, LIMIT, Place, entries, said};

const FILE: &str = "file=serial";

fn ticks(place: &Place) -> usize {
    let text = fs::read_to_string(place.path("serial")).unwrap_or_default();
    text.matches("tick n=").count()
}

/// The guest is in the first process, and goes on.
fn goes_on_there(place: &Place) {
    assert_eq!(place.pid(), u64::from(place.first.id()));
    assert_eq!(place.state(), "Running");
    let now = ticks(place);
    place.wait_until("more ticks", || (ticks(place) > now + 3).then_some(()));
    assert_eq!(
        entries(&place.path("run")),
        0,
        "the private directory stays"
    );
}

/// A program that is a shell script.
fn script(place: &Place, text: &str) -> PathBuf {
    let path = place.path("script");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a mode");
    path
}

#[test]
fn three_in_a_row_with_a_disk_at_work() {
    let disk = Qsd::serving("256M").throttle(2000).start();
    let words = [
        "--disk".to_owned(),
        format!(
            "vhost_user=on,socket={}",
            ferry_tests::Listener::socket(&disk).display()
        ),
    ];
    let cmdline = "mode=blk-writer op=write count=500000 depth=8 report=50";
    let mut place = Place::start(cmdline, FILE, &words);
    let written = |place: &Place| {
        let text = fs::read_to_string(place.path("serial")).unwrap_or_default();
        assert!(!text.contains("fail"), "{text}");
        text.matches("blk written=").count()
    };
    for _ in 0..3 {
        let now = written(&place);
        place.wait_until("writes", || (written(&place) > now + 1).then_some(()));
        place.succeed();
        assert_eq!(disk.connected(), 1);
    }
    let now = written(&place);
    place.wait_until("writes", || (written(&place) > now + 1).then_some(()));
    assert!(place.first.wait(LIMIT).expect("an end").success());
    place.end();
}

#[test]
fn what_it_says_in_the_end() {
    let place = Place::start(ECHO, FILE, &[]);
    let ferry = ferry_binary();
    let ferry = ferry.to_str().expect("UTF-8");
    let words = place.run(&["--exec", ferry]);
    let text = said(&words);
    for part in [
        "DOWNTIME",
        "machine",
        "resume",
        "standing still for",
        "the guest runs in process",
    ] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    let mut command = place.ferryctl(&["--exec", ferry, "--json"]);
    let json = command.output().expect("ferryctl runs");
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(value["state"], "done");
    assert!(
        value["downtime_ms"].as_f64().is_some_and(|ms| ms > 0.0),
        "{value}"
    );
    place.end();
}

/// A Ferry may be started by a script that stays around it.
#[test]
fn to_a_ferry_in_a_script() {
    let place = Place::start(ECHO, FILE, &[]);
    let before = place.pid();
    let program = script(&place, &format!("{} \"$@\"", ferry_binary().display()));
    let output = place.run(&["--exec", program.to_str().expect("UTF-8")]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert_ne!(place.pid(), before);
    let named = format!("the guest runs in process {}", place.pid());
    assert!(text.contains(&named), "{text}");
    place.end();
}

#[test]
fn to_a_process_that_waits() {
    let place = Place::start(ECHO, FILE, &[]);
    let url = format!("unix:{}", place.path("meeting").display());
    let mut command = Command::new(ferry_binary());
    command.arg("--api-socket").arg(place.path("next"));
    let mut next = ferry_tests::Process::start(command, Some(&place.path("next.log")));
    let client = ferry_api::client::Client::new(place.path("next"), Default::default());
    place.wait_until("the next process", || client.get("vmm.ping").ok());
    let body = serde_json::json!({ "receiver_url": url }).to_string();
    let receiver = thread::spawn(move || client.put("vm.receive-migration", body.as_bytes()));
    place.wait_until("its socket", || {
        place.path("meeting").exists().then_some(())
    });
    let mut handover = ferryctl(&place.path("api"));
    let output = handover.args(["handover", "--to", &url]).output();
    let output = output.expect("ferryctl runs");
    assert!(output.status.success(), "{}", said(&output));
    receiver.join().expect("a receiver").expect("a guest");
    assert_eq!(place.pid(), u64::from(next.id()));
    assert!(!place.path("next").exists(), "its own socket stays");
    place.end();
    assert!(next.wait(LIMIT).expect("an end").success());
}

#[test]
fn a_program_that_is_no_ferry_leaves_the_guest_alone() {
    let place = Place::start(ECHO, FILE, &[]);
    let ferry = ferry_binary();
    let talker = script(&place, "echo one; echo cannot go on >&2; exit 7");
    let talker = talker.to_str().expect("UTF-8");
    let cases: [(&[&str], i32, &[&str]); 4] = [
        (
            &["--exec", "/nowhere/ferry"],
            2,
            &["cannot start /nowhere/ferry", "No such file"],
        ),
        (
            &["--exec", "/bin/false"],
            1,
            &["/bin/false has ended too early: exit status: 1"],
        ),
        (
            &["--exec", talker],
            1,
            &["exit status: 7", "it says: one", "it says: cannot go on"],
        ),
        (
            &[
                "--exec",
                ferry.to_str().expect("UTF-8"),
                "--",
                "--no-such-flag",
            ],
            1,
            &["exit status: 2", "no-such-flag"],
        ),
    ];
    for (words, status, texts) in cases {
        let output = place.run(words);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(
            text.contains("the guest goes on in the old process"),
            "{text}"
        );
        for part in texts {
            assert!(text.contains(part), "no {part}: {text}");
        }
        goes_on_there(&place);
    }
    place.end();
}

/// Nothing is started for these.
#[test]
fn words_that_cannot_be_meant() {
    let place = Place::start(ECHO, FILE, &[]);
    let ferry = ferry_binary();
    let ferry = ferry.to_str().expect("UTF-8");
    let to = ["--to", "unix:/nowhere"];
    let cases: [(&[&str], &str); 5] = [
        (&["--exec", ferry, "--", "--kernel", "k"], "another guest"),
        (
            &["--exec", ferry, "--", "-v", "--restore=d"],
            "another guest",
        ),
        (&["--exec", ferry, "--serial", "tty"], "no terminal"),
        // With `--log`, as all of them have it.
        (&to, "cannot be used with"),
        (&["--exec", ferry, to[0], to[1]], "cannot be used with"),
    ];
    for (words, part) in cases {
        let output = place.run(words);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(part), "no {part}: {text}");
        assert!(!place.path("new.log").exists(), "{words:?}: it was started");
    }
    goes_on_there(&place);
    place.end();
}

/// The lines of others in the same file are not the last words of a new process.
#[test]
fn only_what_the_new_process_has_said_is_shown() {
    let place = Place::start(ECHO, FILE, &[]);
    fs::write(place.path("new.log"), "from before\n").expect("a log");
    for (program, words) in [
        ("exit 7", None),
        ("echo mine; exit 7", Some("it says: mine")),
    ] {
        let program = script(&place, program);
        let text = said(&place.run(&["--exec", program.to_str().expect("UTF-8")]));
        assert!(!text.contains("from before"), "{text}");
        assert_eq!(text.contains("it says"), words.is_some(), "{text}");
        assert!(text.contains(words.unwrap_or_default()), "{text}");
    }
    place.end();
}

/// Where there is no guest, none goes on.
#[test]
fn without_a_guest_nothing_is_said_of_it() {
    let place = Place::start(ECHO, FILE, &[]);
    place.client().put("vm.shutdown", b"").expect("an end");
    let ferry = ferry_binary();
    let output = place.run(&["--exec", ferry.to_str().expect("UTF-8")]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("goes on"), "{text}");
    place.end();
}

#[test]
fn a_program_that_never_answers_is_ended() {
    let place = Place::start(ECHO, FILE, &[]);
    let pid_file = place.path("pid");
    let program = script(
        &place,
        &format!("echo $$ > {}; exec sleep 1000", pid_file.display()),
    );
    let output = place.run(&["--exec", program.to_str().expect("UTF-8")]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("has not answered on the --api-socket"),
        "{text}"
    );
    let pid = fs::read_to_string(&pid_file).expect("its number");
    place.is_gone(pid.trim().parse().expect("a number"));
    goes_on_there(&place);
    place.end();
}

#[test]
fn ctrl_c_while_it_waits_ends_the_new_process() {
    let place = Place::start(ECHO, FILE, &[]);
    let pid_file = place.path("pid");
    let program = script(
        &place,
        &format!("echo $$ > {}; exec sleep 1000", pid_file.display()),
    );
    let mut ferryctl = place.ferryctl(&["--exec", program.to_str().expect("UTF-8")]);
    let child = ferryctl
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.expect("ferryctl runs");
    let pid = place.wait_until("the new process", || {
        fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
    });
    interrupt(&child);
    let output = child.wait_with_output().expect("its end");
    let text = said(&output);
    assert!(text.contains("the hand-over was given up"), "{text}");
    assert!(!output.status.success());
    place.is_gone(pid);
    goes_on_there(&place);
    place.end();
}

#[test]
fn ctrl_c_at_any_moment_leaves_one_process_with_the_guest() {
    let place = Place::start(ECHO, FILE, &[]);
    let ferry = ferry_binary();
    let mut given_up = 0;
    for step in 0..12 {
        let before = place.pid();
        let mut ferryctl = place.ferryctl(&["--exec", ferry.to_str().expect("UTF-8")]);
        let child = ferryctl
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.expect("ferryctl runs");
        thread::sleep(Duration::from_millis(5 * step));
        interrupt(&child);
        let output = child.wait_with_output().expect("its end");
        assert_eq!(place.state(), "Running");
        match output.status.success() {
            true => assert_ne!(place.pid(), before, "{}", said(&output)),
            false => {
                given_up += 1;
                assert_eq!(place.pid(), before, "{}", said(&output));
            }
        }
        let now = ticks(&place);
        place.wait_until("more ticks", || (ticks(&place) > now + 3).then_some(()));
    }
    assert!(given_up > 0);
    assert_eq!(entries(&place.path("run")), 0);
    place.end();
}

fn interrupt(child: &std::process::Child) {
    // SAFETY: it takes no pointers, and the process has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
}

/// The new process speaks these versions of the protocol, the old one those.
fn between(old: &str, new: &str) -> (Place, std::process::Output) {
    let place = Place::start_as(ECHO, FILE, &[("FERRY_TEST_PROTOCOL", old)]);
    let ferry = ferry_binary();
    let mut command = place.ferryctl(&["--exec", ferry.to_str().expect("UTF-8")]);
    let output = command.env("FERRY_TEST_PROTOCOL", new).output();
    (place, output.expect("ferryctl runs"))
}

#[test]
fn from_one_version_to_the_next_and_back() {
    for (old, new) in [("1-1", "1-2"), ("1-2", "1-1"), ("4-5", "5-6")] {
        let (place, output) = between(old, new);
        assert!(output.status.success(), "{}", said(&output));
        place.end();
    }
}

#[test]
fn versions_that_are_too_far_apart_are_named_before_anything_stands_still() {
    for (old, new, texts) in [
        (
            "1-1",
            "2-3",
            [
                "it speaks versions 2 to 3 of the protocol",
                "this Ferry version 1",
            ],
        ),
        (
            "3-4",
            "1-2",
            [
                "it speaks versions 1 to 2 of the protocol",
                "this Ferry versions 3 to 4",
            ],
        ),
    ] {
        let (place, output) = between(old, new);
        let text = said(&output);
        assert!(!output.status.success(), "{text}");
        for part in texts {
            assert!(text.contains(part), "no {part}: {text}");
        }
        let progress = crate::place::get(&place.client(), "vm.migration");
        assert!(progress["downtime_ms"].is_null(), "{progress}");
        goes_on_there(&place);
        place.end();
    }
}
