//! `millrace ipam`: the pods' addresses in use and their holders, and whether these agree with the node's
//! interfaces and maps.
//!
//! A running agent knows the directory of leases. Without an agent the operator can name the directory, so
//! that the command works on a node whose agent does not start.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use super::output;
use super::pod::shortened;
use super::table::{Align, Cell, Table};
use super::text::{self, FAINT, GOOD, WARNING, styled};
use crate::cni::LEASES;
use crate::control::{Client, ClientError, LeaseEntry, LeaseState, Leases};
use crate::pods::check::Checked;
use crate::pods::{PluginPaths, check, leases};

/// `millrace ipam`
#[derive(Debug, Subcommand)]
pub enum IpamVerb {
    /// List every address in use, and its holder
    List(Place),
    /// Free an address, and remove its interface if it still has one
    Release(ReleaseArgs),
    /// Compare leases, interfaces and maps; succeed if they agree
    Check(Place),
}

/// The place of leases.
#[derive(Debug, Args)]
pub struct Place {
    /// The directory of leases [default: that of the running agent, else /var/lib/cni/networks/millrace]
    #[arg(long, value_name = "DIR", env = "MILLRACE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

/// `millrace ipam release`
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The address; the other addresses of the same interface are freed with it
    address: IpAddr,
    /// Free the address even if it is in use, and remove its interface
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

/// The result of `millrace ipam release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The freed leases, as they were.
    pub released: Vec<LeaseEntry>,
}

/// Runs a verb.
pub fn run(global: &Global, client: &Client, verb: &IpamVerb) -> anyhow::Result<bool> {
    match verb {
        IpamVerb::List(place) => {
            let found = place.leases(global, client)?;
            output::print(global.output, &found.leases, || render(&found))?;
            Ok(true)
        }
        IpamVerb::Release(args) => {
            let paths = args.place.paths(global, client)?;
            let released = Released {
                released: leases::release(&paths, args.address, args.force)?,
            };
            output::print(global.output, &released, || render_released(&released))?;
            Ok(true)
        }
        IpamVerb::Check(place) => {
            let checked = check::check(&place.paths(global, client)?)?;
            output::print(global.output, &checked, || render_checked(&checked))?;
            Ok(checked.problems.is_empty())
        }
    }
}

impl Place {
    /// Fails if a named directory does not exist, since the result would look like a node without leases.
    fn check(&self) -> anyhow::Result<()> {
        if let Some(dir) = &self.data_dir
            && !dir.is_dir()
        {
            bail!("--data-dir {}: there is no such directory", dir.display());
        }
        Ok(())
    }

    fn leases(&self, global: &Global, client: &Client) -> anyhow::Result<Leases> {
        self.check()?;
        if self.data_dir.is_none() {
            match client.leases() {
                Err(ClientError::NoAgent(_)) => {}
                reply => return Ok(reply?),
            }
        }
        let paths = self.known(global, None);
        Ok(Leases {
            leases: leases::list(&paths)?,
            dir: paths.lease_dir,
        })
    }

    fn paths(&self, global: &Global, client: &Client) -> anyhow::Result<PluginPaths> {
        self.check()?;
        if self.data_dir.is_some() {
            return Ok(self.known(global, None));
        }
        match client.leases() {
            Ok(leases) => Ok(self.known(global, Some(leases.dir))),
            Err(ClientError::NoAgent(_)) => Ok(self.known(global, None)),
            Err(error) => Err(error.into()),
        }
    }

    fn known(&self, global: &Global, agents: Option<PathBuf>) -> PluginPaths {
        let named = self.data_dir.clone().or(agents);
        PluginPaths {
            lease_dir: named.unwrap_or_else(|| LEASES.into()),
            bpf_root: global.bpf_root.clone(),
        }
    }
}

