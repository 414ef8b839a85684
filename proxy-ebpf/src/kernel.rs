//! The kernel's helpers behind safe functions: the one module of this crate with unsafe code.
//!
//! A context pointer that the kernel hands to a program is valid for the whole run, and the verifier proves every
//! access before the program is loaded. What the compiler is told here is what the verifier checks again.

#![expect(
    unsafe_code,
    reason = "calls of kernel helpers and reads through map and context pointers"
)]

use core::ffi::c_void;
use core::mem::{MaybeUninit, size_of};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext};
use proxy_common::decide::Work;
use proxy_common::maps::{Config, Connected, Counter, Flow, Frontend, Refusals};
use proxy_common::packet::Packet;
use proxy_common::{Ip, Plain, Port};

use crate::maps::{CONNECTED, WORK};

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

/// Notes in a conntrack entry that it is in use, and how far its flow is. States only gain bits this way, so two CPUs
/// that do it at once lose one at the worst, until the next packet.
#[inline(always)]
pub fn touch_flow(flow: *mut Flow, now: u32, state: u8) {
    // SAFETY: the pointer comes from a map look-up and was checked for null; both fields are aligned.
    unsafe {
        (&raw mut (*flow).seen).write_volatile(now);
        let known = (&raw const (*flow).state).read_volatile();
        (&raw mut (*flow).state).write_volatile(known | state);
    }
}

/// Takes note of one more refusal on this CPU; false if it is one too many.
#[inline(always)]
pub fn another_refusal(refusals: *mut Refusals, now: u32) -> bool {
    // SAFETY: the pointer comes from a per-CPU array's look-up and was checked for null.
    unsafe { (*refusals).another(now) }
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

/// A socket buffer.
pub struct Skb<'a>(pub &'a TcContext);

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the buffer is as long as told; it is read only if the helper filled it.
        unsafe {
            let to = value.as_mut_ptr().cast::<c_void>();
            let error = helper::bpf_skb_load_bytes(self.0.as_ptr(), offset, to, size_of::<T>() as u32);
            (error == 0).then(|| value.assume_init())
        }
    }
}

impl Skb<'_> {
    /// The EtherType, in host order.
    #[inline(always)]
    pub fn ether_type(&self) -> u16 {
        // SAFETY: a field of the context.
        u16::from_be(unsafe { (*self.0.skb.skb).protocol } as u16)
    }

    /// The interface the packet is on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// How long the frame is.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).len }
    }

    /// Whether the buffer holds several segments, to be cut later.
    #[inline(always)]
    pub fn is_gso(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).gso_size != 0 }
    }

    /// A word of the control block.
    #[inline(always)]
    pub fn control<const INDEX: usize>(&self) -> u32 {
        // SAFETY: a field of the context, at a constant index.
        unsafe { (*self.0.skb.skb).cb[INDEX] }
    }

    /// Sets a word of the control block.
    #[inline(always)]
    pub fn set_control<const INDEX: usize>(&self, value: u32) {
        // SAFETY: a field of the context, at a constant index.
        unsafe { (*self.0.skb.skb).cb[INDEX] = value }
    }

    /// Writes a value into the packet.
    #[inline(always)]
    pub fn store<T: Plain>(&self, offset: u32, value: &T) -> Option<()> {
        let from = (&raw const *value).cast::<c_void>();
        // SAFETY: the buffer is as long as told.
        let error = unsafe {
            helper::bpf_skb_store_bytes(self.0.skb.skb.cast(), offset, from, size_of::<T>() as u32, 0)
        };
        (error == 0).then_some(())
    }

    /// Updates an IP header checksum by a difference.
    #[inline(always)]
    pub fn update_ip_checksum(&self, offset: u32, difference: u64) -> Option<()> {
        // SAFETY: the helper checks the offset.
        let error = unsafe { helper::bpf_l3_csum_replace(self.0.skb.skb, offset, 0, difference, 0) };
        (error == 0).then_some(())
    }

    /// Updates a transport checksum; the low bits of `flags` tell the size of `from` and `to`, 0 for a difference.
    #[inline(always)]
    pub fn update_transport_checksum(&self, offset: u32, from: u64, to: u64, flags: u64) -> Option<()> {
        // SAFETY: the helper checks the offset.
        let error = unsafe { helper::bpf_l4_csum_replace(self.0.skb.skb, offset, from, to, flags) };
        (error == 0).then_some(())
    }

    /// Makes room behind the Ethernet header.
    #[inline(always)]
    pub fn insert_behind_ethernet(&self, bytes: u32) -> Option<()> {
        // SAFETY: the helper checks its arguments.
        let error = unsafe { helper::bpf_skb_adjust_room(self.0.skb.skb, bytes as i32, BPF_ADJ_ROOM_MAC, 0) };
        (error == 0).then_some(())
    }

    /// Cuts the packet to a length.
    #[inline(always)]
    pub fn truncate(&self, len: u32) -> Option<()> {
        // SAFETY: the helper checks its arguments.
        let error = unsafe { helper::bpf_skb_change_tail(self.0.skb.skb, len, 0) };
        (error == 0).then_some(())
    }

    /// Looks up the route of a packet.
    #[inline(always)]
    pub fn route(&self, lookup: &mut FibLookup) -> i64 {
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: the parameters are a live, initialised struct of the size told.
        unsafe { helper::bpf_fib_lookup(self.0.as_ptr(), lookup, size, 0) }
    }
}

