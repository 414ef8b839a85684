//! Admission: the packets that may enter at a hook. This is the first question, before any look-up of
//! services.
//!
//! | entry | frame | source | tunnel port |
//! |---|---|---|---|
//! | uplink | to this interface; a tag is the VLAN device's | none that only this node uses, no tunnelled pod's | only from nodes, see [`tunnel`] |
//! | tunnel | as above, and only if an uplink has admitted it | as above | – |
//! | pod of ours | see [`sender`](super::sender) | its own | never |
//! | other pods | their plugin's responsibility | no virtual address | never |
//! | host | by an interface without programs: as above | neither virtual nor the node's nor its pods' | |
//! | host, loopback | the node's own packets | | |
//!
//! An uplink refuses these sources: a virtual address, an address of this node or of its pods, no address,
//! loopback and multicast addresses. The stack refuses most of them too, but translation comes before the
//! stack and would hide them. The programs repeat strict reverse-path filtering for each packet, since the
//! stack does not see redirected packets. A frame to a group is never translated, but the stack may deliver
//! the packet in it. So its source and the tunnel's port are checked.

use super::decision::Entry;
use super::{PacketContext, Tables, gateway, host_port, tunnel};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, FrontendFlags, FrontendKey, FrontendKind, RangeFlags, Reason};
use crate::packet::{Headers, Packet, ether_type};
use crate::protocol;

/// The pods' gateway, whose address no host has.
const GATEWAY: Ip = Ip::from_v4_word(u32::from_ne_bytes(gateway::ADDRESS));

/// The metadata of a frame, outside of its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// `EtherType` behind the outermost tag, in host order.
    pub ether_type: u16,
    /// The VLAN of the outermost tag, 0 of a priority tag; [`Frame::UNTAGGED`] without a tag.
    pub vlan: u32,
    /// Whether the frame is addressed to another host. The interface may receive it in promiscuous mode.
    pub is_for_other: bool,
}

impl Frame {
    /// The value for a frame without a tag.
    pub const UNTAGGED: u32 = u32::MAX;

    /// Whether the frame belongs to a VLAN. A priority tag names none.
    #[inline(always)]
    pub const fn belongs_to_vlan(self) -> bool {
        self.vlan != Self::UNTAGGED && self.vlan != 0
    }

    /// Whether the frame has a tag behind the outermost one.
    #[inline(always)]
    const fn has_more_tags(self) -> bool {
        matches!(self.ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN)
    }
}

/// The first check of a frame that comes in by an uplink, before its headers are read.
///
/// # Errors
/// The reason to leave it to the stack or to drop it; [`Reason::is_drop`] tells which.
#[inline(always)]
pub const fn by_uplink(frame: Frame) -> Result<(), Reason> {
    if frame.vlan == 0 && frame.has_more_tags() {
        // The stack would remove all of them, one by one, and deliver a packet that no program has read.
        return Err(Reason::Retagged);
    }
    if frame.belongs_to_vlan() {
        return Err(Reason::Tagged);
    }
    if frame.is_for_other {
        return Err(Reason::OtherHost);
    }
    Ok(())
}

/// The verdict on a packet that enters, or `None` if the decision about services follows. [`Reason::is_drop`]
/// tells whether the packet is dropped.
#[inline(always)]
pub fn admit<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    config: &Config,
    packet: &P,
    ctx: &mut PacketContext,
    entry: Entry,
) -> Option<Reason> {
    if is_for_loopback(ctx, entry) {
        return Some(Reason::LoopbackDestination);
    }
    if !is_from_no_address(ctx) && is_forged(tables, config, ctx, entry) {
        return Some(Reason::ForgedSource);
    }
    if tunnel::is_for_port(config, &ctx.headers)
        && let Some(reason) = tunnel::admit(tables, config, packet, &ctx.headers, entry)
    {
        ctx.is_for_tunnel = u32::from(!reason.is_drop());
        return Some(reason);
    }
    (ctx.is_for_group != 0).then_some(Reason::OtherHost)
}

