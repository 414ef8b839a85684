//! An operator's choice of pods: those of a namespace with certain names, or with certain labels.
//!
//! Selectors are those of Kubernetes (`apimachinery` meta/v1 `LabelSelector`). A pod's owner writes its name
//! and labels, so a choice is as safe as its namespace. A user with the right to make pods there can make a
//! chosen one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::source::wire::Text;

/// Pods of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PodChoice {
    /// The namespace of the pods.
    pub namespace: String,
    /// The names of the pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The selector of their labels; an empty selector means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// The requirements on labels; all of them must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements in the form of expressions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The name of the label.
    pub key: String,
    /// The kind of the comparison of values.
    pub operator: Operator,
    /// The values for the comparison.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// The comparison of a label with values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is absent.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// The labels of a pod, sorted.
pub type PodLabels = Box<[(Text, Text)]>;

impl PodChoice {
    /// An error in the choice: the field and the reason.
    pub fn error(&self) -> Option<(&'static str, String)> {
        if self.namespace.is_empty() {
            return Some(("namespace", "missing".to_owned()));
        }
        match (&self.names[..], &self.pod_selector) {
            ([], None) => Some(("names", "neither names nor a podSelector is given".to_owned())),
            ([_, ..], Some(_)) => Some((
                "names",
                "names and a podSelector are given; one is enough".to_owned(),
            )),
            (_, Some(selector)) => selector.error().map(|error| ("podSelector", error)),
            _ => None,
        }
    }

    /// Whether this pod is one of the chosen.
    pub fn means(&self, namespace: &str, name: &str, labels: &PodLabels) -> bool {
        let chosen = || match &self.pod_selector {
            Some(selector) => selector.matches(labels),
            None => self.names.iter().any(|wanted| wanted == name),
        };
        self.namespace == namespace && chosen()
    }
}

impl LabelSelector {
    fn error(&self) -> Option<String> {
        self.match_expressions.iter().find_map(|wanted| {
            let needs = matches!(wanted.operator, Operator::In | Operator::NotIn);
            (needs == wanted.values.is_empty()).then(|| {
                let verb = if needs { "needs" } else { "takes no" };
                format!("{:?} of {:?} {verb} values", wanted.operator, wanted.key)
            })
        })
    }

    fn matches(&self, labels: &PodLabels) -> bool {
        let value = |key: &str| {
            let found = labels.iter().find(|(label, _)| label == key);
            found.map(|(_, value)| value.as_str())
        };
        let meets = |wanted: &Requirement| {
            let value = value(&wanted.key);
            let is_listed = value.is_some_and(|value| wanted.values.iter().any(|listed| listed == value));
            match wanted.operator {
                Operator::In => is_listed,
                Operator::NotIn => !is_listed,
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        let mut pairs = self.match_labels.iter();
        pairs.all(|(key, wanted)| value(key) == Some(wanted)) && self.match_expressions.iter().all(meets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(yaml: &str) -> PodChoice {
        serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
    }

    #[test]
    fn pods_are_chosen_by_name_or_by_labels() {
        let labels: PodLabels = Box::new([("app".into(), "router".into()), ("tier".into(), "edge".into())]);
        for (yaml, means) in [
            ("{namespace: net, names: [a, b]}", true),
            ("{namespace: net, names: [b]}", false),
            ("{namespace: other, names: [a]}", false),
            ("{namespace: net, podSelector: {}}", true),
            (
                "{namespace: net, podSelector: {matchLabels: {app: router}}}",
                true,
            ),
            (
                "{namespace: net, podSelector: {matchLabels: {app: router, tier: core}}}",
                false,
            ),
            (
                "{namespace: net, podSelector: {matchExpressions: [{key: app, operator: In, values: [x, router]}]}}",
                true,
            ),
            (
                "{namespace: net, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [router]}]}}",
                false,
            ),
            (
                "{namespace: net, podSelector: {matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}}",
                true,
            ),
            (
                "{namespace: net, podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}",
                true,
            ),
            (
                "{namespace: net, podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}",
                false,
            ),
        ] {
            let choice = choice(yaml);
            assert_eq!(choice.error(), None, "{yaml}");
            assert_eq!(choice.means("net", "a", &labels), means, "{yaml}");
        }
    }

    #[test]
    fn a_choice_that_says_too_little_or_too_much_is_an_error() {
        for (yaml, part) in [
            ("{names: [a]}", "namespace"),
            ("{namespace: net}", "names"),
            ("{namespace: net, names: [a], podSelector: {}}", "names"),
            (
                "{namespace: net, podSelector: {matchExpressions: [{key: a, operator: In}]}}",
                "podSelector",
            ),
            (
                "{namespace: net, podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
                "podSelector",
            ),
        ] {
            assert_eq!(choice(yaml).error().map(|error| error.0), Some(part), "{yaml}");
        }
        assert!(serde_saphyr::from_str::<PodChoice>("{namespace: net, name: a}").is_err());
    }
}
