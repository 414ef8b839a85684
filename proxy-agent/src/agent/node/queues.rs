//! Foreign queueing disciplines at our own devices.

use super::Node;
use crate::control::ObjectError;
use crate::network::pods::TUNNEL_DEVICE;
use crate::network::queues::{self, Device};
use crate::network::{Change, HOST_DEVICE};

/// The foreign queueing disciplines that the last look found.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// The devices of the last look.
    devices: Vec<Device>,
    found: Vec<ObjectError>,
    /// Whether to look again, since a queueing discipline or a device came or went.
    is_due: bool,
}

impl Queues {
    /// Notes whether a change concerns them.
    pub(super) fn note(&mut self, change: &Change) {
        let mut devices = self.devices.iter();
        self.is_due |= change.resynced || devices.any(|(index, _)| change.queues.contains(index));
    }

    /// Whether to look again.
    pub(super) const fn is_due(&self) -> bool {
        self.is_due
    }
}

impl Node {
    /// Reports the foreign queueing disciplines. It asks the kernel after a change that concerns them.
    pub(super) async fn queues_of_others(&mut self) -> Vec<ObjectError> {
        let own = [
            (self.device.index(), HOST_DEVICE),
            (self.pods.tunnel(), TUNNEL_DEVICE),
        ];
        let own = own.into_iter().filter_map(|(index, name)| Some((index?, name)));
        let devices: Vec<Device> = own.collect();
        if devices != self.queues.devices {
            self.queues.devices = devices;
            self.queues.is_due = true;
        }
        if self.queues.is_due {
            match queues::foreign(&self.netlink, &self.queues.devices).await {
                Ok(found) => self.queues.found = found.iter().map(ObjectError::from).collect(),
                Err(error) => return vec![ObjectError::new(error.trouble(), "queueing disciplines", &error)],
            }
            self.queues.is_due = false;
        }
        self.queues.found.clone()
    }
}
