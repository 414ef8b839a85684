//! The kernel's tables, read as the programs read them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use millrace::bpf::{HashTable, MappedArray, sys};
use proxy_common::maps::{Backend, Frontend, FrontendKey, Slot, SlotRange};
use proxy_common::{Ip, Port};

use super::objects::{PORT, TARGET_PORT, cluster_ip};

/// IP protocol number of every service's port.
const TCP: u8 = 6;

/// The tables in force below a bpf root.
pub struct Tables {
    frontends: HashTable<FrontendKey, Frontend>,
    slots: MappedArray<Slot>,
    backends: MappedArray<Backend>,
    maps: PathBuf,
    /// The target of the link `current`.
    generation: PathBuf,
}

impl Tables {
    /// Opens the tables. An agent that grows its tables moves to new ones, see [`Self::follow`].
    pub fn open(bpf_root: &Path) -> Result<Self> {
        let maps = bpf_root.join("current/maps");
        Ok(Self {
            generation: generation(&maps)?,
            frontends: HashTable::new(open(&maps, "FRONTENDS")?).context("opening FRONTENDS")?,
            slots: MappedArray::new(&open(&maps, "SLOTS")?).context("mapping SLOTS")?,
            backends: MappedArray::new(&open(&maps, "BACKENDS")?).context("mapping BACKENDS")?,
            maps,
        })
    }

    /// Opens the new tables, if the agent has moved to some.
    pub fn follow(&mut self) -> Result<()> {
        if generation(&self.maps)? != self.generation
            && let Some(bpf_root) = self.maps.ancestors().nth(2)
        {
            *self = Self::open(bpf_root)?;
        }
        Ok(())
    }

    /// Whether a slot of a service leads to an endpoint.
    pub fn has_backend(&self, service: usize, endpoint: Ipv4Addr) -> bool {
        let Some(frontend) = self.frontend(service) else {
            return false;
        };
        let range = SlotRange(frontend.slots);
        let (address, port) = (Ip::from(std::net::IpAddr::V4(endpoint)), Port::new(TARGET_PORT));
        (range.start()..range.start() + range.count()).any(|slot| {
            let slot = self.slots.get(slot).unwrap_or_default();
            let backend = self.backends.get(slot.backend()).unwrap_or_default();
            slot.service() == frontend.service
                && backend.service == frontend.service
                && backend.is_active()
                && (backend.address, backend.port) == (address, port)
        })
    }

    fn frontend(&self, service: usize) -> Option<Frontend> {
        let address = Ip::from(std::net::IpAddr::V4(cluster_ip(service)));
        self.frontends
            .get(&FrontendKey::new(address, Port::new(PORT), TCP))
            .ok()
            .flatten()
    }

    /// The memory of one table as the kernel accounts it.
    pub fn memory(&self, name: &str) -> Result<u64> {
        let map = File::from(open(&self.maps, name)?);
        let path = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        let bytes = line.with_context(|| format!("no memlock in {path}"))?.trim();
        bytes
            .parse()
            .with_context(|| format!("memlock of {name} is {bytes:?}"))
    }
}

fn open(maps: &Path, name: &str) -> Result<OwnedFd> {
    let path = maps.join(name);
    sys::open_pin(&path).with_context(|| format!("opening {}", path.display()))
}

fn generation(maps: &Path) -> Result<PathBuf> {
    fs::canonicalize(maps).with_context(|| format!("finding what {} leads to", maps.display()))
}
