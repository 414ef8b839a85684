//! Building the binaries for operators and for other programs.
//!
//! `cargo xtask build` builds for use, hence with optimisation. Demo and tests share the dev profile, so that
//! the second of them finds all binaries built. Benchmarks measure the released code and build with the
//! release profile.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{command, setup};

/// The variable that names the `millrace` under test to demo, tests and benchmarks.
pub const MILLRACE_BIN: &str = "MILLRACE_BIN";

/// The profile of cargo.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// A line of cargo's output about a built artifact; other lines have other reasons.
#[derive(Deserialize)]
pub struct Artifact {
    pub reason: String,
    #[serde(default)]
    pub manifest_path: PathBuf,
    pub target: Option<Target>,
    pub profile: Option<BuiltWith>,
    pub executable: Option<PathBuf>,
}

#[derive(Deserialize)]
pub struct Target {
    pub name: String,
    pub kind: Vec<String>,
}

#[derive(Deserialize)]
pub struct BuiltWith {
    pub test: bool,
}

/// Carries out `cargo xtask build`.
pub fn run(dev: bool) -> Result<()> {
    setup::run()?;
    let profile = if dev { Profile::Dev } else { Profile::Release };
    let built = binaries(profile, &["millrace", "millrace-cni"])?;
    println!(
        "{}\n{}",
        built["millrace"].display(),
        built["millrace-cni"].display()
    );
    Ok(())
}

/// Builds binaries of the workspace and returns the path of each.
pub fn binaries(profile: Profile, names: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    eprintln!("… building {}", names.join(", "));
    let mut cargo = command::cargo()?;
    // The set of packages is the same for each binary. The build unites the features of its packages, so
    // another set would mean other features and a full rebuild.
    cargo.arg("build");
    for package in ["proxy-agent", "cni-plugin", "millrace-tests"] {
        cargo.args(["--package", package]);
    }
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    for name in names {
        cargo.args(["--bin", name]);
    }
    let built: BTreeMap<_, _> = artifacts(&mut cargo)?
        .into_iter()
        .filter_map(|artifact| Some((artifact.target?.name, artifact.executable?)))
        .collect();
    match names.iter().find(|name| !built.contains_key(**name)) {
        Some(name) => bail!("cargo built no binary `{name}`"),
        None => Ok(built),
    }
}

/// Runs a cargo command that builds, and returns the artifacts. Cargo itself shows progress and errors.
pub fn artifacts(cargo: &mut Command) -> Result<Vec<Artifact>> {
    cargo
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("cannot start `{}`", command::describe(cargo)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed with the compiler's errors above",
            command::describe(cargo)
        );
    }
    let text = String::from_utf8(output.stdout).context("cargo's list of artifacts is no text")?;
    read_artifacts(&text)
}

/// The artifacts in cargo's output of `--message-format=json`.
pub fn read_artifacts(text: &str) -> Result<Vec<Artifact>> {
    let parsed = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(serde_json::from_str::<Artifact>);
    let artifacts: Vec<_> = parsed
        .collect::<Result<_, _>>()
        .context("reading cargo's list of artifacts")?;
    Ok(artifacts
        .into_iter()
        .filter(|artifact| artifact.reason == "compiler-artifact")
        .collect())
}
