//! The helpers that send a packet to an interface. Each one returns the verdict that the program has to
//! return.

use core::mem::size_of;

use aya_ebpf::bindings::{
    BPF_F_INGRESS, bpf_redir_neigh as Neighbour, bpf_redir_neigh__bindgen_ty_1 as NextHop,
};
use aya_ebpf::helpers::generated as helper;

/// The verdict that sends the unchanged packet out of an interface.
#[inline(always)]
pub fn redirect_out(ifindex: u32) -> i32 {
    // SAFETY: no preconditions.
    unsafe { helper::bpf_redirect(ifindex, 0) as i32 }
}

/// The verdict that makes the packet come in by an interface.
#[inline(always)]
pub fn redirect_in(ifindex: u32) -> i32 {
    // SAFETY: no preconditions.
    unsafe { helper::bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}

/// The verdict that sends the packet out of an interface, to a neighbour there. Without a neighbour the
/// kernel would look up the route again. In IPv6 it might then take another of several routes of equal cost.
#[inline(always)]
pub fn redirect_to_neighbour(ifindex: u32, family: u32, next_hop: [u32; 4]) -> i32 {
    let mut neighbour = Neighbour {
        nh_family: family,
        __bindgen_anon_1: NextHop { ipv6_nh: next_hop },
    };
    // SAFETY: the parameters are a live, initialised struct of the given size.
    unsafe {
        let size = size_of::<Neighbour>() as i32;
        helper::bpf_redirect_neigh(ifindex, &raw mut neighbour, size, 0) as i32
    }
}

/// The verdict that makes the packet come in at the other end of a pair of interfaces, in any namespace.
#[inline(always)]
pub fn redirect_to_peer(ifindex: u32) -> i32 {
    // SAFETY: no preconditions.
    unsafe { helper::bpf_redirect_peer(ifindex, 0) as i32 }
}
