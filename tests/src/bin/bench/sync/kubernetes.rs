//! The same from a real API server: its events reach the agent through a [`Relay`] that notes the time of
//! each.
//!
//! The API server, etcd and all other processes share one CPU, as if they were on another machine; the agent
//! has the other one. The rate is the highest that the server delivers there, with [`WRITERS`] clients that
//! each write again as soon as they have a reply.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use harness::kubernetes::ControlPlane;
use harness::{Manifest as _, Source};
use serde_json::{Value, json};

use super::directory::changed_slice;
use super::event::{Effect, LIMIT};
use super::relay::{self, ANNOTATION, Relay};
use super::site::{Running, Site};
use super::tables::Tables;
use super::{cold, objects, unchanged};
use crate::Effort;
use crate::cpu;
use crate::figures::{Figure, Figures};
use crate::quantiles::quantile;

/// The number of services in the cluster.
const SERVICES: usize = 10_000;

/// Clients at the highest rate.
const WRITERS: usize = 32;

/// Time between events when idle.
const IDLE: Duration = Duration::from_millis(50);

/// After this time a wait has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Kinds of objects that the agent lists.
const KINDS: u64 = 4;

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    if effort.quick {
        figures.skip("sync.kubernetes", "takes too long for a quick run");
        return Ok(());
    }
    if let Some(missing) = harness::kubernetes::missing() {
        figures.skip("sync.kubernetes", &missing);
        return Ok(());
    }
    let site = Site::new();
    let plane = ControlPlane::start(&site.world);
    fill(&plane, &site);
    for pid in plane.pids() {
        cpu::bind(pid, cpu::OTHERS)?;
    }
    let (relay, kubeconfig) = start_relay(&plane, &site)?;
    let source = || Source::Kubernetes {
        kubeconfig: kubeconfig.clone(),
    };
    let start = |site: &Site| site.start_as(site.node().agent().source(source()));

    cold::repeat(figures, &site, SERVICES, "kubernetes", 5, start)?;
    unchanged::restart(figures, &site, "kubernetes", 5, start)?;
    let running = start(&site)?;
    relist(figures, &running, &relay)?;
    let test_bed = TestBed {
        plane: &plane,
        relay: &relay,
        bpf_root: site.node().bpf_root(),
        next: AtomicU64::new(0),
    };
    test_bed.measure_pace(figures, &running, "idle", &|effects| {
        test_bed.write_idly(effects, 200);
    })?;
    test_bed.measure_pace(figures, &running, "highest-rate", &|effects| {
        test_bed.write_in_parallel(effects, Duration::from_secs(10));
    })
}

fn fill(plane: &ControlPlane, site: &Site) {
    plane.apply(&site.node().object());
    plane.apply_status(&site.node().object());
    plane.create_all((0..SERVICES).map(objects::service));
    plane.create_all((0..SERVICES).map(|service| objects::slice(service, &objects::endpoints(service))));
}

/// Starts a relay and writes the kubeconfig that leads to it.
fn start_relay(plane: &ControlPlane, site: &Site) -> Result<(Relay, PathBuf)> {
    let url = plane.url();
    let server: SocketAddr = url
        .trim_start_matches("https://")
        .parse()
        .with_context(|| format!("{url} names no address"))?;
    let text = std::fs::read_to_string(plane.kubeconfig()).context("reading the kubeconfig")?;
    let mut kubeconfig: Value = serde_saphyr::from_str(&text).context("reading the kubeconfig")?;
    let cluster = &mut kubeconfig["clusters"][0]["cluster"];
    let authority = cluster["certificate-authority"]
        .as_str()
        .context("the kubeconfig names no authority")?;
    let relay = Relay::start(site.world.fabric(), server, authority.as_ref())?;
    let address = SocketAddr::new(IpAddr::V4(site.world.fabric().ip()), relay::PORT);
    *cluster = json!({"server": format!("http://{address}")});
    let path = site.node().dir().join("kubeconfig");
    let text = serde_saphyr::to_string(&kubeconfig).context("writing a kubeconfig")?;
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok((relay, path))
}

/// The server forgets the past, and the agent lists everything again.
fn relist(figures: &mut Figures, running: &Running, relay: &Relay) -> Result<()> {
    let (mut writes, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (before, used) = (running.writes()?, running.settle()?);
        let lists = relay.lists();
        relay.forget();
        let started = Instant::now();
        while relay.lists() < lists + KINDS {
            ensure!(started.elapsed() < PATIENCE, "the agent does not list again");
            thread::sleep(Duration::from_millis(50));
        }
        relay.remember();
        cpu.push(running.settle()?.saturating_sub(used).as_secs_f64() * 1e3);
        writes.push(f64::from(u32::try_from(running.writes()? - before)?));
    }
    let name = |what: &str| format!("sync.unchanged.kubernetes.listed-again.{what}");
    figures.add(Figure::new(name("writes"), SERVICES, "writes", &writes).limit(0.0));
    figures.add(Figure::new(name("cpu"), SERVICES, "ms", &cpu));
    Ok(())
}

