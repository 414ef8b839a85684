//! The lifetimes of flows without packets.

use serde::{Deserialize, Serialize};

use super::duration::GoDuration;

/// Lifetimes of flows by their state, with the names and defaults of a `KubeProxyConfiguration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conntrack {
    /// TCP after its handshake.
    pub tcp_established_timeout: GoDuration,
    /// TCP that one side has closed.
    pub tcp_close_wait_timeout: GoDuration,
    /// UDP without a reply.
    pub udp_timeout: GoDuration,
    /// UDP with replies.
    pub udp_stream_timeout: GoDuration,
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            tcp_established_timeout: GoDuration::seconds(86_400),
            tcp_close_wait_timeout: GoDuration::seconds(3600),
            udp_timeout: GoDuration::seconds(30),
            udp_stream_timeout: GoDuration::seconds(180),
        }
    }
}

/// Lifetimes from a file; zero keeps the present one, as with kube-proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ConntrackSettings {
    /// TCP after its handshake.
    pub tcp_established_timeout: Option<GoDuration>,
    /// TCP that one side has closed.
    pub tcp_close_wait_timeout: Option<GoDuration>,
    /// UDP without a reply.
    pub udp_timeout: Option<GoDuration>,
    /// UDP with replies.
    pub udp_stream_timeout: Option<GoDuration>,
}

impl ConntrackSettings {
    /// Applies the lifetimes that are given.
    pub fn apply(&self, conntrack: &mut Conntrack) {
        let set = |given: Option<GoDuration>, to: &mut GoDuration| {
            if let Some(given) = given.filter(|given| !given.0.is_zero()) {
                *to = given;
            }
        };
        set(
            self.tcp_established_timeout,
            &mut conntrack.tcp_established_timeout,
        );
        set(self.tcp_close_wait_timeout, &mut conntrack.tcp_close_wait_timeout);
        set(self.udp_timeout, &mut conntrack.udp_timeout);
        set(self.udp_stream_timeout, &mut conntrack.udp_stream_timeout);
    }
}
