//! The path that packets would take: the request and the document of `millrace trace -o json`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Protocol, ServiceKind};

/// The packets to trace. The source and the destination need not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceRequest {
    /// The client's address.
    pub from: IpAddr,
    /// The address and port that the client sends to; of the same family as `from`.
    pub to: SocketAddr,
    /// The transport protocol of the packets.
    pub protocol: Protocol,
    /// The first source port; the agent takes one of the ephemeral range if this is not given.
    pub source_port: Option<u16>,
    /// The number of source ports to try, counted up from the first one.
    pub samples: u32,
    /// Where the packets enter; the agent derives it from the source address if this is not given.
    pub entry: Option<Entry>,
}

/// The most source ports that one request may try.
pub const MAX_SAMPLES: u32 = 65_535;

impl TraceRequest {
    /// Checks the request; the error says why it is not valid.
    pub fn validate(&self) -> Result<(), String> {
        let Self {
            from, to, samples, ..
        } = self;
        if from.is_ipv4() != to.is_ipv4() {
            return Err(format!(
                "--from {from} and --to {to} are of different address families"
            ));
        }
        if to.port() == 0 {
            return Err(format!("--to {to}: port 0 cannot be sent to"));
        }
        if !(1..=MAX_SAMPLES).contains(samples) {
            return Err(format!("--samples {samples} is outside 1-{MAX_SAMPLES}"));
        }
        match self.source_port {
            Some(0) => Err("--sport 0 cannot be sent from".into()),
            Some(first) if u32::from(first) + samples - 1 > u32::from(u16::MAX) => Err(format!(
                "--sport {first} with --samples {samples} goes beyond port 65535"
            )),
            _ => Ok(()),
        }
    }
}

/// Where a packet enters this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// The packet enters by a pod's interface.
    Pod,
    /// The packet comes from a socket of the node itself.
    Node,
    /// The packet comes from another machine.
    Uplink,
}

/// The result of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceReply {
    /// The verdict on the packets.
    pub verdict: Verdict,
    /// The reason of the verdict.
    pub reason: String,
    /// The service port, as `NAMESPACE/NAME:PORT`.
    pub service: Option<String>,
    /// The kind of the service's address that the packets match.
    pub kind: Option<ServiceKind>,
    /// The chosen backends, one element each.
    pub backends: Vec<TraceBackend>,
    /// The steps that lead to the verdict, in order.
    pub steps: Vec<String>,
}

/// The verdict on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The packet goes to a backend.
    Forward,
    /// The programs refuse the packet with a RST, an ICMP error or an errno.
    Reject,
    /// The programs drop the packet without a reply.
    Drop,
    /// The packet belongs to no service, and the programs pass it to the kernel.
    Pass,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Forward => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::Pass => "pass",
        })
    }
}

/// A backend that samples went to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceBackend {
    /// The address and port of the backend.
    pub address: SocketAddr,
    /// The node of the backend, if it is known.
    pub node: Option<String>,
    /// The number of samples that went to the backend.
    pub samples: u32,
    /// Whether these packets leave with an address of this node as their source.
    pub masquerade: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: TraceRequest = TraceRequest {
        from: IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 5)),
        to: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10)), 80),
        protocol: Protocol::Tcp,
        source_port: Some(65_000),
        samples: 536,
        entry: None,
    };

    #[test]
    fn requests_that_cannot_be_sent_are_refused() {
        assert_eq!(GOOD.validate(), Ok(()));
        for (request, message) in [
            (
                TraceRequest {
                    from: "fd00::1".parse().unwrap(),
                    ..GOOD
                },
                "--from fd00::1 and --to 10.96.0.10:80 are of different address families",
            ),
            (
                TraceRequest {
                    to: "10.0.0.1:0".parse().unwrap(),
                    ..GOOD
                },
                "--to 10.0.0.1:0: port 0 cannot be sent to",
            ),
            (
                TraceRequest { samples: 0, ..GOOD },
                "--samples 0 is outside 1-65535",
            ),
            (
                TraceRequest {
                    source_port: Some(0),
                    ..GOOD
                },
                "--sport 0 cannot be sent from",
            ),
            (
                TraceRequest { samples: 537, ..GOOD },
                "--sport 65000 with --samples 537 goes beyond port 65535",
            ),
        ] {
            assert_eq!(request.validate().unwrap_err(), message);
        }
    }

    #[test]
    fn the_document_has_the_keys_that_are_promised() {
        let reply = TraceReply {
            verdict: Verdict::Forward,
            reason: "new_flow".into(),
            service: Some("shop/cart:http".into()),
            kind: Some(ServiceKind::ClusterIp),
            backends: vec![TraceBackend {
                address: "10.244.2.7:8080".parse().unwrap(),
                node: None,
                samples: 1,
                masquerade: false,
            }],
            steps: vec!["parsed".into()],
        };
        assert_eq!(
            serde_json::to_string(&reply).unwrap(),
            concat!(
                r#"{"verdict":"forward","reason":"new_flow","service":"shop/cart:http","kind":"ClusterIP","#,
                r#""backends":[{"address":"10.244.2.7:8080","node":null,"samples":1,"masquerade":false}],"#,
                r#""steps":["parsed"]}"#,
            )
        );
    }
}
