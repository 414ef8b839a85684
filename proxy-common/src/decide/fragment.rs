//! Fragments: only the first one of a datagram carries the ports, and the others follow it.
//!
//! Whoever translates a first fragment notes its ports for the rest, so a later fragment meets the same flow. One that
//! comes before its first cannot be told from a stranger's: it is left alone, or dropped by name if it goes to a
//! virtual address.

use super::{Tables, Work};
use crate::Port;
use crate::maps::{FragmentKey, FragmentPorts};

/// Fills in the ports of a later fragment, if its first was seen.
#[inline(always)]
pub fn complete<T: Tables>(tables: &T, work: &mut Work) {
    let headers = &work.headers;
    if headers.is_fragment && headers.l4 == 0 && (headers.is_balanced() || headers.is_icmp()) {
        let key = key_of(work);
        if let Some(FragmentPorts { sport, dport }) = tables.fragment(&key) {
            set_ports(work, sport, dport);
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
        };
        tables.replace_fragment(&key_of(work), &ports);
    }
}

#[inline(always)]
const fn set_ports(work: &mut Work, sport: Port, dport: Port) {
    work.headers.sport = sport;
    work.headers.dport = dport;
    work.headers.has_ports = true;
    work.key.sport = sport;
    work.key.dport = dport;
}

#[inline(always)]
const fn key_of(work: &Work) -> FragmentKey {
    let headers = &work.headers;
    FragmentKey {
        src: headers.src,
        dst: headers.dst,
        id: headers.fragment_id,
        protocol: headers.protocol,
        reserved: [0; 3],
    }
}
