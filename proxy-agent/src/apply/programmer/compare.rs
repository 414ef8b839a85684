//! Compares the tables with the written state: the kernel does not report elements that another process
//! removes or changes.
//!
//! Only the agent writes frontends and addresses. So a difference without pending writes comes from another
//! process, such as `bpftool`, and the agent restores the written state. A check walks over [`COUNTED`]
//! elements at the most, on average: each check counts smaller tables, and larger ones less often in
//! proportion. The walk over frontends compares their number and the check value of each. In addition each
//! check compares the frontends of [`SLICE`] services, in turn.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::net::IpAddr;

use proxy_common::Ip;
use proxy_common::maps::FrontendKey;

use super::Programmer;
use crate::apply::store::Store;

/// The number of services whose frontends one check compares.
const SLICE: usize = 256;
/// The number of elements that one check walks over, on average.
const COUNTED: u32 = 16_384;

impl<S: Store> Programmer<S> {
    /// Compares a part of the tables with the written state, restores each table that differs, and reports
    /// it. `look` counts the checks.
    pub fn compare(&mut self, look: usize) -> io::Result<Vec<String>> {
        let mut done = Vec::new();
        if !self.synced || self.pending() > 0 {
            return Ok(done);
        }
        if self.frontends_differ(look)? {
            done.extend(self.put_back_frontends()?);
        }
        if self.addresses_differ(look)? {
            let (set, removed) = self.sync_addresses()?;
            let text = |address: &Ip| IpAddr::from(*address).to_string();
            done.extend(summary(
                "ADDRESSES",
                set.iter().map(text),
                removed.iter().map(text),
            ));
        }
        Ok(done)
    }

    fn frontends_differ(&self, look: usize) -> io::Result<bool> {
        if is_counted(self.frontends, look) {
            let (mut count, mut are_whole) = (0, true);
            self.store().each_frontend(&mut |key, value| {
                count += 1;
                are_whole &= value.check == key.check();
            })?;
            if count != self.frontends || !are_whole {
                return Ok(true);
            }
        }
        let slices = self.programmed.len().div_ceil(SLICE).max(1);
        let services = self.programmed.values();
        let mut groups = services
            .skip(look % slices * SLICE)
            .take(SLICE)
            .flat_map(|programmed| programmed.groups.iter());
        Ok(groups.any(|group| {
            let mut frontends = group.frontends.iter();
            frontends.any(|frontend| self.store().frontend(&frontend.key) != Some(group.value(frontend)))
        }))
    }

    fn put_back_frontends(&mut self) -> io::Result<Option<String>> {
        let mut found = HashMap::new();
        self.store().each_frontend(&mut |key, value| {
            found.insert(key, value);
        })?;
        let groups = self
            .programmed
            .values()
            .flat_map(|programmed| programmed.groups.iter());
        let wanted = groups.flat_map(|group| {
            let frontends = group.frontends.iter();
            frontends.map(|frontend| (frontend.key, group.value(frontend)))
        });
        let lost: Vec<_> = wanted
            .filter(|(key, value)| found.remove(key).as_ref() != Some(value))
            .collect();
        let foreign: Vec<_> = found.into_keys().collect();
        self.tables.put_back_frontends(&lost, &foreign);
        let text = |key: &FrontendKey| format!("{} port {}", IpAddr::from(key.address), key.port.number());
        let lost = lost.iter().map(|(key, _)| text(key));
        Ok(summary("FRONTENDS", lost, foreign.iter().map(text)))
    }

    /// Compares each element, since each is found by its address.
    fn addresses_differ(&self, look: usize) -> io::Result<bool> {
        let wanted = self.address_count();
        if !is_counted(wanted, look) {
            return Ok(false);
        }
        let (mut count, mut are_same) = (0, true);
        self.store().each_address(&mut |address, flags| {
            count += 1;
            are_same &= self.addresses.flags(&address) == flags;
        })?;
        Ok(count != wanted || !are_same)
    }
}

fn is_counted(elements: u32, look: usize) -> bool {
    look.is_multiple_of((elements / COUNTED + 1) as usize)
}

/// A message about the restored elements of a table, with one example.
fn summary<T: Display>(
    table: &str,
    put_back: impl ExactSizeIterator<Item = T>,
    removed: impl ExactSizeIterator<Item = T>,
) -> Option<String> {
    let (back, gone) = (put_back.len(), removed.len());
    let first = put_back.chain(removed).next()?;
    let more = if back + gone > 1 { " and others" } else { "" };
    let what = match (back, gone) {
        (_, 0) => format!("{back} lost or altered"),
        (0, _) => format!("{gone} of another process"),
        _ => format!("{back} lost or altered, {gone} of another process"),
    };
    Some(format!("{table}: {what}, {first}{more}"))
}
