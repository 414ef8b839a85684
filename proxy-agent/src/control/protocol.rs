//! What goes over the control socket: one line each way.
//!
//! The replies are the documents that `-o json` prints, so their keys are an interface that people script against: keys
//! are only ever added. A client skips keys it does not know, so an older command line can ask a newer agent.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Leases, NodeEntry, PodEntry, ServiceEntry, Status, TraceReply, TraceRequest};

/// The longest request line that an agent reads.
pub const MAX_REQUEST: u64 = 4096;

/// A question to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum Request {
    /// How the agent is doing.
    Status,
    /// Every frontend with its backends.
    ListServices,
    /// Every node with the way to its pods.
    ListNodes,
    /// Where packets would go.
    Trace(TraceRequest),
    /// The pods that the plugin gave an interface to.
    ListPods,
    /// Who has which address.
    ListLeases,
}

/// The agent's answer to the request of the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::ListServices`].
    ListServices(Vec<ServiceEntry>),
    /// To [`Request::ListNodes`].
    ListNodes(Vec<NodeEntry>),
    /// To [`Request::Trace`].
    Trace(TraceReply),
    /// To [`Request::ListPods`].
    ListPods(Vec<PodEntry>),
    /// To [`Request::ListLeases`].
    ListLeases(Leases),
}

/// The line that an agent sends back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The request was answered.
    Reply(Reply),
    /// It was not: what failed, on what, and what to do.
    Error(String),
}

/// A transport protocol, written as Kubernetes writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
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

    /// The protocol with this IP protocol number, if it is one that is balanced.
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
    fn answers_say_what_they_are() {
        let answer = Answer::Reply(Reply::ListServices(vec![]));
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"reply":{"listServices":[]}}"#
        );
        let answer = Answer::Error("no".into());
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"error":"no"}"#);
    }

    #[test]
    fn protocols_have_their_numbers() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(1), None);
    }
}
