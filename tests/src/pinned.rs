//! An agent's objects in the kernel, seen from outside of the agent: the elements of its maps, and the
//! programs, maps and links that exist.
//!
//! Kernel-wide ids identify an object even where another world has objects of the same names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray, loaded_maps};
use aya::programs::links::PinnedLink;
use aya::programs::{ProgramInfo, loaded_links, loaded_programs};

use crate::failure::OrPanic;
use crate::node::Node;

/// Ids of kernel objects, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelObjects {
    /// The ids of programs.
    pub programs: BTreeSet<u32>,
    /// The ids of maps.
    pub maps: BTreeSet<u32>,
    /// The ids of links.
    pub links: BTreeSet<u32>,
}

impl KernelObjects {
    /// The objects among these that exist now.
    #[must_use]
    pub fn alive(&self) -> Self {
        // An object that ends during the listing is an error in the list, and does not exist any more.
        let programs: BTreeSet<u32> = loaded_programs().flatten().map(|found| found.id()).collect();
        let maps: BTreeSet<u32> = loaded_maps().flatten().map(|found| found.id()).collect();
        let links: BTreeSet<u32> = loaded_links().flatten().map(|found| found.id()).collect();
        Self {
            programs: &self.programs & &programs,
            maps: &self.maps & &maps,
            links: &self.links & &links,
        }
    }
}

impl Node {
    /// The ids of all objects that are pinned below this node's bpf root.
    #[track_caller]
    pub fn pinned(&self) -> KernelObjects {
        let mut found = KernelObjects::default();
        collect(&self.bpf_root().join("links"), &mut found).or_panic();
        collect(&self.bpf_root().join("current"), &mut found).or_panic();
        found
    }

    /// All elements of a pinned hash table, such as `FLOWS`.
    #[track_caller]
    pub fn table<const K: usize, const V: usize>(&self, name: &str) -> BTreeMap<[u8; K], [u8; V]> {
        let map = self.open_map(name);
        let table: HashMap<_, [u8; K], [u8; V]> = HashMap::try_from(map)
            .with_context(|| format!("reading the map {name}"))
            .or_panic();
        table
            .iter()
            .collect::<Result<_, _>>()
            .with_context(|| format!("reading the map {name}"))
            .or_panic()
    }

    /// Removes all elements of a pinned hash table; returns their number.
    #[track_caller]
    pub fn clear_table<const K: usize, const V: usize>(&self, name: &str) -> usize {
        let elements = self.table::<K, V>(name);
        let mut table: HashMap<_, [u8; K], [u8; V]> = HashMap::try_from(self.open_map(name))
            .with_context(|| format!("opening the map {name}"))
            .or_panic();
        for key in elements.keys() {
            // An error means that the element is gone already.
            let _ = table.remove(key);
        }
        elements.len()
    }

    /// Puts an element into a pinned hash table.
    #[track_caller]
    pub fn set_element<const K: usize, const V: usize>(&self, name: &str, key: [u8; K], value: [u8; V]) {
        let map = self.open_map(name);
        let insert = || -> Result<()> {
            let mut table: HashMap<_, [u8; K], [u8; V]> = HashMap::try_from(map)?;
            Ok(table.insert(key, value, 0)?)
        };
        insert()
            .with_context(|| format!("writing to the map {name}"))
            .or_panic();
    }

    /// The first element of a pinned array, such as `CONFIG`.
    #[track_caller]
    pub fn element<const V: usize>(&self, name: &str) -> [u8; V] {
        let array: Array<_, [u8; V]> = Array::try_from(self.open_map(name))
            .with_context(|| format!("reading the map {name}"))
            .or_panic();
        array
            .get(&0, 0)
            .with_context(|| format!("reading the map {name}"))
            .or_panic()
    }

    /// The number of packets and socket calls for each reason, by the reason's number.
    #[track_caller]
    pub fn counters(&self) -> Vec<u64> {
        let map = self.open_map("COUNTERS");
        let counters: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map)
            .context("reading the counters")
            .or_panic();
        (0..counters.len())
            .map(|reason| {
                let of_cpus = counters.get(&reason, 0).context("reading a counter").or_panic();
                of_cpus.iter().map(|[packets, _bytes]| packets).sum()
            })
            .collect()
    }

    fn open_map(&self, name: &str) -> Map {
        let path = self.bpf_root().join("current/maps").join(name);
        let open = || -> Result<Map> {
            let data = MapData::from_pin(&path)?;
            Ok(Map::from_map_data(data)?)
        };
        open()
            .with_context(|| format!("opening the map {}", path.display()))
            .or_panic()
    }
}

fn collect(directory: &Path, found: &mut KernelObjects) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        let parent = directory.file_name().unwrap_or_default();
        if path.is_dir() {
            collect(&path, found)?;
        } else if parent == "programs" {
            found.programs.insert(ProgramInfo::from_pin(&path)?.id());
        } else if parent == "maps" {
            found.maps.insert(MapInfo::from_pin(&path)?.id());
        } else {
            found.links.insert(link_id(&path)?);
        }
    }
    Ok(())
}

/// The id of a pinned link.
fn link_id(path: &Path) -> Result<u32> {
    let link = PinnedLink::from_pin(path).with_context(|| format!("opening {}", path.display()))?;
    let link: aya::programs::links::FdLink = link.into();
    Ok(link.info()?.id())
}
