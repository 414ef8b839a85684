//! Foreign routes inside the ranges of services and of other nodes' pods.

use super::Node;
use crate::control::ObjectError;
use crate::network::inside::{NextHop, OwnRoutes};

impl Node {
    /// Reports foreign routes inside our ranges. It asks the kernel after a change that may concern them.
    pub(super) async fn routes_of_others(&mut self) -> Vec<ObjectError> {
        let to_services = self.device.own_routes().into_iter();
        let to_services = to_services.flat_map(|(interface, prefixes)| {
            let next_hop = NextHop { interface, via: None };
            prefixes.into_iter().map(move |prefix| (prefix, next_hop))
        });
        let to_services = to_services.filter(|(prefix, _)| !self.device.is_lone(*prefix));
        let own_routes = OwnRoutes::new(to_services.chain(self.pods.next_hops()));
        if own_routes != self.own_routes {
            self.own_routes = own_routes;
            self.looks_inside = true;
        }
        if self.looks_inside {
            let found = self
                .own_routes
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
