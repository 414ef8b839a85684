//! Tests whether a packet goes through. Each attached program decides about a crafted packet, and the kernel
//! is asked for the routes to our destinations.
//!
//! A part may be present and still be without effect: a program may use other tables, or a routing rule may
//! come before ours. So this module does not compare the state with the written one. A test costs a run of
//! each program, some tens of microseconds. It also asks the kernel about each address of a pod and about
//! some other routes. A question takes 5 µs in the kernel and about as much in the agent. For 105 pods with
//! two addresses that is 2 ms each second, and a wrong route is reported after the next two tests. The
//! questions about packets that pods send cost as much again, see [`forwarded`].

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_common::maps::{FrontendFlags, FrontendKind};

use super::forwarded;
use crate::agent::Agent;
use crate::agent::ranges::inside;
use crate::agent::trace::craft;
use crate::bpf::test_run::{DryRunKind, DryRunner};
use crate::control::{ObjectError, Protocol};
use crate::network::netlink::Packet;
use crate::trouble::Trouble;

/// Programs that see packets at interfaces.
const PROGRAMS: [&str; 7] = [
    "from_pod",
    "from_own_pod",
    "to_pod",
    "from_uplink",
    "to_uplink",
    "from_host",
    "from_loopback",
];
/// The programs among them that translate a local client's packets to a service under each policy.
const TRANSLATE: [&str; 3] = ["from_pod", "from_own_pod", "from_host"];
/// The most addresses of pods that one test asks about: those of 110 pods, Kubernetes' default for a node,
/// and more. If there are more, the tests take turns.
pub(super) const PODS: usize = 256;
/// The most routes to services and to other nodes' pods that one test asks about, in turn.
pub(super) const ROUTES: usize = 16;
/// The most services that a test tries until one is translated, and the number of services among which it
/// looks for them.
const SERVICES: usize = 8;
const LOOKED_AT: usize = 64;
const SOURCE_PORT: u16 = 40_000;
/// Routing rules may match the protocol.
static PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Runs all attached programs. A program that translates fails if it translates none of some services: for a
/// single service its owner may be at fault. After a failure, `iteration` chooses other services.
pub fn programs(agent: &Agent, iteration: usize, has_failed: bool) -> Vec<ObjectError> {
    let datapath = agent.programmer.store();
    let services = some_services(agent, if has_failed { iteration } else { 0 });
    let mut problems = Vec::new();
    for program in PROGRAMS {
        let attached = datapath
            .links
            .interfaces()
            .iter()
            .find(|(_, role)| role.has(program));
        let Some((interface, _)) = attached else { continue };
        let ask = |(to, protocol): (SocketAddr, Protocol)| {
            let frame = craft::frame(client(agent, to.ip()), to, SOURCE_PORT, protocol);
            let run = DryRunner::new(datapath, program).and_then(|runner| runner.try_run(&frame, *interface));
            let run = run.map_err(|error| error.to_string())?;
            match run {
                Some(run) if !services.is_empty() && TRANSLATE.contains(&program) => {
                    if run.kind == DryRunKind::Translate {
                        return Ok(());
                    }
                    let reason = run.reason.name();
                    Err(format!("{to} {protocol} leads to no endpoint ({reason})"))
                }
                _ => Ok(()),
            }
        };
        let nowhere = [(nowhere(agent), Protocol::Tcp)];
        let asked = if services.is_empty() {
            &nowhere[..]
        } else {
            &services
        };
        let mut failed: Result<(), String> = Ok(());
        for service in asked {
            let outcome = ask(*service);
            let has_passed = outcome.is_ok();
            failed = failed.and(outcome);
            if has_passed {
                failed = Ok(());
                break;
            }
        }
        if let Err(message) = failed {
            problems.push(ObjectError {
                code: Trouble::SelfTestFailed,
                object: format!("program {program}"),
                message: format!(
                    "a packet did not get through it: {message}; restart the agent if that stays"
                ),
            });
        }
    }
    problems
}

/// Cluster IPs that lead to some endpoint, of services that are programmed completely.
fn some_services(agent: &Agent, iteration: usize) -> Vec<(SocketAddr, Protocol)> {
    if agent.programmer.pending() > 0 {
        return Vec::new();
    }
    let skipped = iteration * SERVICES % agent.cluster.service_count().max(1);
    let services = agent.cluster.services().skip(skipped).take(LOOKED_AT);
    let frontends = services.filter_map(|(id, _)| {
        if !agent.programmer.problems_of(id).is_empty() {
            return None;
        }
        let served = agent.programmer.programmed(id)?.groups.iter();
        let mut served = served
            .filter(|group| group.active > 0 && u32::from(group.flags) & FrontendFlags::LOCAL_ONLY == 0);
        served.find_map(|group| {
            let mut frontends = group.frontends.iter();
            let frontend = frontends.find(|frontend| frontend.kind() == FrontendKind::ClusterIp)?;
            let key = &frontend.key;
            let to = SocketAddr::new(key.address.into(), key.port.number());
            Some((to, Protocol::from_number(key.protocol)?))
        })
    });
    frontends.take(SERVICES).collect()
}

