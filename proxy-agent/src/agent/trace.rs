//! `millrace trace`: finds where given packets would go.
//!
//! For packets of pods and from outside the live program runs over crafted packets, see
//! [`crate::bpf::test_run`]. For the node's own sockets the decision of the socket hooks runs here, by the
//! same code over the live maps. If it leaves the socket alone, the live program of our own device decides.
//! The trace sends no packet and stores nothing.

pub mod craft;
mod sockets;
mod tunnel;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proxy_common::maps::{Flow, FrontendKey, InUse, Reason};
use proxy_common::{Ip, Port};

use super::Agent;
use crate::bpf::test_run::{DryRun, DryRunKind, DryRunner};
use crate::config::SocketLb;
use crate::control::{Entry, Protocol, ServiceKind, TraceBackend, TraceReply, TraceRequest, Verdict};
use crate::network::Role;
use crate::plan::plan;
use crate::source::ObjectId;

/// The source port of a trace that names none: in the middle of the ephemeral range.
const DEFAULT_SOURCE_PORT: u16 = 40_000;

/// The result of one sample.
struct Sample {
    verdict: Verdict,
    reason: String,
    backend: Option<(SocketAddr, bool)>,
}

pub fn trace(agent: &Agent, request: &TraceRequest) -> Result<TraceReply, String> {
    if !agent.synced {
        return Err("the agent has not programmed anything yet: see `millrace status`".to_owned());
    }
    let entry = request.entry.unwrap_or_else(|| entry_of(agent, request.from));
    let mut steps = vec![format!(
        "{} enters {}",
        request.from,
        place(entry, request.entry.is_some())
    )];
    let target = describe_target(agent, request, &mut steps);
    let samples = match entry {
        Entry::Node
            if agent.options.configuration.socket_lb != SocketLb::Off && sockets::applies(request) =>
        {
            sockets::samples(agent, request, &mut steps)?
        }
        Entry::Node => from_node(agent, request, &mut steps)?,
        Entry::Pod => {
            let (program, interface) = at_pod(agent, request.from, &mut steps);
            let samples = packets(agent, request, program, interface, &mut steps)?;
            if is_masqueraded(agent, request)? {
                steps.push("if it leaves by an uplink, it carries an address of this node".to_owned());
            }
            samples
        }
        Entry::Uplink => {
            let interface = agent.node.interface_of(Role::Uplink);
            packets(agent, request, "from_uplink", interface, &mut steps)?
        }
    };
    Ok(summarise(agent, target, &samples, steps))
}

/// A source in a pod range is a pod, one of this node's addresses is the node, and any other comes from
/// outside.
fn entry_of(agent: &Agent, from: IpAddr) -> Entry {
    let in_nodes = agent
        .cluster
        .nodes()
        .flat_map(|node| &node.pod_cidrs)
        .any(|range| range.contains(&from));
    let in_config = agent
        .options
        .configuration
        .cluster_cidrs
        .iter()
        .any(|range| range.contains(&from));
    if in_nodes || in_config {
        Entry::Pod
    } else if agent.node.addresses().holds(from) || from.is_loopback() {
        Entry::Node
    } else {
        Entry::Uplink
    }
}

fn place(entry: Entry, named: bool) -> String {
    let place = match entry {
        Entry::Pod => "by a pod's interface",
        Entry::Node => "from a socket of this node",
        Entry::Uplink => "by the uplink",
    };
    if named {
        format!("{place}, as asked")
    } else {
        format!("{place}, by its address")
    }
}

/// The program that sees the packets of a pod, and the pod's interface, if it is known.
fn at_pod(agent: &Agent, from: IpAddr, steps: &mut Vec<String>) -> (&'static str, Option<u32>) {
    /// The program of our own pods comes first.
    const PROGRAMS: [&str; 2] = ["from_own_pod", "from_pod"];
    let datapath = agent.programmer.store();
    let roles = datapath.links.interfaces();
    let attached_program = |index: u32| {
        let role = roles.get(&index)?;
        PROGRAMS.into_iter().find(|program| role.has(program))
    };
    let own = datapath.pods.get(&Ip::from(from)).ok().flatten();
    let own = own.map(|pod| pod.interface);
    if own.is_none() && datapath.is_in_use(InUse::PODS) {
        steps.push(format!(
            "no pod that `millrace-cni` made on this node has {from}: what one of them sends from it is dropped as spoofed, \
             and what follows holds for a pod that has it"
        ));
    }
    let others = || {
        let mut pods = roles.keys().copied();
        let mut programs = PROGRAMS.into_iter();
        let program = programs.find(|program| roles.values().any(|role| role.has(program)))?;
        pods.find(|index| attached_program(*index) == Some(program))
    };
    let interface = own
        .filter(|index| attached_program(*index).is_some())
        .or_else(others);
    let program = interface.and_then(attached_program).unwrap_or("from_pod");
    if let Some(index) = own {
        steps.push(format!(
            "{from} is a pod of this node at interface {}",
            agent.node.interface_name(index)
        ));
    }
    (program, interface)
}

