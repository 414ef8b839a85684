//! Finding leaked attachments, for the agent: runtimes need not call GC, and some never do.
//!
//! An attachment is leaked if no object of it is left in the kernel, or if it was made in an earlier boot.
//! Two kinds are never touched: those younger than a minute, and those whose ADD still runs.
//!
//! host-local made a lease that has no note. The agent cannot see whether its container lives, so it adopts
//! the lease: it writes a note for it. An adopted lease counts as leaked after a restart of the machine. One
//! failure does not prevent the release of the others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::allocate::leased;
use super::boot::BootTimestamp;
use super::error::IpamError;
use super::lease::Lease;
use super::note::Note;
use super::store::{LockedStore, Store};
use crate::attachment::host_interface;
use crate::config::Attachment;
use crate::spec::CniError;

/// The minimum age of a leaked attachment or lease.
const MINIMUM_AGE: Duration = Duration::from_mins(1);

/// The result of a collection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Addresses that were freed.
    pub freed: Vec<IpAddr>,
    /// Addresses that got a note.
    pub adopted: Vec<IpAddr>,
    /// Objects that are broken or could not be freed, with the reason. They are left unchanged.
    pub left: Vec<Left>,
}

/// An object that was left unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The object's description.
    pub object: String,
    /// The reason why it was left.
    pub message: String,
}

/// The parts of an attachment that its files do not hold.
pub trait Kernel {
    /// Whether an object of the attachment exists that may be in use: its interface or its namespace.
    fn exists(&mut self, note: &Note) -> bool;
    /// Removes the kernel's other objects of the attachment: entries of maps, and the devices of a limit. The
    /// attachment still has the addresses `leased`.
    fn remove(&mut self, note: &Note, leased: &[IpAddr]) -> Result<(), CniError>;
}

/// Frees the leaked attachments and adopts the leases without a note.
pub fn collect(store: &Store, now: &BootTimestamp, kernel: &mut impl Kernel) -> Result<Collected, IpamError> {
    let mut collected = Collected::default();
    let locked = store.lock()?;
    let notes = store.notes()?;
    for note in &notes {
        if !is_leaked(store, note, now, |note| kernel.exists(note)) {
            continue;
        }
        let leased = leased(store, &note.attachment(), Some(note))?;
        // No pod may get an address that an object in the kernel still refers to.
        if let Err(error) = kernel.remove(note, &leased) {
            collected.left.push(Left {
                object: note.owner(),
                message: format!("it is gone, and not everything of it could be removed: {error}"),
            });
            continue;
        }
        for address in leased {
            locked.remove_lease(address)?;
            collected.freed.push(address);
        }
        locked.remove_note(&note.host_interface)?;
    }
    let with_note: BTreeSet<IpAddr> = notes
        .iter()
        .flat_map(|note| note.addresses.iter().copied())
        .collect();
    // The agent's check of each second names the unreadable leases.
    let (mut found, _) = store.readable_leases()?;
    found.retain(|lease| !with_note.contains(&lease.address));
    found.sort_by_key(|lease| lease.address);
    adopt(&locked, &found, now, &mut collected)?;
    Ok(collected)
}

/// Whether no pod can need the addresses of an attachment any more. `exists` is called last, since it may
/// take a while.
pub fn is_leaked(
    store: &Store,
    note: &Note,
    now: &BootTimestamp,
    mut exists: impl FnMut(&Note) -> bool,
) -> bool {
    if store.is_in_the_making(&note.host_interface) {
        return false;
    }
    if note.made.is_of_another_boot(now) {
        return true;
    }
    let old = note.made.age(now).is_some_and(|age| age >= MINIMUM_AGE);
    old && !note.adopted && !exists(note)
}

