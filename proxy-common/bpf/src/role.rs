//! The roles of interfaces: which programs are attached to one, and which direction each program sees.
//!
//! The name tells whether our own plugin made a pod's interface. Such an interface has a program of its own
//! for the pod's egress. It must have an entry in the maps, so that program drops all packets while the entry
//! is missing.

use super::traffic_control::Direction;

/// The prefix of the names of our own pods' interfaces, which hexadecimal digits follow.
pub const OWN_POD: &str = "mr";
const OWN_POD_DIGITS: usize = 12;

/// The role of an interface, which decides the programs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterfaceRole {
    /// The host side of a pod that another plugin made.
    Pod,
    /// The host side of a pod that our CNI plugin made.
    OwnPod,
    /// An interface to other machines.
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

    /// The program that sees packets of a direction.
    pub(super) fn program(self, direction: Direction) -> Option<&'static str> {
        let mut programs = self.programs().iter();
        programs.find_map(|(name, meets)| (*meets == direction).then_some(*name))
    }

    /// Whether a program is attached to interfaces of this role.
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

    /// The role of the interfaces that a program is attached to.
    pub(super) fn of(program: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.has(program))
    }
}