/// The verdict on a packet of which the parser has read at most the addresses, because of `reason`.
#[inline(always)]
pub fn unread<T: Tables>(tables: &T, ctx: &PacketContext, entry: Entry, reason: Reason) -> Reason {
    let headers = &ctx.headers;
    let Some(config) = tables.config() else {
        return reason;
    };
    let is_read = !(headers.src.is_unspecified() && headers.dst.is_unspecified());
    if reason.is_drop() || !is_read || is_from_no_address(ctx) {
        return reason;
    }
    if is_for_loopback(ctx, entry) {
        return Reason::LoopbackDestination;
    }
    if is_forged(tables, config, ctx, entry) {
        return Reason::ForgedSource;
    }
    if !headers.is_unwalked(reason) {
        return reason;
    }
    // The port may be behind the headers that the parser did not read.
    if config.tunnel_port.raw() != 0 && tunnel::is_listening(tables, config, &headers.dst) {
        return match entry {
            Entry::Pod => Reason::TunnelPort,
            _ => Reason::TunnelSource,
        };
    }
    match entry {
        // An unread ICMP error may be about another host's packet.
        Entry::Pod => Reason::ForgedSource,
        _ => reason,
    }
}

/// Whether a packet from another host goes to a loopback address (RFC 1122 §3.2.1.3). The stack would take it
/// where `route_localnet` is 1.
#[inline(always)]
const fn is_for_loopback(ctx: &PacketContext, entry: Entry) -> bool {
    matches!(entry, Entry::Uplink | Entry::Pod) && ctx.headers.dst.is_loopback()
}

/// Whether a packet goes to a group from no address, as in neighbour discovery and DHCP. Both the frame and
/// the packet are then addressed to a group.
#[inline(always)]
const fn is_from_no_address(ctx: &PacketContext) -> bool {
    let source = &ctx.headers.src;
    ctx.is_for_group != 0
        && !ctx.headers.dst.is_one_host()
        && (source.is_unspecified() || source.is_v4_unspecified())
}

/// Whether the packet's source may not enter here.
#[inline(always)]
fn is_forged<T: Tables>(tables: &T, config: &Config, ctx: &PacketContext, entry: Entry) -> bool {
    let source = &ctx.headers.src;
    match entry {
        // The sender check of [`super::sender`] comes before and covers the sources of our own pods.
        Entry::Pod => {
            config.is_service_address(source)
                || (config.has(ConfigFlags::VIPS_OUTSIDE_RANGES)
                    && !config.may_be_pod(source)
                    && tables.address(source).is_virtual_only())
        }
        // A packet that the stack forwards to this device came by an interface without programs.
        Entry::Host if ctx.arrived_by != 0 => {
            !source.is_one_host()
                || source.is_loopback()
                || config.is_service_address(source)
                || config.is_own_pod_address(source)
                || config.is_node_address(source)
                || {
                    let known = tables.address(source);
                    known.is_node() || known.is_virtual_only()
                }
                || is_local_by_route(tables, config, source)
        }
        Entry::Uplink => {
            if !source.is_one_host()
                || source.is_loopback()
                || config.is_service_address(source)
                || config.is_own_pod_address(source)
                || config.is_node_address(source)
                || config.is_tunnel_address(source)
                || source.same(&GATEWAY)
                || config.is_broadcast(source)
            {
                return true;
            }
            if config.has(ConfigFlags::TUNNEL_ONLY)
                && config.may_be_pod(source)
                && ctx.interface != config.tunnel_device
                && tables.range(source).has(RangeFlags::TUNNEL)
            {
                return true;
            }
            if is_local_by_route(tables, config, source) {
                return true;
            }
            if !config.has(ConfigFlags::VIPS_OUTSIDE_RANGES | ConfigFlags::MORE_NODE_ADDRESSES) {
                return false;
            }
            let known = tables.address(source);
            known.is_node() || known.is_virtual_only()
        }
        Entry::Host | Entry::Loopback | Entry::Egress => false,
    }
}

