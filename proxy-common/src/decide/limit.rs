//! The bandwidth limit of a pod's egress: every packet goes through the pod's limiter first, and the program
//! decides about it when it comes back.
//!
//! A decision may redirect a packet, and a redirected packet bypasses all queues and filters behind the
//! program. So a limiter behind the program would limit only some of the packets. A packet that comes back
//! has a mark. A packet that leaves a pod has none, because the kernel clears the mark between namespaces.
//! The sender was checked before the limiter, so it is not checked again.

use super::Tables;
use crate::maps::{InUse, LIMITED_MARK, PodLinkFlags};

/// The next step for a packet that enters by a pod's interface. It is a number, since old verifiers refuse to
/// copy an enum whose variants have different sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step(u32);

impl Step {
    /// The packet comes from a pod without a limit: check its sender, and decide.
    pub const DECIDE: Self = Self(0);
    /// The packet comes from the limiter: decide.
    pub const LIMITED: Self = Self(u32::MAX);

    /// The packet comes from the pod: check its sender, and send it through this device, with the mark.
    #[inline(always)]
    pub const fn limit(device: u32) -> Self {
        Self(device)
    }

    /// The device to send the packet through; 0 if there is none.
    #[inline(always)]
    pub const fn device(self) -> u32 {
        if self.0 == Self::LIMITED.0 { 0 } else { self.0 }
    }
}

/// The next step for a packet with this mark that enters by an interface.
#[inline(always)]
pub fn step<T: Tables>(tables: &T, interface: u32, mark: u32) -> Step {
    if !tables.is_in_use(InUse::PODS) {
        return Step::DECIDE;
    }
    match tables.pod_link(interface) {
        Some(link) if link.flags & PodLinkFlags::LIMITED_FIRST != 0 && link.limiter != 0 => {
            if mark == LIMITED_MARK {
                Step::LIMITED
            } else {
                Step::limit(link.limiter)
            }
        }
        _ => Step::DECIDE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::{Fake, ip};
    use crate::maps::{Pod, PodLink};

    #[test]
    fn a_packet_of_a_limited_pod_is_decided_about_behind_the_limiter() {
        const UNLIMITED: u32 = 3;
        const LIMITED: u32 = 4;
        const BEHIND: u32 = 5;
        const UNKNOWN: u32 = 6;
        let mut tables = Fake::default();
        assert_eq!(step(&tables, LIMITED, 0), Step::DECIDE, "no table is in use yet");
        tables.own_pods.insert(ip("10.244.1.2"), Pod::EMPTY);
        for (interface, flags, limiter) in [
            (UNLIMITED, PodLinkFlags::ANY_SOURCE, 0),
            (LIMITED, PodLinkFlags::LIMITED_FIRST | PodLinkFlags::ANY_SOURCE, 9),
            // The interface of an older plugin, with a filter behind the programs.
            (BEHIND, 0, 10),
        ] {
            let link = PodLink {
                flags,
                limiter,
                ..PodLink::default()
            };
            tables.pod_links.insert(interface, link);
        }
        let of = |interface, mark| step(&tables, interface, mark);
        for interface in [UNLIMITED, BEHIND, UNKNOWN] {
            assert_eq!(of(interface, 0), Step::DECIDE, "{interface}");
        }
        assert_eq!(of(LIMITED, 0), Step::limit(9));
        assert_eq!(of(LIMITED, 1), Step::limit(9), "another mark");
        assert_eq!(of(LIMITED, LIMITED_MARK), Step::LIMITED);
        // The mark exempts a packet from the check of its sender. So it counts only where packets come from a
        // limiter.
        for interface in [UNLIMITED, BEHIND, UNKNOWN] {
            assert_eq!(of(interface, LIMITED_MARK), Step::DECIDE, "{interface}");
        }
    }
}
