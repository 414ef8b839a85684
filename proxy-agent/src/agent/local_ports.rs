//! Ports that the kernel gives to the node's own sockets, and that have another meaning to Millrace.
//!
//! The kernel takes the source port of a connection out of `net.ipv4.ip_local_port_range`, for IPv6 too. If a
//! masqueraded flow to the same peer has that port, the programs exchange the port, see
//! `decide/local_socket.rs`. Then each packet of the node to an uplink costs a look-up. If a node port has
//! it, replies to unconnected sockets go to the service, and so do replies by SCTP. So the ranges should not
//! overlap, or the ports should be reserved. The agent reads both settings anew each time, which takes
//! microseconds.

use std::fs;
use std::io;
use std::ops::RangeInclusive;

use super::Agent;
use crate::config::AgentOptions;
use crate::control::ObjectError;
use crate::trouble::Trouble;

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The effect of an overlap with node ports.
const NODE_PORTS: &str =
    "replies by SCTP, and to unconnected UDP sockets of the node that get one of them, go to the service";

/// The effect of an overlap with the masquerade range.
const MASQUERADE: &str = "connections of the node itself that get one of them leave by another port if a masqueraded flow has theirs";

/// The default range of node ports of an API server (`--service-node-port-range`).
const NODE_PORT_RANGE: Ports = 30_000..=32_767;

type Ports = RangeInclusive<u16>;

/// The ports that the kernel gives out.
#[derive(Debug, PartialEq, Eq)]
struct LocalPorts {
    range: Ports,
    reserved: Vec<Ports>,
}

/// Ports with two meanings.
struct Overlap {
    common: Ports,
    with: &'static str,
    effect: &'static str,
    advice: &'static str,
}

impl LocalPorts {
    fn read() -> io::Result<Self> {
        let parsed = Self::parse(&fs::read_to_string(RANGE)?, &fs::read_to_string(RESERVED)?);
        parsed.ok_or_else(|| io::Error::other("no range of ports"))
    }

    fn parse(range: &str, reserved: &str) -> Option<Self> {
        let mut ends = range.split_ascii_whitespace().map(str::parse);
        let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
        let part = |text: &str| -> Option<Ports> {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        Some(Self {
            range: first..=last,
            reserved: reserved.trim().split(',').filter_map(part).collect(),
        })
    }

    fn assigns(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|part| part.contains(&port))
    }

    /// The first and the last of the given ports that a socket of the node may get.
    fn common(&self, ports: impl Iterator<Item = u16>) -> Option<Ports> {
        let given = ports.filter(|port| self.assigns(*port));
        given.fold(None, |common, port| match common {
            None => Some(port..=port),
            Some(common) => Some(port.min(*common.start())..=port.max(*common.end())),
        })
    }

    /// Reports each overlap. One command reserves all of these ports, since the kernel's setting is written
    /// as a whole.
    fn problems(&self, overlaps: &[Overlap]) -> Vec<ObjectError> {
        let shared = overlaps.iter().map(|overlap| &overlap.common);
        let reserved: Vec<_> = self.reserved.iter().chain(shared).map(in_words).collect();
        let problem = |overlap: &Overlap| ObjectError {
            code: Trouble::LocalPortsOverlap,
            object: "net.ipv4.ip_local_port_range".to_owned(),
            message: format!(
                "{} has ports of {} in it ({}), for IPv6 too: {}; {}narrow net.ipv4.ip_local_port_range, or reserve the ports: \
                 `sysctl -w net.ipv4.ip_local_reserved_ports={}`",
                in_words(&self.range),
                overlap.with,
                in_words(&overlap.common),
                overlap.effect,
                overlap.advice,
                reserved.join(",")
            ),
        };
        overlaps.iter().map(problem).collect()
    }

    /// The ports of the masquerade range that a socket may get.
    fn of_masquerade(&self, options: &AgentOptions) -> Option<Ports> {
        let masquerade = options.configuration.masquerade_ports;
        self.common(masquerade.first()..=masquerade.last())
    }