/// An address of a family that the node has, for a packet to no endpoint.
fn nowhere(agent: &Agent) -> SocketAddr {
    let is_v4 = agent.node.addresses().primary_v4.is_some();
    let ip = if is_v4 { "192.0.2.1" } else { "2001:db8::1" };
    SocketAddr::new(ip.parse().unwrap_or(IpAddr::from([192, 0, 2, 1])), 9)
}

/// The client of the test packet: the node, by its address.
fn client(agent: &Agent, to: IpAddr) -> IpAddr {
    let addresses = agent.node.addresses();
    let own = match to {
        IpAddr::V4(_) => addresses.primary_v4.map(IpAddr::from),
        IpAddr::V6(_) => addresses.primary_v6.map(IpAddr::from),
    };
    own.unwrap_or(to)
}

/// Routes that are not as they should be.
#[derive(Default)]
pub struct WrongRoutes {
    /// Problems with routes that every node needs.
    pub needed: Vec<ObjectError>,
    /// Problems with routes to addresses that services name: a service's owner chooses these, and may choose
    /// one that the kernel routes elsewhere. Also problems with routes between pods and the outside, which
    /// the operator may close.
    pub named: Vec<ObjectError>,
}

/// Asks for the routes to services, other nodes' pods and pods of this node: those that failed `before`, and
/// some others in turn. `iteration` counts the tests.
pub async fn routes(agent: &Agent, iteration: usize, before: &[ObjectError]) -> WrongRoutes {
    let routes: Vec<(IpNet, u32)> = agent.node.routes();
    let mut pods = Vec::new();
    let walked = agent
        .programmer
        .store()
        .pods
        .for_each(|ip, pod| pods.push((IpNet::from(IpAddr::from(ip)), pod.interface)));
    if walked.is_ok() {
        // If the kernel ignores routes without a carrier, a pod could make its own route fail.
        pods.retain(|(_, interface)| agent.node.has_carrier(*interface));
        pods.sort_unstable();
    } else {
        pods.clear();
    }
    let mut wrong = WrongRoutes::default();
    let failed = |prefix: &IpNet| {
        if before.is_empty() {
            return false;
        }
        let object = format!("route {prefix}");
        before.iter().any(|problem| problem.object == object)
    };
    let again = routes.iter().chain(&pods).filter(|(prefix, _)| failed(prefix));
    let others = round_robin(&routes, iteration, ROUTES).chain(round_robin(&pods, iteration, PODS));
    let others = others.filter(|(prefix, _)| !failed(prefix));
    let mut misrouted = BTreeSet::new();
    for (prefix, interface) in again.chain(others) {
        let address = inside(prefix);
        // A pod that is gone has no interface any more.
        if !agent.node.has_interface(*interface) {
            continue;
        }
        let object = format!("route {prefix}");
        let protocols = if failed(prefix) {
            &PROTOCOLS[..]
        } else {
            &PROTOCOLS[iteration % 2..=iteration % 2]
        };
        let Some(problem) = wrong_route(agent, (address, *interface), protocols, object).await else {
            continue;
        };
        misrouted.insert(address);
        if agent.node.is_named_by_services(*prefix) {
            wrong.named.push(problem);
        } else {
            wrong.needed.push(problem);
        }
    }
    let pods: Vec<_> = pods
        .iter()
        .map(|(ip, interface)| (ip.addr(), *interface))
        .collect();
    // Ranges whose routes are set, and that contain no foreign route.
    let set: BTreeSet<_> = routes.iter().map(|(range, _)| range).collect();
    let others = agent.node.pods().next_hops();
    let others: Vec<_> = others
        .filter(|(range, _)| set.contains(range))
        .map(|(range, next_hop)| (inside(&range), next_hop))
        .collect();
    let of_forwarded = forwarded::routes(agent, (&pods, &others), (iteration, before), &misrouted).await;
    wrong.needed.extend(of_forwarded.needed);
    wrong.named.extend(of_forwarded.named);
    wrong
}

/// The problem with the route of the node's own packets to an address, which should leave by an interface.
async fn wrong_route(
    agent: &Agent,
    (to, interface): (IpAddr, u32),
    protocols: &[Protocol],
    object: String,
) -> Option<ObjectError> {
    for protocol in protocols {
        let packet = Packet {
            to,
            protocol: protocol.number(),
            from: None,
        };
        let found = match agent.node.route_of(packet).await {
            Ok(Some(found)) if found.interface == interface => continue,
            Ok(found) => found,
            Err(error) => return Some(ObjectError::new(error.trouble(), object, &error)),
        };
        let name = |index| agent.node.interface_name(index);
        let found = found.map_or_else(
            || "nowhere".to_owned(),
            |found| format!("by {}", name(found.interface)),
        );
        return Some(ObjectError {
            code: Trouble::SelfTestFailed,
            object,
            message: format!(
                "{protocol} packets to {to} go {found} and not by {}: see `ip rule` and `ip route get {to}`",
                name(interface)
            ),
        });
    }
    None
}

/// At most `most` elements, and the next ones with each turn.
pub(super) fn round_robin<T>(all: &[T], iteration: usize, most: usize) -> impl Iterator<Item = &T> {
    let first = iteration.wrapping_mul(most) % all.len().max(1);
    all.iter().cycle().skip(first).take(most.min(all.len()))
}
