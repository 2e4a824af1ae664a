//! Migrations in words.

use ferry_api::wire::{
    Migration, MigrationPhase as Phase, MigrationRam, MigrationRole as Role,
    MigrationState as State,
};

use crate::table::{Side, Table};
use crate::text::{about, field, list, printable, time, wrap};

/// What an unconfirmed hand-over means, and what can be done.
const UNCONFIRMED: &str = "The guest does not run here. Whether it runs there, nobody has said: the connection was lost \
     after the hand-over. Ferry goes on asking, and takes the guest back by itself if the receiver says that it has not \
     started it. If the receiver is dead, and the guest has never run there for certain, ferryctl migration reclaim lets it go \
     on here. Never use it if the guest may run there, or may have run there: its disks would be destroyed. Then delete it here \
     (ferryctl delete).";

/// Characters in a line.
const WIDTH: usize = 80;
/// Two rates that differ by less than such a part are the same: both are measured.
const SAME: u64 = 16;

/// One line on how it stands.
pub fn line(progress: &Migration) -> String {
    let mut text = name(progress.phase);
    let ram = &progress.ram;
    match progress.phase {
        Phase::Precopy => {
            let done = match progress.role {
                Role::Send => "sent",
                Role::Receive => "received",
            };
            if progress.role == Role::Send {
                text += &format!(" {}", progress.round);
            }
            text += &format!("  {done} {}", about(ram.sent_bytes));
            if ram.bytes_per_second > 0 {
                text += &format!(" at {}/s", about(ram.bytes_per_second));
            }
            for part in outlook(progress.role, ram) {
                text += &format!(", {part}");
            }
            if progress.throttle_percent > 0 {
                text += &format!(", slowed {} %", progress.throttle_percent);
            }
        }
        Phase::Ram if ram.remaining_bytes > 0 => {
            text += &format!("  {} left", about(ram.remaining_bytes));
        }
        Phase::Devices => {
            for (id, device) in &progress.devices {
                let mark = if device.checked { " checked" } else { "" };
                text += &format!("  {id} {}{mark}", about(device.bytes));
            }
        }
        _ => {}
    }
    text += &format!("  {}", time(whole(progress.elapsed_ms)));
    if let Some(ms) = progress.downtime_ms {
        text += &format!(", stands still for {}", precise(ms));
    }
    printable(&text)
}

/// All there is to say.
pub fn describe(progress: &Migration) -> String {
    let ram = &progress.ram;
    let mut text = headline(progress);
    let mut elapsed = time(whole(progress.elapsed_ms));
    if let Some(ms) = progress.downtime_ms {
        elapsed += &format!(", the guest standing still for {} of it", precise(ms));
    }
    text += &field("time", &elapsed);
    let before: Vec<String> = progress
        .phases
        .iter()
        .filter(|it| !stands_still(it.phase))
        .map(|it| format!("{} {}", name(it.phase), precise(it.ms)))
        .collect();
    if !before.is_empty() {
        text += &list("phases", &before);
    }
    if ram.total_bytes > 0 {
        let mut travelled = format!(
            "{}, {} travelled",
            about(ram.total_bytes),
            about(ram.sent_bytes)
        );
        if progress.round > 0 {
            let s = if progress.round == 1 { "" } else { "s" };
            travelled += &format!(" in {} round{s}", progress.round);
        }
        if ram.bytes_per_second > 0 {
            travelled += &format!(", {}/s", about(ram.bytes_per_second));
        }
        text += &field("RAM", &travelled);
    }
    if progress.state == State::UnderWay {
        text += &under_way(progress);
    }
    if progress.throttle_percent > 0 {
        let held = format!(
            "processors held back {} % of their time",
            progress.throttle_percent
        );
        text += &field("throttle", &held);
    }
    if !progress.attempt.is_empty() {
        text += &field("attempt", &progress.attempt);
    }
    text += &downtime(progress);
    for (index, reason) in progress.error.iter().enumerate() {
        let name = if index == 0 { "reason" } else { "because" };
        text += &field(name, reason);
    }
    if progress.state == State::Unconfirmed {
        text += &format!("\n{}\n", wrap(UNCONFIRMED, WIDTH).join("\n"));
    }
    text
}

/// A phase, as Ferry calls it.
pub fn name(phase: Phase) -> String {
    format!("{phase:?}").to_lowercase()
}

/// Whether the guest stands still in it, on either side.
pub fn stands_still(phase: Phase) -> bool {
    match phase {
        Phase::Listen | Phase::Connect | Phase::Prepare | Phase::Precopy | Phase::Release => false,
        Phase::Pause
        | Phase::Ram
        | Phase::Machine
        | Phase::Devices
        | Phase::Ready
        | Phase::Commit
        | Phase::Unconfirmed
        | Phase::Resume => true,
    }
}

fn headline(progress: &Migration) -> String {
    let url = printable(&progress.url);
    let phase = name(progress.phase);
    match (progress.role, progress.state) {
        (Role::Send, State::Done) => format!("sent to {url}\n"),
        (Role::Send, State::UnderWay) => format!("being sent to {url}, at {phase}\n"),
        (Role::Send, State::Failed) => format!("not sent to {url}, ended at {phase}\n"),
        (_, State::Unconfirmed) => format!("handed over to {url}, unconfirmed\n"),
        (Role::Receive, State::Done) => format!("received at {url}\n"),
        (Role::Receive, State::UnderWay) if progress.phase == Phase::Listen => {
            format!("waiting for a guest at {url}\n")
        }
        (Role::Receive, State::UnderWay) => format!("being received at {url}, at {phase}\n"),
        (Role::Receive, State::Failed) => format!("not received at {url}, ended at {phase}\n"),
    }
}

