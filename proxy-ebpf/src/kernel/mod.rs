//! The kernel's helpers behind safe functions: the one module of this crate with unsafe code.
//!
//! This file contains the access to maps, [`skb`] the access to packets, [`redirect`] the redirects,
//! and [`socket`] the access to sockets.
//!
//! A context pointer that the kernel passes to a program is valid for the whole run. The verifier proves
//! every access before it loads the program. So the verifier checks again all that this code asserts to the
//! compiler.

#![expect(
    unsafe_code,
    reason = "calls of kernel helpers and reads through map and context pointers"
)]

mod redirect;
mod skb;
mod socket;

use aya_ebpf::helpers::generated as helper;
use proxy_common::Plain;
use proxy_common::decide::PacketContext;
use proxy_common::maps::{
    Config, Counter, Datagram, FirstFragment, Flow, FragmentPorts, Frontend, RecentCount, Refusals, Share,
};

pub use self::redirect::{redirect_in, redirect_out, redirect_to_neighbour, redirect_to_peer};
pub use self::skb::{Skb, checksum, checksum_difference, mtu_of, next_hop_of, set_len, zeroed_fib_lookup};
pub use self::socket::{Bound, Peer};
use crate::maps::WORK;

/// Reads through a map pointer. The value may change meanwhile, so the compiler must not omit or repeat the
/// read.
#[inline(always)]
pub fn read<T: Plain>(pointer: *const T) -> T {
    // SAFETY: the pointer comes from a map look-up and was checked for null; any bit pattern is a `T`.
    unsafe { pointer.read_volatile() }
}

/// Reads a frontend. The check is first in memory and read last, so that a reader notices an element that is
/// being overwritten.
#[inline(always)]
pub fn read_frontend(pointer: *const Frontend) -> Frontend {
    // SAFETY: the pointer comes from a map look-up and was checked for null; volatile reads keep their order.
    unsafe {
        let slots = (&raw const (*pointer).slots).read_volatile();
        let service = (&raw const (*pointer).service).read_volatile();
        let flags = (&raw const (*pointer).flags).read_volatile();
        let affinity = (&raw const (*pointer).affinity).read_volatile();
        let check = (&raw const (*pointer).check).read_volatile();
        Frontend {
            check,
            slots,
            service,
            flags,
            affinity,
            reserved: 0,
        }
    }
}

/// A reference into a map whose elements are never freed (an array).
#[inline(always)]
pub fn array_element<T: Plain>(pointer: *const T) -> &'static T {
    // SAFETY: the pointer comes from an array map's look-up, whose elements live as long as the map.
    unsafe { &*pointer }
}

/// The packet context of this CPU.
///
/// A packet program runs with bottom halves disabled, and a CPU never enters it twice. So the reference is
/// the only one while the program runs.
#[inline(always)]
pub fn packet_context() -> Option<&'static mut PacketContext> {
    // SAFETY: per-CPU array elements live as long as the map. Access is exclusive for the reason above. Zero
    // is a valid `PacketContext`, and only this program's own values are ever written to it.
    WORK.get_ptr_mut(0).map(|ctx| unsafe { &mut *ctx })
}

/// Copies a conntrack entry out of the map.
#[inline(always)]
pub fn copy_flow(from: *const Flow, into: &mut Flow) {
    // SAFETY: the pointer comes from a map look-up and was checked for null; any bit pattern is a `Flow`.
    unsafe { core::ptr::copy_nonoverlapping(from, into, 1) }
}

/// The ports that a first fragment has stored, if it belongs to this datagram. It compares the words in
/// place. The datagram is first in memory and read last, so that a reader notices an element that is being
/// overwritten.
#[inline(always)]
pub fn ports_of(first: *const FirstFragment, datagram: &Datagram) -> Option<FragmentPorts> {
    const WORDS: usize = size_of::<Datagram>() / size_of::<u32>();
    const _: () = assert!(WORDS * size_of::<u32>() == size_of::<Datagram>());
    let wanted = (&raw const *datagram).cast::<u32>();
    // SAFETY: the pointer comes from a map look-up and was checked for null; volatile reads keep their order.
    // A `Datagram` has no padding and is aligned like its words.
    unsafe {
        let ports = (&raw const (*first).ports).read_volatile();
        let known = (&raw const (*first).datagram).cast::<u32>();
        let mut difference = 0;
        for word in 0..WORDS {
            difference |= known.add(word).read_volatile() ^ wanted.add(word).read();
        }
        (difference == 0).then_some(ports)
    }
}

