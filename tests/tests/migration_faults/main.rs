//! What goes wrong during a migration, at every place on the wire: afterwards exactly one guest runs where its owner lives, and
//! the next attempt succeeds.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod acts;
mod back_ends;
mod busy;
mod expected;
mod handover;
mod party;
mod said;
mod scenario;
mod table;
mod turns;
mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use party::lock;
use table::Row;

/// Most of the time they wait.
const AT_ONCE: usize = 40;

/// Plays a row.
fn play(row: &Row) -> String {
    loop {
        match scenario::run(row) {
            Ok(what) => return what,
            Err(missed) => {
                let is_busy = busy::is_why(&format!("{:?}", missed.reasons));
                assert!(is_busy, "{row}: it has not come to that; {missed:?}");
            }
        }
    }
}

/// Every row of the table of hand-overs within a host. (`FAULTS=text` as below.)
#[test]
fn every_fault_at_every_step_of_a_hand_over() {
    let only = std::env::var("FAULTS").unwrap_or_default();
    let rows = handover::rows().into_iter();
    let rows = rows.filter(|row| row.to_string().contains(&only));
    play_at_once(rows.collect(), handover::play);
}

/// Every row of the table. (`FAULTS=text` plays those whose names contain it.)
#[test]
fn every_fault_at_every_step() {
    play_all(table::rows());
}

fn play_all(rows: Vec<Row>) {
    let only = std::env::var("FAULTS").unwrap_or_default();
    let wanted = |row: &Row| row.to_string().contains(&only);
    play_at_once(rows.into_iter().filter(wanted).collect(), play);
}

fn play_at_once<R: fmt::Display + Send>(rows: VecDeque<R>, play: impl Fn(&R) -> String + Sync) {
    // One table after the other: all of them have limits of a few seconds.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = lock(&TURN);
    let count = rows.len();
    let is_selection = std::env::var_os("FAULTS").is_some();
    let queue = Mutex::new(rows);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let row = lock(&queue).pop_front();
                    let Some(row) = row else { return };
                    let (name, begun) = (row.to_string(), Instant::now());
                    let outcome = catch_unwind(AssertUnwindSafe(|| play(&row)));
                    let seconds = begun.elapsed().as_secs_f32();
                    match outcome {
                        // What is right is of interest only to who has asked for it: nothing is to hide what is not.
                        Ok(what) if is_selection => {
                            println!("{name:<55} {seconds:5.1} s  {what}");
                        }
                        Ok(_) => {}
                        Err(_) => {
                            println!("{name:<55} {seconds:5.1} s  FAILED");
                            lock(&failures).push(name);
                        }
                    }
                }
            });
        }
    });
    let failures = lock(&failures);
    assert!(
        failures.is_empty(),
        "{} of {count} rows: {failures:#?}",
        failures.len()
    );
}
