//! Pods come and go by the hundred while plugin and agent are killed at random: no address is given twice and
//! none is lost.
//!
//! `MILLRACE_CHURN_PODS` sets the number of pods, `MILLRACE_CHURN_SEED` the seed of their fates. Workers add
//! and delete pods in parallel. A call may be killed at any moment, and a DEL may come after the pod's
//! namespace is gone. Some pods get no DEL at all. Meanwhile an agent is killed and started again, and each
//! start collects leaked addresses. The test makes all notes look old before each start. So the youth of a
//! pod does not protect its addresses; only the agent's knowledge of living and starting pods does.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::cni::{self, Attachment, Called, PodSpec};
use harness::{Agent, Node, NodeSpec, World, eventually};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// The default number of pods.
const PODS: usize = 100;
/// The number of workers, which make and remove pods in parallel.
const WORKERS: usize = 6;
/// The pods of a node that has run for a long time.
const SETTLED: usize = 4;

fn setting(name: &str, default: usize) -> usize {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}"))
    })
}

/// The fate of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// ADD, then DEL.
    Plain,
    /// ADD is killed; DEL.
    AddKilled,
    /// ADD is killed, and there is no DEL.
    AddLost,
    /// ADD; DEL is killed; DEL.
    DelKilled,
    /// ADD; DEL is killed, and not called again.
    DelLost,
    /// ADD; the namespace is removed; DEL.
    GoneFirst,
    /// ADD; the namespace is removed, and there is no DEL.
    Lost,
}

impl Fate {
    fn draw(random: &mut fastrand::Rng) -> Self {
        match random.u8(..20) {
            0..8 => Self::Plain,
            8..11 => Self::AddKilled,
            11 => Self::AddLost,
            12..15 => Self::DelKilled,
            15 => Self::DelLost,
            16..19 => Self::GoneFirst,
            _ => Self::Lost,
        }
    }
}

/// The state that all workers share.
struct Churn<'a> {
    node: &'a Node,
    pods: usize,
    seed: u64,
    next: AtomicUsize,
    kills: AtomicUsize,
    done: AtomicBool,
    /// The holder of each address: pods whose ADD succeeded and whose end has not begun.
    live: Mutex<BTreeMap<IpAddr, usize>>,
    /// The duration of a call in microseconds. Kills come within about that time.
    took: AtomicU64,
}

impl Churn<'_> {
    fn work(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.pods {
                return;
            }
            // A pod's fate depends on seed and number only.
            let mut random = fastrand::Rng::with_seed(self.seed.wrapping_mul(1_000_003) ^ number as u64);
            let fate = Fate::draw(&mut random);
            self.live_and_die(number, fate, &mut random);
        }
    }

    fn live_and_die(&self, number: usize, fate: Fate, random: &mut fastrand::Rng) {
        let name = format!("c{number}");
        let attachment = Attachment {
            spec: spec(&name, number, random),
            netns: self.node.add_namespace(&name),
        };
        let context = format!("pod {number} ({fate:?}, seed {})", self.seed);
        if matches!(fate, Fate::AddKilled | Fate::AddLost) {
            self.call_and_kill("ADD", &attachment, random);
        } else {
            let started = Instant::now();
            let result = self.call("ADD", &attachment, &context);
            let micros = started.elapsed().as_micros() as u64;
            self.took.store(micros.max(1000), Ordering::Relaxed);
            self.comes_alive(number, &result, &context);
            thread::sleep(Duration::from_millis(random.u64(..30)));
            self.goes(number);
        }
        if matches!(fate, Fate::DelKilled | Fate::DelLost) {
            self.call_and_kill("DEL", &attachment, random);
        }
        let gone_first = matches!(fate, Fate::GoneFirst | Fate::Lost | Fate::AddLost | Fate::DelLost);
        if gone_first {
            self.node.remove_namespace(&name);
        }
        if !matches!(fate, Fate::Lost | Fate::AddLost | Fate::DelLost) {
            self.call("DEL", &attachment, &context);
        }
        if !gone_first {
            self.node.remove_namespace(&name);
        }
    }

    fn comes_alive(&self, number: usize, result: &Value, context: &str) {
        let mut live = self.live.lock().expect("the live");
        for address in addresses(result) {
            let other = live.insert(address, number);
            assert_eq!(other, None, "{context} got {address}, which another pod has");
        }
    }

    fn goes(&self, number: usize) {
        let mut live = self.live.lock().expect("the live");
        live.retain(|_, owner| *owner != number);
    }

    fn call(&self, verb: &str, attachment: &Attachment, context: &str) -> Value {
        let called: Called = cni::call(self.node, verb, attachment, None)
            .unwrap_or_else(|error| panic!("{context}: {verb}: {error:#}"));
        assert!(called.success, "{context}: {verb} failed: {}", called.document);
        called.document
    }

    fn call_and_kill(&self, verb: &str, attachment: &Attachment, random: &mut fastrand::Rng) {
        let mut running = cni::start(self.node, verb, attachment, None).expect("a call to kill");
        let longest = self.took.load(Ordering::Relaxed) * 5 / 4;
        thread::sleep(Duration::from_micros(random.u64(..longest)));
        if running.kill().expect("killing a call") {
            self.kills.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Kills the agent and starts it again, until all pods are done.
    fn unsettle(&self, agent: &mut Agent) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut restarts = 0;
        while !self.done.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(random.u64(200..900)));
            age_notes(self.node);
            agent.kill();
            agent.start_again();
            restarts += 1;
        }
        println!("the agent was killed {restarts} times");
    }
}

