//! The kernel's helpers behind safe functions: the one module of this crate with unsafe code.
//!
//! Here is what touches maps, in [`skb`] what touches packets, in [`socket`] what touches sockets.
//!
//! A context pointer that the kernel hands to a program is valid for the whole run, and the verifier proves every
//! access before the program is loaded. What the compiler is told here is what the verifier checks again.

#![expect(
    unsafe_code,
    reason = "calls of kernel helpers and reads through map and context pointers"
)]

mod skb;
mod socket;

use aya_ebpf::helpers::generated as helper;
use proxy_common::Plain;
use proxy_common::decide::Work;
use proxy_common::maps::{
    Config, Counter, Datagram, FirstFragment, Flow, FragmentPorts, Frontend, RecentCount, Refusals, Share,
};

pub use self::skb::{
    Skb, checksum, checksum_difference, mtu_of, next_hop_of, redirect_in, redirect_out,
    redirect_to_neighbour, redirect_to_peer, set_len, zeroed_fib_lookup,
};
pub use self::socket::{Bound, Peer};
use crate::maps::WORK;

/// Reads through a map pointer; the value may be changing, so the read is neither elided nor repeated.
#[inline(always)]
pub fn read<T: Plain>(pointer: *const T) -> T {
    // SAFETY: the pointer comes from a map look-up and was checked for null; any bit pattern is a `T`.
    unsafe { pointer.read_volatile() }
}

/// Reads a frontend, its check last: it is first in memory, so an element that is being overwritten shows.
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

/// This CPU's working memory.
///
/// A packet program runs with bottom halves disabled and is never entered twice on one CPU, so the reference is the
/// only one while the program runs.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: per-CPU array elements live as long as the map; exclusive for the reason above; zero is a valid `Work`,
    // and only this program's own values are ever written to it.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Copies a conntrack entry out of the map.
#[inline(always)]
pub fn copy_flow(from: *const Flow, into: &mut Flow) {
    // SAFETY: the pointer comes from a map look-up and was checked for null; any bit pattern is a `Flow`.
    unsafe { core::ptr::copy_nonoverlapping(from, into, 1) }
}

/// The ports that a first fragment left, if it is of this datagram. The comparison is by words and in place.
/// The datagram is first in memory and read last: an element that is being overwritten shows.
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

/// Notes in a conntrack entry that it is in use, and how far its flow is. States only gain bits this way, so two CPUs
/// that do it at once lose one at the worst, until the next packet.
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

/// The number of a share that counts flows of a kind.
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

/// How many flows of a kind a share counts, which may not be there.
#[inline(always)]
pub fn used_of(share: Option<*mut Share>, connections: bool) -> u32 {
    share.map_or(0, |share| Share::count(read(share_of(share, connections))))
}

/// Notes in a share that one more was refused.
#[inline(always)]
pub fn note_refusal(share: Option<*mut Share>, connections: bool) {
    if let Some(share) = share {
        let number = share_of(share, connections);
        set_number(number, read(number) | Share::REFUSED);
    }
}

/// Counts one flow less in a share, if there is one.
#[inline(always)]
pub fn return_one(share: *mut Share, connections: bool) {
    let number = share_of(share, connections);
    let count = read(number);
    if Share::count(count) > 0 {
        set_number(number, count - 1);
    }
}

/// Sets a number in a map. Of two CPUs that do it at once one is lost, which the agent sets right.
#[inline(always)]
pub fn set_number(number: *mut u32, value: u32) {
    // SAFETY: the pointer leads to an aligned field of a map's element, which was checked for null.
    unsafe { number.write_volatile(value) }
}

/// Counts one more; false, and nothing is counted, if there are `most` already. Two CPUs that do it at once may count one
/// of two.
#[inline(always)]
pub fn count_recent(recent: *mut RecentCount, now: u32, most: u32) -> bool {
    // SAFETY: the pointer comes from a map look-up and was checked for null.
    unsafe {
        let mut counted = read(recent);
        let has_room = counted.another(now, most);
        if has_room {
            (&raw mut (*recent).tick).write_volatile(counted.tick);
            (&raw mut (*recent).count).write_volatile(counted.count);
        } else {
            (&raw mut (*recent).refused).write_volatile(counted.refused);
        }
        has_room
    }
}

/// Counts one less, if there is one.
#[inline(always)]
pub fn count_answered(unanswered: *mut RecentCount) {
    // SAFETY: the pointer comes from a map look-up and was checked for null.
    unsafe {
        let count = (&raw const (*unanswered).count).read_volatile();
        if count > 0 {
            (&raw mut (*unanswered).count).write_volatile(count - 1);
        }
    }
}

/// Takes note of one more refusal on this CPU; false if it is one too many.
#[inline(always)]
pub fn another_refusal(refusals: *mut Refusals, now: u32, most: u32) -> bool {
    // SAFETY: the pointer comes from a per-CPU array's look-up and was checked for null.
    unsafe { (*refusals).another(now, most) }
}

/// Adds to a per-CPU counter, which no other CPU touches.
#[inline(always)]
pub fn add(counter: *mut Counter, more: Counter) {
    // SAFETY: the pointer comes from a per-CPU array's look-up and was checked for null.
    unsafe {
        (*counter).packets += more.packets;
        (*counter).bytes += more.bytes;
    }
}

/// Sets `Config::pods_answer_outside`.
#[inline(always)]
pub fn set_pods_answer_outside(config: *mut Config) {
    // SAFETY: the pointer comes from an array's look-up and was checked for null.
    unsafe { (&raw mut (*config).pods_answer_outside).write_volatile(1) }
}

/// Sets `Config::node_answers_outside`.
#[inline(always)]
pub fn set_node_answers_outside(config: *mut Config) {
    // SAFETY: the pointer comes from an array's look-up and was checked for null.
    unsafe { (&raw mut (*config).node_answers_outside).write_volatile(1) }
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
