//! A pod that sends from foreign addresses all the time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::{Node, Pod, Server, eventually, wait_for};
use proxy_common::maps::Reason;

use crate::topology::{SECOND, SOON, of_family};

/// The port that only the forger sends to.
const FORGED: u16 = 9099;
const FOREIGN: [&str; 2] = ["10.9.9.9", "fd09::9:9"];
/// The number of forged datagrams of each family during one assertion.
pub const GOAL: usize = 50;

/// A pod that sends datagrams of both families from foreign addresses, and counts of those that arrived.
pub struct Forger {
    stop: Arc<AtomicBool>,
    sent: Arc<[AtomicUsize; 2]>,
    thread: Option<JoinHandle<()>>,
    servers: [Server; 2],
}

impl Forger {
    #[track_caller]
    pub fn start(pod: &Pod, target: &Pod) -> Self {
        let ends = [true, false].map(|v4| SocketAddr::new(of_family(target.addresses(), v4), FORGED));
        let servers = ends.map(|end| target.serve_udp_at(end));
        // No other datagram of the pod uses the second address as its source.
        for address in ["10.9.9.9/32", "fd09::9:9/128 preferred_lft 0"] {
            pod.run_ip(&format!("addr replace {address} dev eth0"));
        }
        let sockets = FOREIGN.map(|foreign| {
            let from = SocketAddr::new(foreign.parse().expect("an address"), 0);
            wait_for("the address to be usable", SOON, || pod.udp_bind(from))
        });
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::<[AtomicUsize; 2]>::default(),
        );
        let (stopped, counts) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (number, socket) in sockets.iter().enumerate() {
                    // The pod may lack a route for a moment.
                    if socket.send_to(b"forged", ends[number]).is_ok() {
                        counts[number].fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self {
            stop,
            sent,
            thread: Some(thread),
            servers,
        }
    }

    /// The number of datagrams of each family that were sent.
    pub fn sent(&self) -> [usize; 2] {
        self.sent.each_ref().map(|sent| sent.load(Ordering::Relaxed))
    }

    /// The number of datagrams of each family that arrived.
    pub fn arrived(&self) -> [usize; 2] {
        self.servers.each_ref().map(Server::served)
    }

    /// Waits until more datagrams of each family were sent, and asserts that none arrived.
    #[track_caller]
    pub fn assert_held(&self, when: &str) {
        let goals = self.sent().map(|sent| sent + GOAL);
        eventually("forged datagrams to be sent", 10 * SECOND, || {
            self.sent().iter().zip(goals).all(|(sent, goal)| *sent >= goal)
        });
        assert_eq!(self.arrived(), [0, 0], "{when}: a forged datagram came through");
    }

    /// The same, and asserts that the node counts the datagrams sent meanwhile as refused.
    #[track_caller]
    pub fn assert_refused(&self, node: &Node, when: &str) {
        let refused = || node.counters()[Reason::SpoofedSource as usize];
        let before = refused();
        self.assert_held(when);
        let goal = before + 2 * GOAL as u64;
        // A packet may not have reached its program yet.
        eventually(&format!("{when}: {goal} refusals"), SECOND, || refused() >= goal);
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
