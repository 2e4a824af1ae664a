//! `info` in words, within 80 columns.

use ferry_api::wire::{Console, Cpus, DeviceNode, Disk, Fs, Memory, VhostUser, VmConfig, VmInfo};

use super::table::{Side, Table};
use super::text::{printable, shorten, size, wrap};

/// Characters in a line.
const WIDTH: usize = 80;
/// Where the second word of the first lines begins.
const INDENT: usize = 12;
/// The least that is left of a socket's path.
const SOCKET_LEAST: usize = 14;
/// The most that is shown of a name.
const NAME_MOST: usize = 14;
/// The most lines that a command line may take.
const CMDLINE_LINES: usize = 6;

/// The whole text.
pub fn describe(info: &VmInfo) -> String {
    let state = match &info.transition {
        Some(transition) => format!("{:?}, {transition}", info.state),
        None => format!("{:?}", info.state),
    };
    let mut text = field("State", &state);
    text += &machine(&info.config, info.memory_actual_size);
    let devices = devices(info);
    if devices.is_empty() {
        return text + &field("Devices", "none");
    }
    text.push('\n');
    text += &table(&devices);
    for device in &devices {
        text += &failure(device);
    }
    text
}

fn machine(config: &VmConfig, actual: u64) -> String {
    let mut text = String::new();
    if let Some(payload) = &config.payload {
        for (name, path) in [
            ("Kernel", &payload.kernel),
            ("Initramfs", &payload.initramfs),
        ] {
            if let Some(path) = path {
                text += &field(name, &shorten(&printable(path), WIDTH - INDENT));
            }
        }
        if let Some(cmdline) = &payload.cmdline
            && !cmdline.is_empty()
        {
            text += &cmdline_field(cmdline);
        }
    }
    if let Some(cpus) = &config.cpus {
        text += &field("Processors", &processors(cpus));
    }
    if let Some(memory) = &config.memory {
        text += &field("Memory", &ram(memory, actual));
    }
    if let Some(serial) = &config.serial {
        text += &field("Serial", &serial_port(serial));
    }
    text
}

fn field(name: &str, value: &str) -> String {
    format!("{name:INDENT$}{}\n", printable(value))
}

fn cmdline_field(cmdline: &str) -> String {
    let lines = wrap(&printable(cmdline), WIDTH - INDENT - 2);
    let mut text = String::new();
    for (index, line) in lines.iter().take(CMDLINE_LINES).enumerate() {
        let name = if index == 0 { "Cmdline" } else { "" };
        let more = match index + 1 == CMDLINE_LINES && lines.len() > CMDLINE_LINES {
            true => " …",
            false => "",
        };
        text += &field(name, &format!("{line}{more}"));
    }
    text
}

fn processors(cpus: &Cpus) -> String {
    let boot = cpus.boot_vcpus.unwrap_or(1);
    match cpus.max_vcpus {
        Some(most) if most > boot => format!("{boot}, at most {most}"),
        _ => boot.to_string(),
    }
}

fn ram(memory: &Memory, actual: u64) -> String {
    let mut text = size(actual);
    if memory.shared == Some(false) {
        text += ", not shared";
    }
    match (memory.hugepages, memory.hugepage_size) {
        (Some(true), Some(bytes)) => text += &format!(", in huge pages of {}", size(bytes)),
        (Some(true), None) => text += ", in huge pages",
        _ => {}
    }
    if memory.prefault == Some(true) {
        text += ", prefaulted";
    }
    text
}

fn serial_port(serial: &Console) -> String {
    let mode = serial.mode.map(|mode| format!("{mode:?}").to_lowercase());
    let mode = mode.unwrap_or_default();
    match serial.file.as_ref().or(serial.socket.as_ref()) {
        Some(path) => format!("{mode} {}", shorten(path, WIDTH - INDENT - mode.len() - 1)),
        None => mode,
    }
}

/// A device as it was defined, with what the machine knows of it.
struct Row<'a> {
    id: &'a str,
    kind: String,
    queues: String,
    socket: &'a str,
    node: Option<&'a DeviceNode>,
}

