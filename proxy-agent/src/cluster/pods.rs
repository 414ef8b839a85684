//! Pods of the node, the settings of pods and namespaces for sockets, and the bandwidth limits of pods.
//!
//! `millrace.dev/socket-lb: "off"` leaves the sockets of a pod, or of all pods of a namespace, to the packet
//! path. This is for pods whose side-car or guest must see virtual addresses. The annotation only switches
//! the translation off, so that the right to write it gives a user no other right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use compact_str::CompactString;

use super::address::canonical_ip;
use super::bandwidth::Bandwidth;
use super::pod_choice::{PodChoice, PodLabels};
use super::problems::Findings;
use super::small::Small;
use crate::source::wire;

/// The settings of an object for the sockets of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    sockets_off: bool,
}

impl Settings {
    pub(super) fn read(metadata: &wire::Metadata, findings: &mut Findings) -> Self {
        let annotations = metadata.annotations.as_ref();
        let text = annotations.and_then(|annotations| annotations.socket_lb.as_deref());
        let sockets_off = text == Some("off");
        if let Some(text) = text.filter(|text| !matches!(*text, "off" | "on")) {
            findings.add(|| {
                format!("metadata.annotations[millrace.dev/socket-lb]: {text:?} is not \"off\" or \"on\"; it is left out")
            });
        }
        Self { sockets_off }
    }
}

/// The kept fields of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    namespace: CompactString,
    name: CompactString,
    node: CompactString,
    addresses: Vec<IpAddr>,
    settings: Settings,
    bandwidth: Bandwidth,
    labels: PodLabels,
    /// Whether the pod has a network of its own, and has not ended.
    counts: bool,
}

impl Pod {
    pub(super) fn read(wire: &wire::Pod, findings: &mut Findings) -> Self {
        let (spec, status) = (wire.spec.as_ref(), wire.status.as_ref());
        let listed = status
            .and_then(|status| status.pod_ips.as_deref())
            .unwrap_or_default();
        let phase = status.and_then(|status| status.phase.as_deref());
        let on_host = spec.and_then(|spec| spec.host_network).unwrap_or(false);
        Self {
            namespace: wire.metadata.namespace().into(),
            name: wire.metadata.name.clone(),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            addresses: listed
                .iter()
                .filter_map(|entry| canonical_ip(&entry.ip))
                .collect(),
            settings: Settings::read(&wire.metadata, findings),
            bandwidth: Bandwidth::read(&wire.metadata, findings),
            labels: wire.labels.clone(),
            counts: !on_host && !matches!(phase, Some("Succeeded" | "Failed")),
        }
    }
}

/// Limits by the namespace and the name of a pod.
pub type BandwidthByPod = BTreeMap<(String, String), Bandwidth>;

/// Namespaces and names of pods.
pub type PodNames = BTreeSet<(String, String)>;

/// All known pods.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pub(super) pods: Small<Pod>,
    pub(super) namespaces: Small<Settings>,
}

impl Pods {
    /// See [`super::ClusterState::pods_with_sockets`].
    pub(super) fn with_sockets(&self, node: &str) -> Option<BTreeSet<IpAddr>> {
        let is_off = |pod: &&Pod| {
            let namespace = self.namespaces.get(&pod.namespace);
            pod.settings.sockets_off || namespace.is_some_and(|settings| settings.sockets_off)
        };
        let here = || self.pods.iter().filter(|pod| pod.counts && pod.node == node);
        here().any(|pod| is_off(&pod)).then(|| {
            let others = here().filter(|pod| !is_off(pod));
            others.flat_map(|pod| pod.addresses.iter().copied()).collect()
        })
    }

    /// The limits of the pods of a node that have any.
    pub(super) fn bandwidth(&self, node: &str) -> BandwidthByPod {
        let limited = |pod: &&Pod| pod.counts && pod.node == node && !pod.bandwidth.is_unlimited();
        let named = |pod: &Pod| ((pod.namespace.to_string(), pod.name.to_string()), pod.bandwidth);
        self.pods.iter().filter(limited).map(named).collect()
    }

