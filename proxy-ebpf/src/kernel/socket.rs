//! The contexts of the socket hooks: a socket that was bound, and the peer of a socket call.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::programs::{SockAddrContext, SockContext};
use proxy_common::decide::socket::Sender;
use proxy_common::maps::Connected;
use proxy_common::{Ip, Port};

use crate::maps::CONNECTED;

/// A socket that the kernel has bound.
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
        // SAFETY: fields of the context. The verifier demands that they are read one by one.
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

    /// The cookie of the socket's network namespace.
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
        // SAFETY: fields of the context. The verifier demands that they are read one by one.
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

    /// Replaces the peer of an `AF_INET` socket call.
    #[inline(always)]
    pub fn set_v4(&self, address: Ip, port: Port) {
        // SAFETY: writable fields of the context.
        unsafe {
            let context = self.0.sock_addr;
            (&raw mut (*context).user_ip4).write_volatile(address.v4_word());
            (&raw mut (*context).user_port).write_volatile(u32::from(port.raw()));
        }
    }

    /// Replaces the peer of an `AF_INET6` socket call.
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

    /// The cookie of the socket's network namespace.
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

    /// The socket as a sender of datagrams. The kernel has bound its port by now (`inet_send_prepare` in
    /// `net/ipv4/af_inet.c`).
    #[inline(always)]
    pub fn sender(&self) -> Sender {
        // SAFETY: the context's socket, whose field is in host order.
        let port = unsafe {
            let socket = (*self.0.sock_addr).__bindgen_anon_1.sk;
            (&raw const (*socket).src_port).read_volatile()
        };
        Sender {
            cookie: self.cookie(),
            port: Port::new(port as u16),
        }
    }

    /// Sets the error with which the call fails.
    #[inline(always)]
    pub fn set_error(&self, errno: i32) {
        // SAFETY: no preconditions.
        unsafe { helper::bpf_set_retval(-errno) };
    }

    /// Stores the peer of `connect()` in the socket's own storage.
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

    /// The peer that [`Self::remember`] has stored.
    #[inline(always)]
    pub fn recall(&self) -> Option<Connected> {
        // SAFETY: the verifier knows the context's socket; the pointer is checked for null.
        unsafe {
            let stored = CONNECTED.get_ptr_mut(self.0);
            (!stored.is_null()).then(|| stored.read_volatile())
        }
    }
}
