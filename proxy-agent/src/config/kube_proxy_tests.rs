//! Files for kube-proxy: one as kubeadm writes it, and one with every field set.

use std::path::PathBuf;

use super::file::{FileReport, read_file, read_files};
use super::{Configuration, Settings};

/// The content of the ConfigMap `kube-proxy` after `kubeadm init --pod-network-cidr` of Kubernetes 1.36.
const KUBEADM: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 0
  contentType: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: \"\"
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
    text:
      infoBufferSize: \"0\"
  verbosity: 0
metricsBindAddress: \"\"
mode: \"\"
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: \"\"
  rootHnsEndpointName: \"\"
  sourceVip: \"\"
";

/// Every field of v1.36 has a value other than its default.
const EVERYTHING: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 192.0.2.7
bindAddressHardFail: true
clientConnection: {acceptContentTypes: a, burst: 1, contentType: b, kubeconfig: /etc/kubeconfig, qps: 1.5}
clusterCIDR: ' 10.244.0.0/16 , fd00:10:244::/56'
configSyncPeriod: 1m
conntrack:
  {maxPerCore: 1, min: 1, tcpBeLiberal: true, tcpCloseWaitTimeout: 1m30s, tcpEstablishedTimeout: 2h, udpStreamTimeout: 100s, udpTimeout: 0s}
detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}
detectLocalMode: BridgeInterface
enableProfiling: true
featureGates: {Some: true}
healthzBindAddress: 127.0.0.1
hostnameOverride: ' Worker-1'
iptables: {localhostNodePorts: false, masqueradeAll: true, masqueradeBit: 15, minSyncPeriod: 2s, syncPeriod: 1m, snatNodeInternalIP: false}
ipvs: {excludeCIDRs: [10.0.0.0/8], minSyncPeriod: 1s, scheduler: rr, strictARP: true, syncPeriod: 1m, tcpFinTimeout: 1s, tcpTimeout: 1s, udpTimeout: 1s}
logging:
  {flushFrequency: 1s, format: json, verbosity: 4, vmodule: [{filePattern: a, verbosity: 1}], options: {json: {infoBufferSize: 1Mi, splitStream: true}, text: {infoBufferSize: 1, splitStream: true}}}
metricsBindAddress: 0.0.0.0:99
mode: ipvs
nftables: {masqueradeAll: true, masqueradeBit: 15, minSyncPeriod: 2s, syncPeriod: 1m}
nodePortAddresses: [all, 192.0.2.0/24]
oomScoreAdj: -500
portRange: 1-2
showHiddenMetricsForVersion: '1.35'
windowsRunAsService: true
winkernel: {enableDSR: true, forwardHealthCheckVip: true, networkName: a, rootHnsEndpointName: b, sourceVip: c}
";

fn files(texts: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let root = tempfile::tempdir().unwrap();
    let paths = (0..texts.len()).map(|n| root.path().join(format!("{n}.yaml")));
    let paths: Vec<_> = paths.collect();
    for (path, text) in paths.iter().zip(texts) {
        std::fs::write(path, text).unwrap();
    }
    (root, paths)
}

fn read(text: &str) -> FileReport {
    let (_root, paths) = files(&[text]);
    read_file(&paths[0])
}

/// The fields in the warnings, without the reasons.
fn warned(report: &FileReport) -> Vec<String> {
    let name = |warning: &String| {
        let (_, rest) = warning.split_once(".yaml: ").expect("the file's name");
        let (field, _) = rest.split_once(" is ignored: ").expect("a field and a reason");
        field.to_owned()
    };
    report.warnings.iter().map(name).collect()
}

#[test]
fn the_file_of_kubeadm_is_taken_without_a_warning() {
    let report = read(KUBEADM);
    assert_eq!((report.errors.as_slice(), warned(&report)), (&[][..], vec![]));
    let settings = report.kube_proxy.unwrap();
    assert_eq!(
        settings.kubeconfig,
        Some("/var/lib/kube-proxy/kubeconfig.conf".into())
    );
    assert_eq!(settings.node_name, None);
    let expected = Configuration {
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ],
        ..Configuration::default()
    };
    assert_eq!(Configuration::of(&[settings], &Settings::default()), expected);
}

