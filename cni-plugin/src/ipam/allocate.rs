//! Giving addresses to an attachment, and finding them again.
//!
//! An attachment gets one address of each set of ranges. That is the requested address, or the next free one
//! after the last that was given. So an address stays unused for as long as possible before another pod gets
//! it.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;

use nix::fcntl::Flock;

use super::error::IpamError;
use super::lease::Lease;
use super::note::Note;
use super::range::RangeSet;
use super::store::{LockedStore, Store};
use crate::config::Attachment;

/// Addresses that were given. While this value lives, the attachment counts as one in the making.
pub struct Allocation {
    /// One address of each set, in the order of the sets.
    pub addresses: Vec<IpAddr>,
    _in_the_making: Flock<File>,
}

/// Gives an attachment one address of each set and writes `note` with them.
pub fn allocate(
    store: &Store,
    sets: &[RangeSet],
    requested: &[IpAddr],
    mut note: Note,
) -> Result<Allocation, IpamError> {
    let attachment = note.attachment();
    let locked = store.lock()?;
    let leases = store.leases()?;
    // A lease that names no interface may belong to another interface of the container.
    let own = |lease: &&Lease| lease.if_name.is_some() && lease.is_of(&attachment);
    if let Some(lease) = leases.iter().find(own) {
        return Err(IpamError::Duplicate {
            address: lease.address,
            container_id: attachment.container_id,
            if_name: attachment.if_name,
        });
    }
    // Names on the node are hashes; a clash, though unlikely, must not overwrite the note of another pod.
    let other = store
        .note(&note.host_interface)?
        .filter(|other| other.attachment() != attachment);
    if let Some(other) = other {
        return Err(IpamError::SameName {
            host_interface: note.host_interface,
            container_id: other.container_id,
            if_name: other.if_name,
        });
    }
    note.addresses = choose(store, &leases, sets, requested)?;
    let in_the_making = locked.set_note(&note)?;
    if let Err(error) = lease_all(&locked, &note.addresses, &attachment) {
        take_back(store, &locked, &note.addresses, &attachment)?;
        locked.remove_note(&note.host_interface)?;
        return Err(error);
    }
    Ok(Allocation {
        addresses: note.addresses,
        _in_the_making: in_the_making,
    })
}

impl Allocation {
    /// Frees the addresses again, before an interface was made with them.
    pub fn give_back(
        &self,
        store: &Store,
        attachment: &Attachment,
        host_interface: &str,
    ) -> Result<(), IpamError> {
        let locked = store.lock()?;
        take_back(store, &locked, &self.addresses, attachment)?;
        locked.remove_note(host_interface)
    }
}

fn take_back(
    store: &Store,
    locked: &LockedStore<'_>,
    addresses: &[IpAddr],
    attachment: &Attachment,
) -> Result<(), IpamError> {
    for address in addresses {
        let lease = store.lease(*address);
        if lease.is_some_and(|lease| lease.is_of(attachment)) {
            locked.remove_lease(*address)?;
        }
    }
    Ok(())
}

fn choose(
    store: &Store,
    leases: &[Lease],
    sets: &[RangeSet],
    requested: &[IpAddr],
) -> Result<Vec<IpAddr>, IpamError> {
    let taken: BTreeSet<IpAddr> = leases.iter().map(|lease| lease.address).collect();
    let mut requested = requested.to_vec();
    let mut chosen = Vec::new();
    for (index, set) in sets.iter().enumerate() {
        if let Some(position) = requested.iter().position(|ip| set.offers(*ip)) {
            let address = requested.remove(position);
            if let Some(lease) = leases.iter().find(|lease| lease.address == address) {
                let owner = lease.owner();
                return Err(IpamError::Taken { address, owner });
            }
            chosen.push(address);
            continue;
        }
        let free = set.after(store.last(index)?).find(|ip| !taken.contains(ip));
        chosen.push(free.ok_or_else(|| IpamError::Exhausted {
            set: index,
            dir: store.dir().to_path_buf(),
        })?);
    }
    if requested.is_empty() {
        Ok(chosen)
    } else {
        Err(IpamError::NotOffered { addresses: requested })
    }
}

fn lease_all(
    locked: &LockedStore<'_>,
    addresses: &[IpAddr],
    attachment: &Attachment,
) -> Result<(), IpamError> {
    for (set, address) in addresses.iter().enumerate() {
        if !locked.add_lease(*address, attachment)? {
            let owner = "a process that ignores the lock".to_owned();
            return Err(IpamError::Taken {
                address: *address,
                owner,
            });
        }
        locked.set_last(set, *address)?;
    }
    Ok(())
}

/// The addresses that are leased to an attachment. `noted` is its note, which lists the candidates.
pub fn leased(
    store: &Store,
    attachment: &Attachment,
    noted: Option<&Note>,
) -> Result<Vec<IpAddr>, IpamError> {
    let leases: Vec<Lease> = match noted {
        Some(note) => note.addresses.iter().filter_map(|ip| store.lease(*ip)).collect(),
        None => store.leases()?,
    };
    let own = leases.iter().filter(|lease| lease.is_of(attachment));
    Ok(own.map(|lease| lease.address).collect())
}

