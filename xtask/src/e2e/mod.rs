//! `cargo xtask e2e`: the part of Kubernetes' own end-to-end suite about Services and networking, in a
//! cluster of namespaces.
//!
//! The measure is kube-proxy: a spec that passes with it in the same cluster has to pass with Millrace. The
//! repository keeps the results of both, one line for each spec (see [`table`]). A full run writes the
//! proxy's table anew; a run of part of the suite only prints its results. If a cluster is running, the specs
//! run in that one and it stays. So a repeated spec takes seconds.

mod report;
mod selection;
mod suite;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::unistd::geteuid;

use crate::{
    cluster::{self, Network, Proxy, Shape},
    kubernetes, paths,
};
use selection::Selection;
use table::{Row, Table};

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Options {
    /// A regular expression for the names of specs (default: all of [sig-network] that can run here)
    #[arg(value_name = "FOCUS")]
    focus: Option<String>,
    /// A regular expression for specs to leave out
    #[arg(long, value_name = "REGEX")]
    skip: Option<String>,
    /// Only the specs that failed in the table of the last full run
    #[arg(long, conflicts_with = "focus")]
    failed: bool,
    /// Also the specs that are left out by default, such as those that disrupt the cluster
    #[arg(long)]
    unlikely: bool,
    /// The number of specs that run at a time
    #[arg(long, value_name = "N", default_value_t = 6)]
    parallel: u8,
    /// Put the results of part of the suite into the table too
    #[arg(long)]
    record: bool,
    /// Leave a cluster running that was started for this run
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    cluster: cluster::Options,
}

/// Carries out `cargo xtask e2e`.
pub fn run(options: &Options) -> Result<ExitCode> {
    if !geteuid().is_root() {
        bail!("the suite needs a cluster, which is made of namespaces and eBPF programs: run it as root");
    }
    let current = cluster::current()?;
    let proxy = current.map_or(options.cluster.proxy, |shape| shape.proxy);
    let network = current.map_or(options.cluster.network, |shape| shape.network);
    let selection = select(options, proxy, network)?;
    let (toolbox, images) = match current {
        Some(_) => cluster::join()?,
        None => cluster::up(options.cluster)?,
    };
    let shape = cluster::current()?.context("the cluster is gone")?;
    let outcome = suite::run(&toolbox, &images, shape, &selection, options.parallel);
    if current.is_none() && !options.keep {
        cluster::down()?;
    }
    let rows = outcome?;
    conclude(rows, shape, selection.is_full(), options.record)
}

fn select(options: &Options, proxy: Proxy, network: Network) -> Result<Selection> {
    if options.failed {
        let table = Table::read(&results(proxy, network)?)?;
        let failed: Vec<_> = table
            .rows
            .iter()
            .filter(|row| row.failed())
            .map(|row| row.spec.clone())
            .collect();
        if failed.is_empty() {
            bail!("nothing failed in the last full run");
        }
        return Ok(Selection::of_names(&failed));
    }
    Ok(Selection::of(
        options.focus.as_deref(),
        options.skip.as_deref(),
        options.unlikely,
    ))
}

fn conclude(rows: Vec<Row>, shape: Shape, full: bool, record: bool) -> Result<ExitCode> {
    // The measure is kube-proxy with the bridge plugin, for any network.
    let measure = Table::read(&results(Proxy::KubeProxy, Network::Bridge)?).unwrap_or_default();
    let compare = (shape.proxy != Proxy::KubeProxy).then_some(&measure);
    let table = Table { rows };
    let heading = format!(
        "[sig-network] of Kubernetes {}, {} nodes, network {}: the result with {}, seconds{}, spec",
        kubernetes::version()?,
        shape.nodes,
        shape.network,
        shape.proxy,
        if compare.is_some() {
            ", the result with kube-proxy"
        } else {
            ""
        },
    );
    let path = results(shape.proxy, shape.network)?;
    if full {
        table.write(&path, &heading, compare)?;
        println!("{} written", path.display());
    } else {
        print!("{}", table.render(&heading, compare));
    }
    if record && !full {
        let mut whole = Table::read(&path).unwrap_or_default();
        whole.replace(&table);
        whole.write(&path, &heading, compare)?;
    }
    let (passed, failed, skipped) = table.counts();
    println!("{passed} passed, {failed} failed, {skipped} skipped themselves");
    let worse = table.worse_than(&measure);
    if shape.proxy != Proxy::KubeProxy && !worse.is_empty() {
        println!("\npass with kube-proxy, and not with {}:", shape.proxy);
        for row in &worse {
            println!("  {}", row.spec);
        }
    }
    Ok(if worse.is_empty() && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The path of the results of a proxy.
fn results(proxy: Proxy, network: Network) -> Result<PathBuf> {
    let name = format!("sig-network-{network}-{proxy}.txt");
    Ok(paths::repository()?.join("tests/cluster/results").join(name))
}