/// The list as a table.
pub fn render(found: &Leases) -> String {
    if found.leases.is_empty() {
        return format!(
            "No address is taken in {}.\n",
            text::line(found.dir.display().to_string())
        );
    }
    let mut table = Table::new(&[
        ("ADDRESS", Align::Left),
        ("CONTAINER", Align::Left),
        ("INTERFACE", Align::Left),
        ("STATE", Align::Left),
    ]);
    for lease in &found.leases {
        let unknown = || Cell::styled(FAINT, "-");
        let container = if lease.container_id.is_empty() {
            unknown()
        } else {
            shortened(&lease.container_id).into()
        };
        table.row([
            lease.address.to_string().into(),
            container,
            lease.if_name.as_deref().map_or_else(unknown, Cell::from),
            match lease.state {
                LeaseState::Used => "used".into(),
                LeaseState::Leaked => Cell::styled(WARNING, "leaked"),
            },
        ]);
    }
    table.to_string()
}

fn render_released(released: &Released) -> String {
    let addresses: Vec<_> = released
        .released
        .iter()
        .map(|lease| lease.address.to_string())
        .collect();
    format!("Free now: {}\n", addresses.join(", "))
}

fn render_checked(checked: &Checked) -> String {
    let seen = format!(
        "{}, {}",
        text::count(checked.leases as u64, "lease", "leases"),
        text::count(
            checked.interfaces as u64,
            "interface of pods",
            "interfaces of pods"
        )
    );
    if checked.problems.is_empty() {
        return format!("{} {seen}\n", styled(GOOD, "all agree:"));
    }
    let lines = checked.problems.iter();
    let mut lines: Vec<_> = lines
        .map(|problem| {
            format!(
                "{} {}\n",
                styled(WARNING, text::line(format!("{}:", problem.object))),
                text::line(problem.message.as_str())
            )
        })
        .collect();
    lines.push(format!("{seen}\n"));
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ObjectError;
    use crate::trouble::Trouble;

    fn lease(address: &str, container: &str, state: LeaseState) -> LeaseEntry {
        LeaseEntry {
            address: address.parse().unwrap(),
            container_id: container.into(),
            if_name: Some("eth0".into()).filter(|_| !container.is_empty()),
            state,
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_directory_that_is_named_has_to_be_there() {
        let place = |dir: &str| Place {
            data_dir: Some(dir.into()),
        };
        let error = place("/nonexistent").check().unwrap_err().to_string();
        assert_eq!(error, "--data-dir /nonexistent: there is no such directory");
        place("/").check().unwrap();
        Place { data_dir: None }.check().unwrap();
    }

    #[test]
    fn a_row_for_each_lease() {
        let found = Leases {
            dir: "/leases".into(),
            leases: vec![
                lease("10.244.1.2", "0123456789abcdef", LeaseState::Used),
                lease("fd00:1::2", "", LeaseState::Leaked),
            ],
        };
        assert_eq!(
            plain(&render(&found)),
            "\
ADDRESS     CONTAINER     INTERFACE  STATE
10.244.1.2  0123456789ab  eth0       used
fd00:1::2   -             -          leaked
"
        );
        let nothing = Leases {
            leases: vec![],
            ..found
        };
        assert_eq!(render(&nothing), "No address is taken in /leases.\n");
    }

    #[test]
    fn what_was_released_and_what_disagrees() {
        let released = Released {
            released: vec![
                lease("10.244.1.2", "c", LeaseState::Leaked),
                lease("fd00:1::2", "c", LeaseState::Leaked),
            ],
        };
        assert_eq!(render_released(&released), "Free now: 10.244.1.2, fd00:1::2\n");
        assert_eq!(
            serde_json::to_string(&released).unwrap(),
            concat!(
                r#"{"released":[{"address":"10.244.1.2","containerID":"c","ifName":"eth0","state":"leaked"},"#,
                r#"{"address":"fd00:1::2","containerID":"c","ifName":"eth0","state":"leaked"}]}"#,
            )
        );
        let mut checked = Checked {
            leases: 2,
            interfaces: 1,
            problems: vec![],
        };
        assert_eq!(
            plain(&render_checked(&checked)),
            "all agree: 2 leases, 1 interface of pods\n"
        );
        checked.problems.push(ObjectError::new(
            Trouble::PodRecordsBroken,
            "lease 10.244.1.2",
            &"no pod has it",
        ));
        assert_eq!(
            plain(&render_checked(&checked)),
            "lease 10.244.1.2: no pod has it\n2 leases, 1 interface of pods\n"
        );
    }
}
