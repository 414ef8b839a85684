//! The Kubernetes programs that tests run against, built from Go modules.
//!
//! `tests/kubernetes` is a Go module that requires Kubernetes and names its programs, so Go's module proxy is
//! all they need: no registry of images, no download of binaries. They end up in the cache folder by version;
//! a program that is there is never built again. A machine that has them already says so in
//! `KUBEBUILDER_ASSETS`, the variable that other Kubernetes projects use for the same, and tests find them
//! through that variable in either case.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{command, paths, setup, step::Step};

/// Names the folder of the programs to whoever runs them.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// What tests need; kube-proxy is for comparisons only.
const FOR_TESTS: &[Program] = &[Program::Etcd, Program::KubeApiserver, Program::Kubectl];

/// A program that the Go module can build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Program {
    Etcd,
    KubeApiserver,
    Kubectl,
    KubeProxy,
}

impl Program {
    /// The name of the binary.
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::Kubectl => "kubectl",
            Self::KubeProxy => "kube-proxy",
        }
    }

    /// The Go package of its `main`.
    fn package(self) -> String {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3".to_owned(),
            _ => format!("k8s.io/kubernetes/cmd/{}", self.name()),
        }
    }
}

/// Whether the programs can be had on this machine.
pub enum Assets {
    /// They are in this folder.
    Ready(PathBuf),
    /// They are not, for this reason.
    Unavailable(String),
}

/// `cargo xtask kubernetes`.
pub fn run(programs: &[Program]) -> Result<()> {
    setup::run()?;
    let programs = if programs.is_empty() { FOR_TESTS } else { programs };
    match ensure(programs)? {
        Assets::Ready(folder) => println!("{}", folder.display()),
        Assets::Unavailable(reason) => bail!("{reason}"),
    }
    Ok(())
}

/// Makes what tests need.
pub fn for_tests() -> Result<Assets> {
    ensure(FOR_TESTS)
}

fn ensure(programs: &[Program]) -> Result<Assets> {
    if let Some(folder) = env::var_os(ASSETS)
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
    {
        let missing: Vec<_> = missing(&folder, programs).map(Program::name).collect();
        if !missing.is_empty() {
            bail!(
                "{ASSETS} names {}, which lacks {}",
                folder.display(),
                missing.join(", ")
            );
        }
        return Ok(Assets::Ready(folder));
    }
    let module = paths::repository()?.join("tests/kubernetes");
    let version = version(&module)?;
    let folder = paths::cache()?.join("kubernetes").join(&version);
    let missing: Vec<_> = missing(&folder, programs).collect();
    if missing.is_empty() {
        return Ok(Assets::Ready(folder));
    }
    if let Some(reason) = why_no_go(&module) {
        return Ok(Assets::Unavailable(reason));
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for program in missing {
        build(program, &version, &module, &folder)?;
    }
    Ok(Assets::Ready(folder))
}

fn missing<'a>(folder: &'a Path, programs: &'a [Program]) -> impl Iterator<Item = Program> + 'a {
    programs
        .iter()
        .copied()
        .filter(|program| !folder.join(program.name()).is_file())
}

/// The release of Kubernetes that the module requires.
fn version(module: &Path) -> Result<String> {
    let file = module.join("go.mod");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    required_version(&text).with_context(|| format!("{} requires no k8s.io/kubernetes", file.display()))
}

fn required_version(go_mod: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next()? == "k8s.io/kubernetes").then(|| words.next().map(str::to_owned))?
    })
}

/// Go says itself whether it is new enough for the module, and fetches a newer one where it may.
fn why_no_go(module: &Path) -> Option<String> {
    if paths::program("go").is_none() {
        return Some("no `go` on this machine to build Kubernetes with (https://go.dev/dl)".to_owned());
    }
    let asked = command::output(Command::new("go").args(["env", "GOVERSION"]).current_dir(module));
    asked
        .err()
        .map(|error| format!("this machine's `go` cannot build Kubernetes: {error:#}"))
}

/// Builds under another name first: a binary of the right name is always whole.
fn build(program: Program, version: &str, module: &Path, folder: &Path) -> Result<()> {
    let name = program.name();
    let step = Step::start(format!(
        "building {name} for Kubernetes {version} (once, takes minutes)"
    ));
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    // Without these a client sees a server of version 0.0.0 and takes it for one too old.
    let stamp = "-X k8s.io/component-base/version";
    let flags =
        format!("-s -w {stamp}.gitVersion={version} {stamp}.gitMajor={major} {stamp}.gitMinor={minor}");
    let partial = folder.join(format!(".{name}.{}", std::process::id()));
    let mut go = Command::new("go");
    go.args(["build", "-v", "-trimpath", "-ldflags", &flags, "-o"])
        .arg(&partial)
        .arg(program.package())
        .current_dir(module)
        .env("CGO_ENABLED", "0");
    command::run_in(&step, &mut go)
        .with_context(|| format!("building {name}: is Go's module proxy reachable (`go env GOPROXY`)?"))?;
    let finished = folder.join(name);
    fs::rename(&partial, &finished).with_context(|| format!("creating {}", finished.display()))?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::required_version;

    #[test]
    fn the_version_is_the_one_required_whichever_way_it_is_written() {
        let version = Some("v1.36.3".to_owned());
        assert_eq!(required_version("require k8s.io/kubernetes v1.36.3\n"), version);
        assert_eq!(
            required_version("require (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)"),
            version
        );
        assert_eq!(
            required_version("replace k8s.io/api => k8s.io/api v0.36.3\n"),
            None
        );
    }
}
