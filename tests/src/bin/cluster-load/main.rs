//! A client that detects interruptions. It holds connections to an HTTP server, sends requests on each of
//! them again and again, and opens new connections meanwhile. At the end it reports each failure.
//!
//! `cargo xtask cluster check` runs it and ends it by closing its standard input. Its first line on standard
//! output is `ready`, once all connections are open and have had a response. The last output is a JSON
//! document with the report.
//!
//! Invariant: the lack of a whole response in time counts as an interruption or a failure; nothing is tried
//! again.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

/// How long a response may take: longer than a retransmission or two.
const PATIENCE: Duration = Duration::from_secs(5);
/// The interval between requests on a held connection.
const PERIOD: Duration = Duration::from_secs(1);
/// The number of errors that the report shows.
const MAX_ERRORS: usize = 5;

#[derive(Parser)]
struct Options {
    /// Addresses of the server; connections use them in turn
    #[arg(long, required = true)]
    address: Vec<SocketAddr>,
    /// The path of each request
    #[arg(long, default_value = "/hostname")]
    path: String,
    /// The number of connections to hold
    #[arg(long, default_value_t = 100)]
    hold: usize,
    /// Milliseconds between new connections
    #[arg(long, default_value_t = 20)]
    every: u64,
}

/// The document that the program prints at its end.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// The number of held connections.
    held: usize,
    /// Responses on held connections.
    answers: u64,
    /// Held connections that broke.
    interrupted: usize,
    /// New connections that were tried meanwhile.
    opened: u64,
    /// New connections without a response.
    failed: u64,
    /// The slowest response of all, in milliseconds.
    slowest: u128,
    /// The first errors.
    errors: Vec<String>,
}

impl Report {
    fn add_error(&mut self, error: &anyhow::Error) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(format!("{error:#}"));
        }
    }
}

type Shared = Rc<RefCell<Report>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    LocalSet::new().run_until(run(options)).await
}

async fn run(options: Options) -> Result<()> {
    let report = Shared::default();
    let request = |last: &str| format!("GET {} HTTP/1.1\r\nHost: check\r\n{last}\r\n", options.path);
    let (ask, ask_once) = (request(""), request("Connection: close\r\n"));
    let mut addresses = options.address.iter().copied().cycle();
    let mut next = move || addresses.next().context("no address is given");

    let mut tasks = Vec::new();
    for _ in 0..options.hold {
        let mut connection = Connection::open(next()?).await?;
        connection.ask(&ask).await?;
        report.borrow_mut().held += 1;
        let (report, ask) = (Rc::clone(&report), ask.clone());
        tasks.push(tokio::task::spawn_local(async move {
            if let Err(error) = hold(connection, &ask, &report).await {
                let mut report = report.borrow_mut();
                report.interrupted += 1;
                report.add_error(&error);
            }
        }));
    }
    println!("ready");
    std::io::stdout().flush().context("writing")?;

    let mut end = input_closed();
    loop {
        tokio::select! {
            _ = &mut end => break,
            () = sleep(Duration::from_millis(options.every)) => {}
        }
        let started = Instant::now();
        let outcome = once(next()?, &ask_once).await;
        let mut report = report.borrow_mut();
        report.opened += 1;
        report.slowest = report.slowest.max(started.elapsed().as_millis());
        if let Err(error) = outcome {
            report.failed += 1;
            report.add_error(&error);
        }
    }
    // Each held connection has time for one more request and its response, so that an unnoticed break is
    // noticed.
    sleep(PERIOD + PATIENCE).await;
    for task in &tasks {
        task.abort();
    }
    let report = report.borrow();
    println!(
        "{}",
        serde_json::to_string(&*report).context("writing what happened")?
    );
    Ok(())
}

/// Resolves when the other end of standard input is closed. A thread of its own waits for that.
fn input_closed() -> oneshot::Receiver<()> {
    let (closed, end) = oneshot::channel();
    std::thread::spawn(move || {
        // The program ignores its input, and an error ends the wait as well.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = closed.send(());
    });
    end
}

/// Sends requests again and again, until a response is missing or comes from another server.
async fn hold(mut connection: Connection, ask: &str, report: &Shared) -> Result<()> {
    let first = connection.ask(ask).await?;
    loop {
        sleep(PERIOD).await;
        let started = Instant::now();
        let reply = connection.ask(ask).await?;
        ensure!(reply == first, "{first} was the server, and {reply} replies");
        let mut report = report.borrow_mut();
        report.answers += 1;
        report.slowest = report.slowest.max(started.elapsed().as_millis());
    }
}

async fn once(address: SocketAddr, ask: &str) -> Result<()> {
    Connection::open(address).await?.ask(ask).await.map(drop)
}

struct Connection {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let opened = timeout(PATIENCE, TcpStream::connect(address)).await;
        let stream = opened.with_context(|| format!("connecting to {address}"))?;
        let stream = stream.with_context(|| format!("connecting to {address}"))?;
        Ok(Self {
            address,
            stream: BufReader::new(stream),
        })
    }

    /// Sends one request and returns the body of its response.
    async fn ask(&mut self, question: &str) -> Result<String> {
        let address = self.address;
        let reply = timeout(PATIENCE, self.exchange(question)).await;
        let reply = reply.with_context(|| format!("waiting for {address}"))?;
        reply.with_context(|| format!("asking {address}"))
    }

    async fn exchange(&mut self, question: &str) -> Result<String> {
        self.stream.get_mut().write_all(question.as_bytes()).await?;
        let mut length = 0;
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        if !line.starts_with("HTTP/1.1 200 ") {
            bail!("the reply begins with {line:?}");
        }
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await? == 0 {
                bail!("the reply breaks off");
            }
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().context("reading the length of a reply")?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        String::from_utf8(body).context("reading a reply")
    }
}
