//! What an interface is to the programs: which of them hang on it, and which direction each meets.
//!
//! A pod's interface that our own plugin made is told by its name. It has a program of its own for what the pod sends:
//! there an entry is owed, so a packet is dropped where it is missing.

use super::traffic_control::Direction;

/// How the names of our own pods' interfaces begin; so many hexadecimal digits follow.
pub const OWN_POD: &str = "mr";
const OWN_POD_DIGITS: usize = 12;

/// A kind of interface, by what hangs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterfaceRole {
    /// The host side of a pod, made by somebody else.
    Pod,
    /// The host side of a pod that our CNI plugin made.
    OwnPod,
    /// Leads to other machines.
    Uplink,
    /// Our own device.
    Host,
    /// The loopback.
    Loopback,
}

impl InterfaceRole {
    const ALL: [Self; 5] = [Self::Pod, Self::OwnPod, Self::Uplink, Self::Host, Self::Loopback];

    pub(super) fn programs(self) -> &'static [(&'static str, Direction)] {
        match self {
            Self::Pod => &[("from_pod", Direction::Ingress), ("to_pod", Direction::Egress)],
            Self::OwnPod => &[
                ("from_own_pod", Direction::Ingress),
                ("to_pod", Direction::Egress),
            ],
            Self::Uplink => &[
                ("from_uplink", Direction::Ingress),
                ("to_uplink", Direction::Egress),
            ],
            Self::Host => &[("from_host", Direction::Egress)],
            Self::Loopback => &[("from_loopback", Direction::Egress)],
        }
    }

    /// The program that meets packets of a direction.
    pub(super) fn program(self, direction: Direction) -> Option<&'static str> {
        let mut programs = self.programs().iter();
        programs.find_map(|(name, meets)| (*meets == direction).then_some(*name))
    }

    /// Whether a program hangs on such an interface.
    pub fn has(self, program: &str) -> bool {
        self.programs().iter().any(|(name, _)| *name == program)
    }

    /// The role of the pod behind an interface, by its name.
    pub fn of_pod(interface: &str) -> Self {
        let digits = interface.strip_prefix(OWN_POD).unwrap_or_default();
        if digits.len() == OWN_POD_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Self::OwnPod
        } else {
            Self::Pod
        }
    }

    /// The role of the interfaces that a program hangs on.
    pub(super) fn of(program: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.has(program))
    }
}