    /// The pods of a node that one of the choices means.
    pub(super) fn chosen(&self, node: &str, choices: &[PodChoice]) -> PodNames {
        let meant = |pod: &&Pod| {
            let by = |choice: &PodChoice| choice.means(&pod.namespace, &pod.name, &pod.labels);
            pod.counts && pod.node == node && choices.iter().any(by)
        };
        let named = |pod: &Pod| (pod.namespace.to_string(), pod.name.to_string());
        self.pods.iter().filter(meant).map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Kind, ObjectId};
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        let wire: wire::Pod = serde_json::from_value(value).expect("a pod");
        Pod::read(&wire, &mut Findings::default())
    }

    fn plain(name: &str, namespace: &str, address: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIPs": [{"ip": address}]},
        })
    }

    fn known(pods: &[Value]) -> Pods {
        let mut known = Pods::default();
        for (number, value) in pods.iter().enumerate() {
            let id = crate::source::ObjectId::new(crate::source::Kind::Pod, "", &number.to_string());
            known.pods.put(&number.to_string(), id, pod(value.clone()));
        }
        known
    }

    #[test]
    fn limits_are_those_of_the_nodes_own_pods() {
        let limited = |name: &str, node: &str| {
            let mut pod = plain(name, "shop", "10.244.1.2");
            pod["spec"]["nodeName"] = json!(node);
            pod["metadata"]["annotations"] = json!({"kubernetes.io/egress-bandwidth": "5M"});
            pod
        };
        let mut over = limited("over", "n1");
        over["status"]["phase"] = json!("Failed");
        let pods = known(&[
            limited("a", "n1"),
            limited("b", "n2"),
            plain("c", "shop", "10.244.1.3"),
            over,
        ]);
        let expected = Bandwidth {
            ingress: None,
            egress: Some(5_000_000),
        };
        let key = ("shop".to_owned(), "a".to_owned());
        assert_eq!(pods.bandwidth("n1"), BandwidthByPod::from([(key, expected)]));
    }

    #[test]
    fn no_pods_are_needed_while_none_opts_out() {
        assert_eq!(
            known(&[plain("a", "shop", "10.244.1.2")]).with_sockets("n1"),
            None
        );
    }

    #[test]
    fn a_pod_and_a_namespace_opt_out_and_the_others_are_named() {
        let mut off = plain("off", "shop", "10.244.1.3");
        off["metadata"]["annotations"] = json!({"millrace.dev/socket-lb": "off"});
        let other = BTreeSet::from(["10.244.1.2".parse().expect("an address")]);
        let pods = known(&[plain("a", "shop", "10.244.1.2"), off.clone()]);
        assert_eq!(pods.with_sockets("n1"), Some(other.clone()));
        assert_eq!(pods.with_sockets("n2"), None, "another node's pods");

        let mut pods = known(&[plain("a", "shop", "10.244.1.2"), plain("b", "mesh", "10.244.1.4")]);
        let id = crate::source::ObjectId::new(crate::source::Kind::Namespace, "", "mesh");
        pods.namespaces.put("mesh", id, Settings { sockets_off: true });
        assert_eq!(pods.with_sockets("n1"), Some(other));

        off["status"]["phase"] = json!("Succeeded");
        assert_eq!(known(&[off]).with_sockets("n1"), None, "a pod that is over");
    }

    #[test]
    fn pods_are_chosen_by_their_labels_while_they_run_here() {
        let mut pods = Pods::default();
        let mut put = |name: &str, node: &str, app: &str, phase: &str| {
            let pod = json!({
                "metadata": {"name": name, "namespace": "net", "labels": {"app": app, "null": null}},
                "spec": {"nodeName": node}, "status": {"phase": phase},
            });
            let pod: wire::Pod = serde_json::from_value(pod).expect("a pod");
            let pod = Pod::read(&pod, &mut Findings::default());
            let id = ObjectId::new(Kind::Pod, "net", name);
            pods.pods.put(name, id, pod);
        };
        put("a", "here", "router", "Running");
        put("b", "there", "router", "Running");
        put("c", "here", "web", "Running");
        put("d", "here", "router", "Failed");
        let choice = "{namespace: net, podSelector: {matchLabels: {app: router}}}";
        let choice = serde_saphyr::from_str(choice).expect("a choice");
        let names = |choices: &[PodChoice]| -> Vec<_> {
            let chosen = pods.chosen("here", choices).into_iter();
            chosen.map(|(_, name)| name).collect()
        };
        assert_eq!(names(&[choice]), ["a"]);
        assert!(names(&[]).is_empty());
    }
}
