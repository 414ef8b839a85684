//! The agent: one loop that owns all state, fed by tasks that own none.
//!
//! ```text
//! source task ──events──┐
//! netlink monitor ──────┼─► loop: ClusterState → plan → diff → apply ─► maps, links, routes
//! control socket ───────┘
//! ```
//!
//! All state belongs to the loop, which shares one thread with the tasks, so no state of a decision needs a
//! lock. One more thread waits for RCU grace periods. Other threads run for a while, to write large replies
//! or to read large files. No event waits for a timer: the loop applies the events that have arrived, and
//! more gather for the next round meanwhile.

mod api_servers;
mod at_share;
mod configz;
mod firewall;
mod flows;
mod local_ports;
mod measure;
mod node;
mod open_files;
mod outside;
mod own_node;
mod pod_gc;
mod pod_network;
mod pod_ranges;
mod ranges;
mod reconfigure;
mod report;
mod reporter;
mod service_list;
mod sources;
mod stale_rules;
mod survival;
mod table_sizes;
mod trace;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use proxy_common::Ip;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::apply::{Limits, Programmer, Progress};
use crate::bpf::Datapath;
use crate::bpf::pins::Pins;
use crate::cluster::{Changes, ClusterState};
use crate::config::AgentOptions;
use crate::control::{self, FirstSync, Leases, ObjectError, PendingRequest, Reply, Request};
use crate::plan::NodeContext;
use crate::pods::{self, PluginPaths};
use crate::source::{self, Event, ObjectIdSet};
use flows::Passes;
use node::Node;
use pod_gc::{PodGarbageCollection, PodSettings};
use reporter::{Note, Reporter};
use service_list::Lists;
use survival::{Notifier, Survival};
use table_sizes::Arrivals;

/// The most events that the loop takes in before it applies them. While it applies them, more gather in the
/// channel.
const EVENTS_PER_ROUND: usize = 1024;
/// The capacity of the channel of events; a source that is ahead waits.
const EVENTS_AHEAD: usize = 4096;
/// The delay of the next try after a failed write.
const RETRY: Duration = Duration::from_millis(100);
/// The interval between two checks for ended grace periods while the agent is idle.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// Runs the agent until SIGTERM or SIGINT. The programs and maps go on serving afterwards.
pub fn run(options: AgentOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(Agent::run(options));
    // A source that waits for an API server must not delay the end.
    runtime.shutdown_background();
    result
}

/// All state of a running agent.
struct Agent {
    options: AgentOptions,
    context: NodeContext,
    cluster: ClusterState,
    changes: Changes,
    programmer: Programmer<Datapath>,
    node: Node,
    own_node: own_node::OwnNode,
    source: source::StateHandle,
    reporter: Reporter,
    pod_gc: PodGarbageCollection,
    passes: Passes,
    survival: Survival,
    walked: Option<Instant>,
    config_errors: Vec<ObjectError>,
    /// The overlaps of ports that were logged last.
    overlaps: Vec<ObjectError>,
    synced: bool,
    first_sync: Option<FirstSync>,
    arrivals: Arrivals,
    last_change: Option<Timestamp>,
    last_writes: u64,
    lists: Lists,
}

