//! Which specs of the suite run: those of [sig-network], without what cannot pass here or would take the
//! cluster away from all others.

/// What is left out, and why.
const UNLIKELY: &[(&str, &str)] = &[
    (
        r"Netpol|NetworkPolicy",
        "a policy engine is another program's task",
    ),
    (r"SCTP", "few development machines have SCTP sockets"),
    (r"Internet connection", "there is no way out"),
    (
        r"\[Disruptive\]",
        "restarts parts of the cluster by ways that it does not have",
    ),
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

/// What the suite is asked to run.
pub struct Selection {
    pub focus: String,
    pub skip: Option<String>,
    full: bool,
}

impl Selection {
    /// What a regular expression matches, or everything.
    pub fn of(focus: Option<&str>, unlikely: bool) -> Self {
        let patterns: Vec<_> = UNLIKELY.iter().map(|(pattern, _)| *pattern).collect();
        Self {
            focus: match focus {
                // The names of all specs here begin like this.
                Some(focus) => format!(r"\[sig-network\].*({focus})"),
                None => r"\[sig-network\]".to_owned(),
            },
            skip: (!unlikely).then(|| patterns.join("|")),
            full: focus.is_none() && !unlikely,
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

    /// Whether the result is the proxy's table.
    pub fn is_full(&self) -> bool {
        self.full
    }
}

/// A regular expression that matches just this text.
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
        assert!(Selection::of(None, false).is_full());
        assert!(!Selection::of(None, true).is_full());
        assert!(!Selection::of(Some("affinity"), false).is_full());
        assert!(UNLIKELY.iter().all(|(_, why)| !why.is_empty()));
    }
}
