//! The stand-in for a cloud's load balancer: `cluster-balancer` of the package `millrace-tests`. It gives
//! services of type LoadBalancer an address and routes the address to nodes, from the control plane's
//! namespace.

use std::process::Command;

use anyhow::Result;

use super::{place::Toolbox, process::Process};

pub const PROGRAM: &str = "cluster-balancer";

pub fn start(toolbox: &Toolbox) -> Result<()> {
    let mut command: Command = toolbox.in_control()?;
    command.arg(toolbox.own(PROGRAM)?);
    Process::start(&mut command, toolbox.files.root(), PROGRAM)?;
    Ok(())
}
