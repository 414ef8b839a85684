//! A node whose tables the real planner and programmer fill from objects, and whose programs run over single
//! packets.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use millrace::apply::{Limits, Programmer};
use millrace::bpf::Datapath;
use millrace::bpf::object::MapSizes;
use millrace::cluster::{Changes, ClusterState};
use millrace::plan::NodeContext;
use millrace::source::{Change, Event, Kind, Object, wire};
use proxy_common::maps::{Config, ConfigFlags, RangeKey, Reason};
use serde_json::Value;

use super::support::Sandbox;
use super::{SIZES, ip};

/// The node's addresses.
pub const NODE: [&str; 2] = ["192.168.50.11", "fd00:50::11"];

/// A node with an uplink, by which packets can be routed out.
pub struct Node {
    pub programmer: Programmer<Datapath>,
    pub cluster: ClusterState,
    changes: Changes,
    context: NodeContext,
    /// The index of the uplink.
    pub uplink: u32,
    _sandbox: Sandbox,
}

impl Node {
    pub fn new() -> Self {
        Self::with_flows(65_536)
    }

    /// Makes a node with this capacity of the flow tables.
    pub fn with_flows(flows: u32) -> Self {
        let sandbox = Sandbox::enter();
        for line in [
            "link set lo up",
            "link add uplink0 type veth peer name other0",
            "link set other0 up",
            // The destination MAC address of frames.
            "link set uplink0 address 02:00:00:00:00:01",
            "link set uplink0 up",
            "addr add 192.168.50.11/24 dev uplink0",
            "-6 addr add fd00:50::11/64 dev uplink0 nodad",
            "route add default via 192.168.50.1",
            "-6 route add default via fd00:50::1",
            "neigh add 192.168.50.1 lladdr 02:00:00:00:00:09 dev uplink0",
            "-6 neigh add fd00:50::1 lladdr 02:00:00:00:00:09 dev uplink0",
        ] {
            let output = Command::new("ip").args(line.split(' ')).output().expect("ip");
            assert!(output.status.success(), "ip {line}: {output:?}");
        }
        for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/thread-self/root/proc/sys/net/{forwarding}"), "1")
                .expect("to forward");
        }
        let sizes = MapSizes {
            frontends: 4096,
            slots: 4096,
            backends: 4096,
            addresses: 4096,
            flows,
            affinity: 4096,
            ..SIZES
        };
        let datapath = Datapath::open(&sandbox.bpf_root(), &sizes).expect("the programs");
        let mut config = Config {
            node_v4: ip(NODE[0]),
            node_v6: ip(NODE[1]),
            host_device: 1,
            masquerade_first: 61_000,
            masquerade_count: 4000,
            connection_share: flows / 8,
            stream_share: flows / 32,
            unreplied_share: 1000,
            neighbour_share: 1000,
            flags: ConfigFlags::VIPS_OUTSIDE_RANGES,
            ..Config::default()
        };
        config.service_range[0] = ip("10.96.0.0");
        config.service_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        config.service_range[1] = ip("fd00:96::");
        config.service_mask[1] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        datapath.config.set(0, &config);
        for (range, bits) in [("10.244.0.0", 112), ("fd00:244::", 32)] {
            let key = RangeKey {
                prefix_len: bits,
                address: ip(range),
            };
            datapath.pod_ranges.set(&key, &1).expect("a pod range");
        }
        let mut programmer = Programmer::new(datapath, Limits { max: sizes });
        programmer.set_node_addresses(&NODE.map(ip), HashMap::new());
        let context = NodeContext {
            name: "n1".into(),
            node_port_addresses: NODE
                .iter()
                .map(|address| address.parse().expect("an address"))
                .collect(),
            external_ips: true,
            ..NodeContext::default()
        };
        let uplink = nix::net::if_::if_nametoindex("uplink0").expect("the uplink");
        Self {
            programmer,
            cluster: ClusterState::new(None),
            changes: Changes::default(),
            context,
            uplink,
            _sandbox: sandbox,
        }
    }

    /// Programs the node for exactly these objects.
    pub fn program(&mut self, objects: &[Value]) {
        let mut by_kind: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for object in objects {
            by_kind
                .entry(object["kind"].as_str().expect("a kind"))
                .or_default()
                .push(object);
        }
        for kind in Kind::ALL {
            self.event(Change::Begin(kind));
            let name = format!("{kind:?}");
            for object in by_kind.remove(name.as_str()).into_iter().flatten() {
                let object = object.clone();
                let object = match kind {
                    Kind::Service => Object::Service(read(object)),
                    Kind::EndpointSlice => Object::EndpointSlice(read::<wire::EndpointSlice>(object)),
                    Kind::Node => Object::Node(read(object)),
                    Kind::ServiceCidr => Object::ServiceCidr(read(object)),
                    Kind::Namespace => Object::Namespace(read(object)),
                    Kind::Pod => Object::Pod(read(object)),
                };
                self.event(Change::Apply(Box::new(object)));
            }
            self.event(Change::End(kind));
        }
        assert!(by_kind.is_empty(), "{by_kind:?}");
        self.programmer
            .sync(&self.cluster, &self.context)
            .expect("the tables");
        let problems: Vec<_> = self.cluster.problems();
        assert!(problems.is_empty(), "{problems:?}");
    }

    fn event(&mut self, change: Change) {
        self.cluster
            .apply(Event::new(Instant::now(), change), &mut self.changes);
    }

    /// Runs a program over a frame. Returns the verdict, and the frame as it is then.
    pub fn run(&self, program: &str, frame: &[u8]) -> (u32, Vec<u8>) {
        let (verdict, out, _) = self.run_marked(program, frame, 0);
        (verdict, out)
    }

    /// As [`Self::run`], for a frame with a mark. Returns the mark after the run, too.
    pub fn run_marked(&self, program: &str, frame: &[u8], mark: u32) -> (u32, Vec<u8>, u32) {
        // The offset in `struct __sk_buff`, in bytes.
        const MARK: std::ops::Range<usize> = 8..12;
        let pin = self.programmer.store().program_pin(program);
        let program = SchedClassifier::from_pin(pin).expect("the program");
        let mut context = [0_u8; 192];
        // The field `ifindex`, the input interface of the frame; the value 1 means the egress of the
        // loopback.
        context[40..44].copy_from_slice(&self.uplink.to_ne_bytes());
        context[MARK].copy_from_slice(&mark.to_ne_bytes());
        let mut left = context;
        let mut out = vec![0_u8; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut left);
        let result = program.test_run(options).expect("a run");
        let len = result.data_size_out as usize;
        out.truncate(len);
        let mark = left[MARK].try_into().expect("four bytes");
        (result.return_value, out, u32::from_ne_bytes(mark))
    }

    /// The counter of a reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.programmer
            .store()
            .counter(reason)
            .expect("a counter")
            .packets
    }
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("an object")
}

/// One of the addresses of a family, 0 for IPv4 and 1 for IPv6.
pub fn of_family(addresses: [&str; 2], family: usize) -> IpAddr {
    addresses[family].parse().expect("an address")
}
