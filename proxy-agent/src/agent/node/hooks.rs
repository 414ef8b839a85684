//! The places where programs are attached: the role of each interface of the node, and the cgroup of the
//! socket hooks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;

use crate::bpf::links::InterfaceRole;
use crate::bpf::{Datapath, witness};
use crate::config::{AgentOptions, SocketLb};
use crate::control::ObjectError;
use crate::network::cookie::Witness;
use crate::network::{self, Links, Role, Roles};
use crate::trouble::Trouble;

/// The loopback has this index in every network namespace.
const LOOPBACK: u32 = 1;

/// The parts of a node to which programs can be attached.
pub struct AttachPoints<'a> {
    /// The interfaces of the node.
    pub links: &'a Links,
    /// The roles of the interfaces: pod or uplink.
    pub roles: &'a Roles,
    /// Our own device.
    pub device: Option<u32>,
    /// The device of the tunnel.
    pub tunnel: Option<u32>,
    /// Whether frontends may have addresses of the node's own; only then programs are attached to the
    /// loopback.
    pub own_frontends: bool,
}

impl AttachPoints<'_> {
    /// Attaches the programs where they belong; true if all of them are attached.
    pub fn attach(
        &self,
        options: &AgentOptions,
        datapath: &mut Datapath,
        problems: &mut Vec<ObjectError>,
    ) -> bool {
        if self.own_frontends
            && let Err(error) = network::open_loopback()
        {
            problems.push(ObjectError::new(error.trouble(), "interface lo", &error));
        }
        if let Err(error) = datapath.take_over() {
            problems.push(ObjectError::new(Trouble::ProgramNotAttached, "programs", &error));
            return false;
        }
        let wanted = self.interfaces(datapath.links.interfaces());
        let errors = datapath.links.set_interfaces(&wanted, &datapath.programs);
        let mut complete = errors.is_empty();
        for (index, error) in errors {
            let object = format!("interface {}", self.links.name(index));
            problems.push(ObjectError::new(Trouble::ProgramNotAttached, object, &error));
        }
        if complete && let Err(error) = attach_sockets(options, datapath) {
            problems.push(ObjectError::new(
                Trouble::ProgramNotAttached,
                "socket hooks",
                &error,
            ));
            complete = false;
        }
        complete
    }

    /// The role of each interface; `before` has the roles so far. An interface that our plugin made keeps its
    /// role under another name. Otherwise its pod could send from any address until the name is back.
    fn interfaces(&self, before: &BTreeMap<u32, InterfaceRole>) -> BTreeMap<u32, InterfaceRole> {
        let is_own = |index: u32| before.get(&index) == Some(&InterfaceRole::OwnPod);
        let interfaces = self.roles.interfaces.iter();
        let mut wanted: BTreeMap<u32, InterfaceRole> = interfaces
            .map(|interface| match interface.role {
                Role::Uplink => (interface.index, InterfaceRole::Uplink),
                Role::Pod if is_own(interface.index) => (interface.index, InterfaceRole::OwnPod),
                Role::Pod => (interface.index, InterfaceRole::of_pod(&interface.name)),
            })
            .collect();
        wanted.extend(self.device.map(|index| (index, InterfaceRole::Host)));
        // The tunnel leads to other machines, as an uplink does.
        wanted.extend(self.tunnel.map(|index| (index, InterfaceRole::Uplink)));
        if self.own_frontends {
            wanted.insert(LOOPBACK, InterfaceRole::Loopback);
        }
        wanted
    }
}

fn attach_sockets(options: &AgentOptions, datapath: &mut Datapath) -> anyhow::Result<()> {
    if options.configuration.socket_lb == SocketLb::Off {
        datapath.links.detach_sockets();
        return Ok(());
    }
    let cgroup = cgroup(options)?;
    datapath.links.attach_sockets(&cgroup, &datapath.programs)?;
    Ok(())
}

/// Tells network namespaces apart on kernels where a socket does not give its namespace. It needs the same
/// cgroup as the socket hooks.
pub fn namespace_witness(options: &AgentOptions) -> Option<Witness> {
    let cgroup = cgroup(options).ok()?;
    Some(Arc::new(move |make| witness::namespace_of_socket(&cgroup, make)))
}

/// The cgroup whose sockets are translated: that of the options, or the root of the cgroup v2 hierarchy. A
/// node with both versions does not mount that root at the usual place.
pub fn cgroup(options: &AgentOptions) -> anyhow::Result<PathBuf> {
    if let Some(cgroup) = &options.cgroup {
        return Ok(cgroup.clone());
    }
    for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        if Path::new(place).join("cgroup.controllers").exists() {
            return Ok(place.into());
        }
    }
    bail!(
        "no cgroup v2 hierarchy is mounted: mount one (`mount -t cgroup2 none DIR`) and name it with --cgroup, or set socketLB: off"
    )
}
