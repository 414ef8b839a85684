//! What we know of an attachment beside its addresses.
//!
//! A note lies in `millrace/`, named like the interface on the node's side, which follows from container and interface: so
//! DEL finds it without looking through anything. Its file stays locked while ADD runs; the kernel gives the lock back
//! however ADD ends, so nobody takes an attachment in the making for a leaked one, and nobody waits for a dead process.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::boot::Moment;
use crate::config::{Attachment, HostPort};

/// A note on one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    pub if_name: String,
    /// The interface on the node's side.
    pub host_interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When it was made.
    #[serde(flatten)]
    pub made: Moment,
    /// Whether the lease was found and not given by us: then nothing is known but its addresses and the boot in which it
    /// was found.
    #[serde(default)]
    pub adopted: bool,
    /// What the kernel calls the pod's network namespace, which is the key of `POD_NETNS`.
    #[serde(default)]
    pub netns_cookie: Option<u64>,
    /// Where the pod's network namespace was.
    #[serde(default)]
    pub netns: PathBuf,
    /// The Ethernet address of the pod's side.
    #[serde(default)]
    pub mac: String,
    /// The MTU.
    #[serde(default)]
    pub mtu: u32,
    /// Bits per second towards the pod, if they are limited.
    #[serde(default)]
    pub ingress_rate: Option<u64>,
    /// Bits per second from the pod, if they are limited.
    #[serde(default)]
    pub egress_rate: Option<u64>,
    /// Ports of the node that lead to the pod.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// The pod's namespace in Kubernetes, where the runtime told it.
    #[serde(default)]
    pub pod_namespace: Option<String>,
    /// The pod's name in Kubernetes, where the runtime told it.
    #[serde(default)]
    pub pod_name: Option<String>,
}

impl Note {
    /// The attachment.
    pub fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.container_id.clone(),
            if_name: self.if_name.clone(),
        }
    }

    /// The pod, for people: by its name in Kubernetes, where that is known.
    pub fn holder(&self) -> String {
        match (&self.pod_namespace, &self.pod_name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => format!("container {}", self.container_id),
        }
    }

    /// A note on an attachment of which nothing is known but its addresses.
    pub fn adopting(
        attachment: &Attachment,
        host_interface: String,
        addresses: Vec<IpAddr>,
        now: &Moment,
    ) -> Self {
        Self {
            container_id: attachment.container_id.clone(),
            if_name: attachment.if_name.clone(),
            host_interface,
            addresses,
            made: now.clone(),
            adopted: true,
            netns_cookie: None,
            netns: PathBuf::new(),
            mac: String::new(),
            mtu: 0,
            ingress_rate: None,
            egress_rate: None,
            host_ports: Vec::new(),
            pod_namespace: None,
            pod_name: None,
        }
    }
}