/// A packet of the node itself: the kernel routes packets to virtual addresses to our device.
fn from_node(agent: &Agent, request: &TraceRequest, steps: &mut Vec<String>) -> Result<Vec<Sample>, String> {
    let to = request.to.ip();
    let (protocol, port) = (request.protocol.number(), request.to.port());
    if is_routed_to_us(agent, to) || agent.node.has_port_rule(to, protocol, port) {
        return packets(agent, request, "from_host", None, steps);
    }
    if agent.node.addresses().holds(to) {
        steps.push(format!(
            "{to} is this node's own: the packet goes over the loopback"
        ));
        return packets(agent, request, "from_loopback", None, steps);
    }
    steps.push(format!("{to} is not routed to our device"));
    let pass = || Sample {
        verdict: Verdict::Pass,
        reason: Reason::NotOurs.meaning().trim().to_owned(),
        backend: None,
    };
    Ok((0..request.samples).map(|_| pass()).collect())
}

fn is_routed_to_us(agent: &Agent, address: IpAddr) -> bool {
    let config = agent.programmer.store().config.get(0).unwrap_or_default();
    let ip = Ip::from(address);
    let is_virtual =
        config.is_service_address(&ip) || agent.programmer.virtual_addresses().any(|found| found == ip);
    is_virtual && !agent.node.addresses().holds(address) && !agent.node.is_anothers(address)
}

/// The destination of a trace: a service's frontend, or a host port.
struct Target {
    service: Option<(ObjectId, String)>,
    kind: ServiceKind,
}

fn describe_target(agent: &Agent, request: &TraceRequest, steps: &mut Vec<String>) -> Option<Target> {
    let key = FrontendKey::new(
        Ip::from(request.to.ip()),
        Port::new(request.to.port()),
        request.protocol.number(),
    );
    for (id, service) in agent.cluster.services() {
        let Some(programmed) = agent.programmer.programmed(id) else {
            continue;
        };
        if !programmed.groups.iter().any(|group| group.has_key(&key)) {
            continue;
        }
        let planned = plan(&agent.cluster, id, &agent.context);
        let found = planned.groups.iter().find_map(|group| {
            let frontend = group.frontends.iter().find(|frontend| frontend.key == key)?;
            Some((group, super::service_list::kind(frontend.kind())))
        });
        let Some((group, kind)) = found else {
            continue;
        };
        let names = agent.cluster.names();
        let service = format!(
            "{}/{}:{}",
            names.text(service.namespace),
            service.name,
            names.text(group.port_name)
        );
        steps.push(format!(
            "{} {} is a {kind} of {service}, with {}",
            request.to,
            request.protocol,
            usable_endpoints(group.active.len())
        ));
        return Some(Target {
            service: Some((id, service)),
            kind,
        });
    }
    if let Some(pod) = sockets::host_port(agent, request) {
        steps.push(format!(
            "{} {} is a host port of the pod at {pod}",
            request.to, request.protocol
        ));
        return Some(Target {
            service: None,
            kind: ServiceKind::HostPort,
        });
    }
    steps.push(format!("{} {} is no frontend", request.to, request.protocol));
    None
}

fn usable_endpoints(count: usize) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} usable endpoint{plural}")
}

fn packets(
    agent: &Agent,
    request: &TraceRequest,
    program: &'static str,
    ifindex: Option<u32>,
    steps: &mut Vec<String>,
) -> Result<Vec<Sample>, String> {
    let is_of_pod = program == "from_own_pod" || program == "from_pod";
    let hooks = agent.options.configuration.socket_lb == SocketLb::All && request.protocol == Protocol::Tcp;
    steps.push(if is_of_pod && hooks {
        format!(
            "the program {program} decides about flows to {}; sockets of pods get a backend from connect(), each a random one, \
             and their packets go to that",
            request.to
        )
    } else {
        format!("the program {program} decides, packet by packet")
    });
    let payload = if program == "from_uplink" {
        tunnel::payload(agent, request, steps)
    } else {
        Vec::new()
    };
    let datapath = agent.programmer.store();
    let runner = DryRunner::new(datapath, program).map_err(|error| format!("running {program}: {error}"))?;
    (0..request.samples)
        .map(|sample| {
            // The ports wrap around; port 0 is left out.
            let first = request.source_port.unwrap_or(DEFAULT_SOURCE_PORT);
            let sport = (u32::from(first) - 1 + sample) % u32::from(u16::MAX) + 1;
            let frame = craft::packet(request.from, request.to, sport as u16, request.protocol, &payload);
            let run = runner
                .run(&frame, ifindex.unwrap_or(0))
                .map_err(|error| format!("running {program}: {error}"))?;
            Ok(sample_of(agent, request, &run))
        })
        .collect()
}

