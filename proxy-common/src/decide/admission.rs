//! Who may come by an entry: the first question about a packet, before any table of services is asked.
//!
//! | entry | frame | source | tunnel port |
//! |---|---|---|---|
//! | uplink | to this interface; a tag is the VLAN device's | none that only this node gives out | from nodes alone, see [`tunnel`](super::tunnel) |
//! | tunnel | as above | as above | – |
//! | pod of ours | see [`sender`](super::sender) | its own | never |
//! | other pods | their plugin's business | no cluster IP | never |
//! | host, loopback | the node's own packets | | |
//!
//! An uplink refuses as source: a virtual address, an address of this node or of its pods, none, loopback, multicast. The
//! stack refuses most of them too, but translation comes before it and hides them. Strict reverse-path filtering is
//! asked for new flows, since the stack does not see what is redirected.

use super::decision::Entry;
use super::{Tables, Work, gateway, host_port};
use crate::Ip;
use crate::maps::{Config, ConfigFlags, FrontendKey, Reason};
use crate::packet::{Headers, ether_type};
use crate::protocol;

/// The pods' gateway, whose address is no host's.
const GATEWAY: Ip = Ip::from_v4_word(u32::from_ne_bytes(gateway::ADDRESS));

/// What stands beside a packet, outside of its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// `EtherType` behind the outermost tag, in host order.
    pub ether_type: u16,
    /// The VLAN of the outermost tag, 0 of a priority tag; [`Frame::UNTAGGED`] without a tag.
    pub vlan: u32,
    /// Whether the frame is addressed to the interface. It may hear others as well.
    pub is_for_interface: bool,
}

impl Frame {
    /// No tag.
    pub const UNTAGGED: u32 = u32::MAX;

    /// Whether the frame has a tag behind the outermost one.
    #[inline(always)]
    const fn has_more_tags(self) -> bool {
        matches!(self.ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN)
    }
}

/// What becomes of a frame that comes in by an uplink, before its headers are read.
///
/// # Errors
/// The reason to leave it to the stack or to drop it; [`Reason::is_drop`] tells which.
#[inline(always)]
pub const fn by_uplink(frame: Frame) -> Result<(), Reason> {
    if frame.vlan == 0 && frame.has_more_tags() {
        // The stack would take all of them off, one by one, and deliver what no program has read.
        return Err(Reason::Retagged);
    }
    if frame.vlan != Frame::UNTAGGED && frame.vlan != 0 {
        return Err(Reason::Tagged);
    }
    if !frame.is_for_interface {
        return Err(Reason::OtherHost);
    }
    Ok(())
}

/// Whether the source of a packet is one that no packet may have that enters here.
// A function of its own for the kernel, as in `packet`.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
pub fn is_forged<T: Tables>(tables: &T, config: &Config, headers: &Headers, entry: Entry) -> bool {
    let source = &headers.src;
    match entry {
        Entry::Pod => config.is_service_address(source),
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
            if !config.has(ConfigFlags::STRAY_ADDRESSES | ConfigFlags::MORE_NODE_ADDRESSES) {
                return false;
            }
            let known = tables.address(source);
            known.is_node() || known.is_virtual_only()
        }
        Entry::Host | Entry::Loopback | Entry::Egress => false,
    }
}

/// Whether a packet that begins a flow comes from where its replies would not lead back, in ways that only the first packet
/// is asked for: from a pod of this node by an uplink, from a subnet's broadcast address, or against strict reverse-path
/// filtering.
#[inline(always)]
pub fn is_astray<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> bool {
    if !matches!(entry, Entry::Uplink) {
        return false;
    }
    tables.address(&work.headers.src).is_broadcast()
        || tables.is_own_pod(&work.headers.src)
        || (config.is_strict(work.interface) && !tables.leads_back(&work.headers, work.interface))
}

