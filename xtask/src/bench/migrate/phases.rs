//! Where a migration's time goes, by what both sides say.

use super::moving::Moved;
use crate::bench::median;

/// The times of some phases, each in milliseconds.
pub struct Phases {
    here: Side,
    there: Side,
}

/// Those of one side: their names, and the time of each in each run.
struct Side {
    /// In the report.
    key: &'static str,
    names: &'static [&'static str],
    times: Vec<Vec<f64>>,
}

impl Phases {
    /// Those of the side that the guest leaves, and what the other side does meanwhile.
    pub fn new(here: &'static [&'static str], there: &'static [&'static str]) -> Self {
        Phases {
            here: Side::new("phases", here),
            there: Side::new("peer_phases", there),
        }
    }

    /// One more migration.
    pub fn add(&mut self, moved: &Moved) {
        for side in [&mut self.here, &mut self.there] {
            for (times, phase) in side.times.iter_mut().zip(side.names) {
                times.push(moved.phase(side.key, phase));
            }
        }
    }

    /// The head of a table with a first column, if it has a name, and one for each phase.
    pub fn print_head(&self, first: Option<&str>, other_side: &str) {
        let there = self.there.names.iter();
        let there = there.map(|phase| format!("{other_side}: {phase}"));
        let here = self.here.names.iter().map(|&phase| phase.to_owned());
        let first = first.into_iter().map(str::to_owned);
        let columns: Vec<String> = first.chain(here).chain(there).collect();
        println!(
            "| {} |\n|{}",
            columns.join(" | "),
            "---|".repeat(columns.len())
        );
    }

    /// The medians, below such a head.
    pub fn print_medians(&mut self, first: Option<String>) {
        let times = self.here.times.iter_mut().chain(&mut self.there.times);
        let medians = times.map(|times| format!("{:.2}", median(times)));
        let columns: Vec<String> = first.into_iter().chain(medians).collect();
        println!("| {} |", columns.join(" | "));
    }
}

impl Side {
    fn new(key: &'static str, names: &'static [&'static str]) -> Self {
        Side {
            key,
            names,
            times: vec![Vec::new(); names.len()],
        }
    }
}
