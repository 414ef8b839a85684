//! Tests of foreign routes inside ranges, with the rules and tables of a small node.

use super::*;
use crate::network::fixture::{World, link};
use crate::network::pods::routes::PROTOCOL as PODS_PROTOCOL;
use rtnetlink::RouteMessageBuilder;

fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Services lead to interface 7, and pods of another node to a neighbour.
fn own_routes() -> OwnRoutes {
    let services = NextHop {
        interface: 7,
        via: None,
    };
    let pods = |via| NextHop {
        interface: 2,
        via: Some(ip(via)),
    };
    OwnRoutes::new([
        (net("10.96.0.0/12"), services),
        (net("10.244.2.0/24"), pods("192.0.2.2")),
        (net("fd00:244:2::/64"), pods("2001:db8::2")),
    ])
}

fn links() -> World {
    World::new()
        .add(link(2, "eth0", ""))
        .add(link(7, "millrace0", "veth"))
        .pod(8, "mr0123456789ab", None)
}

fn route(prefix: &str, kind: RouteType, next_hop: Option<(u32, Option<&str>)>) -> RouteMessage {
    let prefix = net(prefix);
    let mut route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .expect("a destination")
        .protocol(RouteProtocol::Boot)
        .table_id(netlink::MAIN_TABLE);
    if let Some((interface, via)) = next_hop {
        route = route.output_interface(interface);
        if let Some(via) = via {
            route = route.gateway(ip(via)).expect("a gateway");
        }
    }
    let mut message = route.build();
    message.header.kind = kind;
    let metric = route::default_metric(prefix);
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

fn reported(routes: &[RouteMessage], tables: &TablesAhead) -> Vec<(String, String)> {
    let problems = own_routes().problems(routes, tables, &links().0).into_iter();
    let command = |message: &str| message.split('`').nth(1).map(str::to_owned);
    problems
        .map(|problem| (problem.object, command(&problem.message).expect("a command")))
        .collect()
}

#[test]
fn routes_that_match_before_ours_are_named_with_the_command_that_removes_them() {
    for (message, prefix, command) in [
        (
            route("10.244.2.2/32", RouteType::BlackHole, None),
            "10.244.2.2/32",
            "ip route del blackhole 10.244.2.2/32",
        ),
        (
            route("10.244.2.128/25", RouteType::Unreachable, None),
            "10.244.2.128/25",
            "ip route del unreachable 10.244.2.128/25",
        ),
        (
            route("fd00:244:2::2/128", RouteType::Prohibit, Some((1, None))),
            "fd00:244:2::2/128",
            "ip route del prohibit fd00:244:2::2/128",
        ),
        (
            route("10.244.2.2/32", RouteType::Unicast, Some((2, Some("192.0.2.9")))),
            "10.244.2.2/32",
            "ip route del 10.244.2.2/32 via 192.0.2.9 dev eth0",
        ),
        (
            route("10.96.0.10/32", RouteType::Unicast, Some((2, None))),
            "10.96.0.10/32",
            "ip route del 10.96.0.10/32 dev eth0",
        ),
    ] {
        let expected = [(format!("route {prefix}"), command.to_owned())];
        assert_eq!(reported(&[message], &TablesAhead::default()), expected);
    }
    let mut odd = route("10.244.2.2/32", RouteType::BlackHole, None);
    odd.attributes
        .retain(|it| !matches!(it, RouteAttribute::Priority(_)));
    odd.attributes.push(RouteAttribute::Priority(7));
    let command = "ip route del blackhole 10.244.2.2/32 metric 7".to_owned();
    let expected = [("route 10.244.2.2/32".to_owned(), command)];
    assert_eq!(reported(&[odd], &TablesAhead::default()), expected);
}

#[test]
fn a_table_counts_if_it_is_looked_up_first() {
    let in_table = |prefix: &str| {
        let mut message = route(prefix, RouteType::BlackHole, None);
        message.header.table = 77;
        message
            .attributes
            .retain(|it| !matches!(it, RouteAttribute::Table(_)));
        message
    };
    let tables = [BTreeSet::from([77]), BTreeSet::new()];
    for prefix in ["10.244.2.0/24", "10.244.2.2/32"] {
        let routes = [in_table(prefix)];
        assert_eq!(reported(&routes, &TablesAhead::default()), []);
        let command = format!("ip route del blackhole {prefix} table 77");
        assert_eq!(reported(&routes, &tables), [(format!("route {prefix}"), command)]);
    }
    assert_eq!(reported(&[in_table("fd00:244:2::2/128")], &tables), []);
}

#[test]
fn an_address_of_another_nodes_pod_that_is_the_nodes_own_is_named() {
    let local = |prefix: &str, interface: u32, table: u32, protocol: RouteProtocol| {
        let mut message = route(prefix, RouteType::Local, Some((interface, None)));
        message
            .attributes
            .retain(|it| !matches!(it, RouteAttribute::Table(_)));
        message.attributes.push(RouteAttribute::Table(table));
        message.header.protocol = protocol;
        message
    };
    let tables = [BTreeSet::from([77]), BTreeSet::new()];
    let links = links().holding(2, &["10.244.2.3/25", "fd00:244:2::3/64"]);
    for (message, command) in [
        (
            local("10.244.2.3/32", 2, LOCAL_TABLE, RouteProtocol::Kernel),
            Some("ip addr del 10.244.2.3/25 dev eth0"),
        ),
        (
            local("fd00:244:2::3/128", 1, LOCAL_TABLE, RouteProtocol::Kernel),
            Some("ip addr del fd00:244:2::3/64 dev eth0"),
        ),
        (
            local("10.244.2.0/24", 1, LOCAL_TABLE, RouteProtocol::Boot),
            Some("ip route del local 10.244.2.0/24 dev lo table 255"),
        ),
        (
            local("10.244.2.2/32", 1, 77, RouteProtocol::Boot),
            Some("ip route del local 10.244.2.2/32 dev lo table 77"),
        ),
        (local("10.244.2.2/32", 1, 78, RouteProtocol::Boot), None),
        // The addresses belong to a cache on the node, and to one of our devices.
        (
            local("10.96.0.10/32", 1, LOCAL_TABLE, RouteProtocol::Kernel),
            None,
        ),
        (
            local("10.244.2.2/32", 7, LOCAL_TABLE, RouteProtocol::Kernel),
            None,
        ),
        (local("192.0.2.1/32", 2, LOCAL_TABLE, RouteProtocol::Kernel), None),
    ] {
        let problems = own_routes().problems(&[message], &tables, &links.0);
        let reported: Vec<_> = problems
            .iter()
            .filter_map(|it| it.message.split('`').nth(1))
            .collect();
        let expected: Vec<_> = command.into_iter().collect();
        assert_eq!(reported, expected, "{problems:?}");
    }
}

#[test]
fn our_protocol_number_alone_makes_no_route_ours() {
    let with = |prefix: &str, protocol, next_hop| {
        let mut message = route(prefix, RouteType::Unicast, Some(next_hop));
        message.header.protocol = RouteProtocol::Other(protocol);
        message
    };
    let misrouted = with("10.244.2.0/25", PODS_PROTOCOL, (2, Some("192.0.2.9")));
    let command = "ip route del 10.244.2.0/25 via 192.0.2.9 dev eth0".to_owned();
    let expected = [("route 10.244.2.0/25".to_owned(), command)];
    assert_eq!(reported(&[misrouted], &TablesAhead::default()), expected);
    // The routes are for an address of services inside a range of pods, and for ranges with the right next
    // hops.
    let ours = [
        with("10.244.2.9/32", host_routes::PROTOCOL, (7, None)),
        with("10.244.2.0/24", PODS_PROTOCOL, (2, Some("192.0.2.2"))),
        with("10.96.0.0/12", host_routes::PROTOCOL, (7, None)),
    ];
    assert_eq!(reported(&ours, &TablesAhead::default()), []);
}

#[test]
fn what_is_the_kernels_or_does_the_same_is_not_named() {
    let with = |protocol: RouteProtocol, kind: RouteType, next_hop| {
        let mut message = route("10.244.2.2/32", kind, next_hop);
        message.header.protocol = protocol;
        message
    };
    let somewhere = Some((2, Some("192.0.2.9")));
    let mut local = with(RouteProtocol::Boot, RouteType::Unicast, somewhere);
    local
        .attributes
        .retain(|it| !matches!(it, RouteAttribute::Table(_)));
    local.header.table = libc::RT_TABLE_LOCAL;
    let routes = [
        with(RouteProtocol::Kernel, RouteType::Unicast, Some((3, None))),
        local,
        // The routes lead to a pod of this node, and to the next hop of our route.
        with(RouteProtocol::Boot, RouteType::Unicast, Some((8, None))),
        with(
            RouteProtocol::Static,
            RouteType::Unicast,
            Some((2, Some("192.0.2.2"))),
        ),
        route("10.96.0.10/32", RouteType::Unicast, Some((7, None))),
        // The routes are for the range itself, for a range around it, and for others.
        route("10.244.2.0/24", RouteType::BlackHole, None),
        route("10.244.0.0/16", RouteType::BlackHole, None),
        route("10.244.3.2/32", RouteType::BlackHole, None),
        route("0.0.0.0/0", RouteType::Unicast, somewhere),
    ];
    assert_eq!(reported(&routes, &TablesAhead::default()), []);
}

#[test]
fn many_are_named_by_their_number() {
    let routes: Vec<_> = (0..100)
        .map(|host| route(&format!("10.244.2.{host}/32"), RouteType::BlackHole, None))
        .collect();
    let reported = own_routes().problems(&routes, &TablesAhead::default(), &links().0);
    assert_eq!(reported.len(), MOST + 1);
    assert!(
        reported[MOST].message.starts_with("84 more "),
        "{:?}",
        reported[MOST]
    );
}

#[test]
fn tables_behind_the_main_one_do_not_count() {
    let rule = |priority, table: u32, action| {
        let mut message = RuleMessage::default();
        message.header.action = action;
        message.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Table(table)];
        message
    };
    let rules = [
        rule(0, LOCAL_TABLE, RuleAction::ToTable),
        rule(50, 77, RuleAction::ToTable),
        rule(60, 78, RuleAction::Unreachable),
        rule(70, netlink::MAIN_TABLE, RuleAction::ToTable),
        rule(80, 1000, RuleAction::ToTable),
        rule(32_766, netlink::MAIN_TABLE, RuleAction::ToTable),
        rule(32_767, 253, RuleAction::ToTable),
    ];
    assert_eq!(ahead(&rules), BTreeSet::from([77, 1000]));
}

#[test]
fn only_changes_inside_our_ranges_count() {
    let concerns = |prefix: &str, is_main: bool| {
        let mut change = Change::default();
        let routes = if is_main {
            &mut change.routes
        } else {
            &mut change.other_routes
        };
        routes.insert(net(prefix));
        own_routes().is_concerned(&change)
    };
    assert!(concerns("10.244.2.2/32", true) && concerns("10.244.2.0/24", false));
    // The agent itself adds and removes routes for the range.
    assert!(!concerns("10.244.2.0/24", true));
    for elsewhere in ["10.244.3.2/32", "10.244.0.0/16", "2001:db8::/64"] {
        assert!(
            !concerns(elsewhere, true) && !concerns(elsewhere, false),
            "{elsewhere}"
        );
    }
    assert!(!OwnRoutes::default().is_concerned(&Change::default()));
}
