//! The maps and programs in force, opened from their pins.
//!
//! A warm start only opens pins. Pins that are removed while the agent runs are made again from its open file
//! descriptors. If maps had to be made anew, attached programs stay until the new tables are filled
//! ([`Datapath::take_over`]). A program over empty tables would drop packets that it should let through. The
//! agent loads programs in three cases: there are none, the pinned ones were built from another object, or a
//! map must grow. Then it fills a directory of the next generation, which shares every map that stays as it
//! is, and switches the links one by one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use proxy_common::maps::{
    Affinity, AffinityKey, Backend, Config, Counter, Flow, FlowKey, Frontend, FrontendKey, HostPort,
    HostPortKey, Pod, PodLink, RangeKey, Reason, RecentCount, Share, Slot, SocketKey, SocketPeer,
    SourceRangeKey, TraceCell,
};
use proxy_common::{Ip, LAYOUT_VERSION};

use super::array::MappedArray;
use super::error::BpfError;
use super::hash::HashTable;
use super::links::ahead::{AttachPoint, InForce, PrecedingProgram};
use super::links::{AttachMode, Links, Programs};
use super::object::{self, MAPS, MapSizes, PROGRAMS};
use super::pins::{LayoutDir, Pins};
use super::sys;

/// Everything of one generation, and the attachments.
pub struct Datapath {
    pins: Pins,
    dir: LayoutDir,
    /// The programs in force.
    pub programs: Programs,
    /// The attachments of programs to interfaces and the cgroup.
    pub links: Links,
    /// The map `FRONTENDS`.
    pub frontends: HashTable<FrontendKey, Frontend>,
    /// The map `SLOTS`.
    pub slots: MappedArray<Slot>,
    /// The map `BACKENDS`.
    pub backends: MappedArray<Backend>,
    /// The map `ADDRESSES`.
    pub addresses: HashTable<Ip, u32>,
    /// The map `POD_RANGES`.
    pub pod_ranges: HashTable<RangeKey, u32>,
    /// The map `FLOWS`.
    pub flows: HashTable<FlowKey, Flow>,
    /// The map `STREAMS`.
    pub streams: HashTable<FlowKey, Flow>,
    /// The map `NEW_FLOWS`.
    pub new_flows: HashTable<FlowKey, Flow>,
    /// The map `SHARES`.
    pub shares: HashTable<Ip, Share>,
    /// The map `UNANSWERED`.
    pub unanswered: HashTable<Ip, RecentCount>,
    /// The map `NEIGHBOURS`.
    pub neighbours: HashTable<u32, RecentCount>,
    /// The map `AFFINITY`.
    pub affinity: HashTable<AffinityKey, Affinity>,
    /// The map `SOURCE_RANGES`.
    pub source_ranges: HashTable<SourceRangeKey, u32>,
    /// The map `SOCKET_PEERS`.
    pub socket_peers: HashTable<SocketKey, SocketPeer>,
    /// The map `POD_NETNS`.
    pub pod_netns: HashTable<u64, u32>,
    /// The map `PODS`.
    pub pods: HashTable<Ip, Pod>,
    /// The map `POD_LINKS`.
    pub pod_links: HashTable<u32, PodLink>,
    /// The map `HOST_PORTS`.
    pub host_ports: HashTable<HostPortKey, HostPort>,
    /// The map `IN_USE`.
    in_use: HashTable<u32, u32>,
    /// The map `CONFIG`.
    pub config: MappedArray<Config>,
    /// The map `TRACE`.
    pub trace: MappedArray<TraceCell>,
    counters: OwnedFd,
    /// All maps by name, to be pinned again.
    maps: Vec<(&'static str, OwnedFd)>,
    /// Whether attached programs are still those of another generation, over other tables.
    waits: bool,
}

/// Fills the tables of a directory before a program over them is attached anywhere.
pub type Prepare<'a> = &'a mut dyn FnMut(&Pins, &LayoutDir);

impl Datapath {
    /// Opens the pins below `root`; loads programs that are missing or of another object.
    pub fn open(root: &Path, sizes: &MapSizes) -> Result<Self, BpfError> {
        Self::open_prepared(root, sizes, &mut |_, _| {})
    }

