//! The types of the keys and values in the kernel's maps, one file per map family.
//!
//! | map | key → value | written by | read by |
//! |---|---|---|---|
//! | `FRONTENDS` | [`FrontendKey`] → [`Frontend`] | agent | every program that chooses a backend, and `post_bind` |
//! | `SLOTS` | index → [`Slot`] (mmapped) | agent | the same |
//! | `BACKENDS` | backend id → [`Backend`] (mmapped) | agent | the same |
//! | `ADDRESSES` | [`crate::Ip`] → [`AddressFlags`] | agent | packet programs |
//! | `POD_RANGES` | LPM of [`RangeKey`] → [`RangeFlags`] | agent | packet programs: new flows from or to outside, and datagrams |
//! | `FLOWS` | [`FlowKey`] → [`Flow`]: connections past their handshake | packet programs; the agent removes expired entries | packet programs |
//! | `STREAMS` | the same: datagrams in both directions for some time | the same | packet programs |
//! | `NEW_FLOWS` | the same (LRU): flows that begin, those that ended, and those beyond a share | packet programs | packet programs |
//! | `SHARES` | client's [`crate::Ip`] → [`Share`] (LRU) | packet programs, agent | packet programs |
//! | `UNANSWERED` | client's [`crate::Ip`] → [`RecentCount`] (LRU) | packet programs | packet programs, agent |
//! | `NEIGHBOURS` | pod's interface, or service → [`RecentCount`] (LRU) | packet programs | packet programs, agent |
//! | `AFFINITY` | [`AffinityKey`] → [`Affinity`] (LRU) | programs that choose a backend | the same |
//! | `FRAGMENTS` | [`FragmentKey`] → [`FirstFragment`] (LRU) | packet programs | packet programs |
//! | `SOURCE_RANGES` | LPM of [`SourceRangeKey`] → `u32` | agent | programs that choose a backend |
//! | `SOCKET_PEERS` | [`SocketKey`] → [`SocketPeer`] (LRU) | socket hooks | socket hooks |
//! | `CONNECTED` | socket → [`Connected`] (socket storage) | socket hooks | socket hooks |
//! | `POD_NETNS` | network namespace cookie → `u32` | agent | socket hooks |
//! | `PODS` | [`crate::Ip`] → [`Pod`] | millrace-cni; the agent makes lost ones again | packet programs |
//! | `POD_LINKS` | interface → [`PodLink`] | millrace-cni; the agent makes lost ones again | packet programs |
//! | `HOST_PORTS` | [`HostPortKey`] → [`HostPort`] | millrace-cni; the agent makes lost ones again | packet programs, socket hooks |
//! | `IN_USE` | [`InUse`] → `u32` | millrace-cni | packet programs, socket hooks |
//! | `CONFIG` | 0 → [`Config`] (mmapped) | agent, two fields by packet programs | packet programs, socket hooks |
//! | `TRACE` | 0 → [`TraceCell`] (mmapped) | agent | packet programs |
//! | `COUNTERS` | [`Reason`] → [`Counter`] (per CPU) | every program | agent |
//! | `REFUSALS` | group of senders → [`Refusals`] (per CPU) | packet programs | the same |
//! | `WORK` | 0 → [`PacketContext`](crate::decide::PacketContext) (per CPU) | packet programs | the same run of the same program |

mod address;
mod affinity;
mod backend;
mod client;
mod config;
mod flow;
mod fragment;
mod frontend;
mod pod;
mod reason;
mod skb_layout;
mod socket;
mod source_range;

pub use address::{AddressFlags, NodeNumber, RangeFlags, RangeKey};
pub use affinity::{Affinity, AffinityKey};
pub use backend::{Backend, BackendState};
pub use client::{RecentCount, Share};
pub use config::{
    Config, ConfigFlags, Lifetime, MAX_BROADCASTS, MAX_HEADERLESS, MAX_ON_LINK_RANGES, MAX_OWN_RANGES,
    MAX_SERVICE_RANGES, MAX_STRICT_INTERFACES, MAX_UPLINKS, TraceCell, UplinkAddresses,
};
pub use flow::{Deliver, Flow, FlowKey, FlowState};
pub use fragment::{Datagram, FirstFragment, FragmentKey, FragmentPorts};
pub use frontend::{Frontend, FrontendFlags, FrontendKey, FrontendKind, Scope, Slot, SlotRange};
pub use pod::{HostPort, HostPortKey, InUse, LIMITED_MARK, Pod, PodFlags, PodLink, PodLinkFlags};
pub use reason::{Counter, Reason, Refusals};
pub use skb_layout::SkbLayout;
pub use socket::{Connected, Direction, SocketKey, SocketPeer};
pub use source_range::SourceRangeKey;
