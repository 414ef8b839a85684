//! The hooks that prevent the node's own processes from binding node ports.
//!
//! A process that binds a node port would wait for connections in vain, because the proxy takes them. So
//! `bind()` fails with EPERM. Sockets of other network namespaces may bind any port.

use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use proxy_common::decide::socket::may_bind;
use proxy_common::maps::{ConfigFlags, Reason};
use proxy_common::{Ip, Port, Tables};

use crate::counters::count;
use crate::kernel::Bound;
use crate::tables::KernelMaps;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const MAPS: KernelMaps = KernelMaps::HOOK;

#[cgroup_sock(post_bind4)]
pub fn post_bind4(context: SockContext) -> i32 {
    let bound = Bound(&context);
    let (address, port) = bound.v4();
    on_bind(&bound, address, port)
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(context: SockContext) -> i32 {
    let bound = Bound(&context);
    let (address, port) = bound.v6();
    on_bind(&bound, address, port)
}

#[inline(always)]
fn on_bind(bound: &Bound<'_>, address: Ip, port: Port) -> i32 {
    let Some(config) = MAPS.config() else { return ALLOW };
    let is_guarded = config.has(ConfigFlags::PROTECT_NODE_PORTS) && config.node_netns == bound.netns_cookie();
    if !is_guarded || may_bind(&MAPS, address, port, bound.protocol()) {
        return ALLOW;
    }
    count(Reason::BindRefused, 0);
    REFUSE
}
