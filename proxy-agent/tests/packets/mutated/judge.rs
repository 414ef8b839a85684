//! The expected outcome for one frame: a stated verdict, one count, and a packet that is unchanged or
//! completely changed.

use std::net::{IpAddr, SocketAddr};

use proxy_common::maps::Reason;

use super::entries::{
    addresses, is_against_route, is_client_at_tunnel, is_error_of_another, is_for_another_host, is_for_group,
    is_for_loopback, is_for_loopback_unread, is_forged, is_forged_unread, is_from_no_address,
    is_in_service_range, is_link_local_client, is_loop, is_virtual,
};
use super::layout::{L3, Layout};
use super::refusal;
use super::rewritten::{translated, translated_error};
use super::sender::{self, Fate};
use super::tunnel::{self, Expected};
use super::world::{Frontends, Has, MASQUERADE_PORTS, POD, is_in_ranges};
use super::{At, FROM_HOST, FROM_LOOPBACK, FROM_UPLINK, TO_POD, TO_UPLINK};
use crate::node::NODE;
use crate::{PASS, REDIRECT, SHOT};

/// One run of a program.
pub struct Ran<'a> {
    /// The program whose rules it follows.
    pub program: usize,
    pub at: At,
    pub frame: &'a [u8],
    pub verdict: u32,
    pub out: &'a [u8],
    /// The note beside the frame before the run, and its rest afterwards.
    pub note: u32,
    pub left: u32,
}

/// Returns an error unless a condition holds.
pub fn check(right: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if right { Ok(()) } else { Err(what()) }
}

/// The reason for which a packet was left alone, if its headers determine it; `NotOurs` means that nothing is
/// counted.
pub fn left_alone(frontends: &Frontends, ran: &Ran<'_>) -> Option<Reason> {
    let is_left = ran.verdict == PASS && ran.out == ran.frame;
    if is_left && is_for_another_host(ran) {
        return Some(Reason::OtherHost);
    }
    match Layout::of(ran.frame) {
        Err(reason) if is_left => Some(reason),
        Ok(layout) if is_left && is_for_group(ran) => match tunnel::expected(frontends, ran, layout) {
            // The counters determine the reason.
            Some(_) => None,
            None => Some(Reason::OtherHost),
        },
        Ok(Layout { l4: Some(_), .. }) if is_left => Some(Reason::NotOurs),
        _ => None,
    }
}

/// Compares a run with the rules. `counted` is the counted reason with its number of bytes.
pub fn judge(frontends: &Frontends, ran: &Ran<'_>, counted: Option<(Reason, u64)>) -> Result<(), String> {
    let Ran {
        program,
        frame,
        verdict,
        out,
        ..
    } = *ran;
    check(out.len() <= frame.len() + 48, || "too long".into())?;
    let reason = counted.map(|(reason, _)| reason);
    let is_passed = matches!(
        reason,
        None | Some(Reason::NotBalanced | Reason::Malformed | Reason::Fragment | Reason::OtherHost)
    );
    let is_dropped = |expected| reason == Some(expected) && verdict == SHOT;
    let bytes = counted.map_or(0, |(_, bytes)| bytes);
    let expected_bytes = if is_passed { 0 } else { frame.len() as u64 };
    check(bytes == expected_bytes, || format!("{bytes} bytes counted"))?;
    tunnel::notes(frontends, ran)?;
    if let Some(outcome) = judge_own_pod(ran, reason) {
        return outcome;
    }
    if is_passed {
        check(out == frame, || "passed and touched".into())?;
        // Our own device drops the packets that it does not translate.
        let expected = if program == FROM_HOST { SHOT } else { PASS };
        check(verdict == expected, || "the wrong verdict".into())?;
    }
    if is_for_another_host(ran) {
        return check(reason == Some(Reason::OtherHost), || "of another host".into());
    }
    if tunnel::misses_note(ran) {
        return check(is_dropped(Reason::TunnelSource), || {
            "no uplink has admitted it".into()
        });
    }
    let layout = match Layout::of(frame) {
        Ok(layout) => layout,
        Err(odd) => return judge_unread(frontends, ran, reason, odd),
    };
    if let Some(outcome) = judge_admission(frontends, ran, reason, layout) {
        return outcome;
    }
    check(is_expected(frontends, ran, layout, reason), || {
        "not expected".into()
    })?;
    match reason {
        None | Some(Reason::Fragment) => Ok(()),
        Some(Reason::NewFlow | Reason::Established | Reason::Moved | Reason::Reply) => {
            translated(frontends, ran, layout, reason == Some(Reason::Reply))
        }
        Some(Reason::RelatedError) => translated_error(frontends, ran, layout),
        Some(Reason::EchoReply) => refusal::echo(ran, layout),
        Some(reason) if reason.is_reject() => refusal::refused(ran, layout, reason),
        Some(reason) if reason.is_drop() => check(verdict == SHOT, || "the wrong verdict".into()),
        Some(_) => Err("a reason that no packet has".into()),
    }
}