/// Some pods have limits and host ports.
fn spec(name: &str, number: usize, random: &mut fastrand::Rng) -> PodSpec {
    let mut spec = PodSpec::new(name);
    if random.u8(..4) == 0 {
        let limits = json!({"ingressRate": 50_000_000, "ingressBurst": 1_000_000, "egressRate": 20_000_000, "egressBurst": 1_000_000});
        spec = spec.asking("bandwidth", limits);
    }
    if random.u8(..4) == 0 {
        let port = 10_000 + number % 20_000;
        spec = spec.asking(
            "portMappings",
            json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]),
        );
    }
    spec
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let listed = result["ips"].as_array().expect("addresses").iter();
    let texts = listed.filter_map(|entry| entry["address"].as_str()?.split('/').next());
    texts.map(|text| text.parse().expect("an address")).collect()
}

fn lease_dir(node: &Node) -> PathBuf {
    node.dir().join("state/networks/millrace")
}

/// Makes all notes look two minutes older. Their files stay the same, since ADD holds locks on them.
fn age_notes(node: &Node) {
    let dir = lease_dir(node);
    let Ok(lock) = OpenOptions::new().read(true).write(true).open(dir.join("lock")) else {
        return;
    };
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("the lock of the leases");
    for entry in fs::read_dir(dir.join("millrace")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).expect("a note");
        let mut document: Value = serde_json::from_str(&text).expect("a note");
        let made = document["sinceBootMs"].as_u64().expect("when it was made");
        document["sinceBootMs"] = json!(made.saturating_sub(120_000));
        let file = File::options().write(true).truncate(true).open(entry.path());
        serde_json::to_writer(file.expect("a note"), &document).expect("writing a note");
    }
}

/// The interfaces, queues and routes, which must be the same before and after the pods.
fn surroundings(node: &Node) -> Vec<String> {
    let lines = |program: &str, arguments: &[&str]| -> Vec<String> {
        let output = node.command(program).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("running {program}: {error}"));
        assert!(output.status.success(), "{program} {arguments:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(|line| line.trim().to_owned()).collect()
    };
    let names = lines("ip", &["-o", "link"]).into_iter().filter_map(|line| {
        let name = line.split(": ").nth(1)?.to_owned();
        Some(format!("interface {name}"))
    });
    let mut all: Vec<_> = names.collect();
    all.extend(lines("tc", &["qdisc"]));
    all.extend(lines("ip", &["-4", "route", "show", "table", "main"]));
    all.extend(lines("ip", &["-6", "route", "show", "table", "main"]));
    all.sort();
    all
}

/// The entries and pins of pods that are left.
fn left_in_maps(node: &Node) -> Vec<String> {
    let mut left = Vec::new();
    for (name, entries) in [
        ("PODS", node.table::<16, 24>("PODS").len()),
        ("POD_LINKS", node.table::<4, 16>("POD_LINKS").len()),
        ("HOST_PORTS", node.table::<20, 28>("HOST_PORTS").len()),
        ("POD_NETNS", node.table::<8, 4>("POD_NETNS").len()),
    ] {
        if entries > 0 {
            left.push(format!("{entries} entries of {name}"));
        }
    }
    for entry in fs::read_dir(node.bpf_root().join("links"))
        .expect("pins")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with("_pod") {
            left.push(format!("pin {name}"));
        }
    }
    left
}

#[test]
fn no_address_is_allocated_twice_or_lost() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let mut agent = node.agent().start();
    agent.wait_ready(Duration::from_mins(1));
    let before = surroundings(node);
    let settled: Vec<_> = (0..SETTLED)
        .map(|number| node.add_pod(&format!("s{number}")))
        .collect();
    let churn = Churn {
        node,
        pods: setting("MILLRACE_CHURN_PODS", PODS),
        seed: setting("MILLRACE_CHURN_SEED", 1) as u64,
        next: AtomicUsize::new(0),
        kills: AtomicUsize::new(0),
        done: AtomicBool::new(false),
        live: Mutex::default(),
        took: AtomicU64::new(20_000),
    };
    thread::scope(|scope| {
        let agent = &mut agent;
        let unsettling = scope.spawn(|| churn.unsettle(agent));
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| churn.work())).collect();
        let ended: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        churn.done.store(true, Ordering::Relaxed);
        unsettling.join().expect("the agent");
        for outcome in ended {
            outcome.expect("a worker");
        }
    });
    let kills = churn.kills.load(Ordering::Relaxed);
    println!("{} pods, {kills} calls of the plugin were killed", churn.pods);
    assert!(kills > churn.pods / 20, "{kills} kills are no test");

    // Leaked addresses are old by now, and the next collection frees them.
    age_notes(node);
    agent.restart();
    agent.wait_ready(Duration::from_mins(1));
    let mut last = Value::Null;
    let settled_addresses = 2 * SETTLED;
    eventually(
        "only pods that live have addresses",
        Duration::from_secs(30),
        || {
            last = agent.cli(&["ipam", "list"]);
            last.as_array()
                .is_some_and(|leases| leases.len() == settled_addresses)
        },
    );
    let checked = node.run(&["ipam", "check"]).expect("ipam check");
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
    for pod in settled {
        pod.delete();
    }
    eventually("nothing is left in maps", Duration::from_secs(10), || {
        left_in_maps(node).is_empty()
    });
    assert_eq!(agent.cli(&["ipam", "list"]), json!([]));
    assert_eq!(surroundings(node), before);
}
