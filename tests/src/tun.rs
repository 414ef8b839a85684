//! A link whose packets have no Ethernet header: tun devices in two namespaces, and threads that copy packets
//! between them. The rest of the kernel sees a device like that of `WireGuard` or PPP.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::netns::Netns;

/// The interval in milliseconds at which an idle copier checks whether it has to stop.
const GLANCE: u16 = 100;
/// A buffer size above a device's MTU.
const LARGEST: usize = 65_536;

/// Two devices and the threads that copy between them. The devices are removed when it is dropped.
pub(crate) struct TunLink {
    stop: Arc<AtomicBool>,
    copiers: Vec<JoinHandle<()>>,
}

impl TunLink {
    /// Makes a device in each namespace, with the given name. Both are up.
    pub(crate) fn between(ends: [(&Netns, &str); 2]) -> Result<Self> {
        let open = |(netns, name): (&Netns, &str)| -> Result<Arc<SyncDevice>> {
            let device = netns.enter(|| DeviceBuilder::new().name(name).mtu(1420).build_sync())??;
            device.set_nonblocking(true)?;
            netns.rtnl().set_up(name)?;
            Ok(Arc::new(device))
        };
        let [near, far] = ends;
        let (near, far) = (open(near)?, open(far)?);
        let stop = Arc::new(AtomicBool::new(false));
        let copier = |from: &Arc<SyncDevice>, to: &Arc<SyncDevice>| {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            thread::spawn(move || copy(&from, &to, &stop))
        };
        let copiers = vec![copier(&near, &far), copier(&far, &near)];
        Ok(Self { stop, copiers })
    }
}

impl Drop for TunLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for copier in self.copiers.drain(..) {
            let _ = copier.join();
        }
    }
}

/// Copies packets until it is told to stop, or a device is removed. A packet that the device refuses is lost,
/// as on a link.
fn copy(from: &SyncDevice, to: &SyncDevice, stop: &AtomicBool) {
    let mut packet = vec![0; LARGEST];
    while !stop.load(Ordering::Relaxed) {
        match from.recv(&mut packet) {
            Ok(len) => {
                let _ = to.send(&packet[..len]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut waiting = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut waiting, PollTimeout::from(GLANCE));
            }
            Err(_) => return,
        }
    }
}