impl<'a> Row<'a> {
    fn disk(disk: &'a Disk) -> Self {
        Self {
            id: disk.id.as_deref().unwrap_or("-"),
            kind: match disk.readonly {
                Some(true) => "disk, ro".into(),
                _ => "disk".into(),
            },
            queues: queues(disk.num_queues, disk.queue_size),
            socket: disk.vhost_socket.as_deref().unwrap_or("-"),
            node: None,
        }
    }

    fn fs(fs: &'a Fs) -> Self {
        let tag = shorten(fs.tag.as_deref().unwrap_or("-"), NAME_MOST - 6);
        Self {
            id: fs.id.as_deref().unwrap_or("-"),
            kind: format!("share {tag}"),
            queues: queues(fs.num_queues, fs.queue_size),
            socket: fs.socket.as_deref().unwrap_or("-"),
            node: None,
        }
    }

    fn other(other: &'a VhostUser) -> Self {
        Self {
            id: other.id.as_deref().unwrap_or("-"),
            kind: other.device_type.map_or("-".into(), device_type),
            queues: queues(other.num_queues, other.queue_size),
            socket: other.socket.as_deref().unwrap_or("-"),
            node: None,
        }
    }

    fn state(&self) -> String {
        match self.node {
            Some(node) => format!("{:?}", node.state).to_lowercase(),
            None => "-".into(),
        }
    }

    /// There is one PCI domain; as in `lspci`, it goes without saying.
    fn place(&self) -> &str {
        let bdf = self.node.and_then(|node| node.pci_bdf.as_deref());
        let bdf = bdf.unwrap_or("-");
        bdf.strip_prefix("0000:").unwrap_or(bdf)
    }
}

fn queues(number: Option<u32>, size: Option<u32>) -> String {
    let number = number.unwrap_or(1);
    match size {
        Some(size) => format!("{number} x {size}"),
        None => number.to_string(),
    }
}

fn devices(info: &VmInfo) -> Vec<Row<'_>> {
    let disks = info.config.disks.iter().flatten().map(Row::disk);
    let fs = info.config.fs.iter().flatten().map(Row::fs);
    let others = info.config.vhost_user.iter().flatten().map(Row::other);
    let mut rows: Vec<Row<'_>> = disks.chain(fs).chain(others).collect();
    for row in &mut rows {
        row.node = info.device_tree.get(row.id);
    }
    rows
}

/// Names of virtio devices (Virtual I/O Device 1.2, 5).
fn device_type(number: u32) -> String {
    let name = match number {
        1 => "net",
        2 => "blk",
        3 => "console",
        4 => "rng",
        5 => "balloon",
        8 => "scsi",
        16 => "gpu",
        18 => "input",
        19 => "vsock",
        25 => "sound",
        26 => "fs",
        _ => return format!("type {number}"),
    };
    name.to_owned()
}

/// Names are shown whole where there is room, because other commands want them; sockets get what is left.
fn table(rows: &[Row<'_>]) -> String {
    let used = columns(rows, NAME_MOST, 0).width_before_last() + SOCKET_LEAST;
    let names = NAME_MOST + WIDTH.saturating_sub(used);
    let narrow = columns(rows, names, 0).width_before_last();
    let sockets = WIDTH.saturating_sub(narrow).max(SOCKET_LEAST);
    columns(rows, names, sockets).lines()
}

fn columns(rows: &[Row<'_>], names: usize, sockets: usize) -> Table {
    let titles = ["DEVICE", "KIND", "STATE", "PCI", "QUEUES", "SOCKET"];
    let mut table = Table::new(&titles.map(|title| (title, Side::Left)));
    for row in rows {
        table.row([
            &shorten(row.id, names),
            &row.kind,
            &row.state(),
            row.place(),
            &row.queues,
            &shorten(row.socket, sockets),
        ]);
    }
    table
}

fn failure(row: &Row<'_>) -> String {
    let reasons = row.node.map_or(&[][..], |node| &node.error);
    let mut text = String::new();
    for (index, reason) in reasons.iter().enumerate() {
        let (start, reason) = match index {
            0 => ("\n", format!("{}: {reason}", row.id)),
            _ => ("  because ", reason.clone()),
        };
        let lines = wrap(&printable(&reason), WIDTH - start.len());
        text += &format!("{start}{}\n", lines.join("\n    "));
    }
    text
}
