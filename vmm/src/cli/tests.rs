//! Command lines, right and wrong.

mod control;

use std::fs;
use std::path::Path;

use ferry_api::config::{SerialConfig, StateConfig};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A directory with a file `kernel` in it.
fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("kernel"), "not looked at").unwrap();
    dir
}

fn try_parse(words: &[&str]) -> Result<Request, UsageError> {
    let words = std::iter::once(&"ferry").chain(words);
    parse(words.map(OsString::from))
}

/// Parses `words` after a `--kernel` that exists.
fn with_kernel(words: &[&str]) -> Result<Arguments, UsageError> {
    let dir = directory();
    let kernel = dir.path().join("kernel");
    let mut all = vec!["--kernel", kernel.to_str().unwrap()];
    all.extend(words);
    match try_parse(&all)? {
        Request::Run(arguments) => Ok(*arguments),
        Request::Print(text) => panic!("printed {text}"),
    }
}

fn accepted(words: &[&str]) -> Arguments {
    with_kernel(words).unwrap_or_else(|error| panic!("{words:?}: {}", error.report()))
}

fn machine(arguments: &Arguments) -> &VmConfig {
    arguments.vm.as_ref().expect("a machine")
}

/// The first line of what is printed about `words`.
fn refused(words: &[&str]) -> String {
    let error = match with_kernel(words) {
        Err(error) => error,
        Ok(arguments) => panic!("{words:?} made {arguments:?}"),
    };
    let report = error.report();
    report.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_kernel_is_enough() {
    let arguments = accepted(&[]);
    let vm = machine(&arguments);
    assert_eq!(vm.cpus.boot_vcpus, 1);
    assert_eq!(vm.cpus.max_vcpus, 1);
    assert_eq!(vm.memory.size, 512 << 20);
    assert!(vm.memory.shared && !vm.memory.hugepages && !vm.memory.prefault);
    assert_eq!(vm.serial, SerialConfig::Tty);
    assert_eq!(vm.payload.cmdline, "");
    assert_eq!(arguments.timeouts, Timeouts::default());
    assert_eq!(arguments.on_reset, OnReset::Restart);
    assert_eq!(arguments.log.level, tracing::Level::WARN);
}

#[test]
fn everything_can_be_said() {
    let arguments = accepted(&[
        "--cmdline",
        "--verbose console=ttyS0,115200 root=\"/dev/vda\"",
        "--cpus",
        "boot=4,max=8",
        "--memory",
        "size=4G,shared=on,hugepages=on,hugepage_size=2M,prefault=on",
        "--disk",
        "vhost_user=on,socket=/tmp/a,id=root,num_queues=2,queue_size=256,readonly=on",
        "--disk",
        "vhost_user=true,socket=\"/tmp/b,=[\"",
        "--fs",
        "tag=share,socket=/tmp/c,num_queues=3",
        "--vhost-user",
        "socket=/tmp/d,device_type=0x13,num_queues=3,state=required,drain=[0, 2],config=00ff10",
        "--serial",
        "socket=/tmp/console",
        "--console=off",
        "--connect-timeout=0",
        "--request-timeout=0.5",
        "--dead-timeout=7",
        "--no-reboot",
        "-vv",
        "--log-file",
        "/tmp/log",
    ]);
    let vm = machine(&arguments);
    assert_eq!(
        vm.payload.cmdline,
        "--verbose console=ttyS0,115200 root=\"/dev/vda\""
    );
    assert_eq!((vm.cpus.boot_vcpus, vm.cpus.max_vcpus), (4, 8));
    assert_eq!(vm.memory.size, 4 << 30);
    assert_eq!(vm.memory.hugepage_size, Some(2 << 20));
    assert!(vm.memory.prefault);

    let disk = &vm.disks[0];
    assert!(disk.readonly);
    assert_eq!(disk.backend.id, "root");
    assert_eq!((disk.backend.num_queues, disk.backend.queue_size), (2, 256));
    let disk = &vm.disks[1];
    assert!(!disk.readonly);
    assert_eq!(disk.backend.id, "disk0");
    assert_eq!(disk.backend.socket, Path::new("/tmp/b,=["));
    assert_eq!((disk.backend.num_queues, disk.backend.queue_size), (1, 128));

    let fs = &vm.fs[0];
    assert_eq!((fs.tag.as_str(), fs.backend.id.as_str()), ("share", "fs0"));
    assert_eq!((fs.backend.num_queues, fs.backend.queue_size), (3, 1024));

    let vsock = &vm.vhost_user[0];
    assert_eq!(vsock.device_type, 19);
    assert_eq!(vsock.backend.id, "vhost-user0");
    assert_eq!(vsock.state, StateConfig::Required);
    assert_eq!(vsock.drain, [0, 2]);
    assert_eq!(vsock.config, Some(vec![0, 255, 16]));

    assert_eq!(vm.serial, SerialConfig::Socket("/tmp/console".into()));
    assert_eq!(arguments.timeouts.connect, Duration::ZERO);
    assert_eq!(arguments.timeouts.request, Duration::from_millis(500));
    assert_eq!(arguments.timeouts.dead, Duration::from_secs(7));
    assert_eq!(arguments.on_reset, OnReset::Exit);
    assert_eq!(arguments.log.level, tracing::Level::DEBUG);
    assert_eq!(arguments.log.file, Some("/tmp/log".into()));
}

#[test]
fn names_given_automatically_keep_clear_of_those_given_by_the_user() {
    let arguments = accepted(&[
        "--disk",
        "vhost_user=on,socket=/tmp/a",
        "--disk",
        "vhost_user=on,socket=/tmp/b",
        "--fs",
        "tag=t,socket=/tmp/c,id=disk0",
    ]);
    let disks = machine(&arguments).disks.iter();
    let ids: Vec<&str> = disks.map(|disk| disk.backend.id.as_str()).collect();
    assert_eq!(ids, ["disk1", "disk2"]);
}

#[test]
fn a_configuration_space_may_come_from_a_file() {
    let dir = directory();
    let path = dir.path().join("config");
    let flag = format!("socket=/tmp/a,device_type=4,config=@{}", path.display());
    for (contents, outcome) in [
        (vec![], None),
        (vec![7], Some(vec![7])),
        (vec![1; 256], Some(vec![1; 256])),
        (vec![1; 257], None),
    ] {
        fs::write(&path, &contents).unwrap();
        let parsed = with_kernel(&["--vhost-user", &flag]).ok();
        assert_eq!(
            parsed.and_then(|it| machine(&it).vhost_user[0].config.clone()),
            outcome
        );
    }
}

#[test]
fn every_mistake_is_named_with_its_reason() {
    let disk = |rest: &str| format!("vhost_user=on,socket=/tmp/a{rest}");
    let generic = |rest: &str| format!("socket=/tmp/a,device_type=4{rest}");
    let long = "x".repeat(108);
    let cases: &[(&str, String, &str)] = &[
        ("--cpus", "boot=0".into(), "boot=0 is not within 1 and 32"),
        ("--cpus", "boot=33".into(), "boot=33 is not within 1 and 32"),
        ("--cpus", "boot=4,max=2".into(), "boot=4 is more than max=2"),
        ("--cpus", "boot=+4".into(), "boot=+4 is not a whole number"),
        ("--cpus", "boot=4,boot=4".into(), "boot= is given twice"),
        (
            "--cpus",
            "boots=4".into(),
            "there is no key `boots` (keys: boot, max)",
        ),
        ("--cpus", "boot".into(), "`boot` has no value; write boot=…"),
        ("--cpus", "boot=".into(), "boot= has no value"),
        ("--cpus", "".into(), "the value is empty"),
        (
            "--cpus",
            "boot=1,".into(),
            "a key is missing before `=`, or between two commas, or after the last one",
        ),
        (
            "--memory",
            "size=63M".into(),
            "size=66060288 is less than 64M",
        ),
        (
            "--memory",
            "size=67108865".into(),
            "size=67108865 is not a multiple of the page size, 4096 bytes",
        ),
        (
            "--memory",
            "size=67M,hugepages=on".into(),
            "size=70254592 is not a multiple of the page size, 2097152 bytes",
        ),
        (
            "--memory",
            "size=1.5G".into(),
            "size=1.5G is not a size; write bytes, or a whole number with K, M, G or T",
        ),
        (
            "--memory",
            "size=99999999999T".into(),
            "size=99999999999T is not a size; write bytes, or a whole number with K, M, G or T",
        ),
        (
            "--memory",
            "hugepages=on,hugepage_size=4M".into(),
            "hugepage_size=4194304 is neither 2M nor 1G",
        ),
        (
            "--memory",
            "hugepage_size=2M".into(),
            "hugepage_size= needs hugepages=on",
        ),
        (
            "--memory",
            "shared=yes".into(),
            "shared=yes is neither on nor off",
        ),
        (
            "--disk",
            "path=/tmp/disk.img".into(),
            "Ferry has no built-in disks: a vhost-user back-end has to serve the disk",
        ),
        (
            "--disk",
            "socket=/tmp/a".into(),
            "Ferry has no built-in disks: a vhost-user back-end has to serve the disk",
        ),
        ("--disk", "vhost_user=on".into(), "socket= is missing"),
        (
            "--disk",
            disk(",queue_size=100"),
            "queue_size=100 is not a power of two",
        ),
        (
            "--disk",
            disk(",queue_size=65536"),
            "queue_size=65536 is not within 2 and 32768",
        ),
        (
            "--disk",
            disk(",num_queues=0"),
            "num_queues=0 is not within 1 and 256",
        ),
        (
            "--disk",
            disk(",num_queues=257"),
            "num_queues=257 is not within 1 and 256",
        ),
        (
            "--disk",
            disk(",id=a/b"),
            "id=a/b may hold letters, digits, `-`, `_`, `.` and `:`",
        ),
        (
            "--disk",
            disk(",id=__vm"),
            "id=__vm begins with `__`, as only Ferry's own names do",
        ),
        ("--disk", disk(",id=\"a"), "a double quote is not closed"),
        ("--disk", disk(",id=[a"), "a `[` is not closed"),
        ("--disk", disk(",id=a]"), "a `]` has no `[` before it"),
        (
            "--disk",
            "vhost_user=on,socket=/".into(),
            "socket=/ is a file that is not a socket",
        ),
        ("--fs", "socket=/tmp/a".into(), "tag= is missing"),
        ("--fs", "tag=,socket=/tmp/a".into(), "tag= has no value"),
        (
            "--vhost-user",
            "socket=/tmp/a".into(),
            "device_type= is missing",
        ),
        (
            "--vhost-user",
            "socket=/tmp/a,device_type=64".into(),
            "device_type=64 is not within 1 and 63",
        ),
        (
            "--vhost-user",
            generic(",state=some"),
            "state=some is neither none nor required",
        ),
        (
            "--vhost-user",
            generic(",drain=[0,1]"),
            "drain=1 names a queue that is not there: num_queues=1, counted from 0",
        ),
        (
            "--vhost-user",
            generic(",drain=[0,0]"),
            "drain=0 names a queue twice",
        ),
        ("--vhost-user", generic(",drain=[0"), "a `[` is not closed"),
        (
            "--vhost-user",
            generic(",drain=[a]"),
            "drain=[a] is not a list of numbers such as [0,1]",
        ),
        (
            "--vhost-user",
            generic(",config=0"),
            "config=0 is neither pairs of hexadecimal digits nor @FILE",
        ),
        (
            "--vhost-user",
            generic(",config=@/nonexistent"),
            "cannot use /nonexistent: No such file or directory (os error 2)",
        ),
        ("--serial", "stdio".into(), "there is no `stdio`"),
        ("--serial", "file=".into(), "there is no `file=`"),
        ("--serial", "tty=1".into(), "there is no `tty=1`"),
        ("--serial", "file=a,b".into(), "there is no `file=a,b`"),
        (
            "--serial",
            "file=/nonexistent/x".into(),
            "cannot use /nonexistent/x: No such file or directory (os error 2)",
        ),
        (
            "--serial",
            "file=/tmp".into(),
            "cannot use /tmp: is a directory",
        ),
        (
            "--serial",
            "socket=/dev/null".into(),
            "cannot use /dev/null: it is there, and it is not a socket",
        ),
        ("--console", "tty".into(), "there is no `tty`"),
        (
            "--connect-timeout",
            "-1".into(),
            "`-1` is not a number of seconds from 0 to 86400",
        ),
        (
            "--connect-timeout",
            "5s".into(),
            "`5s` is not a number of seconds from 0 to 86400",
        ),
        (
            "--connect-timeout",
            "inf".into(),
            "`inf` is not a number of seconds from 0 to 86400",
        ),
        (
            "--connect-timeout",
            "1e3".into(),
            "`1e3` is not a number of seconds from 0 to 86400",
        ),
        (
            "--request-timeout",
            "0".into(),
            "0 would leave back-ends no time at all",
        ),
        (
            "--dead-timeout",
            "5".into(),
            "5 s is less than the request timeout, 10 s",
        ),
        (
            "--initramfs",
            "/nonexistent".into(),
            "cannot use /nonexistent: No such file or directory (os error 2)",
        ),
        (
            "--initramfs",
            "/dev/null".into(),
            "cannot use /dev/null: it is not a regular file",
        ),
        ("--kernel", "/tmp".into(), "is given twice"),
    ];
    for (flag, value, reason) in cases {
        assert_eq!(refused(&[flag, value]), format!("ferry: {flag}: {reason}"));
    }
    let socket = format!("vhost_user=on,socket={long}");
    assert_eq!(
        refused(&["--disk", &socket]),
        format!("ferry: --disk: socket={long} is 108 bytes long; a socket's path has at most 107")
    );
    let tag = "t".repeat(37);
    assert_eq!(
        refused(&["--fs", &format!("tag={tag},socket=/tmp/a")]),
        format!("ferry: --fs: tag={tag} is longer than 36 bytes")
    );
    let cmdline = "c".repeat(2048);
    assert_eq!(
        refused(&["--cmdline", &cmdline]),
        "ferry: --cmdline: 2048 bytes are too long: a guest takes at most 2047"
    );
}

#[test]
fn flags_that_contradict_each_other_are_named() {
    let a = "vhost_user=on,socket=/tmp/a,id=same";
    let b = "tag=t,socket=/tmp/b,id=same";
    let c = "tag=t,socket=/tmp/c";
    for (words, reason) in [
        (&["--disk", a, "--fs", b][..], "--fs: id=same is used twice"),
        (&["--fs", b, "--fs", c], "--fs: tag=t is used twice"),
        (
            &["--disk", a, "--vhost-user", "socket=/tmp/a,device_type=4"],
            "--vhost-user: socket=/tmp/a is used twice: each device has its own back-end",
        ),
        (
            &["--fs", c, "--memory", "shared=off"],
            "--memory: shared=off leaves back-ends without guest RAM",
        ),
    ] {
        assert_eq!(refused(words), format!("ferry: {reason}"));
    }
    // Without devices nobody needs it.
    assert!(
        !machine(&accepted(&["--memory", "shared=off"]))
            .memory
            .shared
    );
}

#[test]
fn flags_themselves_are_checked() {
    for (words, report) in [
        (
            &["--diks", "x"][..],
            "ferry: --diks: there is no such flag\n  hint: there is --disk",
        ),
        (
            &["kernel"],
            "ferry: kernel: Ferry takes no arguments other than flags\n  hint: ferry --help lists the flags",
        ),
        (&["--kernel"], "ferry: --kernel: has no value"),
        (
            &["--kernel", "--no-reboot"],
            "ferry: --kernel: has no value",
        ),
        (
            &["--no-reboot=on"],
            "ferry: --no-reboot: takes no value, but has `on`",
        ),
        (
            &["--kernel", "/nonexistent"],
            "ferry: --kernel: cannot use /nonexistent: No such file or directory (os error 2)",
        ),
        (
            &[],
            "ferry: --kernel: is missing: Ferry does not know what to boot\n  hint: ferry --kernel vmlinux …; ferry --help shows examples",
        ),
    ] {
        assert_eq!(try_parse(words).unwrap_err().report(), report);
    }
}

#[test]
fn help_and_version_need_nothing_else() {
    for flag in ["--help", "-h"] {
        assert_eq!(try_parse(&[flag]).unwrap(), Request::Print(HELP.into()));
    }
    let version = format!("ferry {}\n", env!("CARGO_PKG_VERSION"));
    for flag in ["--version", "-V"] {
        assert_eq!(try_parse(&[flag]).unwrap(), Request::Print(version.clone()));
    }
}

/// Every `--word` in `text`, without what follows it.
fn flags_in(text: &str) -> Vec<String> {
    let mut found: Vec<String> = text
        .split(|c: char| !c.is_ascii_lowercase() && c != '-')
        .filter(|word| word.len() > 3 && word.starts_with("--") && !word.starts_with("---"))
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn help_names_exactly_the_flags_there_are() {
    use clap::CommandFactory;
    let command = Flags::command();
    let longs = command.get_arguments().filter_map(|flag| flag.get_long());
    let mut there_are: Vec<String> = longs.map(|flag| format!("--{flag}")).collect();
    there_are.sort();
    // Everything before the examples, which hold other programs' flags.
    let (flags, _) = HELP.split_once("\nExamples\n").unwrap();
    assert_eq!(flags_in(flags), there_are);
    for line in HELP.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn the_readme_explains_exactly_the_flags_there_are() {
    let readme = include_str!("../../../README.md");
    let (_, table) = readme.split_once("<!-- flags -->").unwrap();
    let (table, _) = table.split_once("<!-- /flags -->").unwrap();
    let (flags, _) = HELP.split_once("\nExamples\n").unwrap();
    assert_eq!(flags_in(table), flags_in(flags));
}

#[test]
fn the_examples_in_help_are_command_lines() {
    let (_, examples) = HELP.split_once("\nExamples\n").unwrap();
    let joined = examples.replace("\\\n", " ");
    let commands: Vec<&str> = joined.lines().map(str::trim).collect();
    let mut found = 0;
    for command in commands.iter().filter(|line| line.starts_with("ferry ")) {
        found += 1;
        let quoted: Vec<&str> = command.split('"').collect();
        let mut words = Vec::new();
        for (index, part) in quoted.iter().enumerate() {
            match index % 2 {
                0 => words.extend(part.split_whitespace()),
                _ => words.push(part),
            }
        }
        let files = ["vmlinuz", "initrd.img"];
        let dir = directory();
        let kernel = dir.path().join("kernel");
        let kernel = kernel.to_str().unwrap();
        let words: Vec<&str> = words
            .into_iter()
            .skip(1)
            .map(|word| if files.contains(&word) { kernel } else { word })
            .collect();
        try_parse(&words).unwrap_or_else(|error| panic!("{command}: {}", error.report()));
    }
    assert_eq!(found, 2);
}

/// Text made of what the parser looks at, and of everything else.
fn nasty() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("vhost_user=on,socket=/tmp/a".to_owned()),
        Just("device_type=4".to_owned()),
        Just("queue_size".to_owned()),
        Just("drain=[".to_owned()),
        Just("config=".to_owned()),
        Just("size=".to_owned()),
        Just("18446744073709551615".to_owned()),
        Just("0x".to_owned()),
        "[=,\\[\\]\"@KMGT0-9a-f]{0,6}",
        "\\PC{0,4}",
        any::<String>(),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_value_makes_the_parser_panic(flag in 0..flags_in(HELP).len(), text in nasty()) {
        let flag = &flags_in(HELP)[flag];
        let _ = try_parse(&[flag, &text]).map_err(|error| error.report());
    }

    #[test]
    fn no_words_make_the_parser_panic(words in prop::collection::vec(nasty(), 0..5)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let _ = try_parse(&words).map_err(|error| error.report());
    }

    #[test]
    fn a_quoted_value_comes_out_as_it_was(value in "[^\"]{0,40}") {
        let items = ferry_api::config::text::split(&format!("key=\"{value}\",other=1")).unwrap();
        prop_assert_eq!(items.len(), 2);
        prop_assert_eq!(items[0].value.as_deref(), Some(value.as_str()));
    }

    #[test]
    fn sizes_are_what_they_say(number in 0..1_u64 << 23) {
        prop_assert_eq!(ferry_api::config::text::size(&number.to_string()), Some(number));
        prop_assert_eq!(ferry_api::config::text::size(&format!("{number}k")), Some(number << 10));
        prop_assert_eq!(ferry_api::config::text::size(&format!("{number}M")), Some(number << 20));
        prop_assert_eq!(ferry_api::config::text::size(&format!("{number}G")), Some(number << 30));
        prop_assert_eq!(ferry_api::config::text::size(&format!("{number}T")), Some(number << 40));
    }
}
