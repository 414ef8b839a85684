//! The decision for one packet, at each place where packets meet a program.

use super::Tables;
use super::select::select;
use super::translate::{new_flow, refresh};
use crate::flow_hash::flow_hash;
use crate::maps::{Config, ConfigFlags, Flow, FlowKey, FrontendKey, Reason};
use crate::packet::Headers;
use crate::{Ip, protocol};

/// Where a packet is met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// It comes out of a pod.
    Pod,
    /// It comes in from the network.
    Uplink,
    /// It was routed to our own device, because it goes to a virtual address and nothing translated it before.
    Host,
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It goes on untouched.
    Pass(Reason),
    /// It ends here.
    Drop(Reason),
    /// It is an echo request to be answered on the spot.
    Echo,
    /// It becomes what the entry says.
    Translate(Flow, Reason),
}

impl Headers {
    /// The conntrack key of the packet.
    #[inline(always)]
    pub const fn flow_key(&self) -> FlowKey {
        FlowKey::new(self.src, self.dst, self.sport, self.dport, self.protocol)
    }

    #[inline(always)]
    const fn frontend_key(&self) -> FrontendKey {
        FrontendKey::new(self.dst, self.dport, self.protocol)
    }

    /// Whether ports are at hand.
    #[inline(always)]
    const fn is_balanced(&self) -> bool {
        self.has_ports() && self.l4 != 0
    }
}

/// Decides about a packet that enters by `entry`.
#[inline(always)]
pub fn entering<T: Tables>(tables: &T, headers: &Headers, entry: Entry) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if headers.is_balanced() {
        let key = headers.frontend_key();
        if let Some(frontend) = tables.frontend(&key) {
            if headers.is_fragment {
                return Decision::Drop(Reason::FragmentToService);
            }
            let (flow, reason) = established(tables, headers);
            if let Some(flow) = flow {
                return Decision::Translate(flow, reason);
            }
            let hash = flow_hash(
                &headers.src,
                &headers.dst,
                headers.sport,
                headers.dport,
                headers.protocol,
                0,
            );
            return match select(tables, &key, frontend, hash) {
                Ok(selected) => new_flow(tables, config, headers, entry, &selected, reason),
                Err(reason) => Decision::Drop(reason),
            };
        }
    }
    elsewhere(tables, config, headers, entry)
}

/// Decides about a packet on its way into a pod: it may be an answer to a translated flow of that pod.
#[inline(always)]
pub fn leaving_to_pod<T: Tables>(tables: &T, headers: &Headers) -> Decision {
    if headers.is_balanced() && !headers.is_fragment {
        let key = headers.flow_key();
        if let Some(mut flow) = tables.flow(&key)
            && flow.is_reply != 0
        {
            refresh(tables, &key, &mut flow);
            return Decision::Translate(flow, Reason::Reply);
        }
    }
    Decision::Pass(Reason::NotOurs)
}

/// The live entry of a packet to a frontend; else why the flow needs a new one.
///
/// An established TCP connection stays where it is whatever becomes of its backend: it goes on if the endpoint still
/// answers, and times out if not. Datagrams have no connection to lose and move to a live backend at once.
#[inline(always)]
fn established<T: Tables>(tables: &T, headers: &Headers) -> (Option<Flow>, Reason) {
    let key = headers.flow_key();
    let Some(mut flow) = tables.flow(&key) else {
        return (None, Reason::NewFlow);
    };
    let stays = if headers.protocol == protocol::TCP && !headers.is_syn() {
        true
    } else {
        match tables.backend(flow.backend) {
            Some(backend) if backend.generation == flow.generation => {
                if headers.protocol == protocol::TCP {
                    backend.is_active()
                } else {
                    backend.is_alive()
                }
            }
            _ => false,
        }
    };
    if !stays || flow.is_reply != 0 {
        return (None, Reason::Moved);
    }
    refresh(tables, &key, &mut flow);
    (Some(flow), Reason::Established)
}

/// Decides about a packet that is not addressed to a frontend.
#[inline(always)]
fn elsewhere<T: Tables>(tables: &T, config: &Config, headers: &Headers, entry: Entry) -> Decision {
    let to_service = matches!(entry, Entry::Host) || config.is_service_address(&headers.dst);
    if headers.is_balanced()
        && !headers.is_fragment
        && (to_service || may_be_answer(tables, config, &headers.dst))
    {
        let key = headers.flow_key();
        if let Some(mut flow) = tables.flow(&key) {
            let is_reply = flow.is_reply != 0;
            // A connection outlives the service it was made through.
            if is_reply || (headers.protocol == protocol::TCP && !headers.is_syn()) {
                refresh(tables, &key, &mut flow);
                let reason = if is_reply {
                    Reason::Reply
                } else {
                    Reason::Established
                };
                return Decision::Translate(flow, reason);
            }
        }
    }
    let echo = headers.is_echo_request() && !headers.is_fragment;
    if !to_service && !echo {
        return Decision::Pass(Reason::NotOurs);
    }
    let address = tables.address(&headers.dst);
    if address.is_virtual_only() {
        if echo {
            Decision::Echo
        } else {
            Decision::Drop(Reason::NoSuchPort)
        }
    } else if to_service && !address.is_node() {
        Decision::Drop(Reason::NoSuchService)
    } else {
        Decision::Pass(Reason::NotOurs)
    }
}

/// Whether answers to translated flows may be addressed to `dst`: the node's addresses, which flows are masqueraded
/// with and the node's own flows come from; and anybody, once the uplink translated without masquerading.
#[inline(always)]
fn may_be_answer<T: Tables>(tables: &T, config: &Config, dst: &Ip) -> bool {
    config.pods_answer_outside != 0
        || config.node_address(dst).same(dst)
        || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(dst).is_node())
}
