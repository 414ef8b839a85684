//! Tests of how the external side of a Service is read, one per rule.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::problems::Findings;
use super::service::ServicePort;
use super::{External, Family, SourceRanges};
use crate::cluster::Protocol;
use crate::cluster::names::Names;

fn read(spec: Value, status: Value, node_port: u16) -> (Option<External>, Vec<String>) {
    let port = ServicePort {
        name: Names::default().intern("http"),
        port: 80,
        node_port,
        protocol: Protocol::Tcp,
    };
    let (spec, status) = (
        serde_json::from_value(spec).unwrap(),
        serde_json::from_value(status).unwrap(),
    );
    let mut findings = Findings::default();
    let external = External::read(&spec, Some(&status), &[port], &mut findings);
    (external, findings.into_messages())
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_service_without_an_address_from_outside_has_none_of_this() {
    let spec = json!({"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["10.0.0.0/8"]});
    assert_eq!(read(spec, json!({}), 0), (None, vec![]));
}

#[test]
fn addresses_of_a_balancer_that_is_a_proxy_or_a_name_are_left_to_it() {
    let ingress = json!([
        {"ip": "203.0.113.7"},
        {"ip": "203.0.113.8", "ipMode": "VIP"},
        {"ip": "203.0.113.9", "ipMode": "Proxy"},
        {"hostname": "balancer.example"},
        {"ip": " 203.000.113.007 "},
    ]);
    let (external, messages) = read(json!({}), json!({"loadBalancer": {"ingress": ingress}}), 0);
    let addresses = external.unwrap().load_balancer_ips.to_vec();
    assert_eq!(addresses, ips(&["203.0.113.7", "203.0.113.8"]));
    assert_eq!(messages, Vec::<String>::new());
}

#[test]
fn addresses_of_other_owners_are_refused_by_name() {
    let addresses = [
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "255.255.255.255",
        "239.255.255.250",
        "127.255.255.254",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        // Other forms of the same addresses.
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        " 0127.000.0.1",
        "x",
        "198.51.100.7",
    ];
    let bad = addresses.len() - 1;
    let (external, messages) = read(json!({"externalIPs": addresses}), json!({}), 0);
    assert_eq!(external.unwrap().external_ips.to_vec(), ips(&["198.51.100.7"]));
    assert_eq!(messages.len(), bad.min(9), "{messages:#?}");
    for address in &addresses[..bad] {
        let ingress = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
        let (external, messages) = read(json!({}), ingress, 0);
        assert_eq!((external, messages.len()), (None, 1), "{address}");
    }
    assert_eq!(
        messages[0],
        "spec.externalIPs[0]: 127.0.0.1 is a loopback address and can be no service's; it is left out"
    );
}

#[test]
fn unreadable_ranges_admit_no_client() {
    let spec = json!({"loadBalancerSourceRanges": [" 203.0.113.0/25", "x"]});
    let (external, messages) = read(spec, json!({}), 30_080);
    let ranges = external.unwrap().source_ranges.unwrap();
    assert_eq!(ranges, SourceRanges::new(&nets(&["203.0.113.0/25"])));
    assert_eq!(messages.len(), 1);
    let (external, _) = read(json!({"loadBalancerSourceRanges": ["x"]}), json!({}), 30_080);
    assert_eq!(external.unwrap().source_ranges, Some(SourceRanges::default()));
}

#[test]
fn source_ranges_are_as_few_as_say_the_same() {
    for (listed, v4, v6) in [
        (
            &["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8"][..],
            &["10.0.0.0/8"][..],
            &[][..],
        ),
        (&["10.0.0.128/25", "10.0.0.0/25"], &["10.0.0.0/24"], &[]),
        (
            &["10.0.1.0/24", "10.0.0.2/32", "10.0.0.0/31"],
            &["10.0.1.0/24", "10.0.0.0/31", "10.0.0.2/32"],
            &[],
        ),
        (
            &["0.0.0.0/0", "255.255.255.255/32", "::/0", "fd00::/8"],
            &["0.0.0.0/0"],
            &["::/0"],
        ),
        (
            &["0.0.0.0/1", "128.0.0.0/1", "fd00::1/128"],
            &["0.0.0.0/0"],
            &["fd00::1/128"],
        ),
    ] {
        let ranges = SourceRanges::new(&nets(listed));
        assert_eq!(ranges.of(Family::V4).to_vec(), nets(v4), "{listed:?}");
        assert_eq!(ranges.of(Family::V6).to_vec(), nets(v6), "{listed:?}");
    }
}

#[test]
fn the_health_check_port_counts_under_policy_local_only() {
    let spec = |policy| json!({"externalTrafficPolicy": policy, "healthCheckNodePort": 31_000});
    let port = |policy| {
        read(spec(policy), json!({}), 30_080)
            .0
            .unwrap()
            .health_check_node_port
    };
    assert_eq!((port("Local"), port("Cluster")), (31_000, 0));
}