/// Whether a route makes an address local to the node, as `ip route add local` does.
#[inline(always)]
pub fn is_local_by_route<T: Tables>(tables: &T, config: &Config, address: &Ip) -> bool {
    config.has(ConfigFlags::LOCAL_RANGES) && tables.range(address).has(RangeFlags::LOCAL)
}

/// Whether a packet that begins a flow has a source to which replies would not lead back. Only the first
/// packet needs these checks: from a pod of this node by an uplink, or from a subnet's broadcast address.
#[inline(always)]
pub fn is_martian<T: Tables>(tables: &T, ctx: &PacketContext, entry: Entry) -> bool {
    matches!(entry, Entry::Uplink)
        && (tables.address(&ctx.headers.src).is_broadcast() || tables.is_own_pod(&ctx.headers.src))
}

/// Whether a packet fails strict reverse-path filtering. The stack would drop it, but may not see it.
#[inline(always)]
pub fn fails_reverse_path<T: Tables>(tables: &T, config: &Config, ctx: &PacketContext, entry: Entry) -> bool {
    matches!(entry, Entry::Uplink)
        && config.is_strict(ctx.interface)
        && ctx.headers.dst.is_one_host()
        && !tables.passes_reverse_path(&ctx.headers, ctx.interface)
}

/// Whether the source port of a datagram that begins a flow is a server's port too, so that two servers could
/// reply to each other without end (CVE-2024-2169). An address of a Node object may be a server's. A node may
/// have addresses that its Node object lacks, so each host on a link of this node may have node ports.
///
/// No client has a node port as its source port: the kernel assigns none of them, and no process may bind
/// one. Clients may have each other port of a service, as NTP does. Such a port counts only between addresses
/// of two nodes: a reply from a virtual address is dropped at another node as forged. Masqueraded packets of
/// another node may come from the number of a host port.
#[inline(always)]
pub fn is_loop<T: Tables>(tables: &T, config: &Config, headers: &Headers, entry: Entry) -> bool {
    if headers.protocol != protocol::UDP || !matches!(entry, Entry::Uplink) {
        return false;
    }
    let is_peer = tables.address(&headers.src).is_peer();
    if !is_peer && !config.is_on_link(&headers.src) {
        return false;
    }
    let (node, to) = (config.node_address(&headers.dst), &headers.dst);
    let is_to_node = config.is_node_address(to) || tables.address(to).is_node();
    let ours = leads_on(tables, headers, &node);
    let at_destination = if is_to_node {
        leads_on(tables, headers, to)
    } else {
        None
    };
    let is_node_port = |kind| matches!(kind, Some(FrontendKind::NodePort));
    if is_node_port(ours) || is_node_port(at_destination) {
        return true;
    }
    if !is_peer || !is_to_node {
        return false;
    }
    let is_masqueraded = config.is_masquerade_port(headers.sport) && headers.sport != headers.dport;
    ours.is_some()
        || at_destination.is_some()
        // All nodes know the ports that services have at another node's address.
        || leads_on(tables, headers, &headers.src).is_some()
        // Another node may have the same host port.
        || (!is_masqueraded && host_port::find(tables, config, to, headers.sport, headers.protocol).is_some())
}

/// The kind of the frontend that has the source port of a datagram at an address.
#[inline(always)]
fn leads_on<T: Tables>(tables: &T, headers: &Headers, address: &Ip) -> Option<FrontendKind> {
    let key = FrontendKey::new(*address, headers.sport, headers.protocol);
    let frontend = tables.frontend(&key)?;
    Some(FrontendFlags(frontend.flags).kind())
}

#[cfg(test)]
mod tests;
