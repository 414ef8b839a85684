//! The packets of a pod, or of clients of a service, for which the node may resolve a neighbour.
//!
//! The kernel's neighbour tables hold `gc_thresh3` entries for all interfaces, 1024 by default. A pod that
//! sends to all addresses of the node's subnet would fill them. Then the node could resolve neither its
//! gateway nor other nodes. So a pod has a share: in a tick it may send few packets to neighbours that the
//! node does not know. Packets to known neighbours do not count. A service whose endpoints are hosts of the
//! node's subnet has a share too, for packets from clients outside.
//!
//! The kernel resolves only hosts in subnets of the node, and IPv6 link-local addresses. The route to other
//! hosts has a gateway as next hop. Pods have permanent entries. Other nodes are few, and the kernel knows
//! them.

use super::{PacketContext, Tables, gateway};
use crate::maps::Deliver;

/// In a share's key, this bit says that the other bits are a service port and not an interface.
const OF_SERVICE: u32 = 1 << 31;

/// Whether a packet that an uplink has translated may go to its neighbour. A reply always may, since its
/// neighbour has sent a packet before.
#[inline(always)]
pub fn may_reach_backend<T: Tables>(tables: &T, ctx: &PacketContext) -> bool {
    ctx.flow.is_reply != 0 || may_find(tables, ctx, true, OF_SERVICE | ctx.flow.service)
}

/// Whether a pod's packet that continues through the stack, unchanged or translated, may go to its neighbour.
#[inline(always)]
pub fn may_resolve<T: Tables>(tables: &T, ctx: &PacketContext, is_translated: bool) -> bool {
    may_find(tables, ctx, is_translated, ctx.interface)
}

/// As [`may_reach_backend`] and [`may_resolve`], counted under a key.
#[inline(always)]
fn may_find<T: Tables>(tables: &T, ctx: &PacketContext, is_translated: bool, key: u32) -> bool {
    let Some(config) = tables.config() else {
        return true;
    };
    if is_translated
        && !matches!(
            Deliver::from_number(ctx.flow.deliver),
            Deliver::Stack | Deliver::Route
        )
    {
        return true;
    }
    let to = if is_translated {
        &ctx.flow.dst
    } else {
        &ctx.headers.dst
    };
    // The kernel forwards these out of the interface by which they came, where only the pod and the gateway
    // are. A route look-up does not show whether the kernel knows the neighbour, since each interface has
    // such a route.
    if !to.is_v4() && to.is_link_local() {
        return gateway::is_address_v6(to) || tables.note_neighbour(config, key);
    }
    !config.is_on_link(to)
        || config.is_node_address(to)
        || tables.address(to).is_peer()
        || !tables.lacks_neighbour(ctx, is_translated)
        || tables.note_neighbour(config, key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::{Fake, ip, packet};
    use crate::maps::{AddressFlags, NodeNumber};
    use crate::protocol;

    fn fake() -> Fake {
        let mut fake = Fake::node();
        fake.config.on_link_range[0] = ip("192.168.50.0");
        fake.config.on_link_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
        fake.config.neighbour_share = 4;
        fake
    }

    fn may_send(fake: &Fake, interface: u32, to: &str) -> bool {
        let mut ctx = PacketContext::new(packet(protocol::UDP, ("10.244.1.10", 4000), (to, 53)));
        ctx.interface = interface;
        may_resolve(fake, &ctx, false)
    }

    #[test]
    fn endpoints_on_a_link_count_as_what_the_pod_sends_to() {
        let fake = fake();
        let asked = |last: u8| {
            let mut ctx = PacketContext::new(packet(protocol::UDP, ("10.244.1.10", 4000), ("10.96.0.1", 53)));
            ctx.interface = 7;
            ctx.flow.dst = ip(&format!("192.168.50.{last}"));
            ctx.flow.deliver = Deliver::Stack as u8;
            may_resolve(&fake, &ctx, true)
        };
        assert_eq!((20..40).filter(|last| asked(*last)).count(), 4);
    }

    #[test]
    fn a_pod_asks_for_a_few_neighbours_in_a_tick() {
        let mut fake = fake();
        fake.known_neighbours.push(ip("192.168.50.1"));
        let peer = AddressFlags::of_peer(NodeNumber(2));
        fake.addresses.insert(ip("192.168.50.12"), peer);
        let unknown: Vec<_> = (20..40).map(|last| format!("192.168.50.{last}")).collect();
        let went = |interface| unknown.iter().filter(|to| may_send(&fake, interface, to)).count();
        assert_eq!(went(7), 4);
        assert_eq!(went(7), 0);
        assert!(may_send(&fake, 7, "192.168.50.1"), "a neighbour that is known");
        assert!(may_send(&fake, 7, "192.168.50.11"), "the node itself");
        assert!(may_send(&fake, 7, "192.168.50.12"), "another node");
        assert!(may_send(&fake, 7, "172.31.0.5"), "by a gateway");
        assert_eq!(went(8), 4, "another pod");
        let link_local = (1..30).filter(|last| may_send(&fake, 9, &format!("fe80::{last}")));
        assert_eq!(
            link_local.count(),
            5,
            "at the pod's own interface, and the gateway"
        );
        assert!(may_send(&fake, 9, "fe80::1"), "the gateway");
        fake.advance_clock(1);
        assert_eq!(went(7), 2, "half of them are forgotten");
    }
}
