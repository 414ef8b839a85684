//! The ARP reply for the gateway's address: a pod's request becomes the reply, and goes back to the pod.
//!
//! The gateway's Ethernet address is that of the pod's interface on the node's side. The kernel returns it
//! with the route to the pod, whose output device has to be this interface.

use aya_ebpf::bindings::BPF_FIB_LKUP_RET_SUCCESS;
use proxy_common::decide::gateway::{self, Arp};

use crate::kernel::{Skb, redirect_out, zeroed_fib_lookup};
use crate::tables::KernelMaps;

const AF_INET: u8 = 2;

/// The verdict on a packet that asks for the gateway's address.
#[inline(always)]
pub fn reply(skb: &Skb<'_>) -> Option<i32> {
    let interface = skb.ifindex();
    let asked = gateway::request(&KernelMaps::HOOK, skb, skb.ether_type(), interface)?;
    let mac = mac(skb, interface, &asked)?;
    skb.store(0, &asked.reply(mac))?;
    Some(redirect_out(interface))
}

#[inline(always)]
fn mac(skb: &Skb<'_>, interface: u32, asked: &Arp) -> Option<[u8; 6]> {
    let mut lookup = zeroed_fib_lookup();
    lookup.family = AF_INET;
    lookup.ifindex = interface;
    lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(gateway::ADDRESS);
    lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(asked.sender);
    let found = skb.route(&mut lookup) == i64::from(BPF_FIB_LKUP_RET_SUCCESS);
    (found && lookup.ifindex == interface).then_some(lookup.smac)
}
