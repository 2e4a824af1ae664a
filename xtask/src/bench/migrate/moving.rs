//! One migration: from the VMM that has the guest into a new one, over a unix socket.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::bench::vmm::Vmm;
use crate::bench::{Kind, LIMIT, above, millis};

/// The flags of a socket on which somebody listens.
const LISTENS: &str = "00010000";
/// How often the sender is asked whether it has noticed the end.
const LOOK: Duration = Duration::from_millis(5);

/// A guest that was moved. All times are in milliseconds.
pub struct Moved {
    /// Where it is now.
    pub vmm: Vmm,
    /// From the request to send it until the request to receive it is answered.
    pub total: f64,
    /// Between the last byte from its old place and the first one from the new one, less what is usual.
    pub silence: f64,
    /// By how many MiB the sender's, and the receiver's memory was above idle, apart from guest RAM.
    pub peaks: [f64; 2],
    /// What GET vm.migration says in the end; of others than Ferry nothing.
    pub report: Value,
}

impl Moved {
    /// How long a phase took here or on the other side.
    pub fn phase(&self, side: &str, phase: &str) -> f64 {
        let phases = self.report[side].as_array().into_iter().flatten();
        let times = phases.filter(|report| report["phase"] == phase);
        times.filter_map(|report| report["ms"].as_f64()).sum()
    }

    /// A number of the report.
    pub fn number(&self, pointer: &str) -> f64 {
        let number = self.report.pointer(pointer).and_then(Value::as_f64);
        number.unwrap_or(0.0)
    }
}

/// Moves a guest that ticks. `receive` and `send` are what the two sides are told beside the address.
///
/// # Errors
/// It does not arrive.
pub fn migrate(
    kind: Kind,
    program: &Path,
    source: Vmm,
    receive: &Value,
    send: &Value,
) -> Result<Moved> {
    let target = Vmm::start(program, &[])?;
    let socket = target.directory().join("guest.sock");
    let url = format!("unix:{}", socket.display());
    let mut request = receive.clone();
    request["receiver_url"] = json!(url);
    let idle = [source.reset_peak()?, target.reset_peak()?];
    let usual = source.serial().usual_pause();
    let begun = Instant::now();
    let (total, report) = thread::scope(|scope| {
        let received = scope.spawn(|| target.put("vm.receive-migration", &request));
        while !is_listening(&socket)? {
            if begun.elapsed() > LIMIT || received.is_finished() {
                bail!("nobody waits for the guest");
            }
            thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        let mut request = send.clone();
        request["destination_url"] = json!(url);
        if kind == Kind::Ferry {
            request["preserve_source"] = json!(true);
        }
        source.put("vm.send-migration", &request)?;
        // Nobody is asked meanwhile: who answers needs a processor, and there may be two.
        let received = received.join();
        received.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let total = millis(begun.elapsed());
        let report = match kind {
            Kind::Ferry => wait_for_end(&source, begun)?,
            _ => Value::Null,
        };
        anyhow::Ok((total, report))
    })?;
    target.serial().first_tick(LIMIT)?;
    let last = source
        .serial()
        .last()
        .context("the guest has never spoken")?;
    let first = target.serial().first().context("the guest is silent")?;
    let silence = first.saturating_duration_since(last).saturating_sub(usual);
    Ok(Moved {
        total,
        silence: millis(silence),
        peaks: [
            source.peak().map_or(f64::NAN, |peak| above(peak, idle[0])),
            above(target.peak()?.saturating_sub(target.mapped()?), idle[1]),
        ],
        report,
        vmm: target,
    })
}

/// Whether somebody listens on a socket. To connect in order to find out would be taken for a sender.
fn is_listening(socket: &Path) -> Result<bool> {
    let sockets = fs::read_to_string("/proc/net/unix").context("cannot list unix sockets")?;
    let socket = socket.to_str().context("the path is not UTF-8")?;
    let mut lines = sockets.lines().filter(|line| line.ends_with(socket));
    Ok(lines.any(|line| line.split_whitespace().nth(3) == Some(LISTENS)))
}

fn wait_for_end(source: &Vmm, begun: Instant) -> Result<Value> {
    while begun.elapsed() < LIMIT {
        let report = source.get("vm.migration")?;
        match report["state"].as_str() {
            Some("done") => return Ok(report),
            Some("failed") => bail!("the migration has failed: {report}"),
            _ => thread::sleep(LOOK),
        }
    }
    bail!("the migration does not end");
}