/// Empty parameters of a route look-up.
#[inline(always)]
pub fn zeroed_fib_lookup() -> FibLookup {
    // SAFETY: a struct of integers and unions of integers, for which zero is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The size of the link that a look-up found a packet to be too big for; kernels before 5.13 do not tell, and then the
/// size that every link has (RFC 8200 §5) will do.
#[inline(always)]
pub fn mtu_of(lookup: &FibLookup) -> u32 {
    const LEAST: u32 = 1280;
    // SAFETY: a union of integers of one size.
    let mtu = u32::from(unsafe { lookup.__bindgen_anon_1.mtu_result });
    if mtu == 0 { LEAST } else { mtu }
}

/// The verdict that sends the packet out of an interface as it is.
#[inline(always)]
pub fn redirect_out(ifindex: u32) -> i32 {
    // SAFETY: no preconditions.
    unsafe { helper::bpf_redirect(ifindex, 0) as i32 }
}

/// The verdict that has the packet come in by an interface.
#[inline(always)]
pub fn redirect_in(ifindex: u32) -> i32 {
    // SAFETY: no preconditions.
    unsafe { helper::bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}

/// The verdict that sends the packet out of an interface, to the neighbour that the routing table names.
#[inline(always)]
pub fn redirect_to_neighbour(ifindex: u32) -> i32 {
    // SAFETY: without parameters the kernel looks the neighbour up itself.
    unsafe { helper::bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// The difference between two runs of 32-bit words, for checksums.
#[inline(always)]
pub fn checksum_difference<const N: usize>(from: &mut [u32; N], to: &mut [u32; N]) -> u64 {
    let size = (N * 4) as u32;
    // SAFETY: both buffers are as long as told, a multiple of four.
    unsafe { helper::bpf_csum_diff(from.as_mut_ptr(), size, to.as_mut_ptr(), size, 0) as u64 }
}

/// The checksum of a run of 32-bit words, folded to the 16 bits that go into a header.
#[inline(always)]
pub fn checksum<const N: usize>(words: &mut [u32; N]) -> u16 {
    let size = (N * 4) as u32;
    // SAFETY: the buffer is as long as told, a multiple of four; an empty first run has no address.
    let sum = unsafe { helper::bpf_csum_diff(core::ptr::null_mut(), 0, words.as_mut_ptr(), size, 0) as u32 };
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// A socket that has just been bound.
pub struct Bound<'a>(pub &'a SockContext);

impl Bound<'_> {
    /// The IPv4 address and port that an `AF_INET` socket was bound to.
    #[inline(always)]
    pub fn v4(&self) -> (Ip, Port) {
        // SAFETY: fields of the context.
        unsafe {
            let context = self.0.sock;
            let address = (&raw const (*context).src_ip4).read_volatile();
            (Ip::from_v4_word(address), self.port())
        }
    }

    /// The IPv6 address and port that an `AF_INET6` socket was bound to.
    #[inline(always)]
    pub fn v6(&self) -> (Ip, Port) {
        // SAFETY: fields of the context, read one by one, as the verifier wants them.
        unsafe {
            let context = self.0.sock;
            let words = [
                (&raw const (*context).src_ip6[0]).read_volatile(),
                (&raw const (*context).src_ip6[1]).read_volatile(),
                (&raw const (*context).src_ip6[2]).read_volatile(),
                (&raw const (*context).src_ip6[3]).read_volatile(),
            ];
            (Ip::from_v6_words(words), self.port())
        }
    }

    /// The port, which this context has in host order.
    #[inline(always)]
    fn port(&self) -> Port {
        // SAFETY: a field of the context.
        Port::new(unsafe { (&raw const (*self.0.sock).src_port).read_volatile() } as u16)
    }

    /// The socket's protocol.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        // SAFETY: a field of the context.
        unsafe { (&raw const (*self.0.sock).protocol).read_volatile() as u8 }
    }

    /// The cookie of the network namespace the socket lives in.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is passed as the helper expects it.
        unsafe { helper::bpf_get_netns_cookie(self.0.as_ptr()) }
    }
}

/// The peer address of a socket call.
pub struct Peer<'a>(pub &'a SockAddrContext);