/// Judges a frame that the program handles at the interface of one of our pods.
fn judge_own_pod(ran: &Ran<'_>, reason: Option<Reason>) -> Option<Result<(), String>> {
    if ran.at != At::OwnPod {
        return None;
    }
    let is_dropped = |expected| reason == Some(expected) && ran.verdict == SHOT;
    let outcome = match sender::fate(ran.frame) {
        Fate::Refused => check(is_dropped(Reason::SpoofedSource), || {
            "no packet of this pod's".into()
        }),
        Fate::Mapped => {
            let is_right = is_dropped(Reason::SpoofedSource) || is_dropped(Reason::MappedAddress);
            check(is_right, || "a mapped source".into())
        }
        Fate::Replied(reply) => {
            let is_right = ran.verdict == REDIRECT && reason.is_none() && ran.out == reply;
            check(is_right, || "the gateway has to reply".into())
        }
        Fate::Read => return None,
    };
    Some(outcome)
}

/// Judges a packet whose headers cannot be read.
fn judge_unread(
    frontends: &Frontends,
    ran: &Ran<'_>,
    reason: Option<Reason>,
    odd: Reason,
) -> Result<(), String> {
    let is_dropped = |expected| reason == Some(expected) && ran.verdict == SHOT;
    if odd == Reason::MappedAddress {
        return check(is_dropped(odd), || "a mapped address".into());
    }
    // A packet that cannot be translated must not leave with a pod's address.
    if ran.program == TO_UPLINK && reason == Some(Reason::NotMasqueraded) {
        return check(ran.verdict == SHOT && is_pods_outwards(ran.frame), || {
            "not expected".into()
        });
    }
    if is_for_loopback_unread(ran.program, ran.frame) {
        return check(is_dropped(Reason::LoopbackDestination), || {
            "to a loopback address, before odd headers".into()
        });
    }
    // A packet that cannot be translated must not enter with a forged source either.
    if is_forged_unread(frontends, ran) {
        return check(is_dropped(Reason::ForgedSource), || {
            "a forged source before odd headers".into()
        });
    }
    match tunnel::hidden(ran, odd) {
        Some(expected) => check(is_dropped(expected), || {
            format!("{expected:?} behind odd headers")
        }),
        None => check(reason == Some(odd), || format!("left alone as {odd:?}")),
    }
}

/// Judges a packet that the table of entries refuses, or leaves alone.
fn judge_admission(
    frontends: &Frontends,
    ran: &Ran<'_>,
    reason: Option<Reason>,
    layout: Layout,
) -> Option<Result<(), String>> {
    let is_dropped = |expected| reason == Some(expected) && ran.verdict == SHOT;
    let [from, to] = layout.ends(ran.frame, L3);
    let (is_right, what) = if is_for_loopback(ran.program, to) {
        (
            is_dropped(Reason::LoopbackDestination),
            format!("{to} is no destination here"),
        )
    } else if !is_from_no_address(ran, from, to) && is_forged(frontends, ran, from) {
        (
            is_dropped(Reason::ForgedSource),
            format!("{from} is no source here"),
        )
    } else if let Some(expected) = tunnel::expected(frontends, ran, layout) {
        let is_right = match expected {
            Expected::Admitted => reason.is_none(),
            Expected::Refused(expected) => is_dropped(expected),
            Expected::Either => reason.is_none() || is_dropped(Reason::TunnelSource),
        };
        (is_right, format!("for the tunnel: {expected:?}"))
    } else if !is_for_group(ran) && is_against_route(ran, from, to) {
        (
            is_dropped(Reason::ReversePath),
            format!("the route to {from} leads elsewhere"),
        )
    } else if is_error_of_another(ran, layout) {
        (
            is_dropped(Reason::ForgedSource),
            "an error of this pod's about another's packet".to_owned(),
        )
    } else if tunnel::is_error(ran, layout) {
        (
            is_dropped(Reason::TunnelSource),
            "an error about this node's tunnel".to_owned(),
        )
    } else if is_for_group(ran) {
        (reason == Some(Reason::OtherHost), "for a group".to_owned())
    } else {
        return None;
    };
    Some(check(is_right, || what))
}

