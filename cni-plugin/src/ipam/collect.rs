//! Finding what was leaked, for the agent: runtimes need not call GC, and some never do.
//!
//! An attachment is leaked if nothing of it is left in the kernel, or if it was made in an earlier boot. Two kinds are
//! never touched: those younger than a minute, and those whose ADD still runs. A lease without a note was made by
//! host-local. Whether its container lives cannot be seen from here, so it is adopted: it gets a note, and counts as leaked
//! when the machine has been restarted since.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::boot::Moment;
use super::error::IpamError;
use super::lease::Lease;
use super::note::Note;
use super::store::{LockedStore, Store};
use crate::attachment::host_interface;
use crate::config::Attachment;

/// How old something must be to count as leaked.
const MINIMUM_AGE: Duration = Duration::from_mins(1);

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Addresses that were freed.
    pub freed: Vec<IpAddr>,
    /// Addresses that got a note.
    pub adopted: Vec<IpAddr>,
}

/// Frees what is leaked and adopts what has no note. `exists` says whether anything of an attachment is left in the
/// kernel: its interface, its entries in maps, its namespace.
pub fn collect(store: &Store, now: &Moment, exists: impl Fn(&Note) -> bool) -> Result<Collected, IpamError> {
    let mut collected = Collected::default();
    let locked = store.lock()?;
    let notes = store.notes()?;
    for note in notes.iter().filter(|note| is_leaked(store, note, now, &exists)) {
        let attachment = note.attachment();
        for address in &note.addresses {
            if store
                .lease(*address)?
                .is_some_and(|lease| lease.is_of(&attachment))
            {
                locked.remove_lease(*address)?;
                collected.freed.push(*address);
            }
        }
        locked.remove_note(&note.host_interface)?;
    }
    let with_note: BTreeSet<IpAddr> = notes
        .iter()
        .flat_map(|note| note.addresses.iter().copied())
        .collect();
    let mut found: Vec<Lease> = store.leases()?;
    found.retain(|lease| !with_note.contains(&lease.address));
    found.sort_by_key(|lease| lease.address);
    adopt(&locked, &found, now, &mut collected)?;
    Ok(collected)
}

fn is_leaked(store: &Store, note: &Note, now: &Moment, exists: impl Fn(&Note) -> bool) -> bool {
    if store.is_in_the_making(&note.host_interface) {
        return false;
    }
    if note.made.is_of_another_boot(now) {
        return true;
    }
    let old = note.made.age(now).is_some_and(|age| age >= MINIMUM_AGE);
    old && !note.adopted && !exists(note)
}

/// Writes notes for leases that have none. One that says nothing is what a crash left, and freed once it is old.
fn adopt(
    locked: &LockedStore<'_>,
    found: &[Lease],
    now: &Moment,
    collected: &mut Collected,
) -> Result<(), IpamError> {
    for (index, lease) in found.iter().enumerate() {
        if !lease.is_readable() {
            if locked
                .store
                .lease_age(lease)
                .is_some_and(|age| age >= MINIMUM_AGE)
            {
                locked.remove_lease(lease.address)?;
                collected.freed.push(lease.address);
            }
            continue;
        }
        // Leases of one attachment share a note, written with the first of them.
        let Some(if_name) = &lease.if_name else { continue };
        let attachment = Attachment {
            container_id: lease.container_id.clone(),
            if_name: if_name.clone(),
        };
        collected.adopted.push(lease.address);
        let same = |other: &&Lease| other.if_name.is_some() && other.is_of(&attachment);
        if found[..index].iter().any(|other| same(&other)) {
            continue;
        }
        let addresses = found.iter().filter(same).map(|lease| lease.address).collect();
        let name = host_interface(&attachment);
        drop(locked.set_note(&Note::adopting(&attachment, name, addresses, now))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn at(boot: &str, seconds: u64) -> Moment {
        Moment {
            boot_id: boot.into(),
            since_boot_ms: seconds * 1000,
            unix_time: 0,
        }
    }

    fn attach(store: &Store, container: &str, address: &str, made: &Moment) -> nix::fcntl::Flock<File> {
        let attachment = Attachment {
            container_id: container.into(),
            if_name: "eth0".into(),
        };
        let address = address.parse().unwrap();
        let note = Note::adopting(&attachment, host_interface(&attachment), vec![address], made);
        let locked = store.lock().unwrap();
        let lock = locked
            .set_note(&Note {
                adopted: false,
                ..note
            })
            .unwrap();
        assert!(locked.add_lease(address, &attachment).unwrap());
        lock
    }

    fn freed(store: &Store, now: &Moment, alive: bool) -> Vec<String> {
        let collected = collect(store, now, |_| alive).unwrap();
        collected.freed.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_is_old_and_gone_is_freed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let lock = attach(&store, "a", "10.0.0.2", &at("x", 0));
        assert_eq!(freed(&store, &at("x", 100), false), [""; 0], "its ADD still runs");
        drop(lock);
        assert_eq!(freed(&store, &at("x", 59), false), [""; 0], "too young");
        assert_eq!(freed(&store, &at("x", 60), true), [""; 0], "in use");
        assert_eq!(freed(&store, &at("x", 60), false), ["10.0.0.2"]);
        assert!(store.notes().unwrap().is_empty() && store.leases().unwrap().is_empty());
        drop(attach(&store, "b", "10.0.0.3", &at("x", 500)));
        assert_eq!(
            freed(&store, &at("y", 1), true),
            ["10.0.0.3"],
            "made in another boot"
        );
    }

    #[test]
    fn leases_of_host_local_are_adopted_until_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        for (address, contents) in [
            ("10.0.0.2", "a\r\neth0"),
            ("fd00::2", "a\r\neth0"),
            ("10.0.0.3", ""),
        ] {
            fs::write(dir.path().join(address), contents).unwrap();
        }
        let collected = collect(&store, &at("x", 1), |_| false).unwrap();
        assert_eq!(
            collected.adopted,
            ["10.0.0.2", "fd00::2"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(collected.freed, [] as [IpAddr; 0], "the unreadable one is new");
        let again = collect(&store, &at("x", 1000), |_| false).unwrap();
        assert_eq!(again, Collected::default());
        assert_eq!(freed(&store, &at("y", 1), true), ["10.0.0.2", "fd00::2"]);
        let long_ago = std::time::SystemTime::now() - Duration::from_mins(2);
        let file = File::options()
            .write(true)
            .open(dir.path().join("10.0.0.3"))
            .unwrap();
        file.set_modified(long_ago).unwrap();
        assert_eq!(freed(&store, &at("y", 1), true), ["10.0.0.3"]);
    }
}