/// The parts that make events and see their effects.
struct TestBed<'a> {
    plane: &'a ControlPlane,
    relay: &'a Relay,
    bpf_root: &'a Path,
    next: AtomicU64,
}

/// The effects of events by event number.
type Effects = Mutex<HashMap<u64, Effect>>;

impl TestBed<'_> {
    /// Writes and watches at once, several times.
    fn measure_pace(
        &self,
        figures: &mut Figures,
        running: &Running,
        pace: &str,
        write: &dyn Fn(&Effects),
    ) -> Result<()> {
        let (mut p50, mut p99, mut rate) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            running.settle()?;
            let effects = Effects::default();
            let (sender, events) = mpsc::channel();
            self.relay.send_times(Some(sender));
            let written = AtomicBool::new(false);
            let started = Instant::now();
            let latencies = thread::scope(|scope| {
                let (effects, written) = (&effects, &written);
                let watcher = scope.spawn(move || self.watch(effects, &events, written));
                write(effects);
                rate.push(count(effects) / started.elapsed().as_secs_f64());
                written.store(true, Ordering::SeqCst);
                watcher.join()
            });
            self.relay.send_times(None);
            let latencies = latencies.map_err(|_| anyhow!("the watching thread panicked"))??;
            p50.push(quantile(&latencies, 0.5));
            p99.push(quantile(&latencies, 0.99));
        }
        let name = |what: &str| format!("sync.event.kubernetes.endpoint.{pace}.{what}");
        figures.add(Figure::new(name("rate"), SERVICES, "events/s", &rate));
        figures.add(Figure::new(name("p50"), SERVICES, "µs", &p50));
        figures.add(Figure::new(name("p99"), SERVICES, "µs", &p99).limit(LIMIT));
        Ok(())
    }

    /// Writes one event at a time.
    fn write_idly(&self, effects: &Effects, events: usize) {
        for _ in 0..events {
            self.change(effects);
            thread::sleep(IDLE);
        }
    }

    /// Writes as many events as the server takes.
    fn write_in_parallel(&self, effects: &Effects, time: Duration) {
        let started = Instant::now();
        thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    while started.elapsed() < time {
                        self.change(effects);
                    }
                });
            }
        });
    }

    /// Gives a service another first endpoint. The services take turns, so that no event overtakes another
    /// one.
    fn change(&self, effects: &Effects) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // A step that shares no divisor with the number of services visits each of them.
        let service = (number as usize).wrapping_mul(7_919) % SERVICES;
        let endpoint = objects::replacement(number as usize);
        lock(effects).insert(number, Effect { service, endpoint });
        let slice = changed_slice(service, endpoint).object();
        let change = json!({
            "metadata": {"annotations": {ANNOTATION: number.to_string()}},
            "endpoints": slice["endpoints"],
        });
        self.plane.patch(&slice, &change);
    }

    /// Receives the events from the relay and looks for their effects; returns the times between, in
    /// microseconds.
    fn watch(
        &self,
        effects: &Effects,
        events: &mpsc::Receiver<(u64, Instant)>,
        written: &AtomicBool,
    ) -> Result<Vec<f64>> {
        run_first()?;
        let tables = Tables::open(self.bpf_root)?;
        let mut awaited: Vec<(Effect, Instant)> = Vec::new();
        let mut latencies = Vec::new();
        let mut seen = 0;
        let started = Instant::now();
        loop {
            let next = if awaited.is_empty() {
                events.recv_timeout(Duration::from_millis(100)).ok()
            } else {
                events.try_recv().ok()
            };
            if let Some((number, when)) = next {
                let effect = lock(effects).get(&number).copied();
                awaited.push((
                    effect.with_context(|| format!("event {number} has no service"))?,
                    when,
                ));
                seen += 1;
                continue;
            }
            awaited.retain(|(effect, since)| {
                let shows = tables.has_backend(effect.service, effect.endpoint);
                if shows {
                    latencies.push(since.elapsed().as_secs_f64() * 1e6);
                }
                !shows
            });
            if let Some((effect, since)) = awaited.first()
                && since.elapsed() > PATIENCE
            {
                bail!("service {} does not lead to {}", effect.service, effect.endpoint);
            }
            if awaited.is_empty() && written.load(Ordering::SeqCst) && seen == lock(effects).len() {
                return Ok(latencies);
            }
            ensure!(started.elapsed() < PATIENCE * 2, "only {seen} events went by");
        }
    }
}

/// Lets the calling thread run as soon as it has something to do, regardless of the other load of its CPU.
fn run_first() -> Result<()> {
    cpu::bind_this_thread()?;
    let thread = nix::unistd::gettid().to_string();
    let status = Command::new("chrt")
        .args(["--fifo", "--pid", "1", &thread])
        .status()
        .context("running chrt (Debian: util-linux)")?;
    ensure!(
        status.success(),
        "chrt could not give thread {thread} a real-time priority"
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(effects: &Effects) -> f64 {
    lock(effects).len() as f64
}

fn lock(effects: &Effects) -> std::sync::MutexGuard<'_, HashMap<u64, Effect>> {
    effects.lock().unwrap_or_else(PoisonError::into_inner)
}