/// Sets the time of last use of a conntrack entry and adds bits to its state. States only gain bits this way.
/// Two CPUs that do it at once lose at most one bit, until the next packet.
#[inline(always)]
pub fn touch_flow(flow: *mut Flow, now: u32, state: u8, sequence: u32, fin: u32) {
    // SAFETY: the pointer comes from a map look-up and was checked for null; the fields are aligned.
    unsafe {
        (&raw mut (*flow).seen).write_volatile(now);
        if sequence != 0 {
            (&raw mut (*flow).sequence).write_volatile(sequence);
        }
        if fin != 0 {
            (&raw mut (*flow).fin).write_volatile(fin);
        }
        let known = (&raw const (*flow).state).read_volatile();
        (&raw mut (*flow).state).write_volatile(known | state);
    }
}

/// The number in a share that counts flows of a kind.
#[inline(always)]
pub fn share_of(share: *mut Share, connections: bool) -> *mut u32 {
    // SAFETY: the pointer comes from a map look-up and was checked for null.
    unsafe {
        if connections {
            &raw mut (*share).connections
        } else {
            &raw mut (*share).streams
        }
    }
}

/// The number of flows of a kind that a share counts. The share may not exist.
#[inline(always)]
pub fn used_of(share: Option<*mut Share>, connections: bool) -> u32 {
    share.map_or(0, |share| Share::count(read(share_of(share, connections))))
}

/// Records in a share that one more flow was refused.
#[inline(always)]
pub fn note_refusal(share: Option<*mut Share>, connections: bool) {
    if let Some(share) = share {
        let number = share_of(share, connections);
        set_number(number, read(number) | Share::REFUSED);
    }
}

/// Counts one flow less in a share, if it counts any.
#[inline(always)]
pub fn return_one(share: *mut Share, connections: bool) {
    let number = share_of(share, connections);
    let count = read(number);
    if Share::count(count) > 0 {
        set_number(number, count - 1);
    }
}

/// Sets a number in a map. If two CPUs do it at once, one update is lost, and the agent corrects the number.
#[inline(always)]
pub fn set_number(number: *mut u32, value: u32) {
    // SAFETY: the pointer leads to an aligned field of a map's element, which was checked for null.
    unsafe { number.write_volatile(value) }
}

/// Counts one more event. If there are `most` already, it records the refusal and returns false. If two CPUs
/// do it at once, they may count only one event.
#[inline(always)]
pub fn count_recent(recent: *mut RecentCount, now: u32, most: u32) -> bool {
    // SAFETY: the pointer comes from a map look-up and was checked for null.
    unsafe {
        let mut counted = read(recent);
        let has_room = counted.another(now, most);
        if has_room {
            (&raw mut (*recent).updated).write_volatile(counted.updated);
            (&raw mut (*recent).count).write_volatile(counted.count);
        } else {
            (&raw mut (*recent).refused).write_volatile(counted.refused);
        }
        has_room
    }
}

/// Counts one waiting flow less, if it counts any.
#[inline(always)]
pub fn count_replied(unreplied: *mut RecentCount) {
    // SAFETY: the pointer comes from a map look-up and was checked for null.
    unsafe {
        let count = (&raw const (*unreplied).count).read_volatile();
        if count > 0 {
            (&raw mut (*unreplied).count).write_volatile(count - 1);
        }
    }
}

/// Counts one more refusal on this CPU; false if there are too many.
#[inline(always)]
pub fn another_refusal(refusals: *mut Refusals, now: u32, most: u32) -> bool {
    // SAFETY: the pointer comes from a per-CPU array's look-up and was checked for null.
    unsafe { (*refusals).another(now, most) }
}

/// Adds to a per-CPU counter, which no other CPU writes.
#[inline(always)]
pub fn add(counter: *mut Counter, more: Counter) {
    // SAFETY: the pointer comes from a per-CPU array's look-up and was checked for null.
    unsafe {
        (*counter).packets += more.packets;
        (*counter).bytes += more.bytes;
    }
}

/// Sets `Config::pods_reply_outside`.
#[inline(always)]
pub fn set_pods_reply_outside(config: *mut Config) {
    // SAFETY: the pointer comes from an array's look-up and was checked for null.
    unsafe { (&raw mut (*config).pods_reply_outside).write_volatile(1) }
}

/// Sets `Config::node_replies_outside`.
#[inline(always)]
pub fn set_node_replies_outside(config: *mut Config) {
    // SAFETY: the pointer comes from an array's look-up and was checked for null.
    unsafe { (&raw mut (*config).node_replies_outside).write_volatile(1) }
}

/// Nanoseconds since boot.
#[inline(always)]
pub fn clock() -> u64 {
    // SAFETY: no preconditions.
    unsafe { helper::bpf_ktime_get_ns() }
}

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no preconditions.
    unsafe { helper::bpf_get_prandom_u32() }
}
