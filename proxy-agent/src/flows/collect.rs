//! One pass over the flow tables that evict nothing, and a look at the clients' usage of their shares.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use proxy_common::Ip;
use proxy_common::decide::conntrack::is_expired;
use proxy_common::maps::{Config, Flow, FlowKey, HostPort, Share};

use super::{AtShare, Collected, ShareKind, Tables};
use crate::bpf::hash::HashTable;

/// The programs' coarse clock in units of 2^30 ns, see [`proxy_common::Tables::now`].
pub fn now() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    (now.as_nanos() >> 30) as u32
}

/// For how long a refusal counts, in the same units; no less than the time between two looks.
const LATELY: u16 = 10;

/// Removes the flows that have expired by `now`, and corrects the counts of clients.
pub fn pass(tables: &Tables, now: u32) -> io::Result<Collected> {
    let pods = pods(tables)?;
    let mut walk = Walk {
        config: &tables.config,
        pods,
        now,
        shares: HashMap::new(),
        expired: 0,
    };
    walk.table(&tables.flows, |share| &mut share.connections)?;
    walk.table(&tables.streams, |share| &mut share.streams)?;
    let Walk {
        mut shares,
        expired,
        pods,
        ..
    } = walk;
    let mut all = Share::default();
    for share in shares.values() {
        all.connections += share.connections;
        all.streams += share.streams;
    }
    let clients = shares.clone();
    shares.insert(Share::ALL, all);
    let noted = correct(&tables.shares, &shares)?;
    Ok(Collected {
        expired,
        at_share: at_share(tables, &with_refusals(clients, &noted), &pods, now)?,
    })
}

/// The clients' usage by the programs' own counts.
pub fn look(tables: &Tables, now: u32) -> io::Result<Collected> {
    let mut shares = HashMap::new();
    tables.shares.for_each(|client, share| {
        shares.insert(client, share);
    })?;
    shares.remove(&Share::ALL);
    Ok(Collected {
        expired: 0,
        at_share: at_share(tables, &shares, &pods(tables)?, now)?,
    })
}

/// The pods' interfaces by their addresses.
fn pods(tables: &Tables) -> io::Result<HashMap<Ip, u32>> {
    let mut pods = HashMap::new();
    tables.pods.for_each(|address, pod| {
        pods.insert(address, pod.interface);
    })?;
    Ok(pods)
}

/// The counts of the pass, with the refusals that the programs noted.
fn with_refusals(mut counted: HashMap<Ip, Share>, noted: &HashMap<Ip, Share>) -> HashMap<Ip, Share> {
    for (client, noted) in noted {
        let (connections, streams) = (noted.connections & Share::REFUSED, noted.streams & Share::REFUSED);
        if connections | streams != 0 {
            let share = counted.entry(*client).or_default();
            share.connections |= connections;
            share.streams |= streams;
        }
    }
    counted
}

struct Walk<'a> {
    config: &'a Config,
    /// The pods' interfaces by their addresses.
    pods: HashMap<Ip, u32>,
    now: u32,
    shares: HashMap<Ip, Share>,
    expired: u64,
}

impl Walk<'_> {
    fn table(
        &mut self,
        table: &HashTable<FlowKey, Flow>,
        count: impl Fn(&mut Share) -> &mut u32,
    ) -> io::Result<()> {
        let mut expired = Vec::new();
        table.for_each(|key, flow| {
            if is_expired(self.config, &flow, key.protocol, self.now) {
                expired.push(key);
            } else if flow.is_reply == 0 {
                *count(self.shares.entry(self.client(&key.src)).or_default()) += 1;
            }
        })?;
        for key in expired {
            // A packet may have refreshed the flow since.
            let still = table.get(&key)?;
            if still.is_some_and(|flow| is_expired(self.config, &flow, key.protocol, self.now)) {
                table.remove(&key)?;
                self.expired += 1;
            }
        }
        Ok(())
    }

    /// The client that the programs count the flow for (`proxy_common::decide::conntrack::client_of`).
    fn client(&self, address: &Ip) -> Ip {
        if address.is_v4() || self.pods.contains_key(address) {
            *address
        } else {
            address.site()
        }
    }
}

/// Writes the counts that differ, and removes those of clients that have no flow any more. Returns the counts
/// that the programs had.
fn correct(table: &HashTable<Ip, Share>, counted: &HashMap<Ip, Share>) -> io::Result<HashMap<Ip, Share>> {
    let mut found = HashMap::new();
    table.for_each(|client, share| {
        found.insert(client, share);
    })?;
    for (client, share) in &found {
        match counted.get(client) {
            Some(counted) if counted != share => table.set(client, counted)?,
            Some(_) => {}
            None => table.remove(client)?,
        }
    }
    for (client, share) in counted.iter().filter(|(client, _)| !found.contains_key(client)) {
        table.set(client, share)?;
    }
    Ok(found)
}

fn at_share(
    tables: &Tables,
    shares: &HashMap<Ip, Share>,
    pods: &HashMap<Ip, u32>,
    now: u32,
) -> io::Result<Vec<AtShare>> {
    let config = &tables.config;
    let mut at_share = Vec::new();
    let mut note = |client: &Ip, kind, is_used_up: bool, share| {
        if share > 0 && is_used_up {
            at_share.push(AtShare {
                client: (*client).into(),
                kind,
                share,
            });
        }
    };
    for (client, used) in shares {
        for (kind, used, share) in [
            (ShareKind::Connections, used.connections, config.connection_share),
            (ShareKind::Streams, used.streams, config.stream_share),
        ] {
            // With the mark of a refusal, `used` is larger than any share.
            note(client, kind, used >= share, share);
        }
    }
    tables.unanswered.for_each(|client, recent| {
        let share = config.unreplied_share;
        let is_used_up = recent.at(now) >= share || recent.was_refused(now, LATELY);
        note(&client, ShareKind::SourcePorts, is_used_up, share);
    })?;
    tables.neighbours.for_each(|interface, recent| {
        let share = config.neighbour_share;
        let is_used_up = recent.at(now) >= share || recent.was_refused(now, LATELY);
        // The lowest address stands for a pod with several addresses.
        let addresses = pods.iter().filter(|(_, of)| **of == interface);
        if let Some((pod, _)) = addresses.min_by_key(|(address, _)| **address) {
            note(pod, ShareKind::Neighbours, is_used_up, share);
        }
    })?;
    let mut host_ports: HashMap<Ip, u32> = HashMap::new();
    tables.host_ports.for_each(|_, port| {
        *host_ports.entry(port.pod).or_default() += 1;
    })?;
    for (pod, used) in &host_ports {
        note(
            pod,
            ShareKind::HostPorts,
            *used >= HostPort::SHARE,
            HostPort::SHARE,
        );
    }
    at_share.sort_unstable();
    Ok(at_share)
}
