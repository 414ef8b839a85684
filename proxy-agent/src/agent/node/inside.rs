//! Foreign routes inside the ranges of services and of other nodes' pods.

use super::NodeSide;
use crate::control::ObjectError;
use crate::network::inside::{Leading, Led};

impl NodeSide {
    /// Reports foreign routes inside our ranges. It asks the kernel after a change that may concern them.
    pub(super) async fn routes_of_others(&mut self) -> Vec<ObjectError> {
        let to_services = self.device.led().into_iter();
        let to_services = to_services.flat_map(|(interface, prefixes)| {
            let leading = Leading { interface, via: None };
            prefixes.into_iter().map(move |prefix| (prefix, leading))
        });
        let to_services = to_services.filter(|(prefix, _)| !self.device.is_lone(*prefix));
        let led = Led::new(to_services.chain(self.pods.leading()));
        if led != self.led {
            self.led = led;
            self.looks_inside = true;
        }
        if self.looks_inside {
            let found = self
                .led
                .routes_of_others(&self.netlink, self.monitor.links())
                .await;
            match found {
                Ok(found) => self.inside = found.iter().map(ObjectError::from).collect(),
                Err(error) => return vec![ObjectError::new(error.trouble(), "routes", &error)],
            }
            self.looks_inside = false;
        }
        self.inside.clone()
    }
}
