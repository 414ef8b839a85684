//! Ports that the kernel gives to the node's own sockets and that mean something else to us.
//!
//! The kernel takes the source port of a connection out of `net.ipv4.ip_local_port_range`, for IPv6 too. If a
//! masqueraded flow to the same peer has that port, the programs exchange it, see `decide/local_socket.rs`;
//! each packet of the node to an uplink costs a look then. If a node port has it, replies to sockets without
//! a peer go to the service, and SCTP. So the ranges should be apart, or the ports reserved. Both settings
//! are read anew each time, which takes microseconds.

use std::fs;
use std::io;
use std::ops::RangeInclusive;

use super::Agent;
use crate::config::AgentOptions;
use crate::control::ObjectError;

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// What an overlap with node ports does.
const NODE_PORTS: &str =
    "replies by SCTP, and to unconnected UDP sockets of the node that get one of them, go to the service";

type Ports = RangeInclusive<u16>;

/// What the kernel gives out.
#[derive(Debug, PartialEq, Eq)]
struct LocalPorts {
    range: Ports,
    reserved: Vec<Ports>,
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

    fn gives(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|part| part.contains(&port))
    }

    /// The first and the last of some ports that a socket of the node may get.
    fn common(&self, ports: impl Iterator<Item = u16>) -> Option<Ports> {
        let given = ports.filter(|port| self.gives(*port));
        given.fold(None, |common, port| match common {
            None => Some(port..=port),
            Some(common) => Some(port.min(*common.start())..=port.max(*common.end())),
        })
    }

    fn problem(&self, common: &Ports, with: &str, effect: &str, advice: &str) -> ObjectError {
        let (local, shared) = (in_words(&self.range), in_words(common));
        ObjectError {
            object: "net.ipv4.ip_local_port_range".to_owned(),
            message: format!(
                "{local} has ports of {with} in it ({shared}): {effect}; {advice}narrow net.ipv4.ip_local_port_range, or \
                 put {shared} into net.ipv4.ip_local_reserved_ports"
            ),
        }
    }

    /// The ports of the masquerade range that a socket may get.
    fn of_masquerade(&self, options: &AgentOptions) -> Option<Ports> {
        let masquerade = options.configuration.masquerade_ports;
        self.common(masquerade.first()..=masquerade.last())
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
    LocalPorts::read().is_ok_and(|local| ports.any(|port| local.gives(port)))
}

/// What overlaps now.
pub fn problems(agent: &Agent) -> Vec<ObjectError> {
    let Ok(local) = LocalPorts::read() else {
        // A kernel without these settings gives no such ports.
        return Vec::new();
    };
    let masquerade = local.of_masquerade(&agent.options).map(|common| {
        local.problem(
            &common,
            "masqueradePorts",
            "connections of the node itself that get one of them leave by another port if a masqueraded flow has theirs",
            "set masqueradePorts to a range outside of it, ",
        )
    });
    let services = agent.cluster.services();
    let node_ports = services.flat_map(|(_, service)| service.ports.iter().map(|port| port.node_port));
    let node_ports = local
        .common(node_ports.filter(|port| *port != 0))
        .map(|common| local.problem(&common, "node ports", NODE_PORTS, ""));
    masquerade.into_iter().chain(node_ports).collect()
}

/// Logs what overlaps, where that is news.
pub fn say(agent: &mut Agent) {
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
        let message = wide
            .problem(&(30_080..=30_080), "node ports", "time out", "")
            .message;
        assert!(
            message.contains("put 30080 into net.ipv4.ip_local_reserved_ports"),
            "{message}"
        );
        assert_eq!(LocalPorts::parse("1024", ""), None);
    }
}
