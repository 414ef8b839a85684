//! All services that are compared. A product covers kinds of address, endpoints and policies, with both
//! address families, TCP and UDP. One or more services cover each other feature.

use harness::manifest::Family;
use serde_json::{Value, json};

use crate::case::State::{NotReady, Published, Ready, Stopping, Terminating};
use crate::case::{BOTH, Case, DUAL, Exposure, Kind, Protocol, State, V4, V6, cluster_ip, node};

/// The endpoints of the product, by name.
const ENDPOINTS: [(&str, &[(&str, State)]); 6] = [
    ("none", &[]),
    ("first", &[("a", Ready)]),
    ("second", &[("b", Ready), ("c", Ready)]),
    ("both", ALL),
    ("terminating", &[("a", Terminating), ("b", Terminating)]),
    ("unready", &[("a", NotReady), ("b", NotReady)]),
];
const ALL: &[(&str, State)] = &[("a", Ready), ("b", Ready), ("c", Ready)];
const MIXED: &[(&str, State)] = &[("a", Terminating), ("b", Ready), ("c", Stopping)];

const EXPOSURES: [(&str, Exposure); 4] = [
    ("inner", Exposure::None),
    ("port", Exposure::NodePort),
    ("lb", Exposure::Balancer),
    ("ext", Exposure::External),
];

/// Every case, numbered.
pub fn cases() -> Vec<Case> {
    let mut sketches = product();
    sketches.extend(shapes());
    sketches.extend(endpoints());
    sketches.extend(choices());
    sketches.extend(balancers());
    let numbered = sketches.into_iter().zip(1..);
    let mut cases: Vec<Case> = numbered
        .map(|((exposure, case), number)| case.exposed(number, exposure))
        .collect();
    cases.push(unused_addresses());
    cases
}

type Sketch = (Exposure, Case);

fn product() -> Vec<Sketch> {
    let mut made = Vec::new();
    for (kind, exposure) in EXPOSURES {
        for (label, backends) in ENDPOINTS {
            for local in [false, true] {
                let policy = if local { "local" } else { "cluster" };
                let case = Case::new(format!("{kind}-{label}-{policy}"), backends).asked_by("a");
                let case = match (local, exposure) {
                    (false, _) => case,
                    (true, Exposure::None) => case.internal_local(),
                    (true, _) => case.local(),
                };
                let curious = ["none", "second"].contains(&label);
                made.push((exposure, if curious { case.curious() } else { case }));
            }
        }
    }
    made
}

/// Services of one family or one protocol, and services that are not to be proxied.
fn shapes() -> Vec<Sketch> {
    const TCP: &[Protocol] = &[Protocol::Tcp];
    const UDP: &[Protocol] = &[Protocol::Udp];
    let only = |name, families, protocols| Case::new(name, ALL).only(families, protocols);
    let not_ours = |case: Case| {
        case.curious()
            .label("service.kubernetes.io/service-proxy-name", "another")
    };
    let headless = |case: Case| case.label("service.kubernetes.io/headless", "");
    vec![
        (Exposure::NodePort, only("v4-tcp", V4, TCP)),
        (Exposure::NodePort, only("v6-udp", V6, UDP)),
        (Exposure::Balancer, only("v6-tcp", V6, TCP)),
        (Exposure::Balancer, only("v4-udp", V4, UDP)),
        (Exposure::External, only("dual-tcp", DUAL, TCP)),
        (Exposure::External, only("v6-both", V6, BOTH)),
        (Exposure::NodePort, not_ours(Case::new("others-port", ALL))),
        (Exposure::Balancer, not_ours(Case::new("others-lb", ALL))),
        (Exposure::NodePort, headless(Case::new("headless-label", ALL))),
    ]
}