    /// The same; `prepare` fills the tables before attached programs are replaced by programs over these
    /// tables.
    pub fn open_prepared(root: &Path, sizes: &MapSizes, prepare: Prepare<'_>) -> Result<Self, BpfError> {
        let pins = Pins::open(root)?;
        for path in pins.foreign() {
            tracing::warn!(path = %path.display(), "something foreign lies below the bpf root and is left alone");
        }
        // Kernels before 5.11 charge maps and programs to this limit. On newer ones the agent need not be
        // allowed to raise it.
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            tracing::debug!(%error, "the limit on locked memory stays");
        }
        let object = object::hash();
        let current = pins.current()?;
        let (dir, waits) = match &current {
            Some(dir) if dir.layout == LAYOUT_VERSION && dir.object == object && is_complete(dir) => {
                (dir.clone(), false)
            }
            _ => {
                if let Some(older) = current.iter().find(|dir| dir.layout != LAYOUT_VERSION) {
                    tracing::warn!(
                        path = %older.path.display(),
                        "the pins have an older layout; the tables are filled anew"
                    );
                }
                let shared: Vec<_> = current
                    .iter()
                    .filter(|dir| dir.layout == LAYOUT_VERSION)
                    .flat_map(|dir| MAPS.map(|name| (name, dir)))
                    .filter(|(name, _)| !OF_EACH_OBJECT.contains(name))
                    .collect();
                let dir = fill(&pins, &object, sizes, &shared)?;
                tracing::info!(path = %dir.path.display(), "loaded the kernel programs");
                let is_kept = |table: &str| {
                    let found = shared.iter().find(|(name, _)| *name == table);
                    found.is_some_and(|(name, from)| from.map(name).exists())
                };
                let waits = !FILLED_BY_THE_AGENT.iter().all(|table| is_kept(table));
                (dir, waits)
            }
        };
        let _lock = pins.exchange()?;
        prepare(&pins, &dir);
        let datapath = Self::from_dir(pins, dir, waits)?;
        datapath.pins.publish(&datapath.dir)?;
        datapath.pins.remove_others(&datapath.dir)?;
        Ok(datapath)
    }

    fn from_dir(pins: Pins, dir: LayoutDir, waits: bool) -> Result<Self, BpfError> {
        let programs = open_programs(&dir)?;
        let config: MappedArray<Config> = array(&dir, "CONFIG")?;
        // An agent that ended before its first sync has not filled this element.
        let waits = waits || config.get(0).is_none_or(|config| config.node_netns == 0);
        let attach_mode = AttachMode::probe(&programs);
        if attach_mode == AttachMode::Clsact {
            tracing::info!("this kernel has no tcx (Linux 6.6): all programs attach to clsact qdiscs");
        }
        let links = if waits {
            Links::open(pins.links(), pins.qdiscs(), attach_mode)?
        } else {
            Links::adopt(pins.links(), pins.qdiscs(), attach_mode, &programs)?
        };
        Ok(Self {
            frontends: table(&dir, "FRONTENDS")?,
            slots: array(&dir, "SLOTS")?,
            backends: array(&dir, "BACKENDS")?,
            addresses: table(&dir, "ADDRESSES")?,
            pod_ranges: table(&dir, "POD_RANGES")?,
            flows: table(&dir, "FLOWS")?,
            streams: table(&dir, "STREAMS")?,
            new_flows: table(&dir, "NEW_FLOWS")?,
            shares: table(&dir, "SHARES")?,
            unanswered: table(&dir, "UNANSWERED")?,
            neighbours: table(&dir, "NEIGHBOURS")?,
            affinity: table(&dir, "AFFINITY")?,
            source_ranges: table(&dir, "SOURCE_RANGES")?,
            socket_peers: table(&dir, "SOCKET_PEERS")?,
            pod_netns: table(&dir, "POD_NETNS")?,
            pods: table(&dir, "PODS")?,
            pod_links: table(&dir, "POD_LINKS")?,
            host_ports: table(&dir, "HOST_PORTS")?,
            in_use: table(&dir, "IN_USE")?,
            config,
            trace: array(&dir, "TRACE")?,
            counters: open(&dir, "COUNTERS")?,
            maps: open_maps(&dir)?,
            waits,
            programs,
            links,
            pins,
            dir,
        })
    }

