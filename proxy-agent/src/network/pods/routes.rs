//! The routes to pods of other nodes: the existing ones, and the steps to the wanted ones.
//!
//! Our routes are those of the main table that carry our protocol number, on any interface. The agent leaves
//! every other route alone. If such a route leads the same prefix elsewhere, the agent reports it and adds no
//! second route.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use super::plan::Hop;
use crate::network::error::{NetworkError, Problem};
use crate::network::netlink::{self, Netlink};
use crate::network::route;
use crate::trouble::Trouble;

/// The origin of these routes (`proto 158` in `ip route`), the number after that of routes to services.
pub const PROTOCOL: u8 = 158;

/// The next hop of a route, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Via {
        via: IpAddr,
        interface: u32,
    },
    Nowhere,
    /// Several next hops, or an interface without a gateway, which our routes never have.
    Else {
        interface: Option<u32>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    prefix: IpNet,
    target: Target,
    protocol: u8,
    metric: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    remove: Vec<Route>,
    /// The new routes, each with the route of ours that exists, if there is one.
    set: Vec<(IpNet, Target, Option<Route>)>,
    foreign: Vec<Route>,
}

/// Brings the kernel's routes in step; `applied` are the prefixes that were set earlier. It returns the
/// problems of single routes, and sets the others all the same. The second value says whether all steps
/// succeeded.
pub async fn sync(
    netlink: &Netlink,
    wanted: &BTreeMap<IpNet, Hop>,
    tunnel: Option<u32>,
    applied: &BTreeSet<IpNet>,
) -> Result<(Vec<Problem>, bool), NetworkError> {
    let existing: Vec<Route> = netlink.routes().await?.iter().filter_map(read).collect();
    let steps = steps(&targets(wanted, tunnel), &existing);
    let mut problems: Vec<Problem> = steps.foreign.iter().map(report_foreign).collect();
    let foreign = problems.len();
    for (prefix, target, found) in steps.set {
        let gives_way = found.filter(|found| found.is_in_the_way_of(target));
        if let Some(old) = gives_way {
            let removed = route::remove(netlink, message(prefix, old.target)?, old.metric).await;
            route::note(&mut problems, prefix, removed, "removing it");
        }
        let request = netlink.writing().route().add(message(prefix, target)?);
        let (request, what) = if found.is_some() && gives_way.is_none() {
            (request.replace(), "changing it")
        } else {
            (request, "adding it")
        };
        let done = request.execute().await;
        if done.is_ok() && found.is_none() && applied.contains(&prefix) {
            netlink.note_restored("route", prefix.to_string());
        }
        route::note(&mut problems, prefix, done, what);
    }
    for stale in steps.remove {
        tracing::info!(route = %stale.prefix, "removing a route to pods that is not planned");
        let message = message(stale.prefix, stale.target)?;
        let removed = route::remove(netlink, message, stale.metric).await;
        route::note(&mut problems, stale.prefix, removed, "removing it");
    }
    let complete = problems.len() == foreign;
    Ok((problems, complete))
}

/// Removes our routes, for an uninstall.
pub async fn remove_all(netlink: &Netlink) -> Result<Vec<IpNet>, NetworkError> {
    let routes = netlink.routes().await?;
    let ours: Vec<_> = routes.iter().filter_map(read).filter(Route::is_ours).collect();
    let (problems, _) = sync(netlink, &BTreeMap::new(), None, &BTreeSet::new()).await?;
    if let Some(Problem { object, message, .. }) = problems.into_iter().next() {
        let error = std::io::Error::other(message);
        return Err(NetworkError::Request { what: object, error });
    }
    Ok(ours.into_iter().map(|route| route.prefix).collect())
}

