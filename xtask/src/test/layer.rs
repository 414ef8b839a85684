//! The test programs and their requirements.
//!
//! The layers go from single functions to a whole control plane. An error in a low layer is cheapest to find
//! there, so the layers run in that order. The folder and name of a test program determine its layer; no
//! further declaration is needed.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    build::{self, Artifact, Profile},
    command,
};

/// The requirement of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
pub enum Layer {
    /// Nothing: the unit tests of every crate
    Host,
    /// The kernel: one program at a time, by test-run (`proxy-agent/tests`)
    Kernel,
    /// Namespaces with real agents, plugins and sockets (`tests`, `cni-plugin/tests`)
    World,
    /// A real API server as well (`tests/tests/kubernetes*.rs`)
    Kubernetes,
}

impl Layer {
    /// The layer of a test program, from its package's folder and cargo's name and kind for it.
    fn of(folder: &str, kind: &str, name: &str) -> Self {
        match (folder, kind) {
            ("tests", "test") if name.starts_with("kubernetes") => Self::Kubernetes,
            ("tests", _) | ("cni-plugin", "test") => Self::World,
            ("proxy-agent", "test") => Self::Kernel,
            _ => Self::Host,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Kernel => "kernel",
            Self::World => "world",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// Whether the layer's tests use the kernel's BPF or make namespaces.
    pub fn needs_root(self) -> bool {
        self != Self::Host
    }
}

/// An executable that holds tests.
#[derive(Clone, Serialize, Deserialize)]
pub struct TestProgram {
    pub layer: Layer,
    /// Package folder and target: `tests/affinity`, `proxy-common/lib`.
    pub name: String,
    pub executable: PathBuf,
    /// The package's folder, in which cargo would run the executable.
    pub folder: PathBuf,
}

/// The programs of a test run.
pub struct Programs {
    pub tests: Vec<TestProgram>,
    /// The `millrace` under test.
    pub millrace: PathBuf,
}

/// Builds all tests and the agent that they run. `with_log` builds programs that log each decision.
pub fn build(with_log: bool) -> Result<Programs> {
    eprintln!("… building tests");
    let mut cargo = command::cargo()?;
    cargo.args(["test", "--no-run", "--workspace", "--exclude", "proxy-ebpf"]);
    if with_log {
        cargo.args(["--features", "proxy-agent/log"]);
    }
    let artifacts = build::artifacts(&mut cargo)?;
    // Cargo builds a package's binaries with its integration tests. Then the plugin lies beside the agent.
    let millrace = artifacts.iter().find(|artifact| is_millrace(artifact));
    let millrace = match millrace.and_then(|artifact| artifact.executable.clone()) {
        Some(executable) => executable,
        None => build::binaries(Profile::Dev, &["millrace", "millrace-cni"])?
            .remove("millrace")
            .context("cargo built no binary `millrace`")?,
    };
    let mut seen = BTreeSet::new();
    let tests = artifacts.into_iter().filter_map(test_program);
    Ok(Programs {
        tests: tests
            .filter(|test| seen.insert(test.executable.clone()))
            .collect(),
        millrace,
    })
}

fn is_millrace(artifact: &Artifact) -> bool {
    let plain = artifact.profile.as_ref().is_some_and(|profile| !profile.test);
    plain
        && artifact
            .target
            .as_ref()
            .is_some_and(|target| target.name == "millrace" && target.kind == ["bin"])
}

/// The test program that an artifact of cargo is, if it is one.
pub fn test_program(artifact: Artifact) -> Option<TestProgram> {
    let executable = artifact.executable?;
    if !artifact.profile?.test {
        return None;
    }
    let target = artifact.target?;
    let folder = artifact.manifest_path.parent()?.to_owned();
    let package = folder.file_name()?.to_str()?;
    let kind = target.kind.first()?;
    let layer = Layer::of(package, kind, &target.name);
    let name = match kind.as_str() {
        "test" => format!("{package}/{}", target.name),
        "bin" => format!("{package}/bin {}", target.name),
        _ => format!("{package}/lib"),
    };
    Some(TestProgram {
        layer,
        name,
        executable,
        folder,
    })
}

#[cfg(test)]
mod tests {
    use super::Layer;

    #[test]
    fn the_place_of_a_test_decides_its_layer() {
        assert_eq!(Layer::of("proxy-common", "lib", "proxy_common"), Layer::Host);
        assert_eq!(Layer::of("proxy-agent", "bin", "millrace"), Layer::Host);
        assert_eq!(Layer::of("proxy-agent", "test", "verdicts"), Layer::Kernel);
        assert_eq!(Layer::of("tests", "lib", "harness"), Layer::World);
        assert_eq!(Layer::of("tests", "test", "agent_restart"), Layer::World);
        assert_eq!(Layer::of("tests", "test", "kubernetes_outage"), Layer::Kubernetes);
    }
}
