//! Builds parts of the workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// An executable that cargo has built.
#[derive(Clone, Debug)]
pub struct Executable {
    /// Its target's name.
    pub target: String,
    /// The directory of its package.
    pub package: PathBuf,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is a test, and not a program.
    pub is_test: bool,
}

/// The workspace's directory.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cargo that runs us, in the workspace's directory.
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Builds, and returns every executable that it made or found up to date.
///
/// # Errors
/// The build fails; cargo has told why.
pub fn build(arguments: &[&str]) -> Result<Vec<Executable>> {
    let output = command()
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages
        .filter_map(|message| executable(&message))
        .collect())
}

fn executable(message: &Value) -> Option<Executable> {
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    Some(Executable {
        target: message.get("target")?.get("name")?.as_str()?.to_owned(),
        package: manifest.parent()?.to_owned(),
        path: message.get("executable")?.as_str()?.into(),
        is_test: message.get("profile")?.get("test")?.as_bool()?,
    })
}

/// Builds one executable. `profile` is `dev` or `release`.
///
/// # Errors
/// The build fails, or makes no such executable.
pub fn build_one(package: &str, binary: &str, profile: &str) -> Result<PathBuf> {
    let arguments = [
        "build",
        "--package",
        package,
        "--bin",
        binary,
        "--profile",
        profile,
    ];
    build(&arguments)?
        .into_iter()
        .find(|executable| executable.target == binary)
        .map(|executable| executable.path)
        .with_context(|| format!("cargo has built no {binary}"))
}