/// The kinds of endpoints, and the forms of their slices.
fn endpoints() -> Vec<Sketch> {
    const HOSTS: &[(&str, State)] = &[("n1", Ready), ("n2", Ready)];
    const FAR: &[(&str, State)] = &[("far", Ready)];
    vec![
        (Exposure::NodePort, Case::new("hosts", HOSTS)),
        (Exposure::NodePort, Case::new("hosts-local", HOSTS).local()),
        (Exposure::Balancer, Case::new("one-host", &[("n1", Ready)])),
        (
            Exposure::None,
            Case::new("other-host", &[("n2", Ready)]).internal_local(),
        ),
        (Exposure::NodePort, Case::new("far", FAR)),
        (Exposure::Balancer, Case::new("far-local", FAR).local()),
        (Exposure::NodePort, Case::new("mixed", MIXED)),
        (Exposure::NodePort, Case::new("mixed-local", MIXED).local()),
        (
            Exposure::NodePort,
            Case::new("stopping", &[("a", Stopping), ("b", Stopping)]),
        ),
        (
            Exposure::None,
            Case::new("published", &[("a", Published), ("b", Published)])
                .set("publishNotReadyAddresses", json!(true)),
        ),
        (
            Exposure::None,
            Case::new("published-unready", &[("a", NotReady), ("b", NotReady)])
                .set("publishNotReadyAddresses", json!(true)),
        ),
        (Exposure::SecondNode, Case::new("second-node", ALL).curious()),
        (Exposure::NodePort, Case::new("scattered", ALL).scattered()),
        (Exposure::NodePort, Case::new("renamed", ALL).renamed()),
    ]
}

/// Session affinity, combined policies, topology.
fn choices() -> Vec<Sketch> {
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let host = |name: &str| {
        let zone = if name == "n1" { "east" } else { "west" };
        json!({"forZones": [{"name": zone}], "forNodes": [{"name": name}]})
    };
    let hinted = |name, hints: [Value; 3]| Case::new(name, ALL).hints(&hints);
    let zones = || [zone("east"), zone("west"), zone("west")];
    vec![
        (Exposure::None, Case::new("stay", ALL).staying()),
        (Exposure::NodePort, Case::new("stay-port", ALL).staying()),
        (Exposure::External, Case::new("stay-ext", ALL).staying()),
        (Exposure::Balancer, Case::new("stay-lb", ALL).staying().local()),
        (
            Exposure::NodePort,
            Case::new("inner-local", &[("a", Ready)]).internal_local(),
        ),
        (
            Exposure::Balancer,
            Case::new("both-local", &[("b", Ready)]).internal_local().local(),
        ),
        (Exposure::NodePort, hinted("zones", zones())),
        (
            Exposure::None,
            hinted("zones-inner-local", zones()).internal_local(),
        ),
        (
            Exposure::NodePort,
            hinted("hosts-hinted", [host("n1"), host("n2"), host("n2")]),
        ),
        (
            Exposure::NodePort,
            hinted("elsewhere", [zone("north"), zone("west"), zone("west")]),
        ),
        (
            Exposure::NodePort,
            hinted("zones-in-part", zones()).hints(&[json!({})]),
        ),
        (Exposure::Balancer, hinted("zones-local", zones()).local()),
    ]
}

/// Options that only balancers have.
fn balancers() -> Vec<Sketch> {
    const OUTSIDE: [&str; 2] = ["192.168.50.101/32", "fd00:50::101/128"];
    let open = |name, ranges: &[&str]| {
        let case = Case::new(name, ALL).set("loadBalancerSourceRanges", json!(ranges));
        case.asked_by("stranger")
    };
    vec![
        (Exposure::Balancers, Case::new("two-lbs", ALL)),
        (Exposure::BalancerOnly, Case::new("no-ports", ALL)),
        (Exposure::BalancerOnly, Case::new("no-ports-local", ALL).local()),
        (Exposure::Proxied, Case::new("proxied", ALL)),
        (Exposure::Balancer, open("open-outside", &OUTSIDE)),
        (Exposure::Balancer, open("open-outside-local", &OUTSIDE).local()),
        (Exposure::Balancer, open("open-v4", &OUTSIDE[..1])),
        (
            Exposure::Balancer,
            open("open-pods", &["10.244.0.0/16", "fd00:244::/32"]),
        ),
        (
            Exposure::Balancer,
            open("open-nodes", &["192.168.50.0/28", "fd00:50::/120"]),
        ),
    ]
}

/// Services without an address: they have no frontend to ask, and must not disturb the others.
pub fn unaddressed() -> Vec<Value> {
    let service = |name: &str, spec: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": "default", "name": name},
            "spec": spec,
        })
    };
    let ports = json!([{"name": "tcp", "port": 80}]);
    vec![
        service("headless", json!({"clusterIP": "None", "ports": ports})),
        service(
            "named",
            json!({"type": "ExternalName", "externalName": "example.org", "ports": ports}),
        ),
    ]
}

fn unused_addresses() -> Case {
    let mut case = Case::without_service("unused");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for family in [Family::V4, Family::V6] {
            case = case
                .ask(Kind::Unused, false, cluster_ip(family, 250), 80, protocol)
                .ask(Kind::Unused, false, node(family, 2), 32_700, protocol);
        }
    }
    case
}
