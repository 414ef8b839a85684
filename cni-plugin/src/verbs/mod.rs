//! The verbs of the specification, one file each, and the code that they share.

pub mod add;
pub mod check;
pub mod del;
mod demands;
pub mod detach;
pub mod gc;
pub mod status;
pub mod version;

use serde_json::Value;

use crate::config::{Command, Environment, NetworkConfig};
use crate::spec::{CniError, Code, Version};

/// Carries out a call. Returns the document for standard output, if there is one.
pub fn run(environment: &Environment, input: &[u8]) -> Result<Option<Value>, CniError> {
    if environment.command == Command::Version {
        return version::version(input).map(Some);
    }
    let config = NetworkConfig::read(input)?;
    match environment.command {
        Command::Add => add::add(environment, &config).map(Some),
        Command::Del => del::del(environment, &config).map(|()| None),
        Command::Check => {
            since(&config, Version::V0_4_0, "CHECK")?;
            check::check(environment, &config).map(|()| None)
        }
        Command::Gc => {
            since(&config, Version::V1_1_0, "GC")?;
            gc::gc(&config).map(|()| None)
        }
        Command::Status => {
            since(&config, Version::V1_1_0, "STATUS")?;
            status::status(&config).map(|()| None)
        }
        Command::Version => Ok(None),
    }
}

fn since(config: &NetworkConfig, version: Version, verb: &str) -> Result<(), CniError> {
    if config.version >= version {
        return Ok(());
    }
    let message = format!(
        "{verb} is not part of version {} of the specification",
        config.version
    );
    Err(
        CniError::new(Code::IncompatibleVersion, message).with_details(format!(
            "it came with {version}: set cniVersion to that or a later one"
        )),
    )
}