    /// Moves to larger maps without an interruption: the new maps are filled while the old ones serve, then
    /// the links are switched. Sizes below the present ones are ignored.
    pub fn grow(&mut self, sizes: &MapSizes) -> Result<(), BpfError> {
        let now = self.sizes();
        let sizes = MapSizes {
            frontends: sizes.frontends.max(now.frontends),
            slots: sizes.slots.max(now.slots),
            backends: sizes.backends.max(now.backends),
            addresses: sizes.addresses.max(now.addresses),
            ..now
        };
        let wanted = sizes.by_name();
        let grows = |name: &str| {
            now.by_name()
                .iter()
                .zip(&wanted)
                .any(|(now, wanted)| now.0 == name && now.1 != wanted.1)
        };
        let shared: Vec<_> = MAPS
            .iter()
            .filter(|name| !grows(name))
            .map(|name| (*name, &self.dir))
            .collect();
        let dir = fill(&self.pins, &self.dir.object, &sizes, &shared)?;
        let frontends = table(&dir, "FRONTENDS")?;
        let slots = array(&dir, "SLOTS")?;
        let backends = array(&dir, "BACKENDS")?;
        let addresses = table(&dir, "ADDRESSES")?;
        if grows("SLOTS") {
            slots.copy_from(&self.slots);
        }
        if grows("BACKENDS") {
            backends.copy_from(&self.backends);
        }
        if grows("FRONTENDS") {
            copy(&self.frontends, &frontends)?;
        }
        if grows("ADDRESSES") {
            copy(&self.addresses, &addresses)?;
        }
        let programs = open_programs(&dir)?;
        let maps = open_maps(&dir)?;
        let _lock = self.pins.exchange()?;
        if !self.waits {
            self.links.switch(&programs)?;
        }
        self.pins.publish(&dir)?;
        self.pins.remove_others(&dir)?;
        tracing::info!(?sizes, "the maps have grown");
        (self.frontends, self.slots, self.backends, self.addresses) = (frontends, slots, backends, addresses);
        (self.programs, self.dir, self.maps) = (programs, dir, maps);
        Ok(())
    }

    /// Replaces attached programs of another generation by the programs in force: the tables are filled now.
    pub fn take_over(&mut self) -> Result<(), BpfError> {
        if self.waits {
            let _lock = self.pins.exchange()?;
            let (dir, qdiscs) = (self.pins.links(), self.pins.qdiscs());
            self.links = Links::adopt(dir, qdiscs, self.links.attach_mode(), &self.programs)?;
            self.waits = false;
        }
        Ok(())
    }

    /// Makes removed pins again, and returns whether any was missing. The agent holds maps, programs and
    /// links open, so all of them stayed in use.
    pub fn keep_pinned(&self) -> Result<bool, BpfError> {
        let maps = || self.maps.iter().map(|(name, fd)| (self.dir.map(name), fd));
        let programs = || {
            let pinned = self.programs.iter();
            pinned.map(|(name, fd)| (self.dir.program(name), fd))
        };
        let is_whole = self.pins.is_in_force(&self.dir)
            && maps().chain(programs()).all(|(path, _)| path.exists())
            && self.links.are_pinned();
        if is_whole {
            return Ok(false);
        }
        if let Ok(Some(other)) = self.pins.current()
            && other != self.dir
            && is_complete(&other)
        {
            return Err(BpfError::Foreign {
                path: self.pins.root().join("current"),
                what: format!("leads to {}, of another agent", other.path.display()),
            });
        }
        self.pins.make_again(&self.dir)?;
        let _lock = self.pins.exchange()?;
        for (path, fd) in maps().chain(programs()) {
            if !path.exists() {
                sys::pin(fd.as_fd(), &path).map_err(BpfError::file("pinning", &path))?;
            }
        }
        self.links.pin_again()?;
        self.pins.publish(&self.dir)?;
        Ok(true)
    }

    /// The places where a program is not attached as it should be, see [`Links::broken`].
    pub fn broken(
        &mut self,
        is_due: impl Fn(u32) -> bool,
    ) -> Result<Vec<(Option<u32>, &'static str)>, BpfError> {
        self.links.broken(&self.programs, is_due)
    }

    /// The programs that run before ours, see [`Links::ahead`].
    pub fn ahead(
        &mut self,
        cgroup: Option<&Path>,
        is_due: impl Fn(u32) -> bool,
    ) -> Result<BTreeMap<AttachPoint, Vec<PrecedingProgram>>, BpfError> {
        let ids = self.maps.iter().map(|(_, map)| sys::map_info(map.as_fd()));
        let ids = ids.map(|info| info.map(|info| info.id)).collect::<Result<_, _>>();
        let in_force = InForce {
            maps: ids.map_err(BpfError::syscall("reading the maps in force"))?,
            netns: self.config.get(0).map_or(0, |config| config.node_netns),
        };
        self.links.ahead(&self.programs, &in_force, cgroup, is_due)
    }

