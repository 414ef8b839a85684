//! Which compiler builds the eBPF programs.
//!
//! The BPF target comes without a precompiled `core`, so the compiler must have its source, and building it
//! needs unstable options: a nightly, or a stable one told that it may (`RUSTC_BOOTSTRAP`). Preferred is a
//! rustup nightly that has the `rust-src` component; else Debian's compiler; without rustup, the one that is
//! running. Whichever it is, rustup knows it afterwards by one name, [`TOOLCHAIN`], which is what
//! `proxy-agent/build.rs` asks for.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, paths, step::Step};

/// The name that `proxy-agent/build.rs` knows the compiler by.
const TOOLCHAIN: &str = "millrace-bpf";

/// Where Debian's compiler lives.
const DEBIAN: &str = "/usr";

/// A compiler that can build for the BPF target.
pub struct Compiler {
    /// The root of its installation.
    pub sysroot: PathBuf,
    /// The LLVM that writes its bitcode, by major version.
    pub llvm: u32,
    release: String,
}

impl fmt::Display for Compiler {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "rustc {} in {}", self.release, self.sysroot.display())
    }
}

impl Compiler {
    /// The compiler installed below `sysroot`, if it has the source of `core` and is new enough for this
    /// workspace.
    fn at(sysroot: &Path) -> Option<Self> {
        if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
            return None;
        }
        let version = command::output(Command::new(sysroot.join("bin/rustc")).arg("-vV")).ok()?;
        let field = |name| version.lines().find_map(|line| line.strip_prefix(name));
        let release = field("release: ")?.to_owned();
        let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
        let enough = numbers(&release) >= numbers(env!("CARGO_PKG_RUST_VERSION"));
        enough.then(|| Self {
            sysroot: sysroot.to_owned(),
            llvm,
            release,
        })
    }
}

/// Major and minor version.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The compiler to use among those that are installed.
pub fn find() -> Result<Option<Compiler>> {
    let debian = || Compiler::at(Path::new(DEBIAN));
    if has_rustup() {
        let nightlies = toolchains()?
            .into_iter()
            .filter(|(name, _)| name.starts_with("nightly"));
        return Ok(nightlies
            .map(|(_, path)| path)
            .find_map(|path| Compiler::at(&path))
            .or_else(debian));
    }
    let sysroot = command::output(Command::new("rustc").args(["--print", "sysroot"]))
        .context("asking the Rust compiler where it is installed")?;
    let sysroot = Path::new(sysroot.trim());
    match Compiler::at(sysroot) {
        None if sysroot != Path::new(DEBIAN) => bail!(
            "the Rust compiler in {} has no source of `core`, or is older than {}, and without rustup no other \
             can be asked for: install rustup, or add the library source to that compiler",
            sysroot.display(),
            env!("CARGO_PKG_RUST_VERSION")
        ),
        found => Ok(found),
    }
}

/// Lets rustup know the compiler by [`TOOLCHAIN`].
pub fn name_for_rustup(compiler: &Compiler) -> Result<()> {
    if !has_rustup() || toolchains()?.contains(&(TOOLCHAIN.to_owned(), compiler.sysroot.clone())) {
        return Ok(());
    }
    let step = Step::start(format!("naming {compiler} `{TOOLCHAIN}` for rustup"));
    let mut link = Command::new("rustup");
    link.args(["toolchain", "link", TOOLCHAIN]).arg(&compiler.sysroot);
    command::run_in(&step, &mut link)?;
    step.done();
    Ok(())
}

fn has_rustup() -> bool {
    paths::program("rustup").is_some()
}

/// rustup's toolchains: name and folder.
fn toolchains() -> Result<Vec<(String, PathBuf)>> {
    let list = command::output(Command::new("rustup").args(["toolchain", "list", "--verbose"]))?;
    Ok(list.lines().filter_map(parse_toolchain).collect())
}

/// Reads `NAME PATH` or `NAME (active, default) PATH`.
fn parse_toolchain(line: &str) -> Option<(String, PathBuf)> {
    let (name, rest) = line.split_once([' ', '\t'])?;
    let path = &rest[rest.find('/')?..];
    Some((name.to_owned(), PathBuf::from(path.trim_end())))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{numbers, parse_toolchain};

    #[test]
    fn toolchain_lines_with_and_without_remarks() {
        let parsed = |name: &str, path: &str| Some((name.to_owned(), PathBuf::from(path)));
        assert_eq!(
            parse_toolchain("nightly-x /opt/my rust/n"),
            parsed("nightly-x", "/opt/my rust/n")
        );
        assert_eq!(
            parse_toolchain("stable-x (active, default) /r/s"),
            parsed("stable-x", "/r/s")
        );
        assert_eq!(parse_toolchain("no toolchains installed"), None);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(numbers("1.100.0-nightly") > numbers("1.95"));
        assert_eq!(numbers("1.95.0"), numbers("1.95"));
    }
}
