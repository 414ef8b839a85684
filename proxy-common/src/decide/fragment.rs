//! Fragments: only the first one of a datagram carries the ports, and the others follow it.
//!
//! Whoever translates a first fragment notes its ports for the rest, so a later fragment meets the same flow. One that
//! comes before its first cannot be told from a stranger's: it is left alone, or dropped by name if it goes to a
//! virtual address.

use super::{Tables, Work};
use crate::maps::{FragmentKey, FragmentPorts};
use crate::packet::is_extension;

/// Fills in the ports of a later fragment, if its first was seen.
#[inline(always)]
pub fn complete<T: Tables>(tables: &T, work: &mut Work) {
    let headers = &work.headers;
    // Behind an IPv6 fragment header a later fragment names the next extension header, if there is one.
    let may_follow = headers.is_balanced() || headers.is_icmp() || is_extension(headers.protocol);
    if headers.is_fragment && headers.l4 == 0 && may_follow {
        let key = key_of(work);
        if let Some(ports) = tables.fragment(&key)
            && (ports.protocol == work.headers.protocol || is_extension(work.headers.protocol))
        {
            set_ports(work, &ports);
        }
    }
}

/// Notes the ports of a first fragment that is translated.
#[inline(always)]
pub fn note<T: Tables>(tables: &T, work: &Work) {
    let headers = &work.headers;
    if headers.is_fragment && headers.l4 != 0 {
        let ports = FragmentPorts {
            sport: headers.sport,
            dport: headers.dport,
            protocol: headers.protocol,
            reserved: 0,
            reserved2: 0,
        };
        tables.replace_fragment(&key_of(work), &ports);
    }
}

#[inline(always)]
const fn set_ports(work: &mut Work, ports: &FragmentPorts) {
    work.headers.sport = ports.sport;
    work.headers.dport = ports.dport;
    work.headers.protocol = ports.protocol;
    work.headers.has_ports = true;
    work.key.sport = ports.sport;
    work.key.dport = ports.dport;
    work.key.protocol = ports.protocol;
}

#[inline(always)]
const fn key_of(work: &Work) -> FragmentKey {
    let headers = &work.headers;
    FragmentKey {
        src: headers.src,
        dst: headers.dst,
        id: headers.fragment_id,
        protocol: if headers.src.is_v4() { headers.protocol } else { 0 },
        reserved: 0,
        reserved2: 0,
    }
}
