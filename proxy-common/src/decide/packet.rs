//! The decision for one packet, at each place where packets meet a program.

use super::conntrack::{advance, age, client_of, find, forget};
pub use super::decision::{Decision, Entry};
use super::select::select;
use super::translate::begin;
use super::{Tables, Work, admission, fragment, local_socket, related, tunnel};
use crate::Ip;
use crate::flow_hash::flow_hash;
use crate::maps::{
    Config, ConfigFlags, Deliver, Flow, FlowKey, FlowState, Frontend, FrontendFlags, FrontendKey, Reason,
    Scope,
};
use crate::packet::{Headers, Packet, parse_carried_into};

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
}

/// Decides about a packet that enters by `entry`.
#[inline(always)]
pub fn entering<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    work: &mut Work,
    packet: &P,
    entry: Entry,
) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if let Some(reason) = tables.admit(config, packet, work, entry) {
        return if reason.is_drop() {
            Decision::Drop(reason)
        } else {
            Decision::Pass(reason)
        };
    }
    if admission::is_against_route(tables, config, work, entry) {
        return Decision::Drop(Reason::ReversePath);
    }
    if is_error_of_a_flow(tables, work, packet) && !is_for_later(&work.flow, &work.reply_key, entry) {
        return Decision::TranslateError;
    }
    fragment::complete(tables, work);
    // Node ports on loopback addresses are for the socket hooks: no such packet belongs on a wire.
    if !work.headers.has_ports || work.headers.dst.is_loopback() {
        return elsewhere(tables, config, work, entry);
    }
    let key = work.headers.frontend_key();
    let new = if let Some(frontend) = tables.frontend(&key) {
        to_frontend(tables, config, work, entry, key, frontend)
    } else if tables.choose_host_port(config, work) {
        to_host_port(tables, config, work, entry)
    } else {
        return elsewhere(tables, config, work, entry);
    };
    let decision = match new {
        Ok(_) if belongs_to_node(tables, config, work, entry) => Decision::Pass(Reason::NotOurs),
        Ok(reason) => match tables.may_begin(config, work, entry) {
            Ok(()) => begin(tables, config, work, entry, reason),
            Err(reason) => Decision::Drop(reason),
        },
        Err(decision) => decision,
    };
    if let Decision::Translate(_) = decision {
        fragment::note(tables, work);
    }
    decision
}

/// Whether a flow to the backend that was selected may begin.
///
/// # Errors
/// The reason why it may not, and is dropped.
#[inline(always)]
pub fn may_begin<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> Result<(), Reason> {
    if admission::is_astray(tables, work, entry) {
        return Err(Reason::ReversePath);
    }
    let backend = &work.selected.backend;
    if tunnel::is_end(
        tables,
        config,
        &backend.address,
        backend.port,
        work.headers.protocol,
    ) {
        return Err(Reason::TunnelPort);
    }
    if admission::is_loop(tables, config, &work.headers, entry) {
        return Err(Reason::ReplyLoop);
    }
    Ok(())
}

/// Whether a packet to a port of the node's is one of a connection that the node itself made from that port. The connection
/// was there first: a service or a host port with its port gets new connections only.
#[inline(always)]
fn belongs_to_node<T: Tables>(tables: &T, config: &Config, work: &Work, entry: Entry) -> bool {
    let headers = &work.headers;
    matches!(entry, Entry::Uplink | Entry::Pod)
        && !headers.is_opening()
        && (config.is_node_address(&headers.dst)
            || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(&headers.dst).is_node()))
        && tables.has_own_connection(&work.key)
}

/// Decides about a packet on its way to a client that is a pod, or out of the node to one outside: it may be an answer
/// to a translated flow.
#[inline(always)]
pub fn leaving<T: Tables, P: Packet + ?Sized>(tables: &T, work: &mut Work, packet: &P) -> Decision {
    let Some(config) = tables.config() else {
        return Decision::Pass(Reason::NotOurs);
    };
    if is_error_of_a_flow(tables, work, packet) {
        return Decision::TranslateError;
    }
    fragment::complete(tables, work);
    if answers(tables, config, work) {
        return Decision::Translate(Reason::Reply);
    }
    if local_socket::may_clash(config, work) {
        return local_socket::leaving(tables, config, work);
    }
    Decision::Pass(Reason::NotOurs)
}

