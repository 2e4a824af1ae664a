//! A server whose socket goes to another process.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped has failed the test"
)]

mod common;

use std::io::{Read, Write};

use common::{TestServer, receive, request};
use ferry_api::control::{Request, Response};

#[test]
fn who_has_asked_for_nothing_is_to_connect_again_and_who_has_is_answered() {
    let server = TestServer::start();
    let mut silent = server.connect();
    let mut between = server.connect();
    let mut waiting = server.connect();
    let ping = request("GET", "/api/v1/vmm.ping", "");
    between.write_all(&ping).unwrap();
    assert_eq!(receive(&mut between).status(), 200);
    let pause = request("PUT", "/api/v1/vm.pause", "");
    waiting.write_all(&pause).unwrap();
    server.wait_asked(1);
    assert_eq!(*server.script.asked.lock().unwrap(), [Request::Pause]);

    let reception = server.server.as_ref().unwrap().reception();
    let pausing = reception.pause();
    pausing.done();
    // Nobody takes this one in.
    let mut late = server.connect();
    late.write_all(&ping).unwrap();
    let successors = reception.lend().unwrap();
    pausing.leave();

    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert_eq!(between.read(&mut [0]).unwrap(), 0);
    for reply in server.script.held.lock().unwrap().drain(..) {
        reply.answer(Ok(Response::Done));
    }
    assert_eq!(receive(&mut waiting).status(), 204);

    let successor = TestServer::start();
    let reception = successor.server.as_ref().unwrap().reception();
    reception.move_to(successors);
    assert_eq!(receive(&mut late).status(), 200);
}

#[test]
fn a_socket_that_was_left_stays_and_one_that_was_not_goes() {
    let mut server = TestServer::start();
    let reception = server.server.as_ref().unwrap().reception();
    // The pause ends, and with it nothing.
    drop(reception.pause());
    assert_eq!(server.ask("GET", "/api/v1/vmm.ping", "").status(), 200);
    reception.pause().leave();
    server.server = None;
    assert!(server.path.exists());

    let mut server = TestServer::start();
    let reception = server.server.as_ref().unwrap().reception();
    let _pausing = reception.pause();
    server.server = None;
    assert!(!server.path.exists());
}