/// Writes notes for leases that have none. A crash leaves an empty lease, which is freed once it is old.
fn adopt(
    locked: &LockedStore<'_>,
    found: &[Lease],
    now: &BootTimestamp,
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
        // Leases of one attachment share a note, which is written with the first of them.
        let Some(if_name) = &lease.if_name else {
            collected.left.push(Left {
                object: format!("lease {}", locked.store.dir().join(lease.address.to_string()).display()),
                message: format!(
                    "{:?} names a container and no interface, as very old versions of host-local wrote it, or is broken: \
                     see whose it is and remove it with `millrace ipam release --force {}`",
                    lease.container_id, lease.address
                ),
            });
            continue;
        };
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
        let noted = locked.set_note(&Note::adopting(&attachment, name, addresses, now));
        if let Err(error) = noted {
            collected.left.push(Left {
                object: format!("lease {}", lease.address),
                message: error.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn at(boot: &str, seconds: u64) -> BootTimestamp {
        BootTimestamp {
            boot_id: boot.into(),
            since_boot_ms: seconds * 1000,
            unix_time: 0,
        }
    }

    fn attach(
        store: &Store,
        container: &str,
        address: &str,
        made: &BootTimestamp,
    ) -> nix::fcntl::Flock<File> {
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

    /// A kernel in which all attachments exist or none, and from which they can be removed or not.
    struct Fake {
        alive: bool,
        removable: bool,
        removed: Vec<String>,
    }

    impl Kernel for Fake {
        fn exists(&mut self, _: &Note) -> bool {
            self.alive
        }

        fn remove(&mut self, note: &Note, _: &[IpAddr]) -> Result<(), CniError> {
            if !self.removable {
                return Err(CniError::new(crate::spec::Code::Datapath, "a map is stubborn"));
            }
            self.removed.push(note.container_id.clone());
            Ok(())
        }
    }

    fn kernel(alive: bool) -> Fake {
        Fake {
            alive,
            removable: true,
            removed: Vec::new(),
        }
    }

    fn freed(store: &Store, now: &BootTimestamp, alive: bool) -> Vec<String> {
        let collected = collect(store, now, &mut kernel(alive)).unwrap();
        collected.freed.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_is_kept_while_the_kernel_refers_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        drop(attach(&store, "a", "10.0.0.2", &at("x", 0)));
        let mut stubborn = Fake {
            removable: false,
            ..kernel(false)
        };
        let collected = collect(&store, &at("x", 100), &mut stubborn).unwrap();
        assert_eq!(collected.freed, [] as [IpAddr; 0]);
        assert!(
            collected.left[0].message.contains("a map is stubborn"),
            "{collected:?}"
        );
        let mut willing = kernel(false);
        let collected = collect(&store, &at("x", 100), &mut willing).unwrap();
        assert_eq!(
            (collected.freed.len(), willing.removed),
            (1, vec!["a".to_owned()])
        );
    }

    #[test]
    fn broken_leases_are_reported_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        drop(attach(&store, "a", "10.0.0.2", &at("x", 0)));
        fs::write(dir.path().join("10.0.0.3"), "ancient").unwrap();
        fs::create_dir(dir.path().join("10.0.0.4")).unwrap();
        let collected = collect(&store, &at("x", 100), &mut kernel(false)).unwrap();
        assert_eq!(collected.freed.len(), 1, "the rest is freed");
        let left: Vec<_> = collected.left.iter().map(|left| format!("{left:?}")).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].contains("10.0.0.3"), "{left:?}");
        assert!(dir.path().join("10.0.0.3").exists() && dir.path().join("10.0.0.4").exists());
    }

    #[test]
    fn only_old_attachments_without_interface_are_freed() {
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
        let collected = collect(&store, &at("x", 1), &mut kernel(false)).unwrap();
        assert_eq!(
            collected.adopted,
            ["10.0.0.2", "fd00::2"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(collected.freed, [] as [IpAddr; 0], "the unreadable one is new");
        let again = collect(&store, &at("x", 1000), &mut kernel(false)).unwrap();
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