/// Whether an IP packet of a pod leaves the cluster, if the frame contains its addresses.
fn is_pods_outwards(frame: &[u8]) -> bool {
    addresses(frame).is_some_and(|(from, to)| is_pod(from) && is_outside(to))
}

/// Whether the rules allow this reason for the packet's destination.
fn is_expected(frontends: &Frontends, ran: &Ran<'_>, layout: Layout, reason: Option<Reason>) -> bool {
    let [from, to] = layout.sockets(ran.frame, L3);
    // A translation may fail with one of these reasons.
    let fails = matches!(
        reason,
        Some(Reason::RewriteFailed | Reason::TtlExceeded | Reason::NoRoute | Reason::TooBig)
    );
    let belongs = fails || matches!(reason, Some(Reason::Reply | Reason::RelatedError));
    if ran.program == TO_UPLINK {
        return is_expected_outwards(ran, layout, reason, belongs);
    }
    if ran.program == TO_POD {
        return belongs
            || is_exchange(from, reason)
            || matches!(reason, None | Some(Reason::Malformed | Reason::NotBalanced));
    }
    let begins = fails
        || matches!(
            reason,
            Some(
                Reason::NewFlow
                    | Reason::Established
                    | Reason::Moved
                    | Reason::NoSourcePort
                    | Reason::SourcePortShare
            )
        );
    let is_virtual = is_virtual(frontends, to.ip());
    let in_range = is_in_service_range(to.ip());
    let to_service = in_range || ran.program == FROM_HOST;
    if layout.l4.is_none() {
        return match reason {
            Some(Reason::FragmentBeforeFirst) => is_virtual && layout.may_have_ports(),
            Some(Reason::NoSuchService) => to_service && !is_virtual,
            Some(Reason::NoSuchPort) => is_virtual,
            Some(Reason::Fragment) => layout.may_have_ports() && !is_virtual,
            None => !(is_virtual && layout.has_ports()),
            Some(Reason::Reply) => layout.may_have_ports() || layout.is_icmp(),
            Some(reason) => layout.may_have_ports() && (begins || belongs || reason.is_drop()),
        };
    }
    let frontend = frontends.get(&(to, layout.protocol));
    if let Some(frontend) = frontend {
        // A reply belongs to the flow whose source is this port of the node, directly or through the kernel's
        // stack.
        let is_backend = frontends.values().any(|known| known.backends.contains(&from));
        if is_backend && is_node(to.ip()) && (belongs || reason.is_none()) {
            return true;
        }
        let is_kept_here = frontend.has == Has::OnlyElsewhere
            && (frontend.is_cluster_ip
                || ran.program == FROM_UPLINK
                || (ran.program == FROM_HOST && !is_node(from.ip())));
        return match frontend.has {
            Has::NoEndpoints => reason == Some(Reason::NoEndpoints),
            // The same packet may have begun a flow when a pod sent it.
            Has::OnlyElsewhere if is_kept_here => {
                matches!(reason, Some(Reason::NoLocalEndpoints | Reason::Established)) || fails
            }
            Has::Ranges
                if frontend.is_load_balancer
                    && !(is_own(ran.program) && from.ip() == to.ip())
                    && !is_in_ranges(from.ip()) =>
            {
                reason == Some(Reason::SourceNotAllowed)
            }
            _ if is_client_at_tunnel(ran, from, layout) => {
                fails
                    || matches!(
                        reason,
                        Some(Reason::TunnelPort | Reason::ReplyLoop | Reason::Established)
                    )
            }
            // The kernel does not forward packets that the node itself serves.
            _ if is_link_local_client(ran, from.ip())
                && !frontend.backends.iter().any(|backend| is_node(backend.ip())) =>
            {
                fails || matches!(reason, Some(Reason::ForgedSource | Reason::Established))
            }
            _ if is_loop(frontends, ran, [from, to], layout) => {
                fails || matches!(reason, Some(Reason::ReplyLoop | Reason::Established))
            }
            // A client without an address can get no reply.
            _ => begins || (from.ip().is_unspecified() && reason == Some(Reason::NoNodeAddress)),
        };
    }
    if layout.is_echo(ran.frame) && !layout.is_fragment && is_virtual && layout.may_get_error(ran.frame) {
        return reason == Some(Reason::EchoReply);
    }
    match reason {
        Some(Reason::NoSuchPort) => is_virtual,
        Some(Reason::NoSuchService) => to_service && !is_virtual && !is_node(to.ip()),
        None if in_range => is_reply_to_service(frontends, ran, from),
        None => ran.program != FROM_HOST || is_node(to.ip()) || is_virtual,
        _ => belongs,
    }
}

