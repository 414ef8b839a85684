//! The process of a place. A socket belongs to the network namespace and the cgroup of the process that
//! creates it. A process belongs to one cgroup as a whole. So each place has a small process that creates
//! sockets on request and passes them to the test. The test then uses the sockets directly, without the
//! process.
//!
//! Protocol, over a `SOCK_SEQPACKET` pair: a request is four native integers. Each reply is one integer: 0
//! with some of the sockets, or the errno of a failure. Replies follow until all sockets have come, or an
//! errno. A reply without a request says that the process has arrived in its place.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{cgroup, fdpass, netns};

/// The sockets to create.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) domain: Domain,
    pub(crate) kind: Type,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) count: usize,
}

const WORD: usize = size_of::<i32>();

impl Request {
    fn encode(self) -> [u8; 4 * WORD] {
        let protocol = self.protocol.map_or(0, i32::from);
        let words = [
            self.domain.into(),
            self.kind.into(),
            protocol,
            i32::try_from(self.count).unwrap_or(i32::MAX),
        ];
        let mut bytes = [0; 4 * WORD];
        for (chunk, word) in bytes.chunks_exact_mut(WORD).zip(words) {
            chunk.copy_from_slice(&i32::to_ne_bytes(word));
        }
        bytes
    }

    fn decode(bytes: [u8; 4 * WORD]) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<WORD>().0) {
            *word = i32::from_ne_bytes(*chunk);
        }
        let [domain, kind, protocol, count] = words;
        Self {
            domain: domain.into(),
            kind: kind.into(),
            protocol: (protocol != 0).then(|| protocol.into()),
            count: usize::try_from(count).unwrap_or(0),
        }
    }
}

/// The test's side: waits until a worker is in its place.
pub(crate) fn wait_ready(worker: impl AsFd) -> io::Result<()> {
    receive_reply(worker).map(drop)
}

/// The test's side: asks a worker for sockets.
pub(crate) fn request(worker: impl AsFd, request: Request) -> io::Result<Vec<Socket>> {
    fdpass::send(&worker, &request.encode(), &[])?;
    let mut sockets = Vec::with_capacity(request.count);
    while sockets.len() < request.count {
        sockets.extend(receive_reply(&worker)?.into_iter().map(Socket::from));
    }
    Ok(sockets)
}

fn receive_reply(worker: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut errno = [0; WORD];
    let (length, fds) = fdpass::receive(worker, &mut errno)?;
    if length == 0 {
        return Err(io::Error::other(
            "the process of this place is gone; its reason is on stderr",
        ));
    }
    match i32::from_ne_bytes(errno) {
        0 => Ok(fds),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The worker's side: serves requests that come by `control` until it closes.
pub fn serve(control: &OwnedFd) -> Result<()> {
    fdpass::send(control, &[0; WORD], &[]).context("reporting to the harness")?;
    let mut bytes = [0; 4 * WORD];
    loop {
        let (length, _) = fdpass::receive(control, &mut bytes).context("receiving a request")?;
        if length == 0 {
            return Ok(());
        }
        let mut left = Request::decode(bytes);
        while left.count > 0 {
            let batch = create(Request {
                count: left.count.min(fdpass::BATCH),
                ..left
            });
            let (errno, sockets) = match &batch {
                Ok(sockets) => (0, sockets.as_slice()),
                Err(error) => (error.raw_os_error().unwrap_or(nix::libc::EIO), [].as_slice()),
            };
            let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            fdpass::send(control, &i32::to_ne_bytes(errno), &fds).context("handing sockets over")?;
            left.count = if errno == 0 { left.count - sockets.len() } else { 0 };
        }
    }
}

fn create(request: Request) -> io::Result<Vec<Socket>> {
    (0..request.count)
        .map(|_| Socket::new(request.domain, request.kind, request.protocol))
        .collect()
}

/// Moves this process into a place.
pub fn enter(namespace: &Path, group: &Path) -> Result<()> {
    let file = File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
    netns::join(file)?;
    cgroup::join(group)
}
