//! bpf-linker, which turns the compiler's bitcode into a BPF object, in a folder of the project's own.
//!
//! bpf-linker reads the bitcode with LLVM, and an LLVM reads no bitcode newer than itself. The shared library
//! that the compiler itself loads certainly matches, so bpf-linker is linked with that library. No LLVM has
//! to be installed, on any distribution. The linker needs it under the name `libLLVM.so`, so a folder beside
//! bpf-linker has two symbolic links to it. `LLVM_PREFIX` names another LLVM for a compiler that has its own
//! linked in.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::compiler::Compiler;
use crate::{command, paths, step::Step};

/// The release of bpf-linker that is built.
pub const VERSION: &str = "0.13.0";

/// The LLVM releases that this release supports.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Builds bpf-linker unless an existing one reads this compiler's bitcode.
pub fn ensure(compiler: &Compiler) -> Result<()> {
    let tools = paths::cache()?.join("tools");
    let linker = tools.join("bin/bpf-linker");
    if serves(&linker, compiler) {
        return Ok(());
    }
    if !LLVM.contains(&compiler.llvm) {
        bail!(
            "{compiler} uses LLVM {}, bpf-linker {VERSION} knows {} to {}: use another compiler",
            compiler.llvm,
            LLVM.start(),
            LLVM.end()
        );
    }
    let step = Step::start(format!("building bpf-linker {VERSION} (once, about a minute)"));
    let llvm = match env::var_os("LLVM_PREFIX") {
        Some(prefix) => PathBuf::from(prefix),
        None => link_llvm(compiler, &tools.join("llvm"))?,
    };
    let mut install = command::cargo()?;
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", compiler.llvm),
        ])
        .arg("--root")
        .arg(&tools)
        .env("LLVM_PREFIX", llvm)
        .env("RUSTC", compiler.sysroot.join("bin/rustc"));
    command::run_in(&step, &mut install).context(
        "building bpf-linker. Its sources come from crates.io, or the mirror that ~/.cargo/config.toml names",
    )?;
    if !serves(&linker, compiler) {
        bail!(
            "{} was built but does not start with LLVM {} or newer",
            linker.display(),
            compiler.llvm
        );
    }
    step.done();
    Ok(())
}

/// Whether this bpf-linker is the right release, starts, and loads an LLVM no older than the compiler's.
fn serves(linker: &Path, compiler: &Compiler) -> bool {
    let version = command::output(Command::new(linker).arg("--version"));
    version.is_ok_and(|version| version.trim_end().ends_with(VERSION))
        && loaded_llvm(linker).is_some_and(|(name, _)| major(&name) >= Some(compiler.llvm))
}

/// Links the LLVM that the compiler loads into `prefix/lib`.
fn link_llvm(compiler: &Compiler, prefix: &Path) -> Result<PathBuf> {
    let rustc = compiler.sysroot.join("bin/rustc");
    let (name, library) = loaded_llvm(&rustc).with_context(|| {
        format!(
            "{compiler} loads no shared libLLVM that bpf-linker could share: install LLVM {} with its shared \
             library and set LLVM_PREFIX to it",
            compiler.llvm
        )
    })?;
    let folder = prefix.join("lib");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("emptying {}", folder.display()));
        }
        _ => fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?,
    }
    for link in ["libLLVM.so", &name] {
        let link = folder.join(link);
        symlink(&library, &link).with_context(|| format!("creating {}", link.display()))?;
    }
    Ok(prefix.to_owned())
}

/// The name and the file of the LLVM that the dynamic loader finds for a program.
fn loaded_llvm(program: &Path) -> Option<(String, PathBuf)> {
    let loaded = command::output(Command::new("ldd").arg(program)).ok()?;
    loaded.lines().find_map(parse_loaded)
}

/// Reads `libLLVM.so.22.1 => /path/to/it (0x…)`; a library that is not found has no path.
fn parse_loaded(line: &str) -> Option<(String, PathBuf)> {
    let (name, rest) = line.trim().split_once(" => ")?;
    let (path, _) = rest.rsplit_once(" (0x")?;
    name.starts_with("libLLVM")
        .then(|| (name.to_owned(), PathBuf::from(path)))
}

/// The major version in `libLLVM.so.22.1-rust-1.97.0-nightly` or `libLLVM-22.so`.
fn major(name: &str) -> Option<u32> {
    name.split(|c: char| !c.is_ascii_digit())
        .find(|part| !part.is_empty())?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{major, parse_loaded};

    #[test]
    fn the_loaded_llvm_is_found_in_the_output_of_ldd() {
        let found = |line| parse_loaded(line).map(|(name, path)| (major(&name), path));
        assert_eq!(
            found("\tlibLLVM.so.22.1 => /lib/libLLVM.so.22.1 (0x00007f7f)"),
            Some((Some(22), PathBuf::from("/lib/libLLVM.so.22.1")))
        );
        assert_eq!(
            found("\tlibLLVM.so.22.1-rust-1.97.0-nightly => /n/../lib/libLLVM (0x00007f7f)"),
            Some((Some(22), PathBuf::from("/n/../lib/libLLVM")))
        );
        assert_eq!(found("\tlibLLVM.so.22.1 => not found"), None);
        assert_eq!(found("\tlibc.so.6 => /lib/libc.so.6 (0x00007f7f)"), None);
    }
}
