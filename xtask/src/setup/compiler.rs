//! The compiler that builds the eBPF programs.
//!
//! The BPF target has no precompiled `core`, so the compiler needs the source of `core`. Its build needs
//! unstable options: a nightly, or a released compiler with `RUSTC_BOOTSTRAP`. The first choice is a rustup
//! nightly that has the `rust-src` component. The second is Debian's compiler. Without rustup it is the
//! running one. In each case rustup then knows the compiler by the name [`TOOLCHAIN`], which
//! `proxy-agent/build.rs` asks for.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, paths, step::Step};

/// The name of the compiler for `proxy-agent/build.rs`.
const TOOLCHAIN: &str = "millrace-bpf";

/// The root of Debian's compiler.
const DEBIAN: &str = "/usr";

/// A compiler that can build for the BPF target.
pub struct Compiler {
    /// The root of the compiler's installation.
    pub sysroot: PathBuf,
    /// The major version of the LLVM that writes the compiler's bitcode.
    pub llvm: u32,
    release: String,
}

impl fmt::Display for Compiler {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "rustc {} in {}", self.release, self.sysroot.display())
    }
}

impl Compiler {
    /// The compiler below `sysroot`, if it has the source of `core` and is new enough for this workspace.
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

/// The major and the minor version.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The compiler to use among the installed ones.
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

/// Gives the compiler the name [`TOOLCHAIN`] in rustup.
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
