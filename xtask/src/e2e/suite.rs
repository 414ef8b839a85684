//! Running the suite in a cluster: ginkgo runs several of its processes, outside the nodes.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{report, selection::Selection, table::Row};
use crate::{
    cluster::{Images, Network, Node, Shape, Toolbox, installation},
    kubernetes::{Program, Programs},
    paths,
    step::Step,
};

/// The limit of a run. A full run takes a quarter of it on two cores.
const LIMIT: &str = "90m";

/// The interval at which the progress is read.
const GLANCE: Duration = Duration::from_secs(2);

/// Runs the selected specs and returns their results.
pub fn run(
    toolbox: &Toolbox,
    images: &Images,
    shape: Shape,
    selection: &Selection,
    parallel: u8,
) -> Result<Vec<Row>> {
    let programs = Programs::ensure(Program::OF_THE_SUITE)?;
    let folder = paths::cache()?.join("e2e");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("removing the files of an earlier run")?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;

    let mut ginkgo = toolbox.in_control()?;
    ginkgo.arg(programs.path(Program::Ginkgo)?).args([
        "run",
        "--no-color",
        "--silence-skips",
        &format!("--procs={parallel}"),
        &format!("--timeout={LIMIT}"),
        &format!("--focus={}", selection.focus),
        "--json-report=report.json",
    ]);
    if let Some(skip) = &selection.skip {
        ginkgo.arg(format!("--skip={skip}"));
    }
    ginkgo.arg("--output-dir").arg(&folder);
    ginkgo.arg(programs.path(Program::E2eTest)?).arg("--").args([
        &format!("--kubeconfig={}", toolbox.files.kubeconfig("admin").display()),
        &format!(
            "--kubectl-path={}",
            toolbox.programs.path(Program::Kubectl)?.display()
        ),
        &format!("--num-nodes={}", shape.nodes),
        "--provider=skeleton",
        "--allowed-not-ready-nodes=0",
        // The start of the cluster has waited for the cluster's own pods.
        "--minStartupPods=0",
        "--disable-log-dump",
        "--dump-logs-on-failure=false",
    ]);
    ginkgo
        .env("KUBE_TEST_REPO_LIST", images.registries())
        .current_dir(&folder);

    let step = Step::start("running the suite");
    let log = folder.join("log");
    watch(&mut ginkgo, &log, &step)?;
    let rows = report::read(&folder.join("report.json"))
        .with_context(|| format!("the suite ended before its time: see {}", log.display()))?;
    for node in Node::first(shape.nodes) {
        keep_log(toolbox, shape, node, &folder);
    }
    if rows.is_empty() {
        bail!(
            "no spec has a name like {}: see {}",
            selection.focus,
            log.display()
        );
    }
    step.end(
        '✔',
        &format!("ran {} specs; their output is in {}", rows.len(), log.display()),
    );
    Ok(rows)
}

/// Failed specs make ginkgo fail; its report names them.
fn watch(ginkgo: &mut Command, log: &Path, step: &Step) -> Result<()> {
    let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let errors = output.try_clone().context("duplicating a log")?;
    let started = ginkgo.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    let mut child = started.context("starting ginkgo")?;
    while child.try_wait().context("waiting for ginkgo")?.is_none() {
        thread::sleep(GLANCE);
        step.note(&progress(&fs::read_to_string(log).unwrap_or_default()));
    }
    Ok(())
}

/// The progress that ginkgo's log shows: one dot for each spec that passed, after a line with their number.
fn progress(log: &str) -> String {
    let passed = log.matches('•').count();
    let planned = log
        .split_once("Will run ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or("?");
    format!("{passed} of {planned} specs have passed")
}

/// Keeps the log of a node's proxy for the time after the cluster.
fn keep_log(toolbox: &Toolbox, shape: Shape, node: Node, folder: &Path) {
    let log = match shape.network {
        Network::Bridge => fs::read_to_string(toolbox.files.node(node).join("proxy.log")).map_err(Into::into),
        Network::Millrace => installation::log(toolbox, node),
    };
    let kept = folder.join(format!("proxy-{}.log", node.name()));
    let kept = log.and_then(|log| fs::write(kept, log).map_err(Into::into));
    if let Err(error) = kept {
        eprintln!(
            "  the proxy's log on {} could not be kept: {error:#}",
            node.name()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::progress;

    #[test]
    fn the_progress_names_both_numbers() {
        let log = "Running Suite: Kubernetes e2e suite\nWill run 169 of 7219 specs\nRunning in parallel across 4 processes\n••S•";
        assert_eq!(progress(log), "3 of 169 specs have passed");
        assert_eq!(progress("compiling"), "0 of ? specs have passed");
    }
}
