//! The cookie of a network namespace: the number that socket hooks compare to know whose socket they have.
//!
//! A cookie can be asked of any socket, but the socket must have been made inside the namespace, and only
//! `CAP_SYS_ADMIN` may enter one. Since Linux 6.18 the open file of a namespace tells the same number to
//! anybody. Whether it is the same is not taken on trust: it is compared for our own namespace first.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::error::NetworkError;
use super::sys;

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The cookie of the network namespace of this thread. Fails before Linux 5.14, which has no such option.
pub fn own_netns_cookie() -> Result<u64, NetworkError> {
    own_cookie().map_err(failed("reading the cookie of the agent's network namespace"))
}

fn own_cookie() -> Result<u64, Errno> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    sys::netns_cookie(&socket)
}

/// The cookies of open namespace files, one for each. An error is about all of them.
pub fn cookies_of(namespaces: Vec<File>) -> Result<Vec<u64>, NetworkError> {
    if !namespace_ids_are_cookies() {
        return cookies_by_entering(namespaces);
    }
    let ids: Result<Vec<_>, _> = namespaces
        .iter()
        .map(|file| sys::namespace_id(file.as_fd()))
        .collect();
    ids.map_err(failed("reading the id of a pod's network namespace"))
}

/// The same as [`cookies_of`] for kernels before 6.18.
pub fn cookies_by_entering(namespaces: Vec<File>) -> Result<Vec<u64>, NetworkError> {
    let enter_each = move || {
        let enter = |file: &File| setns(file, CloneFlags::CLONE_NEWNET).and_then(|()| own_cookie());
        namespaces.iter().map(enter).collect::<Result<Vec<_>, _>>()
    };
    // In a thread of its own, because entering is for good.
    let thread = std::thread::Builder::new()
        .name("netns-cookie".into())
        .spawn(enter_each);
    let thread = thread.map_err(|error| NetworkError::Cookie {
        what: "starting a thread",
        error,
    })?;
    let cookies = thread.join().unwrap_or(Err(Errno::ECANCELED));
    cookies.map_err(failed("entering a pod's network namespace for its cookie"))
}

fn namespace_ids_are_cookies() -> bool {
    let id = File::open(OWN_NAMESPACE)
        .ok()
        .and_then(|file| sys::namespace_id(file.as_fd()).ok());
    id.is_some() && id == own_cookie().ok()
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> NetworkError {
    move |error| NetworkError::Cookie {
        what,
        error: io::Error::from(error),
    }
}