/// Whether this is a reply to a client that uses a service's address as its own. The programs translate it
/// behind the kernel's stack, like all replies.
fn is_reply_to_service(frontends: &Frontends, ran: &Ran<'_>, from: SocketAddr) -> bool {
    let mut all = frontends.values();
    !is_own(ran.program) && all.any(|frontend| frontend.backends.contains(&from))
}

/// Whether packets of a pod to this address leave with the node's address.
pub fn is_outside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            matches!(address.octets()[0], 1..=223) && !matches!(address.octets(), [10, 244 | 96, ..])
        }
        IpAddr::V6(address) => {
            let [first, second, ..] = address.segments();
            !address.is_multicast()
                && !address.is_unspecified()
                && !address.is_unicast_link_local()
                && !matches!([first, second], [0xfd00, 0x244])
                && !address.segments().starts_with(&[0xfd00, 0x96, 0, 0, 0, 0, 0])
        }
    }
}

/// Whether the rules allow this reason for a packet that leaves the node.
fn is_expected_outwards(ran: &Ran<'_>, layout: Layout, reason: Option<Reason>, may_belong: bool) -> bool {
    let [from, to] = layout.ends(ran.frame, L3);
    let is_pods = is_pod(from) && is_outside(to);
    match reason {
        // A reply to a packet for the pod itself leaves with the pod's address: `Fuzz` looks for the entry.
        None | Some(Reason::Malformed | Reason::NotBalanced) => true,
        Some(
            Reason::NotMasqueraded
            | Reason::NewFlow
            | Reason::Established
            | Reason::Moved
            | Reason::NoSourcePort
            | Reason::SourcePortShare
            | Reason::FragmentBeforeFirst,
        ) => {
            is_pods
                || is_exchange(
                    SocketAddr::new(from, layout.sockets(ran.frame, L3)[0].port()),
                    reason,
                )
        }
        _ => may_belong,
    }
}

/// Whether a packet of the node itself may get another source port for this reason, since a masqueraded flow
/// may use its own.
fn is_exchange(from: SocketAddr, reason: Option<Reason>) -> bool {
    let begins = matches!(
        reason,
        Some(Reason::NewFlow | Reason::Established | Reason::Moved | Reason::NoSourcePort)
    );
    // A later fragment gets its ports from the first.
    let has_such_port = from.port() == 0 || MASQUERADE_PORTS.contains(&from.port());
    begins && is_node(from.ip()) && has_such_port
}

pub fn is_pod(address: IpAddr) -> bool {
    POD.iter().any(|pod| address == pod.parse::<IpAddr>().unwrap())
}

pub fn is_node(address: IpAddr) -> bool {
    NODE.iter().any(|node| address == node.parse::<IpAddr>().unwrap())
}

/// Whether replies to packets of this program stay within the node.
pub fn is_own(program: usize) -> bool {
    matches!(program, FROM_HOST | FROM_LOOPBACK)
}
