//! The command line's side of the control socket: one question, one answer, then the connection ends.
//!
//! Blocking and with time-outs, since a verb has nothing else to do; it needs no runtime. That no agent runs is an
//! outcome of its own, because some verbs have an answer to it.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{Answer, Reply, Request};
use super::run_dir::SOCKET;
use super::{Leases, NodeEntry, PodEntry, ServiceEntry, Status, TraceReply, TraceRequest};

/// How long to wait for the agent to take or to give the next bytes. Longer than the agent's own deadline.
const PATIENCE: Duration = Duration::from_secs(35);

/// Asks the agent that runs with one run directory.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers at {}: start `millrace agent`, or say where it runs with --run-dir", .0.display())]
    NoAgent(PathBuf),
    /// The socket is not ours to use.
    #[error("{}: permission denied: run this as root", .0.display())]
    Denied(PathBuf),
    /// The agent said why not.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("{}: {what}: {source}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is none to the question.
    #[error("{}: the agent's answer is not understood ({reason}): it may be of another version", socket.display())]
    NotUnderstood {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Client {
    /// A client of the agent that runs with this run directory. Nothing is connected yet.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            socket: run_dir.join(SOCKET),
        }
    }

    /// How the agent is doing.
    pub fn status(&self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(self.not_understood(&"it answers another question")),
        }
    }

    /// Every frontend with its backends.
    pub fn services(&self) -> Result<Vec<ServiceEntry>, ClientError> {
        match self.ask(&Request::ListServices)? {
            Reply::ListServices(services) => Ok(services),
            _ => Err(self.not_understood(&"it answers another question")),
        }
    }

    /// Every node with the way to its pods.
    pub fn nodes(&self) -> Result<Vec<NodeEntry>, ClientError> {
        match self.ask(&Request::ListNodes)? {
            Reply::ListNodes(nodes) => Ok(nodes),
            _ => Err(self.not_understood(&"it answers another question")),
        }
    }

    /// Where packets would go.
    pub fn trace(&self, request: TraceRequest) -> Result<TraceReply, ClientError> {
        match self.ask(&Request::Trace(request))? {
            Reply::Trace(reply) => Ok(reply),
            _ => Err(self.not_understood(&"it answers another question")),
        }
    }

    /// The pods that the plugin gave an interface to.
    pub fn pods(&self) -> Result<Vec<PodEntry>, ClientError> {
        match self.ask(&Request::ListPods)? {
            Reply::ListPods(pods) => Ok(pods),
            _ => Err(self.not_understood(&"it answers another question")),
        }
    }

    /// Who has which address.
    pub fn leases(&self) -> Result<Leases, ClientError> {
        match self.ask(&Request::ListLeases)? {
            Reply::ListLeases(leases) => Ok(leases),
            _ => Err(self.not_understood(&"it answers another question")),
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|error| self.not_understood(&error))?;
        line.push(b'\n');
        let mut stream = self.connect()?;
        stream
            .write_all(&line)
            .map_err(self.failed("sending the request"))?;
        line.clear();
        stream
            .read_to_end(&mut line)
            .map_err(self.failed("waiting for the answer"))?;
        if line.is_empty() {
            return Err(self.failed("waiting for the answer")(
                io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        match serde_json::from_slice(&line) {
            Ok(Answer::Reply(reply)) => Ok(reply),
            Ok(Answer::Error(message)) => Err(ClientError::Refused(message)),
            Err(error) => Err(self.not_understood(&error)),
        }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let stream = UnixStream::connect(&self.socket).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoAgent(self.socket.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
            _ => self.failed("connecting")(error),
        })?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(self.failed("setting a time-out"))?;
        Ok(stream)
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> ClientError + use<> {
        let socket = self.socket.clone();
        move |source| {
            // What a time-out on a socket is called depends on the system; this one says "would block".
            let timed_out = source.kind() == io::ErrorKind::WouldBlock;
            let source = if timed_out {
                io::ErrorKind::TimedOut.into()
            } else {
                source
            };
            ClientError::Io {
                socket: socket.clone(),
                what,
                source,
            }
        }
    }

    fn not_understood(&self, reason: &dyn Display) -> ClientError {
        ClientError::NotUnderstood {
            socket: self.socket.clone(),
            reason: reason.to_string(),
        }
    }
}
