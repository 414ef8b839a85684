//! The decisions' view of the maps.
//!
//! In a dry run every look-up is real and nothing is written.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::maps::lpm_trie::Key;
use proxy_common::maps::{
    AddressFlags, Backend, Config, Counter, Flow, FlowKey, Frontend, FrontendKey, Reason, Slot, SocketKey,
    SocketPeer,
};
use proxy_common::{Ip, Tables};

use crate::kernel::{self, array_element, read};
use crate::maps::{
    ADDRESSES, BACKENDS, CONFIG, COUNTERS, FLOWS, FRONTENDS, POD_NETNS, POD_RANGES, SLOTS, SOCKET_PEERS,
};

/// The live maps.
#[derive(Clone, Copy)]
pub struct Live {
    /// Whether nothing may be written.
    pub dry_run: bool,
}

impl Tables for Live {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get_ptr(0).map(array_element)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        FRONTENDS.get_ptr(key).map(kernel::read_frontend)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        SLOTS.get_ptr(index).map(read)
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend> {
        BACKENDS.get_ptr(id).map(read)
    }

    #[inline(always)]
    fn address(&self, address: &Ip) -> AddressFlags {
        AddressFlags(ADDRESSES.get_ptr(address).map_or(0, read))
    }

    #[inline(always)]
    fn is_pod(&self, address: &Ip) -> bool {
        POD_RANGES.get(Key::new(128, *address)).is_some()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey, into: &mut Flow) -> bool {
        FLOWS
            .get_ptr(key)
            .map(|flow| kernel::copy_flow(flow, into))
            .is_some()
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        if self.dry_run {
            return FLOWS.get_ptr(key).is_none();
        }
        FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn replace_flow(&self, key: &FlowKey, flow: &Flow) {
        if !self.dry_run {
            let _ = FLOWS.insert(key, flow, 0);
        }
    }

    #[inline(always)]
    fn socket_peer(&self, key: &SocketKey) -> Option<SocketPeer> {
        SOCKET_PEERS.get_ptr(key).map(read)
    }

    #[inline(always)]
    fn replace_socket_peer(&self, key: &SocketKey, peer: &SocketPeer) {
        let _ = SOCKET_PEERS.insert(key, peer, 0);
    }

    #[inline(always)]
    fn pods_answer_outside(&self) {
        if !self.dry_run
            && let Some(config) = CONFIG.get_ptr_mut(0)
        {
            kernel::set_pods_answer_outside(config);
        }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        kernel::now()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        kernel::random()
    }
}

/// Whether a network namespace is one of this node's pods'.
#[inline(always)]
pub fn is_pod_netns(cookie: u64) -> bool {
    POD_NETNS.get_ptr(cookie).is_some()
}

/// Counts a packet, or with 0 bytes a socket call.
#[inline(always)]
pub fn count(reason: Reason, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        kernel::add(
            counter,
            Counter {
                packets: 1,
                bytes: u64::from(bytes),
            },
        );
    }
}
