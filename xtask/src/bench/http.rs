//! The API's other end: one connection for each request, as `ch-remote` and `ferryctl` make it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Asks for `route` without a body, and reads the answer to its last byte, for which it waits no longer than `limit`.
///
/// # Errors
/// There is no answer, or it is a refusal.
pub fn ask(socket: &Path, method: &str, route: &str, limit: Duration) -> Result<String> {
    send(socket, method, route, "", limit)
}

/// PUTs `body` to `route`.
///
/// # Errors
/// As [`ask`].
pub fn put(socket: &Path, route: &str, body: &Value, limit: Duration) -> Result<String> {
    send(socket, "PUT", route, &body.to_string(), limit)
}

/// Waits until the API's other end is there.
///
/// # Errors
/// It is not, within `limit`.
pub fn wait_for_api(socket: &Path, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    while ask(socket, "GET", "vmm.ping", limit).is_err() {
        if begun.elapsed() > limit {
            bail!("the API does not answer");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn send(socket: &Path, method: &str, route: &str, body: &str, limit: Duration) -> Result<String> {
    let mut stream = UnixStream::connect(socket).context("cannot reach the API")?;
    stream.set_read_timeout(Some(limit))?;
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    let request =
        format!("{method} /api/v1/{route} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))
                .map_or(Ok(0), str::parse)?;
            if body.len() >= length {
                if !head.starts_with("HTTP/1.1 2") {
                    bail!("{route}: {text}");
                }
                return Ok(body.to_owned());
            }
        }
        if count == 0 {
            bail!("{route}: the answer ends early: {text}");
        }
    }
}
