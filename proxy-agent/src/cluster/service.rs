//! A Service, reduced to the fields that decide where its packets go.
//!
//! A Service counts (semantics: "Which objects count") if it has a cluster IP. It must not be of type
//! `ExternalName`, labelled headless, or labelled for another proxy. All others are treated as if they did
//! not exist.
//!
//! There may be a hundred thousand of these structs. So the fields of services that are reached from outside
//! are behind one `Option<Box<…>>`, see [`External`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use compact_str::CompactString;
use smallvec::SmallVec;

use super::address::{Family, canonical_ip};
use super::external::{External, unfit};
use super::interner::Symbol;
use super::names::Names;
use super::port::{Protocol, read_port};
use super::problems::Findings;
use crate::source::wire;

/// The default seconds for which a client keeps its endpoint with `sessionAffinity: ClientIP` (`k8s.io/api`
/// core/v1).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// The most seconds that the field may hold (a day).
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// A Service that is served.
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of the object")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The namespace of the Service.
    pub namespace: Symbol,
    /// The name of the Service.
    pub name: CompactString,
    /// The time of creation, in Unix seconds; `i64::MAX` if it is not known. Of two Services that claim one
    /// address the older wins.
    pub created: i64,
    /// The ports of the Service.
    pub ports: SmallVec<[ServicePort; 1]>,
    /// The time for which a client keeps its endpoint, in seconds; 0 without session affinity.
    pub affinity_seconds: u32,
    /// Endpoints are used whether they are ready or not.
    pub publish_not_ready: bool,
    /// Clients in the cluster reach only endpoints of their own node.
    pub internal_local: bool,
    /// Connections to endpoints that are removed are reset.
    pub reset_removed: bool,
    /// The cluster IPs are left to the program that holds them on the node, such as a DNS cache.
    pub left_to_node: bool,
    /// The external side of the Service, if it is reached from outside.
    pub external: Option<Box<External>>,
    // The unspecified address stands for none, since no Service can have it.
    cluster_v4: Ipv4Addr,
    cluster_v6: Ipv6Addr,
}

/// A port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The name of the port in the slices.
    pub name: Symbol,
    /// The port of the cluster IP.
    pub port: u16,
    /// The port of every node, or 0.
    pub node_port: u16,
    /// The protocol of the port.
    pub protocol: Protocol,
}

impl Service {
    /// The cluster IP of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        let address = match family {
            Family::V4 => IpAddr::V4(self.cluster_v4),
            Family::V6 => IpAddr::V6(self.cluster_v6),
        };
        (!address.is_unspecified()).then_some(address)
    }

    /// The cluster IPs, at most one of each family.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|family| self.cluster_ip(family))
    }

    /// Releases the uses that [`Service::read`] acquired.
    pub(super) fn release(&self, names: &mut Names) {
        names.release(self.namespace);
        for port in &self.ports {
            names.release(port.name);
        }
    }

    /// Reads a Service; `None` if it does not count. `proxy_name` is our own `service-proxy-name`, if we have
    /// one.
    pub(super) fn read(
        wire: &wire::Service,
        proxy_name: Option<&str>,
        names: &mut Names,
        findings: &mut Findings,
    ) -> Option<Self> {
        let spec = wire.spec.as_ref()?;
        let labels = wire.metadata.labels.as_ref();
        let labelled_for = labels.and_then(|labels| labels.service_proxy_name.as_deref());
        if labelled_for.is_some() && labelled_for != proxy_name {
            return None;
        }
        if labels.is_some_and(|labels| labels.headless.is_some())
            || spec.type_.as_deref() == Some("ExternalName")
        {
            return None;
        }
        let (v4, v6) = read_cluster_ips(spec, findings)?;
        let affine = spec.session_affinity.as_deref() == Some("ClientIP");
        let ports = read_ports(spec, names, findings);
        let annotations = wire.metadata.annotations.as_ref();
        let reset_removed = annotations.and_then(|annotations| annotations.reset_removed.as_deref());
        let leave_to_node = annotations.and_then(|annotations| annotations.leave_to_node.as_deref());
        Some(Self {
            namespace: names.intern(wire.metadata.namespace()),
            name: wire.metadata.name.clone(),
            created: created(&wire.metadata),
            external: External::read(spec, wire.status.as_ref(), &ports, findings).map(Box::new),
            ports,
            affinity_seconds: if affine {
                affinity_seconds(spec, findings)
            } else {
                0
            },
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            reset_removed: read_switch(reset_removed, "millrace.dev/reset-removed-backends", findings),
            left_to_node: read_switch(leave_to_node, "millrace.dev/leave-to-node", findings),
            cluster_v4: v4,
            cluster_v6: v6,
        })
    }
}