    /// The present capacities.
    pub fn sizes(&self) -> MapSizes {
        MapSizes {
            frontends: self.frontends.capacity(),
            slots: self.slots.capacity(),
            backends: self.backends.capacity(),
            addresses: self.addresses.capacity(),
            flows: self.flows.capacity(),
            affinity: self.affinity.capacity(),
            socket_peers: self.socket_peers.capacity(),
            pod_netns: self.pod_netns.capacity(),
        }
    }

    /// The foreign pins below the bpf root.
    pub fn foreign_pins(&self) -> Vec<std::path::PathBuf> {
        self.pins.foreign()
    }

    /// Whether one of the plugin's tables ever had an entry, see [`proxy_common::maps::InUse`].
    pub fn is_in_use(&self, table: u32) -> bool {
        self.in_use
            .get(&table)
            .is_ok_and(|used| used.is_some_and(|used| used != 0))
    }

    /// The path of a program's pin.
    pub fn program_pin(&self, name: &str) -> std::path::PathBuf {
        self.dir.program(name)
    }

    /// The counter of a reason, summed over all CPUs.
    pub fn counter(&self, reason: Reason) -> std::io::Result<Counter> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(file, error)| std::io::Error::other(format!("{file}: {error}")))?;
        let mut values = vec![0_u8; cpus * size_of::<Counter>()];
        sys::map_lookup(self.counters.as_fd(), &(reason as u32).to_ne_bytes(), &mut values)?;
        let mut sum = Counter::default();
        for value in values.chunks_exact(16) {
            let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| value[at + byte]));
            sum.packets += word(0);
            sum.bytes += word(8);
        }
        Ok(sum)
    }
}

/// Without these maps the programs know no service and no node; only the agent can fill them.
const FILLED_BY_THE_AGENT: [&str; 5] = ["FRONTENDS", "SLOTS", "BACKENDS", "ADDRESSES", "CONFIG"];

/// Maps that each object has for itself: another object may need more of such a map in the same layout. None
/// of their content lasts longer than a second.
const OF_EACH_OBJECT: [&str; 2] = ["WORK", "REFUSALS"];

fn is_complete(dir: &LayoutDir) -> bool {
    MAPS.iter().all(|name| dir.map(name).exists()) && PROGRAMS.iter().all(|name| dir.program(name).exists())
}

/// Fills a directory of the next generation with the `shared` maps, and makes the other maps and the
/// programs.
fn fill(
    pins: &Pins,
    object: &str,
    sizes: &MapSizes,
    shared: &[(&'static str, &LayoutDir)],
) -> Result<LayoutDir, BpfError> {
    let dir = pins.next(object)?;
    for (name, from) in shared {
        let path = from.map(name);
        if path.exists() {
            let map = sys::open_pin(&path).map_err(BpfError::file("opening", &path))?;
            let path = dir.map(name);
            sys::pin(map.as_fd(), &path).map_err(BpfError::file("pinning", &path))?;
        }
    }
    object::load(&dir, sizes)?;
    Ok(dir)
}

fn open(dir: &LayoutDir, name: &str) -> Result<OwnedFd, BpfError> {
    let path = dir.map(name);
    sys::open_pin(&path).map_err(BpfError::file("opening", &path))
}

fn table<K: proxy_common::Plain, V: proxy_common::Plain>(
    dir: &LayoutDir,
    name: &str,
) -> Result<HashTable<K, V>, BpfError> {
    HashTable::new(open(dir, name)?).map_err(BpfError::file("opening", &dir.map(name)))
}

fn array<T: proxy_common::Plain>(dir: &LayoutDir, name: &str) -> Result<MappedArray<T>, BpfError> {
    MappedArray::new(&open(dir, name)?).map_err(BpfError::file("mapping", &dir.map(name)))
}

fn open_programs(dir: &LayoutDir) -> Result<Programs, BpfError> {
    PROGRAMS
        .iter()
        .map(|name| {
            let path = dir.program(name);
            sys::open_pin(&path)
                .map(|fd| (*name, fd))
                .map_err(BpfError::file("opening", &path))
        })
        .collect()
}

fn open_maps(dir: &LayoutDir) -> Result<Vec<(&'static str, OwnedFd)>, BpfError> {
    MAPS.iter().map(|name| Ok((*name, open(dir, name)?))).collect()
}

fn copy<K: proxy_common::Plain, V: proxy_common::Plain>(
    from: &HashTable<K, V>,
    to: &HashTable<K, V>,
) -> Result<(), BpfError> {
    let mut elements = Vec::new();
    from.for_each(|key, value| elements.push((key, value)))
        .map_err(BpfError::syscall("reading a map"))?;
    to.set_all(&elements)
        .map_err(|(_, error)| BpfError::syscall("filling a larger map")(error))
}
