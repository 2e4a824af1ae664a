//! What goes wrong during a migration, at every place on the wire: afterwards exactly one guest runs where its owner lives, and
//! the next attempt succeeds.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod back_ends;
mod expected;
mod party;
mod scenario;
mod table;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use party::lock;
use table::Row;

/// Most of the time they wait.
const AT_ONCE: usize = 16;

/// Plays a row. It is missed only where the machine is so busy that a side says nothing for too long.
fn play(row: &Row) -> String {
    let mut played = scenario::run(row);
    for _ in 0..2 {
        if played.is_err() {
            played = scenario::run(row);
        }
    }
    played.unwrap_or_else(|missed| {
        panic!("{row}: it has not come to that; there were {:?}", missed.0)
    })
}

/// Every row of the table. (`FAULTS=text` plays those whose names contain it.)
#[test]
fn every_fault_at_every_step() {
    play_all(table::rows());
}

/// With virtiofsd, which ends when its front-end leaves, and qemu-storage-daemon.
#[test]
fn faults_with_real_back_ends() {
    play_all(table::real_rows());
}

fn play_all(rows: Vec<Row>) {
    let only = std::env::var("FAULTS").unwrap_or_default();
    let wanted = |row: &Row| row.to_string().contains(&only);
    let rows: VecDeque<Row> = rows.into_iter().filter(wanted).collect();
    let count = rows.len();
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
                        Ok(what) => println!("{name:<40} {seconds:5.1} s  {what}"),
                        Err(_) => {
                            println!("{name:<40} {seconds:5.1} s  FAILED");
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
