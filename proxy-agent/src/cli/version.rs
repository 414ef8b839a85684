//! `millrace version`: the version of this program.

use serde::Serialize;

use super::output::{self, OutputFormat};

/// The result of `millrace version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// The version of the release.
    pub version: &'static str,
    /// The commit that it was built from, or `unknown`.
    pub revision: &'static str,
    /// The layout version of the maps that it makes.
    pub layout_version: u32,
}

/// This program's version.
pub const VERSION: Version = Version {
    version: env!("CARGO_PKG_VERSION"),
    revision: env!("MILLRACE_REVISION"),
    layout_version: proxy_common::LAYOUT_VERSION,
};

/// Prints the version.
pub fn run(format: OutputFormat) -> anyhow::Result<bool> {
    output::print(format, &VERSION, || render(&VERSION))?;
    Ok(true)
}

/// The version as text for people.
pub fn render(version: &Version) -> String {
    let Version {
        version,
        revision,
        layout_version,
    } = version;
    format!("millrace {version} (revision {revision}, map layout {layout_version})\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_keys_that_are_promised() {
        let version = Version {
            version: "1.2.3",
            revision: "abc",
            layout_version: 4,
        };
        assert_eq!(
            serde_json::to_string(&version).unwrap(),
            r#"{"version":"1.2.3","revision":"abc","layoutVersion":4}"#
        );
        assert_eq!(render(&version), "millrace 1.2.3 (revision abc, map layout 4)\n");
    }
}
