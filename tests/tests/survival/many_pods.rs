//! A node full of pods: a fault of one pod is reported as fast as on a node with three.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::cni::{self, Attachment, PodSpec};
use harness::{Node, wait_for};

use super::topology::{SECOND, Topology};

/// Kubernetes allows 110 pods on a node by default, and a world has some pods already.
const PODS: usize = 105;
const WORKERS: usize = 6;
/// The agent's time limit.
const NAMED: Duration = Duration::from_secs(3);
/// The number of pods that get a wrong rule.
const WRONG: usize = 9;

/// Makes pods without a process in them, and returns their addresses.
fn fill(node: &Node) -> Vec<[IpAddr; 2]> {
    let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= PODS {
                        return;
                    }
                    let name = format!("many{number}");
                    let attachment = Attachment {
                        netns: node.add_namespace(&name),
                        spec: PodSpec::new(&name),
                    };
                    let called = cni::call(node, "ADD", &attachment, None).expect("the plugin");
                    let result = called.done().expect("a pod");
                    let address = |number: usize| -> IpAddr {
                        let text = result["ips"][number]["address"].as_str().expect("an address");
                        let (ip, _length) = text.split_once('/').expect("a prefix");
                        ip.parse().expect("an address")
                    };
                    made.lock().expect("no panic").push([address(0), address(1)]);
                }
            });
        }
    });
    made.into_inner().expect("no panic")
}

/// Processor time that a process has used.
fn used(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, fields) = text.rsplit_once(") ").expect("fields");
    let ticks = |number: usize| -> u64 {
        let field = fields.split(' ').nth(number).expect("a field");
        field.parse().expect("a number")
    };
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

#[test]
fn a_wrong_rule_for_one_pod_of_a_hundred_is_named() {
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    let pods = fill(node);
    assert_eq!(pods.len(), PODS);
    let (pid, before) = (topology.agents[0].pid(), Instant::now());
    let used_before = used(pid);
    thread::sleep(10 * SECOND);
    let share = used(pid).saturating_sub(used_before).as_secs_f64() / before.elapsed().as_secs_f64();
    println!(
        "the agent uses {:.2} % of a processor with {PODS} pods",
        share * 100.0
    );
    let mut times = Vec::new();
    for number in 0..WRONG {
        let pod = pods[number * (PODS - 1) / (WRONG - 1)];
        let (address, family) = if number % 2 == 0 {
            (pod[0], "")
        } else {
            (pod[1], "-6 ")
        };
        let rule = format!("to {address} pref 100 unreachable");
        node.run_ip(&format!("{family}rule add {rule}"));
        let begun = Instant::now();
        let named = format!("route {address}/");
        let status = wait_for(&format!("{named} to be named"), 4 * NAMED, || {
            let status = topology.status();
            if status["errors"].to_string().contains(&named) {
                Ok(status)
            } else {
                Err(status["errors"].clone())
            }
        });
        times.push(begun.elapsed());
        assert_eq!(status["ready"], false, "{status}");
        node.run_ip(&format!("{family}rule del {rule}"));
        topology.wait_ready();
    }
    times.sort_unstable();
    println!("named after {times:?}");
    // A single report may be late on a busy machine, so the median counts.
    assert!(times[WRONG / 2] <= NAMED, "named after {times:?}");
}
