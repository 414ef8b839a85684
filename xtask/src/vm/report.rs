//! What host and guest tell each other: a plan goes in as a file, and a line of JSON comes out for each test.
//!
//! A serial port has no end and no length: a line that is no report (a kernel message that strayed there) is ignored,
//! and [`Line::End`] tells a guest that has finished from one that died.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::test::{layer::TestProgram, summary::Outcome};

/// What a guest is to do.
#[derive(Serialize, Deserialize)]
pub struct Plan {
    pub programs: Vec<TestProgram>,
    /// The `millrace` under test.
    pub millrace: PathBuf,
    pub filter: Option<String>,
    pub verbose: bool,
}

/// What a guest says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line {
    /// The kernel that runs, as uname(2) has it.
    Booted(String),
    /// This program's tests are running now.
    Running(String),
    Ended {
        program: String,
        test: String,
        outcome: Outcome,
    },
    /// Nothing is left to do; what kept the rest from being run, if something did.
    End(Option<String>),
}

impl Line {
    pub fn encode(&self) -> String {
        // A report consists of texts and cannot fail to be one.
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