#[test]
fn the_defaults_of_kube_proxy_are_no_reason_for_a_warning() {
    let report = read(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nbindAddress: '::'\nconfigSyncPeriod: 15m0s\n\
         clientConnection: {contentType: application/vnd.kubernetes.protobuf, qps: 5, burst: 10}\n\
         conntrack: {maxPerCore: 32768, min: 131072, tcpEstablishedTimeout: 24h0m0s}\ndetectLocalMode: ClusterCIDR\n\
         iptables: {masqueradeBit: 14, localhostNodePorts: true, syncPeriod: 30s, minSyncPeriod: 1s}\n\
         nftables: {masqueradeBit: 14, syncPeriod: 30s, minSyncPeriod: 1s}\nipvs: {syncPeriod: 30s}\noomScoreAdj: -999\n\
         logging: {format: text, flushFrequency: 5000000000, verbosity: 0}\nfeatureGates: {}\n",
    );
    assert_eq!((report.errors.as_slice(), warned(&report)), (&[][..], vec![]));
    let configuration = Configuration::of(&[report.kube_proxy.unwrap()], &Settings::default());
    assert_eq!(configuration.health_address, Some("[::]:10256".parse().unwrap()));
    assert_eq!(
        configuration.metrics_address,
        Some("[::1]:10249".parse().unwrap())
    );
}

#[test]
fn what_has_a_meaning_is_taken_and_what_has_none_is_named_once() {
    let report = read(EVERYTHING);
    assert_eq!(report.errors, []);
    assert_eq!(
        warned(&report),
        [
            "mode",
            "featureGates",
            "configSyncPeriod",
            "oomScoreAdj",
            "enableProfiling",
            "showHiddenMetricsForVersion",
            "portRange",
            "windowsRunAsService",
            "bindAddress",
            "detectLocalMode",
            "detectLocal.bridgeInterface",
            "detectLocal.interfaceNamePrefix",
            "clientConnection.acceptContentTypes",
            "clientConnection.contentType",
            "clientConnection.qps",
            "clientConnection.burst",
            "logging.format",
            "logging.flushFrequency",
            "logging.verbosity",
            "logging.vmodule",
            "logging.options.text.splitStream",
            "logging.options.text.infoBufferSize",
            "logging.options.json.splitStream",
            "logging.options.json.infoBufferSize",
            "iptables.masqueradeBit",
            "iptables.localhostNodePorts",
            "iptables.syncPeriod",
            "iptables.minSyncPeriod",
            "ipvs.syncPeriod",
            "ipvs.minSyncPeriod",
            "ipvs.scheduler",
            "ipvs.excludeCIDRs",
            "ipvs.strictARP",
            "ipvs.tcpTimeout",
            "ipvs.tcpFinTimeout",
            "ipvs.udpTimeout",
            "nftables.masqueradeBit",
            "nftables.syncPeriod",
            "nftables.minSyncPeriod",
            "conntrack.maxPerCore",
            "conntrack.min",
            "conntrack.tcpBeLiberal",
            "winkernel.networkName",
            "winkernel.sourceVip",
            "winkernel.enableDSR",
            "winkernel.rootHnsEndpointName",
            "winkernel.forwardHealthCheckVip",
        ]
    );
    let settings = report.kube_proxy.unwrap();
    assert_eq!(settings.kubeconfig, Some("/etc/kubeconfig".into()));
    assert_eq!(settings.node_name.as_deref(), Some("worker-1"));
    let configuration = Configuration::of(&[settings], &Settings::default());
    let json = serde_json::to_value(&configuration).unwrap();
    for (key, expected) in [
        (
            "clusterCIDRs",
            serde_json::json!(["10.244.0.0/16", "fd00:10:244::/56"]),
        ),
        (
            "nodePortAddresses",
            serde_json::json!(["0.0.0.0/0", "::/0", "192.0.2.0/24"]),
        ),
        ("masqueradeAll", serde_json::json!(true)),
        ("healthAddress", serde_json::json!("127.0.0.1:10256")),
        ("metricsAddress", serde_json::json!("0.0.0.0:99")),
        ("bindAddressHardFail", serde_json::json!(true)),
        (
            "conntrack",
            serde_json::json!({
                "tcpEstablishedTimeout": "2h0m0s", "tcpCloseWaitTimeout": "1m30s",
                "udpTimeout": "30s", "udpStreamTimeout": "1m40s",
            }),
        ),
    ] {
        assert_eq!(json[key], expected, "{key}");
    }
}