/// Whether the packet as it is would be masqueraded by an uplink.
fn is_masqueraded(agent: &Agent, request: &TraceRequest) -> Result<bool, String> {
    let failed = |error| format!("running to_uplink: {error}");
    let runner = DryRunner::new(agent.programmer.store(), "to_uplink").map_err(failed)?;
    let sport = request.source_port.unwrap_or(DEFAULT_SOURCE_PORT);
    let frame = craft::frame(request.from, request.to, sport, request.protocol);
    let interface = agent.node.interface_of(Role::Uplink).unwrap_or(0);
    match runner.run(&frame, interface) {
        Ok(run) => Ok(run.masquerade),
        // The program made no decision about the packet.
        Err(error) if error.kind() == std::io::ErrorKind::Other => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

fn sample_of(agent: &Agent, request: &TraceRequest, run: &DryRun) -> Sample {
    let verdict = match run.kind {
        DryRunKind::Pass => Verdict::Pass,
        DryRunKind::Drop if run.reason.is_reject() => Verdict::Reject,
        DryRunKind::Drop => Verdict::Drop,
        DryRunKind::Echo | DryRunKind::Translate => Verdict::Forward,
    };
    let translated_to = match (run.kind, run.backend) {
        (DryRunKind::Translate, Flow::TO_HOST_PORT) => sockets::host_port(agent, request),
        (DryRunKind::Translate, id) => agent
            .programmer
            .store()
            .backends
            .get(id)
            .map(|backend| SocketAddr::new(backend.address.into(), backend.port.number())),
        _ => None,
    };
    let backend = translated_to.map(|address| (address, run.masquerade));
    Sample {
        verdict,
        reason: run.reason.meaning().trim().to_owned(),
        backend,
    }
}

fn summarise(
    agent: &Agent,
    target: Option<Target>,
    samples: &[Sample],
    mut steps: Vec<String>,
) -> TraceReply {
    let mut counts: BTreeMap<(SocketAddr, bool), u32> = BTreeMap::new();
    for backend in samples.iter().filter_map(|sample| sample.backend) {
        *counts.entry(backend).or_default() += 1;
    }
    let backends: Vec<_> = counts
        .into_iter()
        .map(|((address, masquerade), samples)| TraceBackend {
            address,
            node: target.as_ref().and_then(|target| match &target.service {
                Some((id, _)) => node_of(agent, *id, address),
                None => Some(agent.options.node_name.clone()),
            }),
            samples,
            masquerade,
        })
        .collect();
    let first = samples.first();
    let verdict = first.map_or(Verdict::Pass, |sample| sample.verdict);
    let reason = first.map(|sample| sample.reason.clone()).unwrap_or_default();
    for backend in &backends {
        let source = if backend.masquerade {
            "with an address of this node"
        } else {
            "with its own address"
        };
        steps.push(format!(
            "{} of {} samples go to {}, {source}",
            backend.samples,
            samples.len(),
            backend.address
        ));
    }
    let (service, kind) = target.map(|target| (target.service, target.kind)).unzip();
    TraceReply {
        verdict,
        reason,
        service: service.flatten().map(|(_, name)| name),
        kind,
        backends,
        steps,
    }
}

/// The node of a backend, as its slice names it.
fn node_of(agent: &Agent, id: ObjectId, address: SocketAddr) -> Option<String> {
    let planned = plan(&agent.cluster, id, &agent.context);
    let (ip, port) = (Ip::from(address.ip()), Port::new(address.port()));
    let target = planned
        .groups
        .iter()
        .flat_map(|group| group.active.iter().chain(&group.draining))
        .find(|target| target.address == ip && target.port == port)?;
    target
        .node
        .map(|node| agent.cluster.names().text(node).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_counted_in_words() {
        let counted = [0, 1, 2].map(usable_endpoints);
        assert_eq!(
            counted,
            ["0 usable endpoints", "1 usable endpoint", "2 usable endpoints"]
        );
    }
}