impl Route {
    fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    /// IPv6 accepts no gateway that another route leads to by another interface (`ip6_route_check_nh_onlink`
    /// in `net/ipv6/route.c`). The end of the tunnel lies within the range for which it is the gateway.
    fn is_in_the_way_of(&self, target: Target) -> bool {
        match (self.target, target) {
            (Target::Via { interface: old, .. }, Target::Via { interface: new, .. }) => {
                self.prefix.addr().is_ipv6() && old != new
            }
            _ => false,
        }
    }
}

/// The targets of the wanted routes. Without the tunnel's device there are no routes through it.
fn targets(wanted: &BTreeMap<IpNet, Hop>, tunnel: Option<u32>) -> BTreeMap<IpNet, Target> {
    let target = |hop: &Hop| {
        Some(match *hop {
            Hop::Direct { via, interface } => Target::Via { via, interface },
            Hop::Tunnel { via } => Target::Via {
                via,
                interface: tunnel?,
            },
            Hop::Nowhere => Target::Nowhere,
        })
    };
    let targets = wanted.iter().map(|(prefix, hop)| Some((*prefix, target(hop)?)));
    targets.flatten().collect()
}

fn steps(wanted: &BTreeMap<IpNet, Target>, existing: &[Route]) -> Steps {
    let mut at: BTreeMap<IpNet, Vec<Route>> = BTreeMap::new();
    for route in existing {
        if wanted.contains_key(&route.prefix) || route.is_ours() {
            at.entry(route.prefix).or_default().push(*route);
        }
    }
    let mut steps = Steps::default();
    for (prefix, target) in wanted {
        let here = at.remove(prefix).unwrap_or_default();
        let (ours, foreign): (Vec<_>, Vec<_>) = here.into_iter().partition(Route::is_ours);
        if let Some(other) = foreign.first() {
            // A foreign route for the node's own range, such as that of a bridge of its pods, covers all
            // these pods.
            let does_the_same = foreign.iter().any(|route| route.target == *target);
            if !does_the_same && *target != Target::Nowhere {
                steps.foreign.push(*other);
            }
            steps.remove.extend(ours);
            continue;
        }
        let metric = route::default_metric(*prefix);
        let (proper, odd): (Vec<_>, Vec<_>) = ours.into_iter().partition(|route| route.metric == metric);
        steps.remove.extend(odd);
        match proper.first() {
            Some(route) if route.target == *target => {}
            found => steps.set.push((*prefix, *target, found.copied())),
        }
    }
    let stale = at.into_values().flatten();
    steps.remove.extend(stale.filter(Route::is_ours));
    steps
}

fn read(message: &RouteMessage) -> Option<Route> {
    if !route::decides(message) {
        return None;
    }
    let (mut via, mut interface) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => via = netlink::ip(address),
            _ => {}
        }
    }
    Some(Route {
        prefix: netlink::prefix(message)?,
        target: match (route::has_no_next_hop(message), via, interface) {
            (true, ..) => Target::Nowhere,
            (false, Some(via), Some(interface)) => Target::Via { via, interface },
            _ => Target::Else { interface },
        },
        protocol: message.header.protocol.into(),
        metric: netlink::metric(message),
    })
}

/// The message that adds or removes one of our routes.
fn message(prefix: IpNet, target: Target) -> Result<RouteMessage, NetworkError> {
    let route = route::builder(prefix, PROTOCOL)?;
    let route = match target {
        // The families never differ: the gateway was chosen by the prefix. The gateway may be new to the
        // kernel: a node that is being added, or an end of the tunnel.
        Target::Via { via, interface } => route
            .output_interface(interface)
            .gateway(via)
            .map_err(route::refused(prefix))?
            .onlink(),
        Target::Nowhere => route.kind(RouteType::Unreachable),
        Target::Else { interface } => match interface {
            Some(interface) => route.output_interface(interface),
            None => route,
        },
    };
    Ok(route.build())
}

