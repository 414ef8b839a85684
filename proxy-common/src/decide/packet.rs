//! The decision for one packet, at each place where packets meet a program.

pub use super::decision::{Decision, Entry};
use super::select::select;
use super::translate::{new_flow, refresh};
use super::{Tables, Work};
use crate::flow_hash::flow_hash;
use crate::maps::{Config, ConfigFlags, FlowKey, FrontendKey, Reason};
use crate::packet::Headers;
use crate::{Ip, protocol};

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
pub fn entering<T: Tables>(tables: &T, work: &mut Work, entry: Entry) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if work.headers.is_balanced() {
        let key = work.headers.frontend_key();
        if let Some(frontend) = tables.frontend(&key) {
            if work.headers.is_fragment {
                return Decision::Drop(Reason::FragmentToService);
            }
            let reason = match established(tables, work) {
                Reason::Established => return Decision::Translate(Reason::Established),
                reason => reason,
            };
            let FlowKey {
                src,
                dst,
                sport,
                dport,
                protocol,
                ..
            } = &work.key;
            let hash = flow_hash(src, dst, *sport, *dport, *protocol, 0);
            return match select(tables, &key, frontend, hash) {
                Ok(selected) => new_flow(tables, config, work, entry, &selected, reason),
                Err(reason) => Decision::Drop(reason),
            };
        }
    }
    elsewhere(tables, config, work, entry)
}

/// Decides about a packet on its way into a pod: it may be an answer to a translated flow of that pod.
#[inline(always)]
pub fn leaving_to_pod<T: Tables>(tables: &T, work: &mut Work) -> Decision {
    if work.headers.is_balanced()
        && !work.headers.is_fragment
        && tables.flow(&work.key, &mut work.flow)
        && work.flow.is_reply != 0
    {
        refresh(tables, work);
        return Decision::Translate(Reason::Reply);
    }
    Decision::Pass(Reason::NotOurs)
}

/// Finds the live entry of a packet to a frontend; else says why the flow needs a new one.
///
/// An established TCP connection stays where it is whatever becomes of its backend: it goes on if the endpoint still
/// answers, and times out if not. Datagrams have no connection to lose and move to a live backend at once.
#[inline(always)]
fn established<T: Tables>(tables: &T, work: &mut Work) -> Reason {
    if !tables.flow(&work.key, &mut work.flow) {
        return Reason::NewFlow;
    }
    let is_tcp = work.headers.protocol == protocol::TCP;
    let stays = if is_tcp && !work.headers.is_syn() {
        true
    } else {
        match tables.backend(work.flow.backend) {
            Some(backend) if backend.generation == work.flow.generation => {
                if is_tcp {
                    backend.is_active()
                } else {
                    backend.is_alive()
                }
            }
            _ => false,
        }
    };
    if !stays || work.flow.is_reply != 0 {
        return Reason::Moved;
    }
    refresh(tables, work);
    Reason::Established
}

/// Decides about a packet that is not addressed to a frontend.
#[inline(always)]
fn elsewhere<T: Tables>(tables: &T, config: &Config, work: &mut Work, entry: Entry) -> Decision {
    let headers = &work.headers;
    let to_service = matches!(entry, Entry::Host) || config.is_service_address(&headers.dst);
    if headers.is_balanced()
        && !headers.is_fragment
        && (to_service || may_be_answer(tables, config, &headers.dst))
        && tables.flow(&work.key, &mut work.flow)
    {
        // A connection outlives the service it was made through.
        if work.flow.is_reply != 0 {
            refresh(tables, work);
            return Decision::Translate(Reason::Reply);
        }
        if work.headers.protocol == protocol::TCP && !work.headers.is_syn() {
            refresh(tables, work);
            return Decision::Translate(Reason::Established);
        }
    }
    let echo = work.headers.is_echo_request() && !work.headers.is_fragment;
    if !to_service && !echo {
        return Decision::Pass(Reason::NotOurs);
    }
    let address = tables.address(&work.headers.dst);
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
