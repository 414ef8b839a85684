//! A packet in the kernel's socket buffer, and the helpers that read and change it.

use core::ffi::c_void;
use core::mem::{MaybeUninit, size_of};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, bpf_sock_tuple as Tuple};
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::admission::Frame;
use proxy_common::decide::offload::Offload;
use proxy_common::maps::{FlowKey, SkbLayout};
use proxy_common::packet::Packet;
use proxy_common::{Plain, protocol};

/// `PACKET_HOST`, `PACKET_BROADCAST` and `PACKET_MULTICAST` in `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;

/// The network namespace of the packet (`BPF_F_CURRENT_NETNS`), for socket look-ups.
const HERE: u64 = u64::MAX;

/// Writes a key in the form of the socket look-ups, and returns the number of bytes that they read.
#[inline(always)]
fn set_tuple(tuple: &mut MaybeUninit<Tuple>, key: &FlowKey) -> u32 {
    // SAFETY: a union of integers.
    unsafe {
        let tuple = tuple.as_mut_ptr();
        if key.dst.is_v4() {
            let v4 = &raw mut (*tuple).__bindgen_anon_1.ipv4;
            (*v4).saddr = key.src.v4_word();
            (*v4).daddr = key.dst.v4_word();
            (*v4).sport = key.sport.raw();
            (*v4).dport = key.dport.raw();
            12
        } else {
            let v6 = &raw mut (*tuple).__bindgen_anon_1.ipv6;
            (*v6).saddr = key.src.v6_words();
            (*v6).daddr = key.dst.v6_words();
            (*v6).sport = key.sport.raw();
            (*v6).dport = key.dport.raw();
            36
        }
    }
}

/// A socket buffer.
pub struct Skb<'a>(pub &'a TcContext);

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the buffer has the given size; it is read only if the helper filled it.
        unsafe {
            let to = value.as_mut_ptr().cast::<c_void>();
            let error = helper::bpf_skb_load_bytes(self.0.as_ptr(), offset, to, size_of::<T>() as u32);
            (error == 0).then(|| value.assume_init())
        }
    }
}

