//! Snapshots and restores in words.

use ferry_api::wire::{Operation, Progress, RamProgress, Status, Step};

use crate::text::{about, field, list, printable, time};

/// One line on how it stands.
pub fn line(progress: &Progress) -> String {
    let mut text = name(progress.step);
    if progress.ram.total_bytes > 0 && matches!(progress.step, Step::Ram | Step::Devices) {
        text += &format!("  {}", ram(&progress.ram));
    }
    if progress.step == Step::Devices {
        for (id, device) in &progress.devices {
            let mark = if device.checked { " checked" } else { "" };
            text += &format!("  {id} {}{mark}", about(device.bytes));
        }
    }
    text += &format!("  {}", time(progress.elapsed_ms));
    if progress.paused_ms > 0 {
        text += &format!(", paused {}", time(progress.paused_ms));
    }
    printable(&text)
}

/// All there is to say.
pub fn describe(progress: &Progress) -> String {
    let Progress {
        operation,
        status,
        step,
        steps,
        elapsed_ms,
        paused_ms,
        directory,
        ram: memory,
        devices,
        error,
    } = progress;
    let done = match (operation, status) {
        (Operation::Snapshot, Status::Done) => "saved in",
        (Operation::Snapshot, Status::UnderWay) => "being saved in",
        (Operation::Snapshot, Status::Failed) => "not saved in",
        (Operation::Restore, Status::Done) => "brought back from",
        (Operation::Restore, Status::UnderWay) => "being brought back from",
        (Operation::Restore, Status::Failed) => "not brought back from",
    };
    let at = match status {
        Status::Done => "",
        Status::UnderWay => &format!(", at {}", name(*step)),
        Status::Failed => &format!(", ended at {}", name(*step)),
    };
    let mut text = format!("{done} {}{at}\n", printable(directory));
    let whole = match operation {
        Operation::Snapshot => format!(
            "{}, the guest paused for {} of it",
            time(*elapsed_ms),
            time(*paused_ms)
        ),
        Operation::Restore => time(*elapsed_ms),
    };
    text += &field("time", &whole);
    let steps: Vec<String> = steps
        .iter()
        .map(|it| format!("{} {}", name(it.step), time(it.ms)))
        .collect();
    text += &list("steps", &steps);
    if memory.total_bytes > 0 {
        text += &field("RAM", &ram(memory));
    }
    for (id, device) in devices {
        let checked = match device.checked {
            true => ", checked",
            false => "",
        };
        let state = format!(
            "{} of state in {}{checked}",
            about(device.bytes),
            time(device.ms)
        );
        text += &field(id, &state);
    }
    for (index, reason) in error.iter().enumerate() {
        let name = if index == 0 { "reason" } else { "because" };
        text += &field(name, reason);
    }
    text
}

fn name(step: Step) -> String {
    format!("{step:?}").to_lowercase()
}

fn ram(ram: &RamProgress) -> String {
    let RamProgress {
        done_bytes,
        total_bytes,
        bytes_per_second,
    } = ram;
    let mut text = match done_bytes == total_bytes {
        true => about(*total_bytes),
        false => format!("{} of {}", about(*done_bytes), about(*total_bytes)),
    };
    if *bytes_per_second > 0 {
        text += &format!(", {}/s", about(*bytes_per_second));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ferry_api::wire::{DeviceProgress, StepReport};

    use super::*;

    fn progress() -> Progress {
        let step = |step, ms| StepReport { step, ms };
        let device = |bytes, checked| DeviceProgress {
            bytes,
            ms: 12,
            checked,
        };
        Progress {
            operation: Operation::Snapshot,
            status: Status::UnderWay,
            step: Step::Devices,
            steps: vec![
                step(Step::Check, 3),
                step(Step::Prepare, 500),
                step(Step::Ram, 1800),
            ],
            elapsed_ms: 12_345,
            paused_ms: 213,
            directory: "/snap".into(),
            ram: RamProgress {
                done_bytes: 512 << 20,
                total_bytes: 2 << 30,
                bytes_per_second: 1_181_200_000,
            },
            devices: BTreeMap::from([
                ("fs0".into(), device(11 << 20, true)),
                ("a-device-with-a-name".into(), device(1000, false)),
            ]),
            error: Vec::new(),
        }
    }

    #[test]
    fn a_line_tells_the_step_and_its_numbers() {
        let mut progress = progress();
        assert_eq!(
            line(&progress),
            "devices  512.0 MiB of 2.0 GiB, 1.1 GiB/s  a-device-with-a-name 1000 bytes  fs0 11.0 MiB checked  12.3 s, paused 213 ms"
        );
        progress.step = Step::Prepare;
        progress.paused_ms = 0;
        assert_eq!(line(&progress), "prepare  12.3 s");
    }

    #[test]
    fn the_whole_is_told_in_lines() {
        let mut progress = progress();
        assert_eq!(
            describe(&progress),
            "\
being saved in /snap, at devices
time      12.3 s, the guest paused for 213 ms of it
steps     check 3 ms, prepare 500 ms, ram 1800 ms
RAM       512.0 MiB of 2.0 GiB, 1.1 GiB/s
a-device-with-a-name
          1000 bytes of state in 12 ms
fs0       11.0 MiB of state in 12 ms, checked
"
        );
        progress.operation = Operation::Restore;
        progress.status = Status::Failed;
        progress.error = vec!["fs0 cannot be loaded".into(), "the pipe\nbroke".into()];
        progress.devices.clear();
        assert_eq!(
            describe(&progress),
            "\
not brought back from /snap, ended at devices
time      12.3 s
steps     check 3 ms, prepare 500 ms, ram 1800 ms
RAM       512.0 MiB of 2.0 GiB, 1.1 GiB/s
reason    fs0 cannot be loaded
because   the pipe\\nbroke
"
        );
    }
}
