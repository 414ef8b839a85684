//! Tests with rules as `nft` and `iptables` write them, built by hand.

mod messages;

use std::collections::{BTreeMap, BTreeSet};

use super::hook::Hook;
use super::packet::{Match, Packet, PodInterfaces};
use super::rule::{Action, judge};
use super::{BaseChain, Chain, Pods};
use crate::network::nfnetlink::RuleFamily;
use messages::{
    accept, bitwise, cmp, counter, ct_state, expression, lookup, meta, number, payload, put, rule, source,
    target, value, verdict,
};

fn named(family: RuleFamily, table: &str, name: &str) -> Chain {
    Chain {
        family,
        table: table.to_owned(),
        name: name.to_owned(),
        is_legacy: false,
    }
}

const NESTED: u16 = 0x8000;

fn pods() -> Pods {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Pods {
        of_node: nets(&["10.244.1.0/24", "fd00:244:1::/64"]),
        of_cluster: nets(&["10.244.0.0/16", "fd00:244::/32"]),
        interfaces: PodInterfaces::Own,
        uplinks: vec!["eth0".into()],
    }
}

fn judged(expressions: &[Vec<u8>]) -> (Match, Action) {
    let names = BTreeMap::new();
    let packet = Packet {
        range: "10.244.1.0/24".parse().unwrap(),
        from_pods: true,
        interfaces: &PodInterfaces::Own,
        names: &names,
    };
    judge(&rule(expressions), &packet)
}

/// The packets that a chain with this policy drops: from pods and to pods in IPv4, then in IPv6.
fn dropped(family: RuleFamily, drops: bool, chains: &[(&str, Vec<Vec<u8>>)]) -> [bool; 4] {
    let chain = BaseChain {
        chain: named(family, "filter", "FORWARD"),
        hook: Hook::Forward,
        drops,
    };
    let mut read = |name: &str| {
        let found = chains.iter().find(|(chain, _)| *chain == name);
        Ok(found.map(|(_, rules)| rules.clone()).unwrap_or_default())
    };
    let dropped = chain.dropped(&pods(), &BTreeMap::new(), &mut read).unwrap();
    [(true, true), (true, false), (false, true), (false, false)].map(|what| dropped.contains(&what))
}

fn dropped_v4(drops: bool, rules: Vec<Vec<u8>>) -> [bool; 2] {
    let [from, to, ..] = dropped(RuleFamily::Ip, drops, &[("FORWARD", rules)]);
    [from, to]
}

#[test]
fn conditions_and_verdicts_of_rules() {
    let established = [0b110, 0, 0, 0];
    assert_eq!(
        judged(&[ct_state(), bitwise(&established), cmp(1, &[0; 4]), accept()]).0,
        Match::No
    );
    assert_eq!(judged(&[counter(), accept()]), (Match::All, Action::Accept));
    assert_eq!(judged(&[verdict(0, "")]), (Match::All, Action::Drop));
    assert_eq!(judged(&[verdict(-3, "x")]).1, Action::Jump("x".into()));
    assert_eq!(judged(&[verdict(-4, "x")]).1, Action::Goto("x".into()));
    assert_eq!(judged(&[verdict(-5, "")]).1, Action::Return);
    assert_eq!(judged(&[expression("reject", &[number(1, 0)])]).1, Action::Drop);
    // Another program decides about a queued packet.
    assert_eq!(judged(&[expression("queue", &[])]).1, Action::Accept);
    // The conditions are a port, a family, a mark and a limit.
    assert_eq!(judged(&[meta(16), cmp(0, &[6]), accept()]).0, Match::Part);
    assert_eq!(judged(&[meta(15), cmp(0, &[2]), accept()]).0, Match::All);
    assert_eq!(judged(&[meta(15), cmp(0, &[10]), accept()]).0, Match::No);
    assert_eq!(
        judged(&[meta(3), cmp(0, &[0, 64, 0, 0]), accept()]).0,
        Match::Part
    );
    assert_eq!(judged(&[expression("limit", &[]), accept()]).0, Match::Part);
    // The sets hold sources, targets and ports; the map leads from sources to verdicts.
    assert_eq!(judged(&[payload(12, 4), lookup(None), accept()]).0, Match::Unsure);
    assert_eq!(judged(&[payload(16, 4), lookup(None), accept()]).0, Match::Part);
    assert_eq!(
        judged(&[ct_state(), lookup(Some(0))]),
        (Match::Part, Action::Continue)
    );
    assert_eq!(
        judged(&[payload(12, 4), lookup(Some(0))]),
        (Match::Unsure, Action::Accept)
    );
    // An unknown expression may have loaded the compared register.
    assert_eq!(
        judged(&[
            payload(12, 4),
            expression("fib", &[number(1, 1)]),
            cmp(0, &[9; 4]),
            accept()
        ])
        .0,
        Match::Part
    );
    let range = expression(
        "range",
        &[
            number(1, 1),
            number(2, 0),
            value(3, &[10, 0, 0, 0]),
            value(4, &[10, 255, 255, 255]),
        ],
    );
    assert_eq!(judged(&[payload(12, 4), range, accept()]).0, Match::All);
}