    /// The node ports that a socket may get: those in use, and perhaps the default range. If a port in use
    /// lies in the default range, the API server may assign the other ports of the range next.
    fn of_node_ports(&self, ports: impl Iterator<Item = u16>) -> Option<Ports> {
        let in_use: Vec<_> = ports.filter(|port| *port != 0).collect();
        let shows_range = in_use.iter().any(|port| NODE_PORT_RANGE.contains(port));
        let next = shows_range.then_some(NODE_PORT_RANGE);
        self.common(in_use.into_iter().chain(next.into_iter().flatten()))
    }
}

fn in_words(ports: &Ports) -> String {
    if ports.start() == ports.end() {
        ports.start().to_string()
    } else {
        format!("{}-{}", ports.start(), ports.end())
    }
}

/// Whether a socket of the node may get a port of the masquerade range.
pub fn overlaps_masquerade(options: &AgentOptions) -> bool {
    let masquerade = options.configuration.masquerade_ports;
    let mut ports = masquerade.first()..=masquerade.last();
    LocalPorts::read().is_ok_and(|local| ports.any(|port| local.assigns(port)))
}

/// The present overlaps.
pub fn problems(agent: &Agent) -> Vec<ObjectError> {
    let Ok(local) = LocalPorts::read() else {
        // A kernel without these settings gives out no such ports.
        return Vec::new();
    };
    let masquerade = local.of_masquerade(&agent.options).map(|common| Overlap {
        common,
        with: "masqueradePorts",
        effect: MASQUERADE,
        advice: "set masqueradePorts to a range outside of it, ",
    });
    let services = agent.cluster.services();
    let node_ports = services.flat_map(|(_, service)| service.ports.iter().map(|port| port.node_port));
    let node_ports = local.of_node_ports(node_ports).map(|common| Overlap {
        common,
        with: "node ports",
        effect: NODE_PORTS,
        advice: "",
    });
    let overlaps: Vec<_> = masquerade.into_iter().chain(node_ports).collect();
    local.problems(&overlaps)
}

/// Logs the overlaps that are new.
pub fn log_new(agent: &mut Agent) {
    let overlaps = problems(agent);
    for overlap in overlaps
        .iter()
        .filter(|overlap| !agent.overlaps.contains(overlap))
    {
        tracing::warn!("{}: {}", overlap.object, overlap.message);
    }
    agent.overlaps = overlaps;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_is_what_the_kernel_gives_out_and_is_not_reserved() {
        let local = |range: &str, reserved: &str| LocalPorts::parse(range, reserved).expect("ports");
        let masquerade = || 10_000..=29_999;
        let kernels = local("32768\t60999\n", "\n");
        assert_eq!(kernels.common(masquerade()), None);
        let wide = local("1024\t65535\n", "");
        assert_eq!(wide.common(masquerade()), Some(10_000..=29_999));
        assert_eq!(
            local("29000 60999", "29500-30000").common(masquerade()),
            Some(29_000..=29_499)
        );
        assert_eq!(
            local("1024 65535", "80,10000-20000,20001-29999").common(masquerade()),
            None
        );
        assert_eq!(LocalPorts::parse("1024", ""), None);
    }

    #[test]
    fn node_ports_are_those_in_use_and_their_range() {
        let local = |range: &str| LocalPorts::parse(range, "31000-32767").expect("ports");
        let of = |range: &str, ports: &[u16]| local(range).of_node_ports(ports.iter().copied());
        assert_eq!(of("1024 65535", &[0]), None);
        assert_eq!(of("1024 65535", &[0, 40_000, 40_019]), Some(40_000..=40_019));
        assert_eq!(of("1024 65535", &[30_080]), Some(30_000..=30_999));
        assert_eq!(of("31000 60999", &[31_080]), None);
    }

    #[test]
    fn one_command_keeps_everything_apart() {
        let local = LocalPorts::parse("1024 65535", "80,8000-8080\n").expect("ports");
        let overlap = |common, with| Overlap {
            common,
            with,
            effect: "replies are lost",
            advice: "",
        };
        let overlaps = [overlap(10_000..=29_999, "a"), overlap(30_080..=30_080, "b")];
        for problem in local.problems(&overlaps) {
            assert!(
                problem
                    .message
                    .ends_with("`sysctl -w net.ipv4.ip_local_reserved_ports=80,8000-8080,10000-29999,30080`"),
                "{}",
                problem.message
            );
        }
    }
}
