//! The kernel programs of Millrace: thin entry points over the decisions of `proxy-common`.
//!
//! Each entry point parses, asks for the decision and acts on it; what a decision *is* stands in `proxy_common::decide`
//! and is tested there. Start with [`pod`], the program that every packet of a pod goes through.
//!
//! | program | attached to | meets |
//! |---|---|---|
//! | `from_pod` | tcx ingress of a pod's host-side interface | what a pod sends |
//! | `to_pod` | tcx egress of a pod's host-side interface | what a pod receives |
//! | `from_uplink` | tcx ingress of the uplink | what comes from other machines |
//! | `to_uplink` | tcx egress of the uplink | the node's own answers to them, and what pods send to the world outside |
//! | `from_loopback` | tcx egress of the loopback | what the node sends to itself |
//! | `from_host` | tcx egress of our own device | packets to virtual addresses that nothing translated before |
//! | `connect4/6`, `getpeername4/6` | cgroup | TCP sockets of the node and its pods |
//! | `sendmsg4/6`, `recvmsg4/6` | cgroup | unconnected UDP sockets of the node |
//! | `post_bind4/6` | cgroup | sockets of the node that bind a port |

#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod bind;
mod deliver;
mod dry_run;
mod gateway;
mod host;
mod kernel;
mod loopback;
mod maps;
mod pod;
mod reject;
mod rewrite;
mod socket;
mod stage;
mod tables;
mod uplink;

/// Programs must not panic: the decisions are total, and the linker drops this.
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
