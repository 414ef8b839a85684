//! The kernel programs of Millrace: thin entry points over the decisions of `proxy-common`.
//!
//! Each entry point parses, asks for the decision and executes it. The decisions themselves are in
//! `proxy_common::decide` and are tested there. Start with [`pod`], the program for every packet of a pod.
//!
//! | program | attached to | sees |
//! |---|---|---|
//! | `from_pod`, `from_own_pod` | ingress of a pod's host-side interface | packets that a pod sends |
//! | `to_pod` | egress of a pod's host-side interface | packets that a pod receives |
//! | `from_uplink` | ingress of the uplink | packets from other machines |
//! | `to_uplink` | egress of the uplink | the node's own replies to them, and pods' packets to the world outside |
//! | `from_loopback` | egress of the loopback | packets that the node sends to itself |
//! | `from_host` | egress of our own device | packets to virtual addresses that no other hook translated |
//! | `connect4/6`, `getpeername4/6` | cgroup | TCP sockets of the node and its pods |
//! | `sendmsg4/6`, `recvmsg4/6` | cgroup | unconnected UDP sockets of the node |
//! | `post_bind4/6` | cgroup | sockets of the node that bind a port |

#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod bind;
mod counters;
mod deliver;
mod dry_run;
mod gateway;
mod host;
mod kernel;
#[cfg(feature = "log")]
mod log;
mod loopback;
mod maps;
mod pod;
mod reject;
mod rewrite;
mod route;
mod socket;
mod stage;
mod tables;
mod uplink;

/// Programs must not panic: the decisions are total, and the linker removes this function.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel reads the licence to decide which helpers a program may call.
#[expect(unsafe_code, reason = "the ELF section that names the licence")]
mod license {
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
}
