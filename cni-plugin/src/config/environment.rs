//! The environment variables of a call.
//!
//! Names of containers and interfaces become parts of paths and of netlink messages. So the plugin checks
//! them strictly by the rules of the specification:
//!
//! - A container name begins with a letter or digit. Letters, digits and `_.-` follow.
//! - An interface name has 1 to 15 bytes, is not `.` or `..`, and has no `/`, `:` or white space.
//!
//! ADD also refuses interface names that the kernel does not take literally. The other verbs accept them,
//! since an older version may have made such an interface.

use std::ffi::OsString;
use std::path::PathBuf;

use super::args::Args;
use crate::spec::{CniError, Code};

/// The verb of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Give a container an interface.
    Add,
    /// Remove the interface.
    Del,
    /// Check that the interface is as ADD made it.
    Check,
    /// Free the resources that no container has.
    Gc,
    /// Report whether ADD can work.
    Status,
    /// Report the supported versions of the specification.
    Version,
}

/// One interface of one container: ADD makes it and DEL removes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
pub struct Attachment {
    /// The container's id, as the runtime gives it.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the container.
    #[serde(rename = "ifname", alias = "ifName")]
    pub if_name: String,
}

/// The environment of a call, checked.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The verb of the call.
    pub command: Command,
    attachment: Option<Attachment>,
    netns: Option<PathBuf>,
    /// The pairs of `CNI_ARGS`; empty for all verbs but ADD.
    pub args: Args,
    /// Whether a container may live in the node's own network namespace.
    pub netns_override: bool,
}

impl Environment {
    /// Reads and checks the environment; `variable` looks up one variable.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let text = |name: &str| match variable(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value).filter(|value| !value.is_empty())),
            Some(Err(_)) => Err(invalid(name, "is not UTF-8", "")),
        };
        let command = command(text("CNI_COMMAND")?.as_deref())?;
        let one_container = matches!(command, Command::Add | Command::Del | Command::Check);
        let mut environment = Self {
            command,
            attachment: None,
            netns: None,
            args: Args::default(),
            netns_override: matches!(text("CNI_NETNS_OVERRIDE")?.as_deref(), Some("1" | "true")),
        };
        if !one_container {
            return Ok(environment);
        }
        let container_id = text("CNI_CONTAINERID")?.ok_or_else(|| missing("CNI_CONTAINERID"))?;
        let if_name = text("CNI_IFNAME")?.ok_or_else(|| missing("CNI_IFNAME"))?;
        check_container_id(&container_id)?;
        check_if_name(&if_name)?;
        if command == Command::Add {
            check_literal(&if_name)?;
        }
        environment.attachment = Some(Attachment {
            container_id,
            if_name,
        });
        environment.netns = text("CNI_NETNS")?.map(PathBuf::from);
        if environment.netns.is_none() && command != Command::Del {
            return Err(missing("CNI_NETNS"));
        }
        // DEL must not fail because of a variable that it does not use.
        if command == Command::Add {
            environment.args = Args::parse(&text("CNI_ARGS")?.unwrap_or_default())?;
        }
        Ok(environment)
    }

    /// The container and interface of ADD, DEL and CHECK.
    pub fn attachment(&self) -> Result<&Attachment, CniError> {
        self.attachment.as_ref().ok_or_else(|| missing("CNI_CONTAINERID"))
    }

    /// The path of the container's network namespace, for ADD and CHECK.
    pub fn netns(&self) -> Result<&PathBuf, CniError> {
        self.netns.as_ref().ok_or_else(|| missing("CNI_NETNS"))
    }
}

fn command(name: Option<&str>) -> Result<Command, CniError> {
    Ok(match name {
        Some("ADD") => Command::Add,
        Some("DEL") => Command::Del,
        Some("CHECK") => Command::Check,
        Some("GC") => Command::Gc,
        Some("STATUS") => Command::Status,
        Some("VERSION") => Command::Version,
        Some(other) => {
            return Err(invalid(
                "CNI_COMMAND",
                &format!("is {other:?}"),
                "it is one of ADD, DEL, CHECK, GC, STATUS, VERSION",
            ));
        }
        None => return Err(missing("CNI_COMMAND")),
    })
}

