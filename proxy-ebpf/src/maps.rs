//! The maps. Their sizes here are minimal: the agent sets the real sizes at load time.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use proxy_common::Ip;
use proxy_common::decide::PacketContext;
use proxy_common::maps::{
    Affinity, AffinityKey, Backend, Config, Connected, Counter, FirstFragment, Flow, FlowKey, FragmentKey,
    Frontend, FrontendKey, HostPort, HostPortKey, InUse, Pod, PodLink, Reason, RecentCount, Refusals, Share,
    SkbLayout, Slot, SocketKey, SocketPeer, TraceCell,
};

#[map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::with_max_entries(1, 0);

#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static ADDRESSES: HashMap<Ip, u32> = HashMap::with_max_entries(1, 0);

#[map]
pub static POD_RANGES: LpmTrie<Ip, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

#[map]
pub static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, 0);

#[map]
pub static STREAMS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, 0);

#[map]
pub static NEW_FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1, 0);

#[map]
pub static SHARES: LruHashMap<Ip, Share> = LruHashMap::with_max_entries(1, 0);

#[map]
pub static UNANSWERED: LruHashMap<Ip, RecentCount> = LruHashMap::with_max_entries(1, 0);

#[map]
pub static NEIGHBOURS: LruHashMap<u32, RecentCount> = LruHashMap::with_max_entries(1, 0);

#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(1, 0);

#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FirstFragment> = LruHashMap::with_max_entries(1, 0);

/// See `proxy_common::maps::SourceRangeKey`; aya keeps the length of the prefix separate.
#[map]
pub static SOURCE_RANGES: LpmTrie<[u32; 5], u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

#[map]
pub static SOCKET_PEERS: LruHashMap<SocketKey, SocketPeer> = LruHashMap::with_max_entries(1, 0);

#[map]
pub static POD_NETNS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);

#[map]
pub static PODS: HashMap<Ip, Pod> = HashMap::with_max_entries(1, 0);

#[map]
pub static POD_LINKS: HashMap<u32, PodLink> = HashMap::with_max_entries(1, 0);

#[map]
pub static HOST_PORTS: HashMap<HostPortKey, HostPort> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

#[map]
pub static IN_USE: Array<u32> = Array::with_max_entries(InUse::COUNT, 0);

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static TRACE: Array<TraceCell> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The [`PacketContext`] of the packet programs.
#[map]
pub static WORK: PerCpuArray<PacketContext> = PerCpuArray::with_max_entries(1, 0);

/// The number of refusals that each group of senders got in the current tick.
#[map]
pub static REFUSALS: PerCpuArray<Refusals> = PerCpuArray::with_max_entries(Refusals::GROUPS, 0);

#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(Reason::COUNT, 0);

#[btf_map]
pub static CONNECTED: SkStorage<Connected> = SkStorage::new();

/// Whether the kernel has `bpf_set_retval` (5.18), with which a hook sets the error of `connect()`. The
/// loader sets it, so that the verifier removes the unused branch.
#[expect(unsafe_code, reason = "the loader finds the constant by its symbol")]
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// The offsets in bytes of the fields of the kernel's `struct sk_buff` that locate a checksum left to the
/// NIC, see [`proxy_common::maps::SkbLayout`]. All are 0 if the kernel does not show its layout, so that the
/// verifier removes the check.
#[expect(unsafe_code, reason = "the loader finds the constant by its symbol")]
#[unsafe(no_mangle)]
pub static SKB_LAYOUT: Global<[u32; SkbLayout::WORDS]> = Global::new([0; SkbLayout::WORDS]);
