//! The data of `millrace status`.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use super::Agent;
use super::local_ports;
use super::node::{hooks, left_to_node};
use crate::apply::name;
use crate::bpf::links::SOCKET_HOOKS;
use crate::bpf::{capabilities, skb_layout, sys};
use crate::cluster::Problem;
use crate::control::{MapUsage, ObjectError, ProgramStatus, Status, Writes};
use crate::trouble::Trouble;

pub fn status(agent: &Agent) -> Status {
    let waiting_for = waiting_for(agent);
    Status {
        ready: waiting_for.is_empty(),
        waiting_for,
        node: Some(agent.options.node_name.clone()),
        source: Some(agent.options.source.to_string()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        layout_version: Some(proxy_common::LAYOUT_VERSION),
        last_change: agent.last_change,
        services: agent.cluster.service_count() as u64,
        endpoints: agent.programmer.endpoint_count(),
        errors: errors(agent),
        maps: maps(agent),
        programs: programs(agent),
        writes: Writes {
            since_start: agent.programmer.writes(),
            last_sync: agent.last_writes,
        },
        sync: agent.first_sync,
        shared_addresses: agent.node.shared_addresses(),
    }
}

/// Whether the agent is ready, and the number of problems.
pub fn summary(agent: &Agent) -> (bool, u64) {
    (waiting_for(agent).is_empty(), errors(agent).len() as u64)
}

fn waiting_for(agent: &Agent) -> Vec<String> {
    let mut waiting = agent.source.waiting_for(&agent.cluster.waiting_for());
    if agent.synced {
        if !agent.node.is_attached() {
            waiting.push("programs to be attached (see errors)".to_owned());
        }
        waiting.extend(agent.own_node.waiting_for());
        waiting.extend(agent.survival.waiting_for());
        let pending = agent.programmer.pending();
        if pending > 0 {
            waiting.push(format!("{pending} map writes that failed and are tried again"));
        }
    }
    waiting
}

fn errors(agent: &Agent) -> Vec<ObjectError> {
    let input = agent.cluster.problems().into_iter().flat_map(|problem| {
        let Problem {
            code,
            object,
            messages,
        } = problem;
        messages.into_iter().map(move |message| ObjectError {
            code,
            object: object.clone(),
            message,
        })
    });
    let services = agent.programmer.problems().flat_map(|(id, remarks)| {
        let object = format!("Service {}", name(&agent.cluster, id));
        remarks.iter().map(move |remark| ObjectError {
            code: remark.code,
            object: object.clone(),
            message: remark.message.clone(),
        })
    });
    let source = agent.source.errors().into_iter();
    let source = source.map(|(object, message)| ObjectError {
        code: Trouble::SourceUnreachable,
        object,
        message,
    });
    source
        .chain(input)
        .chain(services)
        .chain(agent.reporter.problems())
        .chain(agent.config_errors.iter().cloned())
        .chain(pressure(agent))
        .chain(local_ports::problems(agent))
        .chain(left_to_node::problems(agent))
        .chain(agent.own_node.problems().iter().cloned())
        .chain(agent.node.problems().iter().cloned())
        .chain(agent.survival.problems().cloned())
        .chain(foreign_pins(agent))
        .chain(capabilities())
        .chain(unchecked_checksums(agent))
        .collect()
}

/// The programs check the packets of our own plugin's pods only.
fn unchecked_checksums(agent: &Agent) -> Option<ObjectError> {
    let has_pods = agent.options.cni_conf_dir.is_some();
    skb_layout::limitation().filter(|_| has_pods).map(|why| ObjectError {
        code: Trouble::ChecksumsNotChecked,
        object: "programs".to_owned(),
        message: format!(
            "{why}: a pod with CAP_NET_RAW can have the NIC write over the headers of a packet that was checked"
        ),
    })
}

/// The pinned programs and maps work without these capabilities; the agent cannot serve a new pod or make a
/// larger table.
fn capabilities() -> Option<ObjectError> {
    let missing = capabilities::missing();
    (!missing.is_empty()).then(|| ObjectError {
        code: Trouble::CapabilityMissing,
        object: "capabilities".to_owned(),
        message: format!(
            "{} missing: what is attached goes on serving, but nothing can be loaded or attached; start the agent with them",
            missing.join(", ")
        ),
    })
}

fn foreign_pins(agent: &Agent) -> Vec<ObjectError> {
    let report = |path: std::path::PathBuf| ObjectError {
        code: Trouble::ForeignPin,
        object: format!("pin {}", path.display()),
        message: "not made by Millrace and left alone: remove it, or choose another --bpf-root".to_owned(),
    };
    agent
        .programmer
        .store()
        .foreign_pins()
        .into_iter()
        .map(report)
        .collect()
}

/// Warns of tables that are near the largest size that they may have.
fn pressure(agent: &Agent) -> Vec<ObjectError> {
    let (slots, backends) = agent.programmer.allocated();
    let max = agent.programmer.largest();
    [
        ("frontends", agent.programmer.frontend_count(), max.frontends),
        ("slots", slots, max.slots),
        ("backends", backends, max.backends),
        ("addresses", agent.programmer.address_count(), max.addresses),
    ]
    .into_iter()
    .filter(|(_, entries, max)| u64::from(*entries) * 10 >= u64::from(*max) * 9)
    .map(|(name, entries, max)| ObjectError {
        code: Trouble::MapNearlyFull,
        object: format!("map {name}"),
        message: format!("{entries} of at most {max} entries are in use: raise maps.{name} in the configuration before it is full"),
    })
    .collect()
}

/// The use of each map.
pub fn maps(agent: &Agent) -> BTreeMap<String, MapUsage> {
    let datapath = agent.programmer.store();
    let sizes = datapath.sizes();
    let (slots, backends) = agent.programmer.allocated();
    let usage = |entries: u64, capacity: u32| MapUsage {
        entries,
        capacity: u64::from(capacity),
    };
    BTreeMap::from([
        (
            "frontends".to_owned(),
            usage(u64::from(agent.programmer.frontend_count()), sizes.frontends),
        ),
        ("slots".to_owned(), usage(u64::from(slots), sizes.slots)),
        ("backends".to_owned(), usage(u64::from(backends), sizes.backends)),
        (
            "addresses".to_owned(),
            usage(u64::from(agent.programmer.address_count()), sizes.addresses),
        ),
        (
            "flows".to_owned(),
            usage(datapath.flows.count().unwrap_or_default(), sizes.flows),
        ),
        (
            "streams".to_owned(),
            usage(
                datapath.streams.count().unwrap_or_default(),
                datapath.streams.capacity(),
            ),
        ),
        (
            "newFlows".to_owned(),
            usage(
                datapath.new_flows.count().unwrap_or_default(),
                datapath.new_flows.capacity(),
            ),
        ),
        (
            "affinity".to_owned(),
            usage(datapath.affinity.count().unwrap_or_default(), sizes.affinity),
        ),
        (
            "socketPeers".to_owned(),
            usage(
                datapath.socket_peers.count().unwrap_or_default(),
                sizes.socket_peers,
            ),
        ),
        (
            "podNamespaces".to_owned(),
            usage(datapath.pod_netns.count().unwrap_or_default(), sizes.pod_netns),
        ),
    ])
}

fn programs(agent: &Agent) -> BTreeMap<String, ProgramStatus> {
    let datapath = agent.programmer.store();
    let measured =
        std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1");
    datapath
        .programs
        .iter()
        .map(|(program, fd)| {
            let info = sys::program_info(fd.as_fd()).ok().filter(|_| measured);
            let status = ProgramStatus {
                attached_to: attached_to(agent, program),
                run_count: info.map(|info| info.run_count),
                run_time_ns: info.map(|info| info.run_time_ns),
            };
            ((*program).to_owned(), status)
        })
        .collect()
}

fn attached_to(agent: &Agent, program: &str) -> Vec<String> {
    let links = &agent.programmer.store().links;
    if SOCKET_HOOKS.iter().any(|(hook, _)| *hook == program) {
        return hooks::cgroup(&agent.options)
            .ok()
            .filter(|_| links.has_sockets())
            .map(|path| path.display().to_string())
            .into_iter()
            .collect();
    }
    let on_role = links.interfaces().iter().filter(|(_, role)| role.has(program));
    on_role
        .map(|(index, _)| agent.node.interface_name(*index))
        .collect()
}
