//! The specs of the suite that run: those of [sig-network], without those that cannot pass here or would
//! disrupt the cluster for all others.

/// The patterns of specs that are left out, with the reasons.
const UNLIKELY: &[(&str, &str)] = &[
    (
        r"Netpol|NetworkPolicy",
        "a policy engine is another program's task",
    ),
    (r"SCTP", "few development machines have SCTP sockets"),
    (r"Internet connection", "the nodes have no route to the Internet"),
    (r"\[Disruptive\]", "restarts parts that the cluster does not have"),
    (r"\[Serial\]", "changes the whole cluster"),
    (
        r"\[Feature:PerformanceDNS\]",
        "ten thousand services, for the sake of DNS",
    ),
    (
        r"IPerf2",
        "measures, with a release of iperf that Debian does not have",
    ),
    (r"\[Provider:GCE\]", "another provider's"),
    (
        r"\[Feature:KubeProxyNFAcct\]",
        "counters of kube-proxy's iptables mode",
    ),
];

/// The specs that the suite shall run.
pub struct Selection {
    pub focus: String,
    pub skip: Option<String>,
    full: bool,
}

impl Selection {
    /// The specs that match `focus`, or all specs, without those that match `skip`.
    pub fn of(focus: Option<&str>, skip: Option<&str>, unlikely: bool) -> Self {
        let patterns = UNLIKELY.iter().map(|(pattern, _)| *pattern);
        let left_out: Vec<_> = patterns.filter(|_| !unlikely).chain(skip).collect();
        Self {
            focus: match focus {
                // The names of all specs here begin like this.
                Some(focus) => format!(r"\[sig-network\].*({focus})"),
                None => r"\[sig-network\]".to_owned(),
            },
            skip: (!left_out.is_empty()).then(|| left_out.join("|")),
            full: focus.is_none() && skip.is_none() && !unlikely,
        }
    }

    /// Specs by their whole names.
    pub fn of_names(names: &[String]) -> Self {
        let names: Vec<_> = names.iter().map(|name| escape(name)).collect();
        Self {
            focus: names.join("|"),
            skip: None,
            full: false,
        }
    }

    /// Whether the result becomes the proxy's table.
    pub fn is_full(&self) -> bool {
        self.full
    }
}

/// A regular expression that matches this text alone.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{Selection, UNLIKELY, escape};

    #[test]
    fn names_match_themselves_only() {
        assert_eq!(escape("[a] b (c.d)?"), r"\[a\] b \(c\.d\)\?");
        let selection = Selection::of_names(&["[a] b".to_owned(), "c".to_owned()]);
        assert_eq!(selection.focus, r"\[a\] b|c");
        assert!(selection.skip.is_none() && !selection.is_full());
    }

    #[test]
    fn only_a_run_of_everything_likely_is_full() {
        assert!(Selection::of(None, None, false).is_full());
        assert!(!Selection::of(None, None, true).is_full());
        assert!(!Selection::of(Some("affinity"), None, false).is_full());
        let selection = Selection::of(None, Some("slow"), true);
        assert_eq!(selection.skip.as_deref(), Some("slow"));
        assert!(!selection.is_full());
        assert!(UNLIKELY.iter().all(|(_, why)| !why.is_empty()));
    }
}