#[test]
fn what_kube_proxy_reads_leniently_is_taken_and_named_once_with_its_line() {
    const UNKNOWN: &str = "is ignored: kube-proxy has no field of this name, and case counts";
    const REPEATED: &str = "is given more than once: the last value counts, as for kube-proxy";
    for (text, expected) in [
        ("udpIdleTimeout: 250ms\n", vec![(3, "udpIdleTimeout", UNKNOWN)]),
        (
            "resourceContainer: /kube-proxy\n",
            vec![(3, "resourceContainer", UNKNOWN)],
        ),
        ("conntrack: {max: 0}\n", vec![(3, "conntrack.max", UNKNOWN)]),
        (
            "metadata: {name: config, labels: {a: b, a: c}}\n",
            vec![(3, "metadata", UNKNOWN)],
        ),
        (
            "metadata:\n  creationTimestamp: null\n",
            vec![(3, "metadata", UNKNOWN)],
        ),
        ("modus: x\n", vec![(3, "modus", UNKNOWN)]),
        ("ClusterCIDR: x\n", vec![(3, "ClusterCIDR", UNKNOWN)]),
        (
            "iptables:\n  masqueradeAll: true\n  masqueradeall: [1]\n",
            vec![(5, "iptables.masqueradeall", UNKNOWN)],
        ),
        (
            "logging:\n  sanitization: true\n  options:\n    json: {infoBufferSize: '0', x: 1}\n",
            vec![
                (4, "logging.sanitization", UNKNOWN),
                (6, "logging.options.json.x", UNKNOWN),
            ],
        ),
        (
            "configSyncPeriod: 1m\nconfigSyncPeriod: 0s\n",
            vec![(4, "configSyncPeriod", REPEATED)],
        ),
        (
            "kind: KubeProxyConfiguration\nudpIdleTimeout: 1s\nudpIdleTimeout: 2s\n",
            vec![(3, "kind", REPEATED), (5, "udpIdleTimeout", UNKNOWN)],
        ),
        (
            "ipvs: {minSyncPeriod: 1s}\nipvs:\n  syncPeriod: 1s\n  syncPeriod: 2s\n  syncPeriod: 30s\n",
            vec![(4, "ipvs", REPEATED), (7, "ipvs.syncPeriod", REPEATED)],
        ),
        (
            "featureGates: {A: true, A: false}\n",
            vec![(3, "featureGates.A", REPEATED)],
        ),
    ] {
        let text =
            format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{text}");
        let report = read(&text);
        assert_eq!(report.errors, [], "{text}");
        let mut warnings = report.warnings.clone();
        warnings.retain(|warning| !warning.contains("featureGates is ignored"));
        assert_eq!(warnings.len(), expected.len(), "{warnings:#?}\n{text}");
        for (warning, (line, field, what)) in warnings.iter().zip(expected) {
            let expected = format!("0.yaml:{line}: {field} {what}");
            assert!(warning.ends_with(&expected), "{warning}\nexpected {expected}");
        }
    }
}

#[test]
fn the_last_of_several_values_counts() {
    let report = read(
        "apiVersion: v1\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         clusterCIDR: 10.1.0.0/16\nclusterCIDR: 10.2.0.0/16\niptables: {masqueradeAll: true}\niptables: {}\n\
         nodePortAddresses: [10.0.0.0/8]\nnodePortAddresses: null\n",
    );
    assert_eq!(
        (report.errors.len(), report.warnings.len()),
        (0, 4),
        "{report:#?}"
    );
    let configuration = Configuration::of(&[report.kube_proxy.unwrap()], &Settings::default());
    let expected = Configuration {
        cluster_cidrs: vec!["10.2.0.0/16".parse().unwrap()],
        ..Configuration::default()
    };
    assert_eq!(configuration, expected);
}

#[test]
fn a_value_that_kube_proxy_refuses_is_an_error_with_its_place() {
    for (text, expected) in [
        (
            "clusterCIDR: 10.244.0.0/16,x\n",
            "0.yaml:3: document 1: clusterCIDR: \"x\" is no range of addresses",
        ),
        (
            "nodePortAddresses:\n- primary\n- y\n",
            "0.yaml:5: document 1: nodePortAddresses[1]: \"y\" is no range",
        ),
        (
            "conntrack: {udpTimeout: 1d}\n",
            "0.yaml:3: document 1: conntrack.udpTimeout: \"1d\" is no span of time",
        ),
        (
            "healthzBindAddress: localhost:1\n",
            "0.yaml:3: document 1: healthzBindAddress: \"localhost:1\" is no address",
        ),
    ] {
        let text =
            format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{text}");
        let errors: Vec<_> = read(&text).errors.iter().map(ToString::to_string).collect();
        assert!(
            errors.len() == 1 && errors[0].contains(expected),
            "{errors:#?}\nexpected {expected}"
        );
    }
}

#[test]
fn our_own_document_comes_before_that_of_kube_proxy_wherever_it_stands() {
    let own = "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\nclusterCIDRs: [10.9.0.0/16]\nhealthAddress: 0\n";
    let both = format!("{own}---\n{KUBEADM}");
    for texts in [vec![both.as_str()], vec![own, KUBEADM], vec![KUBEADM, own]] {
        let (_root, paths) = files(&texts);
        let read = read_files(&paths).unwrap();
        let configuration = Configuration::of(&read.settings, &Settings::default());
        assert_eq!(configuration.cluster_cidrs, ["10.9.0.0/16".parse().unwrap()]);
        assert_eq!(configuration.health_address, None);
    }
}
