//! Worlds to test Millrace in. Network namespaces act as nodes, pods and outside clients, with real
//! `millrace agent` processes and real sockets. A real etcd and kube-apiserver are optional.
//!
//! A [`World`] is made in a fraction of a second and has no route out of it. A process of its own notices
//! when the world's owner has ended, and removes the world. So nothing is left behind whether a test passes,
//! panics, or is interrupted from the keyboard.
//!
//! ```no_run
//! use harness::{Endpoint, Probe, Service, World, manifest::Family};
//!
//! harness::require_root!();
//! let world = World::with_nodes(2);
//! let (web, client) = (world.node(1).add_pod("web"), world.node(2).add_pod("client"));
//! let _server = web.serve_tcp(8080);
//! let service = Service::new("web").cluster_ip("10.96.0.10").tcp("http", 80, 8080);
//! world.apply_all(service.slices([Endpoint::of(&web)]));
//! world.apply(&service);
//! let agents = world.start_agents();
//! let answer = client.ask(Probe::Tcp, "10.96.0.10:80".parse().expect("an address"));
//! assert_eq!(answer.expect("a reply").backend, "web");
//! ```
//!
//! **Conventions.** A function that sets up a world panics with its whole chain of causes. A function that a
//! test may want to see fail (connecting, asking, pinging) returns `io::Result`. All functions block: call
//! them from ordinary threads, never from inside an async runtime.
#![deny(unsafe_code)]

mod agent;
mod binary;
mod bpffs;
mod capture;
mod cgroup;
mod client;
pub mod cni;
pub mod config;
pub mod containers;
mod fabric;
mod failure;
mod fdpass;
mod flows;
pub mod forge;
#[doc(hidden)]
pub mod guard;
mod http;
mod keep;
pub mod kubernetes;
pub mod manifest;
mod names;
mod netlink;
mod netns;
mod node;
mod ping;
mod pinned;
mod place;
mod pod;
mod probe;
mod removal;
pub mod server;
pub mod skip;
mod source_dir;
mod spread;
mod stream;
mod time_exceeded;
mod tun;
mod wait;
#[doc(hidden)]
pub mod worker;
mod world;

pub use agent::{Agent, AgentBuilder, Source};
pub use binary::{millrace, millrace_cni};
pub use capture::{Frame, PacketSocket};
pub use client::Client;
pub use cni::PodSpec;
pub use flows::{FlowReport, LongFlows};
pub use forge::Forge;
pub use http::HttpResponse;
pub use manifest::{Endpoint, EndpointSlice, Manifest, Service};
pub use node::{Node, NodeSpec, PodNetwork};
pub use pinned::KernelObjects;
pub use place::{PATIENCE, Place, address, mapped};
pub use pod::Pod;
pub use probe::{Probe, Reply};
pub use removal::{check_tag, remove};
pub use server::{Server, ServerApart};
pub use source_dir::SourceDir;
pub use spread::{Spread, assert_even, spread, uniform_p_value};
pub use stream::{ConnectStream, StreamReport};
pub use time_exceeded::TimeExceeded;
pub use wait::{eventually, slowness, wait_for};
pub use world::{World, WorldBuilder};