/// Whether a packet that nothing stands before but its receiver answers to a translated flow; it then becomes what
/// [`Work::flow`] says.
#[inline(always)]
pub(super) fn answers<T: Tables>(tables: &T, config: &Config, work: &mut Work) -> bool {
    let is_answer = work.headers.has_ports
        && find(tables, config, work)
        && work.flow.is_reply != 0
        && work.flow.backend != Flow::DIRECT;
    if is_answer {
        advance(tables, work);
        fragment::note(tables, work);
    }
    is_answer
}

// A function of its own for the kernel, whose stack does not add to that of the stages.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
pub(super) fn is_error_of_a_flow<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    work: &mut Work,
    packet: &P,
) -> bool {
    if !work.headers.is_icmp_error() {
        return false;
    }
    // What is known of the flow after this is of this packet.
    work.flow.backend = 0;
    if work.headers.is_fragment {
        return false;
    }
    parse_carried_into(packet, &work.headers, &mut work.carried).is_some()
        && related::find(tables, work)
        && work.flow.backend != Flow::DIRECT
}

/// Decides about a packet to a frontend. If it begins a flow, the backend is selected then, and the reason is why.
#[inline(always)]
fn to_frontend<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
    mut key: FrontendKey,
    mut frontend: Frontend,
) -> Result<Reason, Decision> {
    let reason = match established(tables, config, work, &frontend) {
        // A connection outlives it that its peer's address became a service's.
        Ok(()) if is_for_later(&work.flow, &work.key, entry) => return Err(Decision::Pass(Reason::NotOurs)),
        Ok(()) if work.flow.is_reply != 0 => return Err(Decision::Translate(Reason::Reply)),
        Ok(()) => return Err(Decision::Translate(Reason::Established)),
        Err(reason) if reason.is_drop() => return Err(Decision::Drop(reason)),
        Err(reason) => reason,
    };
    let headers = &work.headers;
    if frontend.flags().has(FrontendFlags::SOURCE_RANGES)
        && !is_of_node_itself(entry, work)
        && !tables.is_allowed(frontend.service, &headers.src)
    {
        return Err(Decision::Drop(Reason::SourceNotAllowed));
    }
    if frontend.flags().has(FrontendFlags::OUTSIDE_DIFFERS) && is_outside(tables, entry, &headers.src) {
        key.scope = Scope::Outside as u8;
        match tables.frontend(&key) {
            Some(outside) => frontend = outside,
            None => return Err(Decision::Drop(Reason::Inconsistent)),
        }
    }
    let FlowKey {
        src,
        dst,
        sport,
        dport,
        protocol,
        ..
    } = &work.key;
    let hash = flow_hash(src, dst, *sport, *dport, *protocol, 0);
    match select(tables, &key, frontend, src, hash) {
        Ok(selected) => {
            work.selected = selected;
            Ok(reason)
        }
        Err(reason) => Err(Decision::Drop(reason)),
    }
}

/// Whether the node reaches itself by an address that it does not hold, and has taken it for its own source.
#[inline(always)]
fn is_of_node_itself(entry: Entry, work: &Work) -> bool {
    let is_sender = match entry {
        Entry::Host => work.arrived_by == 0,
        Entry::Loopback => true,
        _ => false,
    };
    is_sender && work.headers.src.same(&work.headers.dst)
}

/// Decides about a packet to a host port, whose pod is selected. As with a frontend, an established connection stays where it
/// is, and datagrams go to whoever has the port now.
#[inline(always)]
fn to_host_port<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    entry: Entry,
) -> Result<Reason, Decision> {
    if !find(tables, config, work) {
        return Ok(Reason::NewFlow);
    }
    let opens = work.headers.is_opening();
    if work.flow.is_reply != 0 {
        if opens || work.flow.backend == Flow::DIRECT {
            return Ok(Reason::Moved);
        }
        return Err(reply(tables, work, entry));
    }
    let is_current = work.flow.backend == work.selected.id
        && work.flow.generation == work.selected.backend.generation
        && !(opens && work.flow.state().has(FlowState::CLOSED));
    if !is_current && (opens || !work.headers.has_connections()) {
        forget(tables, work);
        return Ok(Reason::Moved);
    }
    if is_for_later(&work.flow, &work.key, entry) {
        return Err(Decision::Pass(Reason::NotOurs));
    }
    advance(tables, work);
    Err(Decision::Translate(Reason::Established))
}