impl Agent {
    async fn run(options: AgentOptions) -> anyhow::Result<()> {
        tracing::info!(node = options.node_name, source = %options.source, "starting");
        configz::log(&options);
        open_files::raise();
        let socket = control::bind(&options.run_dir)?;
        if let Err(error) = crate::cni::close_state_dir(&options.state_dir) {
            tracing::warn!(%error, "others may enter the state directory");
        }
        // Another agent with another run directory must not work with the same maps.
        let owned = Pins::open(&options.bpf_root)?.own()?;
        let limits = &options.configuration.maps;
        let datapath = survival::open_datapath(&options, &table_sizes::initial(limits))?;
        let node = Node::start(&options).await?;
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;

        let (requests, mut asked) = mpsc::channel::<PendingRequest>(16);
        let (events, mut arrived) = mpsc::channel::<Event>(EVENTS_AHEAD);
        let (source, recorder) = sources::start(&options, events).await?;
        let (reporter, mut scrapes) = Reporter::start(&options, recorder)?;
        let notifier = Notifier::new(&options.node_name, reporter.recorder(), reporter.metrics.clone());
        let socket_notifier = notifier.clone();
        tokio::spawn(control::serve(socket, requests, move |path| {
            socket_notifier.restored(&[("socket", path.display().to_string())]);
        }));
        let pod_gc = PodGarbageCollection::start(plugin_paths(&options), reporter.faults(), notifier.clone());
        let survival = Survival::start(plugin_paths(&options), notifier, owned);
        let mut readings = reconfigure::start(options.config_files.clone());
        let (passes, mut outcomes, mut walk) = Passes::new();

        let context = NodeContext {
            name: options.node_name.clone(),
            ..NodeContext::default()
        };
        let programmer = Programmer::new(
            datapath,
            Limits {
                max: table_sizes::largest(limits),
            },
        );
        let mut agent = Self {
            context,
            cluster: ClusterState::new(None),
            changes: Changes::default(),
            programmer,
            node,
            own_node: own_node::OwnNode::default(),
            source,
            reporter,
            pod_gc,
            passes,
            survival,
            walked: None,
            config_errors: Vec::new(),
            overlaps: Vec::new(),
            synced: false,
            first_sync: None,
            arrivals: Arrivals::none(),
            last_change: None,
            last_writes: 0,
            lists: Lists::default(),
            options,
        };
        local_ports::log_new(&mut agent);
        loop {
            let pending = agent.programmer.pending() > 0;
            agent
                .reporter
                .observe(!pending && (agent.synced || !agent.cluster.synced()));
            let pause = if pending { RETRY } else { HOUSEKEEPING };
            // A page in each round, since events may come without end.
            service_list::add_page(&mut agent);
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // Before events, which may come without end: this check is short and comes once a second.
                of_pods = agent.survival.due() => survival::look(&mut agent, of_pods).await,
                event = arrived.recv() => match event {
                    Some(event) => agent.take(event, &mut arrived).await,
                    None => bail!("the source of objects ended"),
                },
                changed = agent.node.changed() => agent.network_changed(changed?).await,
                () = agent.source.moved() => agent.look_outside().await,
                Some((request, reply)) = asked.recv() => agent.reply(&request, reply),
                Some(reading) = readings.recv() => agent.reconfigure(reading).await,
                Some(done) = scrapes.recv() => {
                    measure::measure(&mut agent);
                    let _ = done.send(());
                }
                Some(outcome) = outcomes.recv() => {
                    agent.passes.end(outcome, &agent.reporter, &agent.options.node_name);
                }
                // As often as the pause below, which begins anew with each round.
                _ = walk.tick() => {
                    agent.passes.begin(agent.programmer.store());
                    agent.try_again().await;
                }
                () = std::future::ready(()), if agent.lists.are_wanted() => {}
                () = tokio::time::sleep(pause) => agent.try_again().await,
            }
        }
        tracing::info!("stopping; the data plane goes on as it is");
        Ok(())
    }

    /// Tries again the writes that failed and the part of the pod network that is unfinished; logs new
    /// overlaps of ports.
    async fn try_again(&mut self) {
        let _ = self.programmer.retry();
        if self.synced {
            self.changes
                .services
                .extend(self.programmer.due_again(Instant::now()));
            self.apply_changes().await;
        }
        local_ports::log_new(self);
        if self.synced && self.node.pods().is_unfinished() {
            self.refresh_node().await;
        }
    }

    /// Takes in an event and all others that have arrived by now, and applies the changes.
    async fn take(&mut self, event: Event, arrived: &mut mpsc::Receiver<Event>) {
        self.take_in(event);
        for _ in 1..EVENTS_PER_ROUND {
            let Ok(event) = arrived.try_recv() else { break };
            self.take_in(event);
        }
        self.apply_changes().await;
    }

    fn take_in(&mut self, event: Event) {
        let note = Note::of(&event);
        if !self.cluster.synced() {
            self.arrivals.count(&event.change);
        }
        self.cluster.apply(event, &mut self.changes);
        self.reporter.taken(&note, &self.changes);
    }

    async fn apply_changes(&mut self) {
        if !self.cluster.synced() {
            return self.make_room_ahead();
        }
        if self.changes.is_empty() {
            return;
        }
        let mut changes = std::mem::take(&mut self.changes);
        if changes.synced || !self.synced {
            self.first_sync().await;
        } else {
            let api_servers = changes.services.contains(&api_servers::service());
            if changes.nodes || changes.service_cidrs || api_servers {
                self.update_context(&mut changes.services);
            }
            if !changes.services.is_empty() {
                let progress = self
                    .programmer
                    .update(&changes.services, &self.cluster, &self.context);
                self.note(progress.writes);
                let services = changes.services.iter().copied();
                self.reporter
                    .look_at_services(services.clone(), &self.cluster, &self.context.name);
                for id in services {
                    self.reporter
                        .notify(id, &self.cluster, self.programmer.problems_of(id));
                }
            }
            let addresses = self.programmer.take_changed_addresses();
            if changes.nodes
                || changes.service_cidrs
                || api_servers
                || self.concern_node(&addresses)
                || self.node.has_other_ports(&self.cluster, &self.programmer)
            {
                self.refresh_node().await;
            }
        }
        changes.clear();
        self.changes = changes;
    }

    /// Lets the tables grow while the first lists come in, ahead of the objects that have arrived.
    fn make_room_ahead(&mut self) {
        if self.arrivals.are_many() {
            let left = self.programmer.make_room_ahead(&self.cluster, &self.context);
            self.arrivals.restart(left);
        }
    }

    async fn first_sync(&mut self) {
        let started = Instant::now();
        self.node.observe(&self.cluster, &self.options);
        self.update_context(&mut ObjectIdSet::default());
        let named = ranges::named_outside(&self.cluster, &self.options);
        let named = (&named, &self.context.api_servers);
        // The refresh below reports the same problems again.
        let _ = self
            .node
            .write_addresses(&self.cluster, &self.options, &mut self.programmer, named)
            .await;
        let result = self.programmer.sync(&self.cluster, &self.context);
        let took = started.elapsed();
        drop(self.programmer.take_changed_addresses());
        self.refresh_node().await;
        match result {
            Ok(Progress { services, writes }) => {
                tracing::info!(services, writes, ?took, "everything is programmed");
                self.synced = true;
                let all = self.cluster.services().map(|(id, _)| id);
                self.reporter
                    .look_at_services(all, &self.cluster, &self.context.name);
                for (id, _) in self.cluster.services() {
                    self.reporter
                        .notify(id, &self.cluster, self.programmer.problems_of(id));
                }
                self.first_sync = Some(FirstSync {
                    services: services as u64,
                    writes,
                    micros: micros(took),
                    attach_micros: micros(started.elapsed().saturating_sub(took)),
                });
                self.note(writes);
            }
            Err(error) => tracing::error!(%error, "reading the tables failed"),
        }
    }

    fn note(&mut self, writes: u64) {
        self.last_writes = writes;
        if writes > 0 {
            self.last_change = Some(Timestamp::now());
        }
    }

    async fn network_changed(&mut self, relevant: bool) {
        let concerns = self.node.take_concerns();
        if concerns.pods {
            self.survival.wake();
        }
        if concerns.limits {
            self.pod_gc.look_again();
        }
        if relevant {
            self.look_outside().await;
        }
        let touched = self.node.take_touched();
        if self.synced && !touched.is_empty() {
            survival::look_at_programs(self, |index| touched.contains(&index)).await;
            survival::look_ahead(self, |index| touched.contains(&index));
        }
    }

    /// Whether new or removed virtual addresses require a refresh of the node's side. Most lie in a service
    /// range that has its route already.
    fn concern_node(&self, addresses: &[Ip]) -> bool {
        let ranges = ranges::service_cidrs(&self.cluster, &self.options);
        let outside_ranges = |address: &Ip| ranges::is_outside_ranges(&IpAddr::from(*address), &ranges);
        !addresses.is_empty() && (!self.node.problems().is_empty() || addresses.iter().any(outside_ranges))
    }

    async fn refresh_node(&mut self) {
        if self.survival.is_taken() {
            return;
        }
        let virtual_addresses =
            Node::addresses_outside_ranges(&self.cluster, &self.options, &self.programmer);
        self.node
            .refresh(
                &self.cluster,
                &self.options,
                &mut self.programmer,
                (virtual_addresses, &self.context.api_servers),
            )
            .await;
        own_node::look(self);
        let interfaces = self.node.pod_interfaces(&self.options);
        let uplinks = self.node.uplink_names();
        self.reporter
            .firewall
            .notify(&self.cluster, &self.options, interfaces, uplinks);
        let node = &self.options.node_name;
        let bandwidth = self.cluster.bandwidth_of_pods(node);
        let choices = &self.options.configuration.pods_with_any_source;
        let chosen = self.cluster.chosen_pods(node, choices);
        let settings = bandwidth.zip(chosen).map(|(bandwidth, any_source)| PodSettings {
            bandwidth,
            any_source,
        });
        self.pod_gc.look(settings);
        self.survival.restored(&self.node.take_restored());
    }

    fn reply(&mut self, request: &Request, to: oneshot::Sender<Result<Reply, String>>) {
        let pods = &self.pod_gc;
        let reply = match request {
            Request::Status => Ok(Reply::Status(Box::new(report::status(self)))),
            Request::ListServices => return self.lists.begin(to),
            Request::ListNodes => Ok(Reply::ListNodes(self.node.pods().nodes())),
            Request::Trace(request) => trace::trace(self, request).map(Reply::Trace),
            Request::ListPods => {
                return pods.reply(to, pods::list::list, |_, pods| Reply::ListPods(pods));
            }
            Request::ListLeases => {
                return pods.reply(to, pods::leases::list, |plugin_paths, leases| {
                    let dir = plugin_paths.lease_dir.clone();
                    Reply::ListLeases(Leases { dir, leases })
                });
            }
        };
        // The client may have closed its connection by now.
        let _ = to.send(reply);
    }
}

/// Whole microseconds, the unit that scripts read.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The directories and pins in which the CNI plugin of this node keeps its state.
fn plugin_paths(options: &AgentOptions) -> PluginPaths {
    PluginPaths {
        lease_dir: crate::cni::lease_dir(&options.state_dir),
        bpf_root: options.bpf_root.clone(),
    }
}
