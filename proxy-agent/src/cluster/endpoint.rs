//! The endpoints of one slice.
//!
//! There are a few hundred thousand of them, so an IPv4 endpoint takes 12 bytes. These hold its address, the
//! number of its placement and three bits of state. An IPv6 one takes 24.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::Family;
use super::interner::Symbol;
use crate::source::wire;

/// One endpoint of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<A = IpAddr> {
    /// The address of the endpoint.
    pub address: A,
    /// The node and zone of the endpoint; see [`super::Names::placement`].
    pub placement: Symbol,
    /// The state of the endpoint.
    pub conditions: Conditions,
}

impl<A: Copy + Into<IpAddr>> Endpoint<A> {
    fn widened(&self) -> Endpoint {
        let Self {
            address,
            placement,
            conditions,
        } = *self;
        Endpoint {
            address: address.into(),
            placement,
            conditions,
        }
    }
}

/// Endpoints of one family, in the order in which the slice names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// Endpoints with IPv4 addresses.
    V4(Box<[Endpoint<Ipv4Addr>]>),
    /// Endpoints with IPv6 addresses.
    V6(Box<[Endpoint<Ipv6Addr>]>),
}

impl Endpoints {
    /// The family of every address.
    pub const fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// The number of endpoints.
    pub const fn len(&self) -> usize {
        match self {
            Self::V4(endpoints) => endpoints.len(),
            Self::V6(endpoints) => endpoints.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All endpoints in order.
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> {
        let (v4, v6): (&[_], &[_]) = match self {
            Self::V4(endpoints) => (endpoints, &[]),
            Self::V6(endpoints) => (&[], endpoints),
        };
        v4.iter()
            .map(Endpoint::widened)
            .chain(v6.iter().map(Endpoint::widened))
    }
}

/// The state of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions(u8);

impl Conditions {
    const READY: u8 = 1;
    const SERVING: u8 = 2;
    const TERMINATING: u8 = 4;

    /// Whether the endpoint takes new connections.
    pub const fn ready(self) -> bool {
        self.0 & Self::READY != 0
    }

    /// Whether the endpoint can serve, even while it is terminating.
    pub const fn serving(self) -> bool {
        self.0 & Self::SERVING != 0
    }

    /// Whether the endpoint is terminating.
    pub const fn terminating(self) -> bool {
        self.0 & Self::TERMINATING != 0
    }
}

/// A condition that is absent has the default of `discovery.k8s.io/v1`: ready and serving, not terminating.
impl From<wire::Conditions> for Conditions {
    fn from(wire: wire::Conditions) -> Self {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        Self(
            bit(wire.ready.unwrap_or(true), Self::READY)
                | bit(wire.serving.unwrap_or(true), Self::SERVING)
                | bit(wire.terminating.unwrap_or(false), Self::TERMINATING),
        )
    }
}

const _: () = assert!(size_of::<Endpoint<Ipv4Addr>>() == 12 && size_of::<Endpoint<Ipv6Addr>>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_that_are_not_given_have_kubernetes_defaults() {
        let read = |ready, serving, terminating| {
            let conditions = Conditions::from(wire::Conditions {
                ready,
                serving,
                terminating,
            });
            (conditions.ready(), conditions.serving(), conditions.terminating())
        };
        assert_eq!(read(None, None, None), (true, true, false));
        assert_eq!(read(Some(false), None, None), (false, true, false));
        assert_eq!(read(Some(false), Some(true), Some(true)), (false, true, true));
        assert_eq!(read(Some(true), Some(false), Some(false)), (true, false, false));
    }
}