/// A reply to a flow whose source port is a port of the node's that leads somewhere as well. The flow was there first.
#[inline(always)]
fn reply<T: Tables>(tables: &T, work: &mut Work, entry: Entry) -> Decision {
    if is_for_later(&work.flow, &work.key, entry) {
        return Decision::Pass(Reason::NotOurs);
    }
    advance(tables, work);
    Decision::Translate(Reason::Reply)
}

/// Whether a client that enters by `entry` is neither a pod of this node nor the node itself.
#[inline(always)]
fn is_outside<T: Tables>(tables: &T, entry: Entry, client: &Ip) -> bool {
    match entry {
        Entry::Pod | Entry::Loopback | Entry::Egress => false,
        Entry::Uplink => true,
        Entry::Host => !tables.address(client).is_node(),
    }
}

/// Finds the live entry of a packet to a frontend; else says why the flow needs a new one, or why it ends.
///
/// An established connection stays where it is whatever becomes of its backend: it goes on if the endpoint still
/// answers, and times out if not, unless its service wants it reset. Datagrams have no connection to lose and move to a
/// live backend at once.
#[inline(always)]
fn established<T: Tables>(
    tables: &T,
    config: &Config,
    work: &mut Work,
    frontend: &Frontend,
) -> Result<(), Reason> {
    if !find(tables, config, work) {
        return Err(Reason::NewFlow);
    }
    let opens = work.headers.is_opening();
    if work.flow.is_reply != 0 {
        if opens || work.flow.backend == Flow::DIRECT {
            return Err(Reason::Moved);
        }
        // A reply to a flow whose source is the frontend's address and port: the flow was there first.
        advance(tables, work);
        return Ok(());
    }
    let resets = frontend.flags().has(FrontendFlags::RESET_REMOVED);
    if !work.headers.has_connections() || opens || resets {
        let stands = match tables.backend(work.flow.backend) {
            Some(backend) if backend.generation == work.flow.generation => {
                if opens {
                    // A SYN within a connection may be forged; its backend says what it is (RFC 5961 §4).
                    let state = work.flow.state();
                    !state.has(FlowState::CLOSED)
                        && (backend.is_active() || (state.has(FlowState::CONFIRMED) && backend.is_alive()))
                } else {
                    backend.is_alive()
                }
            }
            _ => false,
        };
        if !stands {
            forget(tables, work);
            return Err(if opens || !work.headers.has_connections() {
                Reason::Moved
            } else {
                Reason::BackendRemoved
            });
        }
    }
    advance(tables, work);
    Ok(())
}

/// Whether what goes on through the stack is translated only when it has come through, if at all: the stack would take a
/// packet for spoofed that comes in by a pod's interface or the uplink with a virtual address, or one of the node's own, as
/// source.
#[inline(always)]
fn is_for_later(flow: &Flow, key: &FlowKey, entry: Entry) -> bool {
    flow.is_for_egress()
        || (matches!(entry, Entry::Pod | Entry::Uplink)
            && matches!(Deliver::from_number(flow.deliver), Deliver::Stack)
            && !flow.src.same(&key.src))
}