fn under_way(progress: &Migration) -> String {
    let mut text = String::new();
    if progress.phase == Phase::Precopy && progress.role == Role::Send {
        text += &list("left", &outlook(progress.role, &progress.ram));
    }
    if let Some(ms) = progress.downtime_estimate_ms {
        text += &field("downtime", &format!("about {}, as it stands", precise(ms)));
    }
    text
}

/// What is left to send, and how long that takes. A receiver does not know.
fn outlook(role: Role, ram: &MigrationRam) -> Vec<String> {
    match (role, ram.remaining_bytes) {
        (Role::Receive, _) => return Vec::new(),
        // It is on its way, however long that is.
        (Role::Send, 0) => return vec!["waiting for the receiver to have it".into()],
        (Role::Send, _) => {}
    }
    let mut parts = vec![format!("{} left", about(ram.remaining_bytes))];
    let dirty = ram.dirty_bytes_per_second;
    if dirty > 0 {
        parts.push(format!("dirty {}/s", about(dirty)));
    }
    match ram.bytes_per_second {
        0 => {}
        // Who writes all of it again in each round writes as much as is sent, more or less.
        rate if rate - rate / SAME <= dirty => parts.push("not converging".into()),
        rate => {
            let seconds = ram.remaining_bytes.div_ceil(rate - dirty);
            parts.push(match seconds {
                ..120 => format!("ETA {seconds} s"),
                120..7200 => format!("ETA {} min", seconds.div_ceil(60)),
                _ => format!("ETA {} h", seconds.div_ceil(3600)),
            });
        }
    }
    parts
}

/// Where the time went in which the guest stood still, as a table; nothing as long as it runs.
fn downtime(progress: &Migration) -> String {
    let columns = [
        ("DOWNTIME", Side::Left),
        ("TIME", Side::Right),
        ("STATE", Side::Right),
    ];
    let mut table = Table::new(&columns);
    let still: Vec<_> = progress
        .phases
        .iter()
        .filter(|it| stands_still(it.phase))
        .collect();
    for it in &still {
        table.row([&name(it.phase), &precise(it.ms), ""]);
        if it.phase == Phase::Devices {
            for (id, device) in &progress.devices {
                table.row([
                    &format!("  {id}"),
                    &precise(device.ms),
                    &about(device.bytes),
                ]);
            }
        }
    }
    if let Some(ms) = progress.downtime_ms.filter(|_| !still.is_empty()) {
        table.row(["in all", &precise(ms), ""]);
    }
    if !progress.peer_phases.is_empty() {
        let peer = match progress.role {
            Role::Send => "the receiver meanwhile",
            Role::Receive => "the sender meanwhile",
        };
        table.row([peer, "", ""]);
    }
    for it in &progress.peer_phases {
        table.row([&format!("  {}", it.phase), &precise(it.ms), ""]);
    }
    match still.is_empty() && progress.peer_phases.is_empty() {
        true => String::new(),
        false => format!("\n{}", table.lines()),
    }
}

/// A time of which parts of milliseconds count, as long as it is short.
pub fn precise(ms: f64) -> String {
    match ms {
        ..1000.0 => format!("{ms:.3} ms"),
        _ => time(whole(ms)),
    }
}

/// Whole milliseconds. What is no time at all is none.
fn whole(ms: f64) -> u64 {
    // A conversion to an integer stays within its bounds.
    ms as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(rate: u64, dirty: u64, remaining: u64) -> String {
        let ram = MigrationRam {
            total_bytes: 1 << 40,
            sent_bytes: 0,
            remaining_bytes: remaining,
            bytes_per_second: rate,
            dirty_bytes_per_second: dirty,
        };
        outlook(Role::Send, &ram).join(", ")
    }

    #[test]
    fn the_rest_takes_as_long_as_the_rates_differ() {
        let mib = 1 << 20;
        assert_eq!(left(mib, mib, 0), "waiting for the receiver to have it");
        assert_eq!(left(0, 0, mib), "1.0 MiB left");
        assert_eq!(left(2 * mib, 0, 5 * mib), "5.0 MiB left, ETA 3 s");
        let slow = "600.0 MiB left, dirty 1.0 MiB/s, ETA 10 min";
        assert_eq!(left(2 * mib, mib, 600 * mib), slow);
        assert_eq!(left(1, 0, 36_000), "35.1 KiB left, ETA 10 h");
        for (rate, dirty) in [(mib, mib), (mib, mib / 100 * 95), (1, u64::MAX)] {
            let text = left(rate, dirty, mib);
            assert!(text.ends_with(", not converging"), "{text}");
        }
    }

    #[test]
    fn short_times_keep_their_parts() {
        assert_eq!(precise(0.0071), "0.007 ms");
        assert_eq!(precise(999.5), "999.500 ms");
        assert_eq!(precise(1234.5), "1234 ms");
        assert_eq!(precise(12_345.6), "12.3 s");
        for ms in [f64::NAN, f64::INFINITY, -1.0, f64::MAX] {
            assert!(!precise(ms).is_empty());
        }
    }
}