impl Peer<'_> {
    /// IPv4 address and port of an `AF_INET` socket call.
    #[inline(always)]
    pub fn v4(&self) -> (Ip, Port) {
        // SAFETY: fields of the context.
        unsafe {
            let context = &*self.0.sock_addr;
            (
                Ip::from_v4_word(context.user_ip4),
                Port::from_raw(context.user_port as u16),
            )
        }
    }

    /// IPv6 address and port of an `AF_INET6` socket call; the address may be an IPv4-mapped one.
    #[inline(always)]
    pub fn v6(&self) -> (Ip, Port) {
        // SAFETY: fields of the context, read one by one, as the verifier wants them.
        unsafe {
            let context = &*self.0.sock_addr;
            let words = [
                (&raw const context.user_ip6[0]).read_volatile(),
                (&raw const context.user_ip6[1]).read_volatile(),
                (&raw const context.user_ip6[2]).read_volatile(),
                (&raw const context.user_ip6[3]).read_volatile(),
            ];
            (Ip::from_v6_words(words), Port::from_raw(context.user_port as u16))
        }
    }

    /// Exchanges the peer of an `AF_INET` socket call.
    #[inline(always)]
    pub fn set_v4(&self, address: Ip, port: Port) {
        // SAFETY: writable fields of the context.
        unsafe {
            let context = self.0.sock_addr;
            (&raw mut (*context).user_ip4).write_volatile(address.v4_word());
            (&raw mut (*context).user_port).write_volatile(u32::from(port.raw()));
        }
    }

    /// Exchanges the peer of an `AF_INET6` socket call.
    #[inline(always)]
    pub fn set_v6(&self, address: Ip, port: Port) {
        let words = address.v6_words();
        // SAFETY: writable fields of the context.
        unsafe {
            let context = self.0.sock_addr;
            (&raw mut (*context).user_ip6[0]).write_volatile(words[0]);
            (&raw mut (*context).user_ip6[1]).write_volatile(words[1]);
            (&raw mut (*context).user_ip6[2]).write_volatile(words[2]);
            (&raw mut (*context).user_ip6[3]).write_volatile(words[3]);
            (&raw mut (*context).user_port).write_volatile(u32::from(port.raw()));
        }
    }

    /// The socket's protocol.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.sock_addr).protocol as u8 }
    }

    /// The cookie of the network namespace the socket lives in.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is passed as the helper expects it.
        unsafe { helper::bpf_get_netns_cookie(self.0.as_ptr()) }
    }

    /// The socket's cookie.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the context is passed as the helper expects it.
        unsafe { helper::bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    /// Chooses the error with which the call fails.
    #[inline(always)]
    pub fn set_error(&self, errno: i32) {
        // SAFETY: no preconditions.
        unsafe { helper::bpf_set_retval(-errno) };
    }

    /// Remembers in the socket what it was connected to.
    #[inline(always)]
    pub fn remember(&self, mut connected: Connected) {
        // SAFETY: the verifier knows the context's socket; the value outlives the call.
        unsafe {
            let stored = CONNECTED.get_or_insert_ptr_mut(self.0, Some(&mut connected));
            if !stored.is_null() {
                stored.write_volatile(connected);
            }
        }
    }

    /// What the socket was connected to.
    #[inline(always)]
    pub fn recall(&self) -> Option<Connected> {
        // SAFETY: the verifier knows the context's socket; the pointer is checked for null.
        unsafe {
            let stored = CONNECTED.get_ptr_mut(self.0);
            (!stored.is_null()).then(|| stored.read_volatile())
        }
    }
}
