//! The Go programs that tests and clusters run, and their builds.
//!
//! Small Go modules of this repository require Kubernetes, containerd and CoreDNS and name their programs
//! (see [`program`]). So Go's module proxy suffices: no registry of images and no download of binaries is
//! needed. The cache folder keeps the programs by version. An existing program is never built again.
//!
//! A machine that has the programs of the tests already names them in `KUBEBUILDER_ASSETS`, as in other
//! Kubernetes projects. Tests find the programs through that variable in either case. A cluster needs many
//! more programs of one release, so it uses only those that were built here.

mod build;
mod program;

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{paths, setup};
pub use build::source;
pub use program::{Module, Program};

/// The variable that names the folder of the programs to tests and benchmarks.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The variable that names the folders of a container runtime's programs to tests, in the form of `PATH`.
pub const RUNTIMES: &str = "MILLRACE_RUNTIMES";

/// The programs that tests need.
const FOR_TESTS: &[Program] = &[
    Program::Etcd,
    Program::KubeApiserver,
    Program::Kubectl,
    Program::KubeProxy,
];
/// The programs that tests of other projects need, too.
const CONTROL_PLANE: &[Program] = &[Program::Etcd, Program::KubeApiserver, Program::Kubectl];

/// Whether the programs are available on this machine.
pub enum Assets {
    /// The programs are in this folder.
    Ready(PathBuf),
    /// The programs are not available, for this reason.
    Unavailable(String),
}

/// The folders of programs that were built here.
pub struct Programs {
    folders: Vec<PathBuf>,
}

impl Programs {
    /// Builds the missing ones of these programs.
    pub fn ensure(programs: &[Program]) -> Result<Self> {
        let mut folders = Vec::new();
        for &program in programs {
            let folder = build::ensure(program)?;
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        Ok(Self { folders })
    }

    /// The path of a program.
    pub fn path(&self, program: Program) -> Result<PathBuf> {
        let candidates = self.folders.iter().map(|folder| folder.join(program.name()));
        candidates
            .into_iter()
            .find(|candidate| candidate.is_file())
            .with_context(|| format!("{} was not built", program.name()))
    }

    /// The folders, in the order for `PATH`.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }
}

/// Carries out `cargo xtask kubernetes`.
pub fn run(programs: &[Program]) -> Result<()> {
    setup::run()?;
    if programs.is_empty() {
        match for_tests()? {
            Assets::Ready(folder) => println!("{}", folder.display()),
            Assets::Unavailable(reason) => bail!("{reason}"),
        }
        return Ok(());
    }
    if let Some(reason) = build::why_no_go()? {
        bail!("{reason}");
    }
    for folder in Programs::ensure(programs)?.folders() {
        println!("{}", folder.display());
    }
    Ok(())
}

/// Makes the programs that tests need.
pub fn for_tests() -> Result<Assets> {
    if let Some(folder) = env::var_os(ASSETS).filter(|folder| !folder.is_empty()) {
        return given(folder);
    }
    let folder = build::folder(Module::Kubernetes)?;
    if missing(&folder, FOR_TESTS).is_empty() {
        return Ok(Assets::Ready(folder));
    }
    if let Some(reason) = build::why_no_go()? {
        return Ok(Assets::Unavailable(reason));
    }
    Programs::ensure(FOR_TESTS)?;
    Ok(Assets::Ready(folder))
}

/// Makes the programs of tests with container runtimes. Returns a value for [`RUNTIMES`].
pub fn for_runtimes() -> Result<Assets> {
    if let Some(folders) = env::var_os(RUNTIMES).filter(|folders| !folders.is_empty()) {
        return Ok(Assets::Ready(folders.into()));
    }
    if let Some(reason) = build::why_no_go()? {
        return Ok(Assets::Unavailable(reason));
    }
    // runc is not built here; it comes from Debian.
    if paths::program("apt-get").is_none() {
        return Ok(Assets::Unavailable(
            "no apt-get on this machine, which installs runc".to_owned(),
        ));
    }
    let programs = Programs::ensure(Program::OF_RUNTIMES)?;
    let tools = setup::unpacked::tools_of_nodes()?;
    let folders = programs.folders().iter().cloned().chain([tools.join("usr/sbin")]);
    let folders = env::join_paths(folders).context("a folder of programs has a colon in its name")?;
    Ok(Assets::Ready(folders.into()))
}

fn given(folder: OsString) -> Result<Assets> {
    let folder = PathBuf::from(folder);
    // Tests that need more than a control plane skip themselves without it.
    let missing = missing(&folder, CONTROL_PLANE);
    if !missing.is_empty() {
        bail!(
            "{ASSETS} names {}, which lacks {}",
            folder.display(),
            missing.join(", ")
        );
    }
    Ok(Assets::Ready(folder))
}

fn missing(folder: &Path, programs: &[Program]) -> Vec<&'static str> {
    let names = programs.iter().map(|program| program.name());
    names.filter(|name| !folder.join(name).is_file()).collect()
}

/// The release of Kubernetes that all programs are built from, such as `v1.36.3`.
pub fn version() -> Result<String> {
    build::version(Module::Kubernetes)
}