#[test]
fn matches_of_iptables() {
    let conntrack = |asked: u16, inverted: u16, states: u16| {
        let mut info = vec![0; 164];
        for (at, word) in [(146, asked), (148, inverted), (150, states)] {
            info[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        let found = expression("match", &[put(1, b"conntrack\0"), number(2, 3), put(3, &info)]);
        judged(&[found, accept()]).0
    };
    assert_eq!(conntrack(1, 0, 2 | 4), Match::No, "--ctstate RELATED,ESTABLISHED");
    assert_eq!(conntrack(1 | 1 << 13, 0, 2 | 4 | 8), Match::All, "--state NEW,…");
    assert_eq!(conntrack(1, 1, 1), Match::All, "! --ctstate INVALID");
    assert_eq!(conntrack(1 | 1 << 12, 0, 8), Match::Part, "and a direction");
    assert_eq!(conntrack(1 << 12, 0, 0), Match::Part, "a direction alone");
    let named = |name: &str| {
        let name = [name.as_bytes(), &[0]].concat();
        judged(&[expression("match", &[put(1, &name)]), accept()]).0
    };
    assert_eq!(named("comment"), Match::All);
    assert_eq!(named("set"), Match::Unsure);
    assert_eq!(named("multiport"), Match::Part);
    assert_eq!(named("conntrack"), Match::Part, "cut off");
    let target = |name: &[u8]| judged(&[expression("target", &[put(1, name)])]).1;
    assert_eq!(target(b"REJECT\0"), Action::Drop);
    assert_eq!(target(b"LOG\0"), Action::Continue);
}

#[test]
fn rules_that_are_cut_off_are_read_without_harm() {
    let whole = rule(&[
        payload(12, 4),
        bitwise(&[255, 255, 0, 0]),
        cmp(0, &[10, 244, 0, 0]),
        meta(6),
        cmp(0, b"mr"),
        lookup(Some(0)),
        verdict(-3, "chain"),
    ]);
    let names = BTreeMap::new();
    let packet = Packet {
        range: "10.244.1.0/24".parse().unwrap(),
        from_pods: true,
        interfaces: &PodInterfaces::Own,
        names: &names,
    };
    for length in 0..whole.len() {
        judge(&whole[..length], &packet);
        let mut broken = whole.clone();
        for byte in [0, 1, 0xff] {
            broken[length] = byte;
            judge(&broken, &packet);
        }
    }
}

#[test]
fn a_policy_drops_what_no_rule_accepts() {
    assert_eq!(dropped_v4(true, vec![]), [true, true]);
    assert_eq!(dropped_v4(false, vec![]), [false, false]);
    assert_eq!(dropped_v4(true, vec![source(&[10, 244])]), [false, true]);
    assert_eq!(dropped_v4(true, vec![target(&[10, 244])]), [true, false]);
    assert_eq!(
        dropped_v4(true, vec![source(&[10, 244, 1]), target(&[10, 244, 1])]),
        [false, false],
        "this node's range is enough"
    );
    assert_eq!(
        dropped_v4(true, vec![source(&[10, 244, 2]), target(&[10, 3])]),
        [true, true]
    );
    let both = rule(&[
        payload(12, 2),
        cmp(0, &[10, 244]),
        payload(16, 2),
        cmp(0, &[10, 244]),
        accept(),
    ]);
    assert_eq!(dropped_v4(true, vec![both]), [true, true], "only among pods");
    let by_name = |key, name: &[u8]| rule(&[meta(key), cmp(0, name), accept()]);
    assert_eq!(
        dropped_v4(true, vec![by_name(6, b"mr"), by_name(7, b"mr")]),
        [false, false]
    );
    assert_eq!(
        dropped_v4(true, vec![by_name(6, b"docker0\0"), by_name(7, b"docker0\0")]),
        [true, true]
    );
    assert_eq!(dropped(RuleFamily::Inet, true, &[]), [true; 4]);
    assert_eq!(dropped(RuleFamily::Ip6, true, &[]), [false, false, true, true]);
    let of_v4 = rule(&[meta(15), cmp(0, &[2]), accept()]);
    assert_eq!(
        dropped(RuleFamily::Inet, true, &[("FORWARD", vec![of_v4])]),
        [false, false, true, true]
    );
}

#[test]
fn a_rule_drops_what_none_before_it_accepts() {
    let reject = || rule(&[counter(), expression("reject", &[])]);
    assert_eq!(dropped_v4(false, vec![reject()]), [true, true]);
    assert_eq!(dropped_v4(false, vec![source(&[10]), reject()]), [false, true]);
    assert_eq!(dropped_v4(false, vec![reject(), source(&[10])]), [true, true]);
    // A rule on some of the packets does not count.
    let of_a_port = rule(&[meta(16), cmp(0, &[6]), verdict(0, "")]);
    let of_a_set = rule(&[payload(12, 4), lookup(None), verdict(0, "")]);
    assert_eq!(dropped_v4(false, vec![of_a_port, of_a_set]), [false, false]);
}

#[test]
fn other_chains_are_followed() {
    let chains = |first: Vec<Vec<u8>>, second: Vec<Vec<u8>>| {
        let [from, to, ..] = dropped(RuleFamily::Ip, true, &[("FORWARD", first), ("user", second)]);
        [from, to]
    };
    let accepts = || vec![source(&[10, 244]), target(&[10, 244])];
    let jump = || verdict(-3, "user");
    assert_eq!(chains(vec![jump()], accepts()), [false, false]);
    assert_eq!(chains(vec![verdict(-4, "user")], accepts()), [false, false]);
    assert_eq!(chains(vec![jump(), accept()], vec![]), [false, false]);
    assert_eq!(
        chains(vec![jump(), accept()], vec![verdict(-5, "")]),
        [false, false]
    );
    assert_eq!(chains(vec![verdict(-4, "user"), accept()], vec![]), [true, true]);
    assert_eq!(chains(vec![verdict(-5, ""), accept()], vec![]), [true, true]);
    assert_eq!(chains(vec![jump(), accept()], vec![verdict(0, "")]), [true, true]);
    let of_some = || rule(&[meta(16), cmp(0, &[6]), jump()]);
    assert_eq!(chains(vec![of_some()], accepts()), [true, true]);
    assert_eq!(
        chains(vec![of_some(), accept()], vec![verdict(0, "")]),
        [false, false]
    );
    let of_source = rule(&[payload(12, 2), cmp(0, &[10, 244]), jump()]);
    assert_eq!(chains(vec![of_source], vec![accept()]), [false, true]);
    // The kernel lets no chain call itself. The agent does not report a chain that has no end.
    assert_eq!(chains(vec![jump()], vec![jump()]), [false, false]);
    assert_eq!(chains(vec![jump()], vec![jump(); 3]), [false, false]);
}

#[test]
fn only_base_chains_of_the_hook_count() {
    let chain = |hook: Option<u32>, policy: u32| {
        let hook = hook.map(|number_of| put(4 | NESTED, &[number(1, number_of), number(2, 0)].concat()));
        let attributes = [
            put(1, b"filter\0"),
            put(2, &[0; 8]),
            put(3, b"FORWARD\0"),
            hook.unwrap_or_default(),
            number(5, policy),
        ];
        BaseChain::read(RuleFamily::Ip, &attributes.concat())
    };
    let expected = |drops| {
        Some(BaseChain {
            chain: named(RuleFamily::Ip, "filter", "FORWARD"),
            hook: Hook::Forward,
            drops,
        })
    };
    assert_eq!(chain(Some(2), 0), expected(true));
    assert_eq!(chain(Some(2), 1), expected(false));
    assert_eq!(chain(Some(1), 0), None);
    assert_eq!(chain(None, 0), None);
}

#[test]
fn the_commands_fit_the_chain() {
    let problem = |family, table: &str, name: &str, dropped: &[(bool, bool)], is_owned| {
        let dropped: BTreeSet<_> = dropped.iter().copied().collect();
        let chain = named(family, table, name);
        let problem = chain.problem(&pods(), &Hook::Forward, &dropped, is_owned);
        (problem.object, problem.message)
    };
    assert_eq!(
        problem(RuleFamily::Ip, "filter", "FORWARD", &[(true, true), (true, false)], false),
        (
            "chain ip filter FORWARD".into(),
            "this firewall drops what pods send and are sent: run `iptables -I FORWARD -s 10.244.0.0/16 -j ACCEPT` and \
             `iptables -I FORWARD -d 10.244.0.0/16 -j ACCEPT`, and let the firewall do so when it starts"
                .into()
        )
    );
    assert_eq!(
        problem(RuleFamily::Ip6, "filter", "FORWARD", &[(false, true)], false).1,
        "this firewall drops what pods send: run `ip6tables -I FORWARD -s fd00:244::/32 -j ACCEPT`, and let the firewall do \
         so when it starts"
    );
    assert_eq!(
        problem(
            RuleFamily::Inet,
            "filter",
            "FORWARD",
            &[(true, false), (false, true)],
            false
        )
        .1,
        "this firewall drops what pods send and are sent: run `nft insert rule inet filter FORWARD ip daddr 10.244.0.0/16 \
         accept` and `nft insert rule inet filter FORWARD ip6 saddr fd00:244::/32 accept`, and let the firewall do so when \
         it starts"
    );
    assert_eq!(
        problem(
            RuleFamily::Inet,
            "firewalld",
            "filter_FORWARD",
            &[(true, false)],
            true
        )
        .1,
        "this firewall drops what pods are sent: the program that made it has to accept both directions of the pods' ranges"
    );
}

/// The attributes of a hook at some devices, as the kernel sends them.
fn hook_at(number_of: u32, devices: &[&str]) -> Vec<u8> {
    let name = |kind, device: &str| put(kind, &[device.as_bytes(), &[0]].concat());
    let all: Vec<_> = devices.iter().flat_map(|device| name(1, device)).collect();
    // The kernel sends a single device in two attributes.
    let one = devices.first().filter(|_| devices.len() == 1);
    let one = one.map(|device| name(3, device)).unwrap_or_default();
    [number(1, number_of), number(2, 0), put(4 | NESTED, &all), one].concat()
}

#[test]
fn hooks_at_interfaces_meet_one_direction_of_pods() {
    let read = |family, number, devices: &[&str]| Hook::read(family, &hook_at(number, devices));
    let netdev = RuleFamily::Netdev;
    let ingress = read(netdev, 0, &["mr0123456789ab", "eth0", "eth9"]).unwrap();
    assert_eq!(
        ingress,
        Hook::Ingress(vec!["eth0".into(), "eth9".into(), "mr0123456789ab".into()])
    );
    assert_eq!(
        read(RuleFamily::Inet, 5, &["eth0"]),
        Some(Hook::Ingress(vec!["eth0".into()]))
    );
    assert_eq!(read(netdev, 2, &["eth0"]), None);
    let passing = |hook: Hook| -> Vec<(bool, Vec<String>)> {
        let passing = hook.passing(&pods()).into_iter();
        passing
            .map(|passing| (passing.from_pods, passing.devices))
            .collect()
    };
    let of_pod = |from_pods| (from_pods, vec!["mr0123456789ab".to_owned()]);
    let of_uplink = |from_pods| (from_pods, vec!["eth0".to_owned()]);
    assert_eq!(passing(ingress), [of_pod(true), of_uplink(false)]);
    let egress = read(netdev, 1, &["mr0123456789ab", "eth0"]).unwrap();
    assert_eq!(passing(egress), [of_pod(false), of_uplink(true)]);
    assert_eq!(passing(Hook::Ingress(vec!["docker0".into()])), []);
}

#[test]
fn a_chain_at_an_interface_is_named_with_it() {
    let chain = |devices: &[&str], drops| BaseChain {
        chain: named(RuleFamily::Netdev, "guard", "entry"),
        hook: Hook::read(RuleFamily::Netdev, &hook_at(0, devices)).unwrap(),
        drops,
    };
    let dropped = |chain: &BaseChain, rules: &[Vec<u8>]| {
        let mut read = |_: &str| Ok(rules.to_vec());
        let dropped = chain.dropped(&pods(), &BTreeMap::new(), &mut read).unwrap();
        dropped.into_iter().collect::<Vec<_>>()
    };
    let closed = chain(&["mr0123456789ab"], true);
    let of_both = dropped(&closed, &[]);
    assert_eq!(of_both, [(false, true), (true, true)]);
    assert_eq!(dropped(&closed, &[source(&[10, 244])]), [(false, true)]);
    let open = chain(&["eth0"], false);
    assert_eq!(
        dropped(&open, &[rule(&[verdict(0, "")])]),
        [(false, false), (true, false)]
    );
    assert_eq!(dropped(&open, &[]), []);
    let problem = closed
        .chain
        .problem(&pods(), &closed.hook, &of_both.into_iter().collect(), false);
    assert_eq!(problem.object, "chain netdev guard entry");
    assert_eq!(
        problem.message,
        "this firewall drops what pods send at interface mr0123456789ab: run `nft insert rule netdev guard entry ip saddr \
         10.244.0.0/16 accept` and `nft insert rule netdev guard entry ip6 saddr fd00:244::/32 accept`, and let the firewall \
         do so when it starts"
    );
}
