//! `cargo xtask fuzz`: throws made-up input at everything that reads what strangers write.
//!
//! The targets are a package of their own, in `fuzz/`, because all of it is built with libFuzzer's instrumentation, which
//! stable Rust has under compiler flags. What the fuzzer has learned stays under `target/fuzz/corpus`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// The instrumentation that libFuzzer looks at.
const FLAGS: &str = "--cfg fuzzing \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Named, so that build scripts and macros are built without the flags.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// How long each target runs.
const SECONDS: u32 = 60;
/// The largest input, in bytes.
const INPUT_MOST: u32 = 8192;
/// What one input may take: seconds, and mebibytes of memory.
const INPUT_LIMITS: [&str; 2] = ["-timeout=5", "-rss_limit_mb=512"];

/// Builds the targets and runs them, or the one that is named.
///
/// # Errors
/// They cannot be built, there is none of this name, or one cannot be started.
pub fn fuzz(arguments: &[OsString]) -> Result<ExitCode> {
    let options = Options::read(arguments)?;
    let package = cargo::workspace().join("fuzz");
    let all = names(&package.join("targets"))?;
    let chosen = match options.target {
        None => all,
        Some(name) if all.contains(&name) => vec![name],
        Some(name) => bail!(
            "there is no fuzz target {name}; there are {}",
            all.join(", ")
        ),
    };
    let output = cargo::workspace().join("target/fuzz");
    build(&package, &output)?;
    for name in &chosen {
        println!("ferry: fuzzing {name} for {} s", options.seconds);
        let corpus = output.join("corpus").join(name);
        fs::create_dir_all(&corpus).context("cannot make the directory of the corpus")?;
        let status = Command::new(output.join(TARGET).join("release").join(name))
            .args([&corpus, &package.join("seeds").join(name)])
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-max_len={INPUT_MOST}"))
            .arg(format!("-artifact_prefix={}/{name}-", output.display()))
            .args(INPUT_LIMITS)
            .arg("-print_final_stats=1")
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("cannot start the fuzz target {name}"))?;
        if !status.success() {
            eprintln!(
                "ferry: fuzzing {name} has found something: the input is the file that it names"
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    println!("ferry: nothing found by {}", chosen.join(", "));
    Ok(ExitCode::SUCCESS)
}

struct Options {
    seconds: u32,
    target: Option<String>,
}

impl Options {
    fn read(arguments: &[OsString]) -> Result<Self> {
        let mut options = Options {
            seconds: SECONDS,
            target: None,
        };
        let mut words = arguments.iter().map(|word| word.to_str());
        while let Some(word) = words.next() {
            match word.context("an argument is not UTF-8")? {
                "--seconds" => {
                    let number = words.next().flatten().context("--seconds needs a number")?;
                    options.seconds = number.parse().context("--seconds needs a number")?;
                }
                name if options.target.is_none() && !name.starts_with('-') => {
                    options.target = Some(name.to_owned());
                }
                other => bail!("fuzz does not know {other}; write: fuzz [--seconds N] [TARGET]"),
            }
        }
        if options.seconds == 0 {
            // libFuzzer would take it for: without end.
            bail!("--seconds is at least 1");
        }
        Ok(options)
    }
}

/// The targets, by their files.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).context("cannot read the directory of fuzz targets")?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .and_then(|name| name.to_str())
                    .map(str::to_owned),
            );
        }
    }
    names.sort();
    Ok(names)
}

fn build(package: &Path, output: &Path) -> Result<()> {
    let status = cargo::command()
        .args(["build", "--release", "--target", TARGET, "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(output)
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cannot start cargo")?;
    match status.success() {
        true => Ok(()),
        false => bail!("the fuzz targets do not build"),
    }
}