fn check_container_id(id: &str) -> Result<(), CniError> {
    let first = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && id.bytes().all(is_name_byte) {
        return Ok(());
    }
    Err(invalid(
        "CNI_CONTAINERID",
        &format!("is {id:?}"),
        "it begins with a letter or digit and goes on with letters, digits, `_`, `.` and `-`",
    ))
}

/// Whether a byte may stand in the name of a container or network.
pub fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

fn check_if_name(name: &str) -> Result<(), CniError> {
    // IFNAMSIZ includes the terminating zero; see `dev_valid_name()` of net/core/dev.c.
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.len() <= 15 && name != "." && name != ".." && !name.contains(forbidden) {
        return Ok(());
    }
    Err(invalid(
        "CNI_IFNAME",
        &format!("is {name:?}"),
        "it has at most 15 bytes and no `/`, `:` or white space, and is not `.` or `..`",
    ))
}

/// Refuses names that the kernel replaces or cannot give. `%d` stands for a free number (`__dev_alloc_name()`
/// of net/core/dev.c). `all` and `default` stand for the settings of all interfaces
/// (`sysctl_dev_name_is_allowed()` of `net/core/sysctl_net_core.c`).
fn check_literal(name: &str) -> Result<(), CniError> {
    if !name.contains('%') && !matches!(name, "all" | "default") {
        return Ok(());
    }
    Err(invalid(
        "CNI_IFNAME",
        &format!("is {name:?}"),
        "the kernel takes `%`, `all` and `default` for something else than a name: choose another one",
    ))
}

fn missing(name: &str) -> CniError {
    CniError::new(Code::InvalidEnvironment, format!("{name} is not set"))
        .with_details("the runtime has to set it for this verb")
}

pub(super) fn invalid(name: &str, what: &str, details: &str) -> CniError {
    CniError::new(Code::InvalidEnvironment, format!("{name} {what}")).with_details(details)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(changes: &[(&str, &str)]) -> Result<Environment, CniError> {
        let mut variables = BTreeMap::from([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/x"),
        ]);
        variables.extend(changes.iter().copied());
        Environment::read(|name| variables.get(name).map(OsString::from))
    }

    #[test]
    fn a_verb_requires_its_variables() {
        assert!(read(&[]).is_ok());
        for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            let error = read(&[(name, "")]).unwrap_err();
            assert_eq!(
                (error.code, error.msg),
                (Code::InvalidEnvironment, format!("{name} is not set"))
            );
        }
        let del = read(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", ""), ("CNI_ARGS", "?")]).unwrap();
        assert!(del.netns().is_err() && del.attachment().is_ok());
        for verb in ["GC", "STATUS", "VERSION"] {
            assert!(read(&[("CNI_COMMAND", verb), ("CNI_CONTAINERID", "")]).is_ok());
        }
    }

    #[test]
    fn names_that_the_specification_forbids_are_refused() {
        let long = "x".repeat(300);
        assert!(read(&[("CNI_CONTAINERID", &long)]).is_ok());
        for (name, values) in [
            ("CNI_CONTAINERID", vec!["-a", "a/b", "ä", "a b", ".."]),
            (
                "CNI_IFNAME",
                vec![
                    ".",
                    "..",
                    "a/b",
                    "a:b",
                    "a b",
                    "a\tb",
                    "a\n",
                    "a\u{7f}",
                    "sixteen-bytes-16",
                    &long,
                ],
            ),
            ("CNI_COMMAND", vec!["add", "ADDD", &long]),
        ] {
            for value in values {
                let error = read(&[(name, value)]).unwrap_err();
                assert_eq!(error.code, Code::InvalidEnvironment, "{name} {value}");
                assert!(error.msg.starts_with(name), "{error}");
            }
        }
    }
    #[test]
    fn names_that_the_kernel_interprets_are_refused_by_add_alone() {
        for name in ["eth%d", "%d", "%", "100%", "%s", "a%%b", "all", "default"] {
            let error = read(&[("CNI_IFNAME", name)]).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{name}");
            assert!(error.msg.contains(&format!("{name:?}")), "{error}");
            for verb in ["DEL", "CHECK"] {
                assert!(
                    read(&[("CNI_COMMAND", verb), ("CNI_IFNAME", name)]).is_ok(),
                    "{name}"
                );
            }
        }
        for name in ["eth0", "all0", "default.5", "fifteen-bytes-1"] {
            assert!(read(&[("CNI_IFNAME", name)]).is_ok(), "{name}");
        }
    }
}
