//! The exchange between host and guest: a plan goes in as a file, and a line of JSON comes out for each test.
//!
//! A serial port has no end of file. A line that is no report (a stray kernel message) is ignored, and
//! [`Line::End`] distinguishes a finished guest from a dead one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::test::{layer::TestProgram, summary::Outcome};

/// The work of a guest.
#[derive(Serialize, Deserialize)]
pub struct Plan {
    pub programs: Vec<TestProgram>,
    /// The `millrace` under test.
    pub millrace: PathBuf,
    pub filter: Option<String>,
    pub verbose: bool,
}

/// A report of the guest.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line {
    /// The release of the running kernel, as in uname(2).
    Booted(String),
    /// This program's tests are running now.
    Running(String),
    Ended {
        program: String,
        test: String,
        outcome: Outcome,
    },
    /// The plan is done; with the error that stopped it, if there was one.
    End(Option<String>),
}

impl Line {
    pub fn encode(&self) -> String {
        // A report consists of strings, so serialisation cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn decode(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Line;
    use crate::test::summary::Outcome;

    #[test]
    fn reports_survive_the_serial_port() {
        let lines = [
            Line::Booted("6.1.0-51-amd64".to_owned()),
            Line::Ended {
                program: "proxy-agent/packets".to_owned(),
                test: "a".to_owned(),
                outcome: Outcome::Failed("said\n\"boom\"\u{1b}".to_owned()),
            },
            Line::End(None),
        ];
        for line in lines {
            let text = line.encode();
            assert!(!text.contains('\n'), "{text}");
            assert_eq!(Line::decode(&format!("{text}\r\n")), Some(line));
        }
        assert_eq!(Line::decode("[    1.2] a message of the kernel"), None);
    }
}
