//! `--api-socket` and `--event-monitor`.

use super::*;

#[test]
fn an_api_socket_alone_starts_without_a_machine() {
    for words in [
        ["--api-socket", "/run/ferry.sock"],
        ["--api-socket", "path=/run/ferry.sock"],
        ["--api-socket", "fd=3"],
    ] {
        match try_parse(&words) {
            Ok(Request::Run(arguments)) => assert_eq!(arguments.vm, None),
            other => panic!("{words:?}: {other:?}"),
        }
    }
    // Whoever describes a machine wants it, and so its kernel.
    let error = try_parse(&["--api-socket", "/run/ferry.sock", "--cpus", "boot=2"]).unwrap_err();
    assert!(error.report().contains("--kernel"), "{}", error.report());
    let both = accepted(&["--api-socket", "/run/ferry.sock"]);
    assert!(both.vm.is_some() && both.api_socket.is_some());
}

#[test]
fn a_wrong_place_for_the_api_or_the_events_is_refused() {
    for (flag, value) in [
        ("--api-socket", "fd=three"),
        ("--api-socket", ""),
        ("--event-monitor", "/no/key"),
        ("--event-monitor", "fd=-1"),
    ] {
        let report = refused(&[flag, value]);
        assert!(report.starts_with(&format!("ferry: {flag}: ")), "{report}");
    }
}