/// How many addresses of a set are free, counted up to `enough`.
pub fn free_addresses(store: &Store, set: &RangeSet, enough: usize) -> Result<usize, IpamError> {
    let taken: BTreeSet<IpAddr> = store.leases()?.iter().map(|lease| lease.address).collect();
    Ok(set
        .after(None)
        .filter(|ip| !taken.contains(ip))
        .take(enough)
        .count())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ipam::boot::BootTimestamp;

    fn sets(json: &str) -> Vec<RangeSet> {
        RangeSet::all(&serde_json::from_str::<Vec<_>>(json).unwrap()).unwrap()
    }

    fn small() -> Vec<RangeSet> {
        sets(r#"[[{"subnet": "10.0.0.0/29"}], [{"subnet": "fd00::/64"}]]"#)
    }

    fn note(container: &str) -> Note {
        let attachment = Attachment {
            container_id: container.into(),
            if_name: "eth0".into(),
        };
        let name = crate::attachment::host_interface(&attachment);
        Note {
            adopted: false,
            ..Note::adopting(&attachment, name, Vec::new(), &BootTimestamp::now())
        }
    }

    fn give(store: &Store, container: &str, requested: &[&str]) -> Result<Vec<String>, IpamError> {
        let requested: Vec<IpAddr> = requested.iter().map(|ip| ip.parse().unwrap()).collect();
        let given = allocate(store, &small(), &requested, note(container))?;
        Ok(given.addresses.iter().map(ToString::to_string).collect())
    }

    fn free(store: &Store, container: &str) -> Vec<IpAddr> {
        let attachment = note(container).attachment();
        let name = crate::attachment::host_interface(&attachment);
        let noted = store.note(&name).unwrap();
        let freed = leased(store, &attachment, noted.as_ref()).unwrap();
        let locked = store.lock().unwrap();
        for address in &freed {
            locked.remove_lease(*address).unwrap();
        }
        locked.remove_note(&name).unwrap();
        freed
    }

    #[test]
    fn the_files_are_those_of_host_local() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        assert_eq!(give(&store, "a", &[]).unwrap(), ["10.0.0.2", "fd00::2"]);
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (text("10.0.0.2"), text("fd00::2")),
            ("a\r\neth0".into(), "a\r\neth0".into())
        );
        assert_eq!(
            (text("last_reserved_ip.0"), text("last_reserved_ip.1")),
            ("10.0.0.2".into(), "fd00::2".into())
        );
        assert_eq!(free(&store, "a").len(), 2);
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(
            left,
            ["last_reserved_ip.0", "last_reserved_ip.1", "lock", "millrace"]
        );
        assert_eq!(fs::read_dir(dir.path().join("millrace")).unwrap().count(), 0);
    }

    #[test]
    fn a_freed_address_is_not_reused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        for expected in [
            "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2",
        ] {
            assert_eq!(give(&store, "a", &[]).unwrap()[0], expected);
            free(&store, "a");
        }
    }

    #[test]
    fn a_failed_allocation_leaves_no_lease() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        for container in ["a", "b", "c", "d", "e"] {
            give(&store, container, &[]).unwrap();
        }
        let before = store.leases().unwrap().len();
        assert!(matches!(
            give(&store, "f", &[]),
            Err(IpamError::Exhausted { set: 0, .. })
        ));
        assert!(matches!(give(&store, "a", &[]), Err(IpamError::Duplicate { .. })));
        assert!(matches!(
            give(&store, "f", &["10.0.0.3"]),
            Err(IpamError::Taken { .. })
        ));
        free(&store, "b");
        for elsewhere in ["10.0.0.1", "10.0.1.9", "10.0.0.7"] {
            assert!(
                matches!(give(&store, "f", &[elsewhere]), Err(IpamError::NotOffered { .. })),
                "{elsewhere}"
            );
        }
        assert_eq!(store.leases().unwrap().len(), before - 2);
        assert_eq!(store.notes().unwrap().len(), 4);
        assert_eq!(
            give(&store, "f", &["fd00::77"]).unwrap(),
            ["10.0.0.3", "fd00::77"]
        );
    }

    #[test]
    fn an_address_with_an_unreadable_lease_is_not_allocated_and_others_are() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        fs::create_dir(dir.path().join("10.0.0.2")).unwrap();
        fs::create_dir(dir.path().join("millrace/lost+found")).unwrap();
        assert_eq!(give(&store, "a", &[]).unwrap(), ["10.0.0.3", "fd00::2"]);
        let refused = give(&store, "b", &["10.0.0.2"]).unwrap_err();
        assert!(matches!(refused, IpamError::Taken { .. }), "{refused}");
        assert_eq!(free_addresses(&store, &small()[0], 9).unwrap(), 3);
        assert_eq!(free(&store, "a").len(), 2);
        assert!(dir.path().join("10.0.0.2").is_dir(), "it is left as it is");
    }

    #[test]
    fn leases_of_host_local_count_and_are_freed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        fs::write(dir.path().join("10.0.0.2"), "old\r\neth0").unwrap();
        fs::write(dir.path().join("last_reserved_ip.0"), "10.0.0.2").unwrap();
        fs::write(dir.path().join("fd00::9"), "ancient").unwrap();
        assert_eq!(give(&store, "a", &[]).unwrap(), ["10.0.0.3", "fd00::2"]);
        assert_eq!(free(&store, "old").len(), 1);
        assert_eq!(free(&store, "ancient").len(), 1);
        assert_eq!(free(&store, "never seen").len(), 0);
    }

    #[test]
    fn parallel_requests_get_different_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let set = sets(r#"[[{"subnet": "10.9.0.0/26"}]]"#);
        let give = |index: usize| {
            allocate(&store, &set, &[], note(&format!("c{index}"))).map(|given| given.addresses)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..64).map(|index| scope.spawn(move || give(index))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let given: BTreeSet<_> = results.iter().flatten().flatten().collect();
        assert_eq!(given.len(), 61, "network, broadcast and gateway are not given");
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 3);
    }
}
