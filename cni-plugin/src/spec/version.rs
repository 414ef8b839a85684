//! The versions of the specification that this plugin supports.

use std::fmt;

use super::error::{CniError, Code};

/// A version of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0, whose documents are those of 0.3.1.
    V0_3_0,
    /// 0.3.1, with several interfaces and addresses in a result.
    V0_3_1,
    /// 0.4.0, with the verb CHECK and `prevResult` for DEL.
    V0_4_0,
    /// 1.0.0, without the family of an address.
    V1_0_0,
    /// 1.1.0, with the verbs GC and STATUS and the MTU of interfaces.
    V1_1_0,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];
    /// The newest supported version.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version's name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Finds the version by its name.
    pub fn parse(name: &str) -> Result<Self, CniError> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::as_str).join(", ");
                CniError::new(
                    Code::IncompatibleVersion,
                    format!("cniVersion {name:?} is not supported"),
                )
                .with_details(format!(
                    "this plugin speaks {known}: set cniVersion to one of them"
                ))
            })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_by_name_and_ordered() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()).unwrap(), version);
        }
        assert!(Version::V0_3_1 < Version::V0_4_0 && Version::V1_0_0 < Version::NEWEST);
        for unknown in ["", "0.2.0", "1.2.0", "1.0", "1.0.0 "] {
            let error = Version::parse(unknown).unwrap_err();
            assert_eq!(error.code, Code::IncompatibleVersion, "{unknown}");
        }
    }
}
