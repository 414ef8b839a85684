//! The data on an attachment beside its leases.
//!
//! A note lies in `millrace/` and has the name of the interface on the node's side, which follows from
//! container and interface. So DEL finds it without a search. The file stays locked while ADD runs, and the
//! kernel releases the lock however ADD ends. So no process takes an attachment in the making for a leaked
//! one, or waits for a dead process.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::boot::BootTimestamp;
use crate::config::{Attachment, HostPort};

/// The note on one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the container.
    pub if_name: String,
    /// The name of the interface on the node's side.
    pub host_interface: String,
    /// The addresses of the attachment.
    pub addresses: Vec<IpAddr>,
    /// The time of ADD, or of the adoption.
    #[serde(flatten)]
    pub made: BootTimestamp,
    /// Whether the lease was found and not given by this plugin. Then only its addresses and the boot in
    /// which it was found are known.
    #[serde(default)]
    pub adopted: bool,
    /// The kernel's cookie of the pod's network namespace, which is the key of `POD_NETNS`.
    #[serde(default)]
    pub netns_cookie: Option<u64>,
    /// The path of the pod's network namespace at the time of ADD.
    #[serde(default)]
    pub netns: PathBuf,
    /// The Ethernet address of the pod's side.
    #[serde(default)]
    pub mac: String,
    /// The MTU of the interface in bytes.
    #[serde(default)]
    pub mtu: u32,
    /// The limit towards the pod in bits per second, if there is one.
    #[serde(default)]
    pub ingress_rate: Option<u64>,
    /// The limit from the pod in bits per second, if there is one.
    #[serde(default)]
    pub egress_rate: Option<u64>,
    /// The ports of the node that lead to the pod.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// The pod's namespace in Kubernetes, where the runtime gave it.
    #[serde(default)]
    pub pod_namespace: Option<String>,
    /// The pod's name in Kubernetes, where the runtime gave it.
    #[serde(default)]
    pub pod_name: Option<String>,
}

impl Note {
    /// The attachment of this note.
    pub fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.container_id.clone(),
            if_name: self.if_name.clone(),
        }
    }

    /// The pod for messages: its name in Kubernetes where that is known, otherwise the container.
    pub fn owner(&self) -> String {
        match (&self.pod_namespace, &self.pod_name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => format!("container {}", self.container_id),
        }
    }

    /// A note on an attachment of which only the addresses are known.
    pub fn adopting(
        attachment: &Attachment,
        host_interface: String,
        addresses: Vec<IpAddr>,
        now: &BootTimestamp,
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
