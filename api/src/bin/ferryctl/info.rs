//! `info` in words, within 80 columns.

use super::answers::{Config, Cpus, Device, Info, Memory, Node, Serial};
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
pub fn describe(info: &Info) -> String {
    let state = match &info.transition {
        Some(transition) => format!("{}, {transition}", info.state),
        None => info.state.clone(),
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

fn machine(config: &Config, actual: Option<u64>) -> String {
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
    match cpus.max_vcpus {
        Some(most) if most > cpus.boot_vcpus => format!("{}, at most {most}", cpus.boot_vcpus),
        _ => cpus.boot_vcpus.to_string(),
    }
}

fn ram(memory: &Memory, actual: Option<u64>) -> String {
    let mut text = size(actual.unwrap_or(memory.size));
    if !memory.shared {
        text += ", not shared";
    }
    match (memory.hugepages, memory.hugepage_size) {
        (true, Some(bytes)) => text += &format!(", in huge pages of {}", size(bytes)),
        (true, None) => text += ", in huge pages",
        (false, _) => {}
    }
    if memory.prefault {
        text += ", prefaulted";
    }
    text
}

fn serial_port(serial: &Serial) -> String {
    let mode = serial.mode.to_lowercase();
    match serial.file.as_ref().or(serial.socket.as_ref()) {
        Some(path) => format!("{mode} {}", shorten(path, WIDTH - INDENT - mode.len() - 1)),
        None => mode,
    }
}

/// A device with what the machine knows of it.
struct Row<'a> {
    id: &'a str,
    kind: String,
    device: &'a Device,
    node: Option<&'a Node>,
}

impl<'a> Row<'a> {
    fn new(kind: String, device: &'a Device, info: &'a Info) -> Self {
        let id = device.id.as_deref().unwrap_or("-");
        Self {
            id,
            kind,
            device,
            node: info.device_tree.get(id),
        }
    }

    fn state(&self) -> String {
        let state = self.node.and_then(|node| node.state.as_deref());
        state.unwrap_or("-").to_lowercase()
    }

    /// There is one PCI domain; as in `lspci`, it goes without saying.
    fn place(&self) -> &str {
        let bdf = self.node.and_then(|node| node.pci_bdf.as_deref());
        let bdf = bdf.unwrap_or("-");
        bdf.strip_prefix("0000:").unwrap_or(bdf)
    }

    fn queues(&self) -> String {
        match (self.device.num_queues, self.device.queue_size) {
            (number, Some(size)) => format!("{} x {size}", number.unwrap_or(1)),
            (Some(number), None) => number.to_string(),
            (None, None) => "-".into(),
        }
    }
}

fn devices(info: &Info) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for disk in info.config.disks.iter().flatten() {
        let kind = if disk.readonly { "disk, ro" } else { "disk" };
        rows.push(Row::new(kind.into(), disk, info));
    }
    for fs in info.config.fs.iter().flatten() {
        let tag = shorten(fs.tag.as_deref().unwrap_or("-"), NAME_MOST - 6);
        rows.push(Row::new(format!("share {tag}"), fs, info));
    }
    for other in info.config.vhost_user.iter().flatten() {
        let kind = other.device_type.map_or("other".into(), device_type);
        rows.push(Row::new(kind, other, info));
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

/// The sockets get the room that the other columns leave.
fn table(rows: &[Row<'_>]) -> String {
    let narrow = columns(rows, 0).width_before_last();
    columns(rows, WIDTH.saturating_sub(narrow).max(SOCKET_LEAST)).lines()
}

fn columns(rows: &[Row<'_>], room: usize) -> Table {
    let titles = ["DEVICE", "KIND", "STATE", "PCI", "QUEUES", "SOCKET"];
    let mut table = Table::new(&titles.map(|title| (title, Side::Left)));
    for row in rows {
        table.row([
            &shorten(row.id, NAME_MOST),
            &row.kind,
            &row.state(),
            row.place(),
            &row.queues(),
            &shorten(row.device.socket.as_deref().unwrap_or("-"), room),
        ]);
    }
    table
}

fn failure(row: &Row<'_>) -> String {
    let Some(reasons) = row.node.and_then(|node| node.error.as_deref()) else {
        return String::new();
    };
    let mut text = String::new();
    for (index, reason) in reasons.iter().enumerate() {
        let start = match index {
            0 => format!("\n{}: ", shorten(row.id, NAME_MOST)),
            _ => "  because ".to_owned(),
        };
        let indent = "    ";
        let reason = wrap(&printable(reason), WIDTH - 18).join(&format!("\n{indent}"));
        text += &format!("{start}{reason}\n");
    }
    text
}