/// Whether a datagram that begins a flow between two node ports comes from a node port itself, so that two servers that
/// reply to anything would go on for ever (CVE-2024-2169). No client of another node has such a port: the kernel gives none
/// out, and no process may bind one.
#[inline(always)]
pub fn is_loop<T: Tables>(tables: &T, config: &Config, headers: &Headers, entry: Entry) -> bool {
    if headers.protocol != protocol::UDP
        || !matches!(entry, Entry::Uplink)
        || !tables.address(&headers.src).is_peer()
    {
        return false;
    }
    let node = config.node_address(&headers.dst);
    let key = FrontendKey::new(node, headers.sport, headers.protocol);
    tables.frontend(&key).is_some()
        || host_port::find(tables, config, &node, headers.sport, headers.protocol).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::{Fake, ip, packet};
    use crate::maps::AddressFlags;

    #[test]
    fn an_uplink_takes_untagged_frames_that_are_addressed_to_it() {
        let frame = |vlan, ether_type, is_for_interface| {
            by_uplink(Frame {
                ether_type,
                vlan,
                is_for_interface,
            })
        };
        for kind in [ether_type::IPV4, ether_type::IPV6] {
            assert_eq!(frame(Frame::UNTAGGED, kind, true), Ok(()));
            assert_eq!(frame(0, kind, true), Ok(()), "a priority tag");
            assert_eq!(frame(100, kind, true), Err(Reason::Tagged));
            assert_eq!(frame(Frame::UNTAGGED, kind, false), Err(Reason::OtherHost));
        }
        for kind in [ether_type::VLAN, ether_type::SERVICE_VLAN] {
            assert_eq!(frame(0, kind, true), Err(Reason::Retagged));
            assert_eq!(
                frame(5, kind, true),
                Err(Reason::Tagged),
                "that of another device"
            );
        }
        assert!(Reason::Retagged.is_drop() && !Reason::Tagged.is_drop() && !Reason::OtherHost.is_drop());
    }

    #[test]
    fn sources_that_only_this_node_gives_out_come_by_no_uplink() {
        let mut fake = Fake::node();
        fake.config.own_range[0] = ip("10.244.1.0");
        fake.config.own_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
        fake.config.node_v6 = ip("fd00:50::11");
        fake.config.tunnel_v4 = ip("10.244.1.0");
        fake.config.broadcasts[1] = ip("192.168.50.255").v4_word();
        fake.config.flags |= ConfigFlags::STRAY_ADDRESSES | ConfigFlags::MORE_NODE_ADDRESSES;
        for (address, flags) in [
            ("203.0.113.10", AddressFlags::VIRTUAL),
            ("192.168.60.11", AddressFlags::NODE),
            ("192.168.50.12", AddressFlags::PEER),
        ] {
            fake.addresses.insert(ip(address), AddressFlags(flags));
        }
        let forged = |entry, source| {
            let to = if ip(source).is_v4() {
                "203.0.113.10"
            } else {
                "fd00:96::1"
            };
            let headers = packet(protocol::UDP, (source, 5000), (to, 7));
            is_forged(&fake, &fake.config, &headers, entry)
        };
        for source in [
            "127.0.0.1",
            "0.0.0.0",
            "0.0.0.7",
            "255.255.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "10.96.3.4",
            "203.0.113.10",
            "192.168.50.11",
            "192.168.60.11",
            "10.244.1.7",
            "10.244.1.0",
            "169.254.1.1",
            "192.168.50.255",
            "::",
            "::1",
            "ff02::1",
            "fd00:50::11",
        ] {
            assert!(forged(Entry::Uplink, source), "{source}");
            assert!(!forged(Entry::Host, source), "{source} of the node itself");
        }
        for source in [
            "192.168.50.12",
            "10.244.2.7",
            "172.31.0.5",
            "169.254.7.7",
            "fe80::7",
            "2001:db8::7",
        ] {
            assert!(!forged(Entry::Uplink, source), "{source}");
        }
        assert!(forged(Entry::Pod, "10.96.3.4") && !forged(Entry::Pod, "10.244.1.7"));
    }
}