fn report_foreign(route: &Route) -> Problem {
    let next_hop = match route.target {
        Target::Via { via, interface } => format!("{} to {via}", route::through(interface)),
        Target::Else {
            interface: Some(interface),
        } => route::through(interface),
        Target::Else { interface: None } => "by several next hops".into(),
        Target::Nowhere => "nowhere".into(),
    };
    Problem {
        code: Trouble::RouteTaken,
        object: format!("route {}", route.prefix),
        message: format!(
            "a foreign route goes {next_hop} (protocol {}), and packets to these pods follow it: remove that route to \
             have Millrace route them",
            route.protocol
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    fn via(text: &str, interface: u32) -> Target {
        let via = text.parse().expect("an address");
        Target::Via { via, interface }
    }

    fn ours(prefix: &str, target: Target) -> Route {
        let prefix = net(prefix);
        Route {
            prefix,
            target,
            protocol: PROTOCOL,
            metric: route::default_metric(prefix),
        }
    }

    fn wanted() -> BTreeMap<IpNet, Target> {
        let routes = [
            ("10.1.0.0/24", Target::Nowhere),
            ("10.2.0.0/24", via("192.0.2.2", 2)),
            ("fd00:3::/64", via("fd00:3::", 9)),
        ];
        routes.map(|(prefix, target)| (net(prefix), target)).into()
    }

    #[test]
    fn right_routes_stay_and_stale_ones_are_removed() {
        let right: Vec<_> = wanted()
            .into_iter()
            .map(|(prefix, target)| ours(&prefix.to_string(), target))
            .collect();
        assert_eq!(steps(&wanted(), &right), Steps::default());
        let gone = ours("10.9.0.0/24", via("192.0.2.9", 2));
        let foreign = Route {
            protocol: 4,
            ..ours("10.8.0.0/24", via("192.0.2.8", 2))
        };
        let odd = Route {
            metric: 7,
            ..right[2]
        };
        let other_way = ours("10.2.0.0/24", via("10.2.0.0", 9));
        let existing = [right[0], other_way, odd, gone, foreign];
        let expected = Steps {
            remove: vec![odd, gone],
            set: vec![
                (net("10.2.0.0/24"), via("192.0.2.2", 2), Some(other_way)),
                (net("fd00:3::/64"), via("fd00:3::", 9), None),
            ],
            foreign: vec![],
        };
        assert_eq!(steps(&wanted(), &existing), expected);
        assert!(
            !other_way.is_in_the_way_of(via("192.0.2.2", 2)),
            "IPv4 does not mind"
        );
        assert!(ours("fd00:3::/64", via("2001:db8::3", 2)).is_in_the_way_of(via("fd00:3::", 9)));
        assert!(!ours("fd00:3::/64", via("2001:db8::3", 2)).is_in_the_way_of(via("2001:db8::4", 2)));
    }

    #[test]
    fn a_foreign_route_is_reported_and_gets_no_rival() {
        let foreign = |prefix: &str, target| Route {
            protocol: 3,
            ..ours(prefix, target)
        };
        let elsewhere = foreign("10.2.0.0/24", via("192.0.2.77", 2));
        let left = ours("10.2.0.0/24", via("192.0.2.2", 2));
        let bridge = Target::Else { interface: Some(5) };
        let existing = [
            elsewhere,
            left,
            foreign("10.1.0.0/24", bridge),
            foreign("fd00:3::/64", via("fd00:3::", 9)),
        ];
        let expected = Steps {
            remove: vec![left],
            foreign: vec![elsewhere],
            ..Steps::default()
        };
        assert_eq!(steps(&wanted(), &existing), expected);
    }

    #[test]
    fn no_route_uses_a_missing_tunnel() {
        let wanted = BTreeMap::from([(
            net("10.3.0.0/24"),
            Hop::Tunnel {
                via: "10.3.0.0".parse().expect("an address"),
            },
        )]);
        assert_eq!(targets(&wanted, None), BTreeMap::new());
        assert_eq!(
            targets(&wanted, Some(9)),
            [(net("10.3.0.0/24"), via("10.3.0.0", 9))].into()
        );
    }
}
