//! Building the binaries that people and programs run.
//!
//! `cargo xtask build` is for use and hence optimised. Demo and tests share the dev profile, so that
//! whichever runs second finds everything built; benchmarks measure what ships and build with the release
//! profile.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{command, setup};

/// Names the `millrace` under test to demo, tests and benchmarks.
pub const MILLRACE_BIN: &str = "MILLRACE_BIN";

/// How far the compiler goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// A line of cargo's account of what it built; other lines have other reasons.
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

/// `cargo xtask build`.
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

/// Builds binaries of the workspace and says where each of them is.
pub fn binaries(profile: Profile, names: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    eprintln!("… building {}", names.join(", "));
    let mut cargo = command::cargo()?;
    // The same packages whichever binary is asked for: cargo unites the features of what is built together,
    // and another set of packages would mean other features and everything once more.
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

/// Runs a cargo command that builds; cargo itself shows progress and errors, the artifacts are returned.
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
            "`{}` failed; the compiler's errors stand above",
            command::describe(cargo)
        );
    }
    let text = String::from_utf8(output.stdout).context("cargo's account of what it built is no text")?;
    let parsed = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(serde_json::from_str::<Artifact>);
    let artifacts: Vec<_> = parsed
        .collect::<Result<_, _>>()
        .context("reading cargo's account of what it built")?;
    Ok(artifacts
        .into_iter()
        .filter(|artifact| artifact.reason == "compiler-artifact")
        .collect())
}
