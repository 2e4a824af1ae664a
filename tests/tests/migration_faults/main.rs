//! What goes wrong during a migration, at every place on the wire: afterwards exactly one guest runs where its owner lives, and
//! the next attempt succeeds.

#![allow(clippy::expect_used, clippy::unwrap_used)]

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
const AT_ONCE: usize = 12;

/// Every row of the table; `FAULTS=text` runs those whose names contain it.
#[test]
fn every_fault_at_every_step() {
    let only = std::env::var("FAULTS").unwrap_or_default();
    let wanted = |row: &Row| row.to_string().contains(&only);
    let rows: VecDeque<Row> = table::rows().into_iter().filter(wanted).collect();
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
                    let outcome = catch_unwind(AssertUnwindSafe(|| scenario::run(&row)));
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