fn read_cluster_ips(spec: &wire::ServiceSpec, findings: &mut Findings) -> Option<(Ipv4Addr, Ipv6Addr)> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts = if listed.is_empty() {
        spec.cluster_ip.as_slice()
    } else {
        listed
    };
    let field = |i: usize| {
        if listed.is_empty() {
            "spec.clusterIP".to_owned()
        } else {
            format!("spec.clusterIPs[{i}]")
        }
    };
    if texts.iter().chain(&spec.cluster_ip).any(|text| text == "None") {
        return None;
    }
    let (mut v4, mut v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let mut any = false;
    for (i, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        any = true;
        match canonical_ip(text) {
            Some(address) if unfit(address).is_some() => {
                findings.add(|| {
                    format!(
                        "{}: {address} cannot be a service's address; it is left out",
                        field(i)
                    )
                });
            }
            Some(IpAddr::V4(address)) if v4.is_unspecified() => v4 = address,
            Some(IpAddr::V6(address)) if v6.is_unspecified() => v6 = address,
            Some(address) => findings.add(|| {
                format!(
                    "{}: {address} is a second {} address; it is left out",
                    field(i),
                    Family::of(address).name()
                )
            }),
            None => findings.add(|| format!("{}: {text:?} is not an address; it is left out", field(i))),
        }
    }
    if !any {
        // An API server allocates a cluster IP before a client can see the Service. A Service in a directory
        // may lack one.
        findings.add(|| {
            "spec.clusterIP: missing; the service is not served until it has an address (or is marked None)".to_owned()
        });
    }
    (!v4.is_unspecified() || !v6.is_unspecified()).then_some((v4, v6))
}

fn read_ports(
    spec: &wire::ServiceSpec,
    names: &mut Names,
    findings: &mut Findings,
) -> SmallVec<[ServicePort; 1]> {
    let mut ports = SmallVec::<[ServicePort; 1]>::new();
    for (i, wire) in spec.ports.iter().flatten().enumerate() {
        let field = || format!("spec.ports[{i}]");
        let Some(protocol) = Protocol::read(wire.protocol.as_deref(), findings, field) else {
            continue;
        };
        let Some(port) = read_port(wire.port, findings, field) else {
            continue;
        };
        if ports
            .iter()
            .any(|other| other.port == port && other.protocol == protocol)
        {
            let name = protocol.name();
            findings.add(|| {
                format!(
                    "{}: {port}/{name} stands in the list before; the port is left out",
                    field()
                )
            });
            continue;
        }
        let node_port = wire
            .node_port
            .map_or(Some(0), |port| u16::try_from(port).ok())
            .unwrap_or_else(|| {
                findings.add(|| format!("{}.nodePort: outside 1–65535; the node port is left out", field()));
                0
            });
        let name = names.intern(wire.name.as_deref().unwrap_or_default());
        ports.push(ServicePort {
            name,
            port,
            node_port,
            protocol,
        });
    }
    ports.shrink_to_fit();
    ports
}

/// Reads an annotation that switches a feature on.
fn read_switch(text: Option<&str>, name: &str, findings: &mut Findings) -> bool {
    match text {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            findings.add(|| {
                format!("metadata.annotations: {name}: {other:?} is neither true nor false; false is used")
            });
            false
        }
    }
}

fn affinity_seconds(spec: &wire::ServiceSpec, findings: &mut Findings) -> u32 {
    let client_ip = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = client_ip.and_then(|config| config.timeout_seconds) else {
        return DEFAULT_AFFINITY_SECONDS;
    };
    u32::try_from(seconds).ok().filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds)).unwrap_or_else(|| {
        findings.add(|| {
            format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is outside 1–{MAX_AFFINITY_SECONDS}; \
                 {DEFAULT_AFFINITY_SECONDS} is used"
            )
        });
        DEFAULT_AFFINITY_SECONDS
    })
}

fn created(metadata: &wire::Metadata) -> i64 {
    let time = metadata
        .creation_timestamp
        .as_deref()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    time.map_or(i64::MAX, jiff::Timestamp::as_second)
}