/// Decides about a packet that is not addressed to a frontend.
#[inline(always)]
fn elsewhere<T: Tables>(tables: &T, config: &Config, work: &mut Work, entry: Entry) -> Decision {
    let headers = &work.headers;
    let to_service = matches!(entry, Entry::Host) || config.is_service_address(&headers.dst);
    let is_direct = matches!(entry, Entry::Uplink) && is_connection_to_pod(config, headers);
    let may_be_known = to_service
        || is_direct
        || matches!(entry, Entry::Loopback)
        || may_be_answer(tables, config, &headers.dst);
    if headers.has_flow() && may_be_known && find(tables, config, work) {
        let is_reply = work.flow.is_reply != 0;
        if work.flow.is_for_egress() {
            // No concern of packets here; to others it is as if there was none.
            if work.flow.backend == Flow::DIRECT {
                go_on_direct(tables, config, work);
            }
        } else if is_for_later(&work.flow, &work.key, entry) {
            return Decision::Pass(Reason::NotOurs);
        } else if is_reply || (work.headers.has_connections() && !work.headers.is_opening()) {
            // A connection outlives the service it was made through.
            advance(tables, work);
            fragment::note(tables, work);
            return Decision::Translate(if is_reply {
                Reason::Reply
            } else {
                Reason::Established
            });
        }
    } else if is_direct {
        tables.note_direct(config, work);
    }
    let is_datagram = work.headers.has_ports && !work.headers.has_connections();
    if is_datagram && !to_service {
        give_way(tables, work);
    }
    if (is_datagram || work.headers.is_echo_request())
        && !to_service
        && matches!(entry, Entry::Uplink)
        && config.has(ConfigFlags::MASQUERADE_PODS)
    {
        tables.note_direct(config, work);
    }
    let echo = work.headers.is_echo_request() && !work.headers.is_fragment && work.headers.src.is_one_host();
    let lost_fragment = work.headers.is_lost_fragment();
    let may_be_virtual = config.has(ConfigFlags::STRAY_ADDRESSES)
        && (work.headers.is_balanced() || lost_fragment)
        && (work.headers.is_opening() || !work.headers.has_connections());
    if !to_service && !echo && !lost_fragment && !may_be_virtual {
        return Decision::Pass(Reason::NotOurs);
    }
    let address = tables.address(&work.headers.dst);
    if address.is_virtual_only() {
        if echo {
            Decision::Echo
        } else if lost_fragment {
            Decision::Drop(Reason::FragmentBeforeFirst)
        } else {
            Decision::Drop(Reason::NoSuchPort)
        }
    } else if to_service && !address.is_node() {
        Decision::Drop(Reason::NoSuchService)
    } else if lost_fragment {
        Decision::Pass(Reason::Fragment)
    } else {
        Decision::Pass(Reason::NotOurs)
    }
}

/// Takes note of a packet of a flow that is not translated. A connection by the port of one that is over begins anew.
#[inline(always)]
fn go_on_direct<T: Tables>(tables: &T, config: &Config, work: &mut Work) {
    if work.headers.is_opening() && work.flow.state().has(FlowState::CLOSED) {
        forget(tables, work);
        tables.note_direct(config, work);
    } else {
        advance(tables, work);
    }
}

/// Whether a packet from outside belongs to a connection to a pod's own address, whose replies must not be taken for the
/// pod's own connections and masqueraded. One that is under way is looked up only if its client is surely no pod.
#[inline(always)]
fn is_connection_to_pod(config: &Config, headers: &Headers) -> bool {
    config.has(ConfigFlags::MASQUERADE_PODS)
        && headers.has_connections()
        && headers.has_ports
        && config.is_own_pod_address(&headers.dst)
        && (headers.is_opening() || !config.may_be_pod(&headers.src))
}

/// Ends a flow whose answers could not be told from those to this datagram, which goes to the backend itself or by another
/// node's translation: the newer conversation of a client port is the one that goes on. A stream that is in use stays, since
/// the datagram may be forged. Connections need no such care, see [`find`].
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
fn give_way<T: Tables>(tables: &T, work: &mut Work) {
    /// Ticks of silence after which a stream may have ended.
    const IN_USE: u32 = 10;
    let FlowKey {
        src,
        dst,
        sport,
        dport,
        protocol,
        ..
    } = work.key;
    work.reply_key = FlowKey::new(dst, src, dport, sport, protocol);
    let is_known = tables.flow(&work.reply_key, &mut work.found);
    if is_known && work.found.is_reply != 0 && work.found.backend != Flow::DIRECT {
        let state = work.found.state();
        if state.has(FlowState::CONFIRMED) && age(tables.now(), work.found.seen) < IN_USE {
            return;
        }
        let is_protected = state.is_protected();
        let other = work.found.reply_key(&work.reply_key);
        tables.forget_flow(&work.reply_key, is_protected);
        tables.forget_flow(&other, is_protected);
        if is_protected {
            let client = client_of(tables, &work.reply_key, &work.found);
            tables.return_share(&client, work.reply_key.protocol);
        }
    }
}

/// Whether answers to translated flows may be addressed to `dst`: the node's addresses, which flows are masqueraded
/// with and the node's own flows come from; and anybody, once the uplink translated without masquerading.
#[inline(always)]
fn may_be_answer<T: Tables>(tables: &T, config: &Config, dst: &Ip) -> bool {
    config.pods_answer_outside != 0
        || config.is_node_address(dst)
        || config.is_tunnel_address(dst)
        || (config.has(ConfigFlags::MORE_NODE_ADDRESSES) && tables.address(dst).is_node())
}