impl Skb<'_> {
    /// The position of the packet's checksum, if it is left to the NIC and the layout is known.
    #[inline(always)]
    pub fn offload(&self, layout: SkbLayout) -> Option<Offload> {
        /// `CHECKSUM_PARTIAL` in `linux/skbuff.h`.
        const PARTIAL: u8 = 3;
        if layout.summed == 0 {
            return None;
        }
        if self.field::<u8>(layout.summed)? >> (layout.shift & 7) & 3 != PARTIAL {
            return None;
        }
        let [start, offset] = self.field::<[u16; 2]>(layout.sum)?;
        let [head, data] = self.field::<[u64; 2]>(layout.head)?;
        // The packet begins within its buffer.
        let start = i32::from(start) - data.wrapping_sub(head) as i32;
        Some(Offload {
            start,
            place: start + i32::from(offset),
        })
    }

    /// Reads a field of the kernel's `struct sk_buff`. The context of a packet program is its address.
    #[inline(always)]
    fn field<T: Plain>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the buffer has the given size; it is read only if the helper filled it. The helper checks
        // the address.
        unsafe {
            let from = self.0.as_ptr().cast::<u8>().wrapping_add(offset as usize);
            let to = value.as_mut_ptr().cast::<c_void>();
            let error = helper::bpf_probe_read_kernel(to, size_of::<T>() as u32, from.cast());
            (error == 0).then(|| value.assume_init())
        }
    }

    /// The EtherType, in host order.
    #[inline(always)]
    pub fn ether_type(&self) -> u16 {
        // SAFETY: a field of the context.
        u16::from_be(unsafe { (*self.0.skb.skb).protocol } as u16)
    }

    /// The metadata of the frame, outside of its bytes.
    #[inline(always)]
    pub fn frame(&self) -> Frame {
        /// The number of the VLAN in a tag (IEEE 802.1Q).
        const VLAN: u32 = 0xfff;
        Frame {
            ether_type: self.ether_type(),
            vlan: if self.has_tag() {
                self.tag() & VLAN
            } else {
                Frame::UNTAGGED
            },
            is_for_other: !self.is_for_interface() && !self.is_for_group(),
        }
    }

    /// Whether there is a VLAN tag, which the kernel stores in the metadata.
    #[inline(always)]
    pub fn has_tag(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn tag(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).vlan_tci }
    }

    /// Removes the tag.
    #[inline(always)]
    pub fn take_tag(&self) -> Option<()> {
        // SAFETY: the helper checks the packet.
        let error = unsafe { helper::bpf_skb_vlan_pop(self.0.skb.skb) };
        (error == 0).then_some(())
    }

    /// The interface that the packet is on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// The interface by which the packet has arrived; 0 if the node itself sends it.
    #[inline(always)]
    pub fn arrived_by(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).ingress_ifindex }
    }

    /// The mark, which belongs to the node: a packet from another namespace has none.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).mark }
    }

    /// Sets the mark.
    #[inline(always)]
    pub fn set_mark(&self, value: u32) {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).mark = value }
    }

    /// The length of the frame.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).len }
    }

    /// Whether the buffer has several segments, which the kernel or the NIC cuts later.
    #[inline(always)]
    pub fn is_gso(&self) -> bool {
        self.gso_size() != 0
    }

    /// The payload of each segment of the buffer; 0 if the buffer is not segmented.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).gso_size }
    }

    /// Whether the frame is addressed to the interface, which may receive other frames too.
    #[inline(always)]
    pub fn is_for_interface(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).pkt_type == PACKET_HOST }
    }

    /// Whether the frame is a broadcast or a multicast on its link.
    #[inline(always)]
    pub fn is_for_group(&self) -> bool {
        // SAFETY: a field of the context.
        let kind = unsafe { (*self.0.skb.skb).pkt_type };
        kind == PACKET_BROADCAST || kind == PACKET_MULTICAST
    }

    /// The note on the packet: its priority. It stays with the packet up to a socket in this network
    /// namespace, where no code reads it.
    #[inline(always)]
    pub fn note(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).priority }
    }

    /// Sets the note.
    #[inline(always)]
    pub fn set_note(&self, value: u32) {
        // SAFETY: a field of the context.
        unsafe { (*self.0.skb.skb).priority = value }
    }

    /// The cookie of the socket that sends the packet; 0 if the sender is no socket of this node, or is not
    /// known any more.
    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: the context is passed as the helper expects it.
        unsafe { helper::bpf_get_socket_cookie(self.0.as_ptr()) }
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
        // SAFETY: the buffer has the given size.
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

    /// Updates a transport checksum. The low bits of `flags` are the size of `from` and `to`, or 0 for a
    /// difference.
    #[inline(always)]
    pub fn update_transport_checksum(&self, offset: u32, from: u64, to: u64, flags: u64) -> Option<()> {
        // SAFETY: the helper checks the offset.
        let error = unsafe { helper::bpf_l4_csum_replace(self.0.skb.skb, offset, from, to, flags) };
        (error == 0).then_some(())
    }

    /// Inserts bytes behind the Ethernet header.
    #[inline(always)]
    pub fn insert_behind_ethernet(&self, bytes: u32) -> Option<()> {
        // SAFETY: the helper checks its arguments.
        let error = unsafe { helper::bpf_skb_adjust_room(self.0.skb.skb, bytes as i32, BPF_ADJ_ROOM_MAC, 0) };
        (error == 0).then_some(())
    }

    /// Puts an Ethernet header without addresses in front of a packet that arrived without one. When the
    /// packet continues through the stack, the kernel removes as many bytes as the header has
    /// (`skb->mac_len`).
    #[inline(always)]
    pub fn add_ethernet_header(&self, bytes: u32) -> Option<()> {
        // SAFETY: the helper checks its arguments; a field of the context.
        let (error, ether_type) = unsafe {
            let ether_type = (*self.0.skb.skb).protocol as u16;
            (helper::bpf_skb_change_head(self.0.skb.skb, bytes, 0), ether_type)
        };
        if error != 0 {
            return None;
        }
        self.store(bytes - size_of::<u16>() as u32, &ether_type)
    }

    /// Truncates the packet to a length.
    #[inline(always)]
    pub fn truncate(&self, len: u32) -> Option<()> {
        // SAFETY: the helper checks its arguments.
        let error = unsafe { helper::bpf_skb_change_tail(self.0.skb.skb, len, 0) };
        (error == 0).then_some(())
    }

    /// Whether the kernel finds a socket for a packet with this key in the network namespace of this packet.
    #[inline(always)]
    pub fn finds_socket(&self, key: &FlowKey) -> bool {
        let mut tuple = MaybeUninit::<Tuple>::uninit();
        let len = set_tuple(&mut tuple, key);
        // SAFETY: the helpers read only the part of the tuple that was written. A socket that they return is
        // released.
        unsafe {
            let (context, tuple) = (self.0.as_ptr(), tuple.as_mut_ptr());
            let socket = match key.protocol {
                protocol::TCP => helper::bpf_skc_lookup_tcp(context, tuple, len, HERE, 0),
                protocol::UDP => helper::bpf_sk_lookup_udp(context, tuple, len, HERE, 0),
                _ => return false,
            };
            if socket.is_null() {
                return false;
            }
            helper::bpf_sk_release(socket.cast());
        }
        true
    }

    /// As [`Self::finds_socket`], but only for a socket with a peer: listeners and unconnected sockets do not
    /// count.
    #[inline(always)]
    pub fn finds_connection(&self, key: &FlowKey) -> bool {
        let mut tuple = MaybeUninit::<Tuple>::uninit();
        let len = set_tuple(&mut tuple, key);
        // SAFETY: as above; the socket is read before it is released.
        unsafe {
            let (context, tuple) = (self.0.as_ptr(), tuple.as_mut_ptr());
            let socket = match key.protocol {
                protocol::TCP => helper::bpf_sk_lookup_tcp(context, tuple, len, HERE, 0),
                protocol::UDP => helper::bpf_sk_lookup_udp(context, tuple, len, HERE, 0),
                _ => return false,
            };
            if socket.is_null() {
                return false;
            }
            let has_peer = (*socket).dst_port != 0;
            helper::bpf_sk_release(socket.cast());
            has_peer
        }
    }

    /// Looks up the route of a packet.
    #[inline(always)]
    pub fn route(&self, lookup: &mut FibLookup) -> i64 {
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: the parameters are a live, initialised struct of the given size.
        unsafe { helper::bpf_fib_lookup(self.0.as_ptr(), lookup, size, 0) }
    }
}

