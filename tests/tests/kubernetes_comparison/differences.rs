//! The differences between Millrace and kube-proxy, and their reasons. The comparison fails for a difference
//! that no row here covers, and for a row that covers none.

use std::fmt;

use crate::case::{Kind, Protocol};
use crate::probing::{Outcome, Question};
use crate::topology::Contender;

/// A question with two outcomes.
pub struct Difference<'a> {
    pub question: Question<'a>,
    /// Millrace with or without socket hooks.
    pub proxy: Contender,
    /// The outcome with kube-proxy.
    pub theirs: Outcome,
    pub ours: Outcome,
}

impl Difference<'_> {
    /// The index of the first row that covers the difference.
    pub fn explanation(&self) -> Option<usize> {
        DIFFERENCES.iter().position(|known| (known.covers)(self))
    }
}

impl Difference<'_> {
    fn is_at(&self, kinds: &[Kind]) -> bool {
        kinds.contains(&self.question.frontend.kind)
    }

    fn by_ping(&self) -> bool {
        self.question.frontend.protocol == Protocol::Ping
    }

    fn is_asked_by_a_node(&self) -> bool {
        ["n1", "n2"].contains(&self.question.asker)
    }

    fn is_asked_in_the_cluster(&self) -> bool {
        !["outside", "stranger"].contains(&self.question.asker)
    }

    fn only_sources_differ(&self) -> bool {
        self.theirs.verdicts == self.ours.verdicts && self.theirs.backends == self.ours.backends
    }

    /// Backends see the client's own address, or its node's address if the client reaches itself.
    fn ours_sees_no_other_than_the_own_node(&self) -> bool {
        let node = if ["client-2", "n2"].contains(&self.question.asker) {
            "n2"
        } else {
            "n1"
        };
        let mut seen = self.ours.sources.iter();
        seen.all(|source| source == "itself" || (source == node && self.question.asker == "a"))
    }
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            question,
            proxy,
            theirs,
            ours,
        } = self;
        write!(f, "{question}: kube-proxy: {theirs}; {proxy:?}: {ours}")
    }
}

/// An intended difference.
pub struct Known {
    pub what: &'static str,
    pub why: &'static str,
    covers: fn(&Difference) -> bool,
}

pub const DIFFERENCES: &[Known] = &[
    Known {
        what: "virtual addresses reply to ping",
        why: "ping distinguishes served addresses from others",
        covers: |it| it.by_ping() && !it.theirs.verdicts.contains("replied") && it.ours.is("replied"),
    },
    Known {
        what: "ports that a balancer's or external address does not have are refused",
        why: "kube-proxy knows these addresses by port only and lets everything else go on to wherever the routes lead, \
              which may be round and round; the sender waits in vain",
        covers: |it| {
            it.is_at(&[Kind::Balancer, Kind::External])
                && !it.question.frontend.defined
                && it.theirs.is("silent")
                && it.ours.is("refused")
        },
    },
    Known {
        what: "pods and nodes keep their address at their own node's external frontends",
        why: "replies come back through the pod's own interface, or to the node, in any case; kube-proxy masquerades",
        covers: |it| {
            it.only_sources_differ()
                && it.is_at(&[Kind::NodePort, Kind::Balancer, Kind::External])
                && it.is_asked_in_the_cluster()
                && it.ours_sees_no_other_than_the_own_node()
        },
    },
    Known {
        what: "pods reach the other node's ports under policy Local without losses",
        why: "to the other node they are clients from outside and get its endpoints; kube-proxy takes every pod for one \
              of its own node, lets it have all endpoints, and loses the replies of those on the pod's node",
        covers: |it| {
            it.is_at(&[Kind::NodePort])
                && ["client-1", "client-2", "a"].contains(&it.question.asker)
                && it.question.case.is_local()
                && it.theirs.verdicts.contains("silent")
                && it.ours.is("replied")
                && it.ours.seen_as("itself")
        },
    },
    Known {
        what: "a pod that reaches itself by a socket hook is seen as itself",
        why: "the hook connects the socket to the pod's own address; no packet is there to be masqueraded",
        covers: |it| {
            it.proxy == Contender::Hooks
                && it.question.asker == "a"
                && it.only_sources_differ()
                && it.ours.seen_as("itself")
        },
    },
    Known {
        what: "a refused datagram of a node is refused and not forbidden",
        why: "kube-proxy's refusal is netfilter's in the sender's own call, EPERM; Millrace's is that of a remote host",
        covers: |it| it.is_asked_by_a_node() && it.theirs.is("not permitted") && it.ours.is("refused"),
    },
    Known {
        what: "a dropped datagram of a node is dropped silently",
        why: "the same: netfilter's drop is EPERM at the sender",
        covers: |it| it.is_asked_by_a_node() && it.theirs.is("not permitted") && it.ours.is("silent"),
    },
    Known {
        what: "node ports are reached at the loopback address",
        why: "as with kube-proxy's iptables mode; its nftables mode cannot, since the kernel would not let go of the address",
        covers: |it| {
            it.proxy == Contender::Hooks
                && it.is_at(&[Kind::Loopback])
                && it.theirs.is("refused")
                && it.ours.is("replied")
        },
    },
    Known {
        what: "endpoints of a service with publishNotReadyAddresses are used in every state of their slices",
        why: "controllers say that they are ready, so both agree about theirs; kube-proxy does not read the field itself",
        covers: |it| it.question.case.name == "published-unready" && it.ours.is("replied"),
    },
    Known {
        what: "a service with the label service.kubernetes.io/headless is not served",
        why: "kube-proxy did so in earlier releases and now looks for the label at slices, where controllers put it for headless \
              services only",
        covers: |it| it.question.case.name == "headless-label" && !it.ours.verdicts.contains("replied"),
    },
    Known {
        what: "a balancer with source ranges of one family is closed in the other",
        why: "no client of that family lies in the ranges; kube-proxy opens the address to all clients",
        covers: |it| {
            it.question.case.name == "open-v4"
                && it.is_at(&[Kind::Balancer])
                && it.question.frontend.address.is_ipv6()
                && it.theirs.is("replied")
                && it.ours.is("silent")
        },
    },
    Known {
        what: "a process of a node that reaches a process of the same node packet by packet is seen as the virtual address",
        why: "both ends would have the node's address, and the reply would never pass the translation",
        covers: |it| {
            it.is_asked_by_a_node() && it.only_sources_differ() && it.ours.sources.contains("the frontend")
        },
    },
];
