//! `cargo xtask cluster status`: the state of the cluster, and its folders.

use std::process::ExitCode;

use anyhow::Result;

use super::{
    equipped,
    process::Process,
    proxy,
    site::{Files, Node},
    underlay,
};

/// Fails, by exit status, unless a whole cluster is running.
pub fn print(files: &Files) -> Result<ExitCode> {
    let Some(shape) = files.shape().filter(|_| underlay::exists()) else {
        println!("no cluster is up");
        return Ok(ExitCode::FAILURE);
    };
    let toolbox = equipped(files)?;
    println!(
        "{} nodes, proxy {}, network {}; files and logs in {}",
        shape.nodes,
        shape.proxy,
        shape.network,
        files.root().display()
    );
    let mut whole = true;
    for process in Process::all(files.root()) {
        whole &= process.runs();
        println!("control  {:<24} {}", process.name(), state(process.runs()));
    }
    for node in Node::first(shape.nodes) {
        for process in Process::all(&files.node(node)) {
            whole &= process.runs();
            println!(
                "{:<8} {:<24} {}",
                node.name(),
                process.name(),
                state(process.runs())
            );
        }
        whole &= proxy::is_as_asked(&toolbox, shape.process(), node);
    }
    match toolbox.kubectl(&["get", "nodes,pods", "--all-namespaces", "--output=wide"]) {
        Ok(listed) => println!("\n{listed}"),
        Err(error) => {
            whole = false;
            println!("\n{error:#}");
        }
    }
    println!("cargo xtask cluster run control kubectl …     the API server, as an administrator");
    println!("cargo xtask cluster run n1 millrace status    any command on a node");
    Ok(if whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn state(runs: bool) -> &'static str {
    if runs { "runs" } else { "has ended" }
}
