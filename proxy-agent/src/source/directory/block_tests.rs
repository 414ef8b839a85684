//! Tests that plain documents decode as the parser decodes them, and that others are left to the parser.

use std::fmt::Debug;
use std::marker::PhantomData;

use proptest::prelude::*;
use serde::de::DeserializeOwned;

use super::decode;
use crate::source::wire::{EndpointSlice, Node, Service};

fn by_parser<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let options = serde_saphyr::options! { budget: None, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// Decodes by lines, and checks every decoded document against the parser.
fn checked<T: DeserializeOwned + Debug>(text: &str) -> Option<T> {
    let decoded = decode(text, PhantomData::<T>)?;
    let parsed = by_parser::<T>(text);
    let parsed =
        parsed.unwrap_or_else(|error| panic!("the parser refuses what is decoded here: {error}\n{text}"));
    assert_eq!(format!("{decoded:?}"), format!("{parsed:?}"), "{text}");
    Some(decoded)
}

const SLICE: &str = "\
# written by a program
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: cart-x7k2p
  namespace: shop
  creationTimestamp: \"2026-03-01T12:00:00Z\"
  annotations: {}
  labels:
    kubernetes.io/service-name: cart
  ownerReferences:
  - apiVersion: v1
    blockOwnerDeletion: true
    name: cart

addressType: IPv4
ports:
- name: ''
  port: 8080
  protocol: TCP
endpoints:
  - addresses:
      - 10.0.0.1
    conditions:
      ready: true
      serving:
      terminating: ~
    nodeName: worker-1
    targetRef:
      kind: Pod
      uid: 0f0e0d0c-0000-4000-8000-000000000001
  -
    addresses:
    - 'fd00::1'
    hints:
      forZones:
      -   name: a
";

#[test]
fn a_manifest_that_a_program_wrote_is_plain() {
    let slice: EndpointSlice = checked(SLICE).expect("plain");
    let endpoints = slice.endpoints.expect("endpoints");
    assert_eq!(endpoints[0].addresses.as_deref(), Some(&["10.0.0.1".into()][..]));
    assert_eq!(
        endpoints[0].conditions.map(|c| (c.ready, c.serving)),
        Some((Some(true), None))
    );
    assert_eq!(endpoints[1].addresses.as_deref(), Some(&["fd00::1".into()][..]));
    let service = "kind: Service\nmetadata:\n  name: a\nspec:\n  clusterIP: None\n  ports: []\n";
    let service: Service = checked(service).expect("plain");
    assert_eq!(
        service.spec.and_then(|spec| spec.ports).map(|ports| ports.len()),
        Some(0)
    );
}

#[test]
fn what_is_not_plain_is_declined() {
    for rest in [
        "a: {b: c}",
        "a: [b]",
        "a: |\n  text",
        "a: >-\n  text",
        "a: b\n  c",
        "a: b # comment",
        "a: \"b\\n\"",
        "a: 'it''s'",
        "a: *b",
        "a: &b c",
        "a: !!str b",
        "a: b: c",
        "a:\tb",
        "a: ü",
        "a: b\r",
        "a: @b",
        "? a",
        "\"a\": b",
        "a : b",
        "a:\n- - b",
        "a:\n  - b\n  c: d",
        "a:\n  b: c\n d: e",
        "a: b\na: c",
        "kind",
        "- a",
        "metadata: a",
        "metadata:\n- a",
        "a: Null",
    ] {
        let text = format!("kind: Service\nmetadata:\n  name: x\n{rest}\n");
        assert!(decode(&text, PhantomData::<Service>).is_none(), "{text}");
    }
    let deep = (0..300).fold(String::new(), |deep, depth| deep + &" ".repeat(depth) + "a:\n");
    assert!(decode(&deep, PhantomData::<Service>).is_none());
}

/// Lines that are plain, nearly plain, and not plain.
const FRAGMENTS: [&str; 48] = [
    "metadata:",
    "name: x",
    "name: 1",
    "name: null",
    "name:",
    "namespace: ~",
    "labels:",
    "labels: {}",
    "spec:",
    "status:",
    "kubernetes.io/service-name: x",
    "ports:",
    "ports: []",
    "port: 80",
    "port: -1",
    "port: 0x10",
    "port: 010",
    "protocol: TCP",
    "clusterIP: 10.0.0.1",
    "clusterIPs:",
    "addresses:",
    "addressType: IPv4",
    "endpoints:",
    "endpoints: ~",
    "conditions:",
    "ready: true",
    "ready: yes",
    "ready:",
    "nodeName: 'n'",
    "zone: \"z\"",
    "zone: \"z",
    "hints:",
    "forZones:",
    "x: a b",
    "x: a: b",
    "x: a#b",
    "x: a #b",
    "# c",
    "",
    "x: [a]",
    "x:y",
    "x: y:",
    "x: -",
    "x: |",
    "10.0.0.1",
    "fd00::1",
    "a",
    "podCIDRs:",
];

fn document() -> impl Strategy<Value = String> {
    let line = (
        0..5_usize,
        prop::sample::select(&["", "", "- ", "-  ", "-"][..]),
        prop::sample::select(&FRAGMENTS[..]),
    );
    prop::collection::vec(line, 1..14).prop_map(|lines| {
        let lines = lines.into_iter().map(|(depth, dash, rest)| {
            // A level has two columns in most cases, as in manifests.
            let indent = if depth == 4 { 1 } else { 2 * depth };
            format!("{:indent$}{dash}{rest}\n", "")
        });
        lines.collect()
    })
}

/// A manifest with one line moved, doubled, removed or indented differently.
fn mutilated() -> impl Strategy<Value = String> {
    let lines = SLICE.lines().count();
    (0..lines, 0..lines, 0..4_u8, 0..6_usize).prop_map(|(from, to, how, indent)| {
        let mut lines: Vec<_> = SLICE.lines().map(str::to_owned).collect();
        match how {
            0 => drop(lines.remove(from)),
            1 => lines.swap(from, to),
            2 => lines.insert(to, lines[from].clone()),
            _ => lines[from] = format!("{:indent$}{}", "", lines[from].trim_start()),
        }
        lines.join("\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_parser_decodes_the_same(text in prop_oneof![document(), mutilated()]) {
        checked::<Service>(&text);
        checked::<EndpointSlice>(&text);
        checked::<Node>(&text);
    }
}
