//! Addresses for services. A service keeps its address. A returned address is used again last, since a spec
//! checks that a released address is silent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};

/// The range of the last part of the addresses: from `192.168.241.10` and `fd00:241::a` upwards.
const FIRST: u8 = 10;
const LAST: u8 = 250;

#[derive(Default)]
pub struct Pool {
    given: HashMap<(String, bool), IpAddr>,
    next: u8,
}

impl Pool {
    /// The service's address of a family: the one asked for, if that is free.
    pub fn give(&mut self, uid: &str, ipv6: bool, asked_for: Option<IpAddr>) -> Result<IpAddr> {
        let key = (uid.to_owned(), ipv6);
        if let Some(&address) = self.given.get(&key) {
            return Ok(address);
        }
        let asked_for = asked_for.filter(|&wanted| {
            (FIRST..=LAST).any(|last| address(ipv6, last) == wanted) && !self.is_given(wanted)
        });
        let address = match asked_for {
            Some(address) => address,
            None => self.free(ipv6)?,
        };
        self.given.insert(key, address);
        Ok(address)
    }

    fn free(&mut self, ipv6: bool) -> Result<IpAddr> {
        for _ in FIRST..=LAST {
            self.next = if (FIRST..LAST).contains(&self.next) {
                self.next + 1
            } else {
                FIRST
            };
            let address = address(ipv6, self.next);
            if !self.is_given(address) {
                return Ok(address);
            }
        }
        bail!("no address is free");
    }

    pub fn is_given(&self, address: IpAddr) -> bool {
        self.given.values().any(|given| *given == address)
    }

    /// Takes back the addresses of all services but these.
    pub fn keep<'a>(&mut self, uids: impl Iterator<Item = &'a str>) {
        let uids: Vec<_> = uids.collect();
        self.given.retain(|(uid, _), _| uids.contains(&uid.as_str()));
    }
}

fn address(ipv6: bool, last: u8) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0x241, 0, 0, 0, 0, 0, last.into()).into()
    } else {
        Ipv4Addr::new(192, 168, 241, last).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_keeps_its_address_and_a_released_one_is_used_last() {
        let mut pool = Pool::default();
        let first = pool.give("a", false, None).unwrap();
        assert_eq!(first.to_string(), "192.168.241.10");
        assert_eq!(pool.give("a", false, None).unwrap(), first);
        pool.keep(std::iter::empty());
        assert!(!pool.is_given(first));
        assert_ne!(pool.give("b", false, None).unwrap(), first);
        let wanted: IpAddr = "192.168.241.77".parse().unwrap();
        assert_eq!(pool.give("c", false, Some(wanted)).unwrap(), wanted);
        assert_ne!(pool.give("d", false, Some(wanted)).unwrap(), wanted);
        assert_eq!(pool.give("c", true, None).unwrap().to_string(), "fd00:241::d");
    }
}