/// Empty parameters of a route look-up. They are written word by word. Otherwise LLVM calls a `memset`, whose
/// loop writes byte by byte.
#[inline(always)]
pub fn zeroed_fib_lookup() -> FibLookup {
    const WORDS: usize = size_of::<FibLookup>() / size_of::<u32>();
    const _: () = assert!(WORDS * size_of::<u32>() == size_of::<FibLookup>());
    let mut lookup = MaybeUninit::<FibLookup>::uninit();
    let words = lookup.as_mut_ptr().cast::<u32>();
    for word in 0..WORDS {
        // SAFETY: the word is within the struct, whose fields need this alignment or less.
        unsafe { words.add(word).write_volatile(0) }
    }
    // SAFETY: a struct of integers and unions of integers, for which zero is a value.
    unsafe { lookup.assume_init() }
}

/// The next hop that a look-up found, as words of an address of [`FibLookup::family`].
#[inline(always)]
pub fn next_hop_of(lookup: &FibLookup) -> [u32; 4] {
    // SAFETY: a union of integers, all of it initialised.
    unsafe { lookup.__bindgen_anon_4.ipv6_dst }
}

/// Makes a look-up compare the length of the packet with the MTU of the route. Without a length it compares
/// only with the device's MTU, and does not do that for buffers of several segments.
#[inline(always)]
pub const fn set_len(lookup: &mut FibLookup, len: u16) {
    lookup.__bindgen_anon_1.tot_len = len;
}

/// The MTU that a look-up found to be smaller than the packet. Kernels before 5.13 leave the packet's length
/// in its place.
#[inline(always)]
pub fn mtu_of(lookup: &FibLookup) -> u16 {
    // SAFETY: a union of integers of one size.
    unsafe { lookup.__bindgen_anon_1.mtu_result }
}

/// The difference between two runs of 32-bit words, for checksums.
#[inline(always)]
pub fn checksum_difference<const N: usize>(from: &mut [u32; N], to: &mut [u32; N]) -> u64 {
    let size = (N * 4) as u32;
    // SAFETY: both buffers have the given size, a multiple of four.
    unsafe { helper::bpf_csum_diff(from.as_mut_ptr(), size, to.as_mut_ptr(), size, 0) as u64 }
}

/// The checksum of a run of 32-bit words, folded to the 16 bits of a header field.
#[inline(always)]
pub fn checksum<const N: usize>(words: &mut [u32; N]) -> u16 {
    let size = (N * 4) as u32;
    // SAFETY: the buffer has the given size, a multiple of four; an empty first run has no address.
    let sum = unsafe { helper::bpf_csum_diff(core::ptr::null_mut(), 0, words.as_mut_ptr(), size, 0) as u32 };
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
