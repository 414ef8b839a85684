//! The protocol of the control socket: one line in each direction.
//!
//! The replies are the documents that `-o json` prints. Scripts depend on their keys, so keys are only ever
//! added. A client skips keys that it does not know, so an older command line can ask a newer agent.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Leases, NodeEntry, PodEntry, ServiceEntry, Status, TraceReply, TraceRequest};

/// The longest request line that an agent reads.
pub const MAX_REQUEST: u64 = 4096;

/// A request to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum Request {
    /// Asks for the agent's state.
    Status,
    /// Asks for every frontend with its backends.
    ListServices,
    /// Asks for every node with the route to its pods.
    ListNodes,
    /// Asks for the path that packets would take.
    Trace(TraceRequest),
    /// Asks for the pods that the plugin gave an interface to.
    ListPods,
    /// Asks for the addresses and their holders.
    ListLeases,
}

/// The agent's reply to the request of the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// The reply to [`Request::Status`].
    Status(Box<Status>),
    /// The reply to [`Request::ListServices`].
    ListServices(Vec<ServiceEntry>),
    /// The reply to [`Request::ListNodes`].
    ListNodes(Vec<NodeEntry>),
    /// The reply to [`Request::Trace`].
    Trace(TraceReply),
    /// The reply to [`Request::ListPods`].
    ListPods(Vec<PodEntry>),
    /// The reply to [`Request::ListLeases`].
    ListLeases(Leases),
}

/// The line that an agent sends back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// The agent carried out the request.
    Reply(Reply),
    /// The request failed. The message says what failed, on which object, and what to do.
    Error(String),
}

/// A transport protocol, written as Kubernetes writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
    /// SCTP (RFC 9260).
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => proxy_common::protocol::TCP,
            Self::Udp => proxy_common::protocol::UDP,
            Self::Sctp => proxy_common::protocol::SCTP,
        }
    }

    /// The protocol with this IP protocol number; `None` for a protocol that is not balanced.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            proxy_common::protocol::TCP => Some(Self::Tcp),
            proxy_common::protocol::UDP => Some(Self::Udp),
            proxy_common::protocol::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_one_short_line() {
        let trace = Request::Trace(TraceRequest {
            from: "10.244.1.5".parse().unwrap(),
            to: "[fd00:96::a]:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            source_port: None,
            samples: 1,
            entry: None,
        });
        for (request, line) in [
            (Request::Status, r#"{"request":"status"}"#),
            (Request::ListServices, r#"{"request":"listServices"}"#),
            (Request::ListNodes, r#"{"request":"listNodes"}"#),
            (Request::ListPods, r#"{"request":"listPods"}"#),
            (Request::ListLeases, r#"{"request":"listLeases"}"#),
            (
                trace,
                r#"{"request":"trace","from":"10.244.1.5","to":"[fd00:96::a]:80","protocol":"TCP","sourcePort":null,"samples":1,"entry":null}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
    }

    #[test]
    fn responses_have_a_tag() {
        let response = Response::Reply(Reply::ListServices(vec![]));
        assert_eq!(
            serde_json::to_string(&response).unwrap(),
            r#"{"reply":{"listServices":[]}}"#
        );
        let response = Response::Error("no".into());
        assert_eq!(serde_json::to_string(&response).unwrap(), r#"{"error":"no"}"#);
    }

    #[test]
    fn protocols_have_their_numbers() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(1), None);
    }
}
