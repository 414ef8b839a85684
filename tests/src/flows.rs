//! Long-lived connections that exchange lines while a test changes the data plane, and the proof that none of
//! them was interrupted.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};

use crate::failure::OrPanic;
use crate::place::Place;
use crate::probe::Reply;
use crate::wait;

/// A reply that takes longer than this counts as an interruption.
const STALLED: Duration = Duration::from_secs(5);

/// The events on long-lived connections.
#[derive(Clone, Debug, Default)]
pub struct FlowReport {
    /// Lines that were sent and answered, on all connections together.
    pub exchanges: u64,
    /// The longest wait of a line for its answer.
    pub longest_wait: Duration,
    /// Broken connections: which one, when, and by which error.
    pub interruptions: Vec<String>,
}

impl FlowReport {
    /// Panics if a connection broke, or if a line waited this long for its answer.
    #[track_caller]
    pub fn assert_unnoticed(&self, longest: Duration) {
        assert!(self.interruptions.is_empty(), "{self:?}");
        let longest = longest * wait::slowness();
        assert!(
            self.longest_wait < longest,
            "a line waited for {longest:?} or longer: {self:?}"
        );
    }
}

/// Connections to echoing servers, driven by a background thread until stopped.
pub struct LongFlows {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    state: Arc<State>,
    backends: BTreeMap<String, usize>,
}

struct State {
    started: Instant,
    /// Exchanges per connection; `u64::MAX` once it is interrupted.
    progress: Vec<AtomicU64>,
    exchanges: AtomicU64,
    report: Mutex<FlowReport>,
}

impl LongFlows {
    /// Opens `count` connections, each of which sends a line in each interval `every`.
    pub fn start(from: &Place, to: SocketAddr, count: usize, every: Duration) -> io::Result<Self> {
        let mut flows = Vec::with_capacity(count);
        let mut backends = BTreeMap::new();
        for _ in 0..count {
            let (stream, backend) = open(from, to)?;
            *backends.entry(backend.clone()).or_default() += 1;
            flows.push((stream, backend));
        }
        let (stop, stopped) = watch::channel(false);
        let state = Arc::new(State {
            started: Instant::now(),
            progress: (0..count).map(|_| AtomicU64::new(0)).collect(),
            exchanges: AtomicU64::new(0),
            report: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("long flows".to_owned())
            .spawn(move || drive(flows, every, &stopped, &shared))?;
        Ok(Self {
            stop,
            thread: Some(thread),
            state,
            backends,
        })
    }

    /// The number of connections of each backend.
    pub fn backends(&self) -> &BTreeMap<String, usize> {
        &self.backends
    }

    /// Waits until every connection that is not interrupted has exchanged a line that
    /// was sent after this call.
    #[track_caller]
    pub fn wait_progress(&self, within: Duration) {
        // Two more exchanges: one may have begun before the call.
        let goals: Vec<u64> = self.progress().map(|done| done.saturating_add(2)).collect();
        wait::eventually("every flow to exchange lines", within, || {
            self.progress().zip(&goals).all(|(done, goal)| done >= *goal)
        });
    }

    fn progress(&self) -> impl Iterator<Item = u64> {
        self.state
            .progress
            .iter()
            .map(|done| done.load(Ordering::Relaxed))
    }

    /// The report so far.
    pub fn report(&self) -> FlowReport {
        let mut report = self
            .state
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        report.exchanges = self.state.exchanges.load(Ordering::Relaxed);
        report
    }

    /// Closes the connections and returns the report.
    #[track_caller]
    pub fn stop(mut self) -> FlowReport {
        assert!(self.end(), "the driver of the connections has panicked");
        self.report()
    }

    /// Whether the driver has ended well; its panic has been printed.
    fn end(&mut self) -> bool {
        self.stop.send_replace(true);
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for LongFlows {
    fn drop(&mut self) {
        self.end();
    }
}

/// Connects and reads the backend's name. The server sends nothing beyond its line yet.
fn open(from: &Place, to: SocketAddr) -> io::Result<(TcpStream, String)> {
    let stream = from.tcp_connect(to)?;
    let mut line = String::new();
    io::BufRead::read_line(&mut io::BufReader::new(&stream), &mut line)?;
    Ok((stream, Reply::parse(&line)?.backend))
}

fn drive(
    flows: Vec<(TcpStream, String)>,
    every: Duration,
    stopped: &watch::Receiver<bool>,
    state: &Arc<State>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime of long flows").or_panic().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for (number, (stream, backend)) in flows.into_iter().enumerate() {
            let (state, mut stopped) = (Arc::clone(state), stopped.clone());
            tasks.spawn(async move {
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => {}
                    Err(error) = talk(stream, &backend, every, number, &state) => {
                        let text = format!("flow {number} to {backend} after {:.3?}: {error}", state.started.elapsed());
                        state.report.lock().unwrap_or_else(PoisonError::into_inner).interruptions.push(text);
                        state.progress[number].store(u64::MAX, Ordering::Relaxed);
                    }
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    });
}

/// Exchanges lines until an error.
async fn talk(
    stream: TcpStream,
    backend: &str,
    every: Duration,
    number: usize,
    state: &State,
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut stream = tokio::net::TcpStream::from_std(stream)?;
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    let mut clock = tokio::time::interval(every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 1.. {
        clock.tick().await;
        let sent = Instant::now();
        writer.write_all(format!("{round}\n").as_bytes()).await?;
        match timeout(STALLED, lines.next_line()).await {
            Ok(Ok(Some(line))) if line == format!("{backend} {round}") => {}
            Ok(Ok(Some(line))) => return Err(io::Error::other(format!("sent {round}, got `{line}`"))),
            Ok(Ok(None)) => return Err(io::Error::other("closed by the other side")),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::Error::other(format!("no reply within {STALLED:?}"))),
        }
        state.progress[number].store(round, Ordering::Relaxed);
        state.exchanges.fetch_add(1, Ordering::Relaxed);
        let mut report = state.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.longest_wait = report.longest_wait.max(sent.elapsed());
    }
    Ok(())
}
