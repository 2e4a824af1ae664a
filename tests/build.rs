//! Builds what guests run: the tiny guest, and programs for Linux guests.
//!
//! The tiny guest is freestanding 32-bit code for the general registers only, in the 64-bit ELF container that PVH
//! loaders expect. The programs are static, as there is no libc in a Linux guest.

#![allow(
    clippy::expect_used,
    reason = "a build that cannot go on says so and ends"
)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const COMPILER_FLAGS: &[&str] = &[
    "-m32",
    "-march=i686",
    "-std=gnu11",
    "-O2",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-fno-strict-aliasing",
    "-fcf-protection=none",
    "-mgeneral-regs-only",
    "-Wall",
    "-Wextra",
    "-Werror",
];

const LINKER_FLAGS: &[&str] = &[
    "-m32",
    "-no-pie",
    "-nostdlib",
    "-static",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,--no-warn-rwx-segments",
];

/// For programs under Linux. They share contents with the tiny guest, whose code brings its own `memcpy` and so on.
const LINUX_FLAGS: &[&str] = &[
    "-static",
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
];

fn main() {
    let sources =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("guest");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-env-changed=CC");

    let objects: Vec<PathBuf> = sources_in(&sources)
        .iter()
        .map(|source| compile(source, &out))
        .collect();
    let linked = out.join("tiny-guest.elf32");
    let script = sources.join("link.ld");
    run(compiler()
        .args(LINKER_FLAGS)
        .arg("-T")
        .arg(&script)
        .arg("-o")
        .arg(&linked)
        .args(&objects));

    let guest = out.join("tiny-guest");
    run(Command::new("objcopy")
        .args(["-I", "elf32-i386", "-O", "elf64-x86-64"])
        .arg(&linked)
        .arg(&guest));
    println!("cargo::rustc-env=TINY_GUEST={}", guest.display());

    let pattern = out.join("linux-pattern.o");
    run(compiler()
        .args(["-std=gnu11", "-O2", "-ffreestanding", "-c"])
        .arg(sources.join("pattern.c"))
        .arg("-o")
        .arg(&pattern));
    for source in sources_in(&sources.join("linux")) {
        let program = source.with_extension("");
        let name = program.file_name().expect("a file has a name");
        let program = out.join(name);
        run(compiler()
            .args(LINUX_FLAGS)
            .args([&source, &pattern])
            .arg("-o")
            .arg(&program));
        println!(
            "cargo::rustc-env=LINUX_{}={}",
            name.to_string_lossy().to_uppercase(),
            program.display()
        );
    }
}

fn sources_in(folder: &Path) -> Vec<PathBuf> {
    let entries = folder
        .read_dir()
        .expect("the guest's sources are part of the package");
    let mut sources: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    sources.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "c" || extension == "S")
    });
    sources.sort();
    sources
}

fn compile(source: &Path, out: &Path) -> PathBuf {
    let name = source
        .file_name()
        .expect("a file has a name")
        .to_string_lossy();
    let object = out.join(format!("{name}.o"));
    run(compiler()
        .args(COMPILER_FLAGS)
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(&object));
    object
}

fn compiler() -> Command {
    Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
}

fn run(command: &mut Command) {
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{command:?} ended with {status}"),
        Err(error) => panic!(
            "{command:?} could not be started ({error}); the tiny guest needs gcc and binutils"
        ),
    }
}
