//! The cookie of a network namespace: the number by which socket hooks recognise the namespace of a socket.
//!
//! Any socket has the cookie of the namespace where it was made, and only `CAP_SYS_ADMIN` may enter a
//! namespace. Since Linux 6.18 the open file of a namespace gives the same number to every process. The code
//! verifies that with its own namespace first.
//!
//! Before Linux 5.14 a socket does not give the cookie either. Only a program that sees the creation of the
//! socket can read it: a [`Witness`].

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::error::NetworkError;
use super::sys;

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Runs its argument, which makes an internet socket and returns that socket's cookie. Returns the cookie of
/// the network namespace in which the socket was made.
pub type Witness = Arc<dyn Fn(&dyn Fn() -> io::Result<u64>) -> io::Result<u64> + Send + Sync>;

/// The cookie of the network namespace of this thread. It fails before Linux 5.14 if there is no witness.
pub fn own_netns_cookie(witness: Option<&Witness>) -> Result<u64, NetworkError> {
    own_cookie(witness).map_err(failed("reading the cookie of the agent's network namespace"))
}

fn own_cookie(witness: Option<&Witness>) -> io::Result<u64> {
    let make = |family| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    match (sys::netns_cookie(&make(AddressFamily::Unix)?), witness) {
        (Err(Errno::ENOPROTOOPT), Some(witness)) => {
            witness(&|| Ok(sys::socket_cookie(&make(AddressFamily::Inet)?)?))
        }
        (cookie, _) => Ok(cookie?),
    }
}

/// The cookies of open namespace files, one for each. One failure is an error for all of them.
pub fn cookies_of(namespaces: Vec<File>, witness: Option<&Witness>) -> Result<Vec<u64>, NetworkError> {
    if !namespace_ids_are_cookies() {
        return cookies_by_entering(namespaces, witness);
    }
    let ids: Result<Vec<_>, Errno> = namespaces
        .iter()
        .map(|file| sys::namespace_id(file.as_fd()))
        .collect();
    ids.map_err(|error| failed("reading the id of a pod's network namespace")(error.into()))
}

/// The same as [`cookies_of`] for kernels before 6.18.
pub fn cookies_by_entering(
    namespaces: Vec<File>,
    witness: Option<&Witness>,
) -> Result<Vec<u64>, NetworkError> {
    let witness = witness.cloned();
    let enter_each = move || {
        let enter = |file: &File| {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            own_cookie(witness.as_ref())
        };
        namespaces.iter().map(enter).collect::<io::Result<Vec<_>>>()
    };
    // A thread of its own enters the namespaces, because it does not return to its first one.
    let thread = std::thread::Builder::new()
        .name("netns-cookie".into())
        .spawn(enter_each);
    let thread = thread.map_err(|error| NetworkError::Cookie {
        what: "starting a thread",
        error,
    })?;
    let cookies = thread.join().unwrap_or(Err(Errno::ECANCELED.into()));
    cookies.map_err(failed("entering a pod's network namespace for its cookie"))
}

fn namespace_ids_are_cookies() -> bool {
    let id = File::open(OWN_NAMESPACE)
        .ok()
        .and_then(|file| sys::namespace_id(file.as_fd()).ok());
    id.is_some() && id == own_cookie(None).ok()
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |error| NetworkError::Cookie { what, error }
}
