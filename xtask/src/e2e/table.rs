//! Results of the suite as text: one line for each spec, for human readers and for the repository.
//!
//! ```text
//! pass    12.3  pass  [sig-network] Services should …
//! FAIL     4.0  pass  [sig-network] Services should … :: what it said
//! ```
//!
//! The third column exists where a proxy is compared with kube-proxy.

use std::{collections::HashMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

/// The separator between a spec and its message.
const NOTE_SEPARATOR: &str = " :: ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pass,
    Fail,
    /// The spec found that it cannot run here.
    Skip,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Skip => "skip",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Pass, Self::Fail, Self::Skip]
            .into_iter()
            .find(|outcome| outcome.name() == name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub spec: String,
    pub outcome: Outcome,
    /// The time of the spec in tenths of a second.
    pub tenths: u64,
    pub note: String,
}

impl Row {
    pub fn failed(&self) -> bool {
        self.outcome == Outcome::Fail
    }

    fn parse(line: &str) -> Option<Self> {
        let (columns, rest) = line.split_at(line.find('[')?);
        let mut columns = columns.split_whitespace();
        let outcome = Outcome::named(columns.next()?)?;
        let (whole, tenth) = columns.next()?.split_once('.')?;
        let (spec, note) = rest.split_once(NOTE_SEPARATOR).unwrap_or((rest, ""));
        Some(Self {
            spec: spec.trim().to_owned(),
            outcome,
            tenths: whole.parse::<u64>().ok()? * 10 + tenth.parse::<u64>().ok()?,
            note: note.trim().to_owned(),
        })
    }
}

/// The results of one run.
#[derive(Default)]
pub struct Table {
    pub rows: Vec<Row>,
}

impl Table {
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self {
            rows: lines.filter_map(Row::parse).collect(),
        }
    }

    pub fn write(&self, path: &Path, heading: &str, compare: Option<&Self>) -> Result<()> {
        let text = self.render(heading, compare);
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// The table as text, with a column for the results of `compare` if it is given.
    pub fn render(&self, heading: &str, compare: Option<&Self>) -> String {
        let others = compare.map(Self::outcomes);
        let mut text = format!("# {heading}\n");
        for row in &self.rows {
            let other = others.as_ref().map_or(String::new(), |others| {
                let outcome = others
                    .get(row.spec.as_str())
                    .map_or("-", |outcome| outcome.name());
                format!("{outcome:<4}  ")
            });
            let note = if row.note.is_empty() {
                String::new()
            } else {
                format!("{NOTE_SEPARATOR}{}", row.note)
            };
            let seconds = format!("{}.{}", row.tenths / 10, row.tenths % 10);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:<4}  {seconds:>6}  {other}{}{note}",
                row.outcome.name(),
                row.spec
            );
        }
        text
    }

    /// Takes over another table's rows, in place of those of the same specs.
    pub fn replace(&mut self, newer: &Self) {
        let specs = newer.outcomes();
        self.rows.retain(|row| !specs.contains_key(row.spec.as_str()));
        self.rows.extend(newer.rows.iter().cloned());
        self.rows.sort_by(|a, b| a.spec.cmp(&b.spec));
    }

    /// The numbers of passed, failed and skipped specs.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |outcome| self.rows.iter().filter(|row| row.outcome == outcome).count();
        (count(Outcome::Pass), count(Outcome::Fail), count(Outcome::Skip))
    }

    /// The rows of specs that pass in `other` and not in this table.
    pub fn worse_than(&self, other: &Self) -> Vec<&Row> {
        let others = other.outcomes();
        let passes_there = |row: &&Row| others.get(row.spec.as_str()) == Some(&Outcome::Pass);
        self.rows
            .iter()
            .filter(|row| row.outcome != Outcome::Pass)
            .filter(passes_there)
            .collect()
    }

    fn outcomes(&self) -> HashMap<&str, Outcome> {
        self.rows
            .iter()
            .map(|row| (row.spec.as_str(), row.outcome))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Row, Table};

    fn row(spec: &str, outcome: Outcome, note: &str) -> Row {
        Row {
            spec: spec.to_owned(),
            outcome,
            tenths: 123,
            note: note.to_owned(),
        }
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let here = Table {
            rows: vec![
                row("[sig-network] a", Outcome::Pass, ""),
                row("[sig-network] b", Outcome::Fail, "no"),
            ],
        };
        let there = Table {
            rows: vec![row("[sig-network] b", Outcome::Pass, "")],
        };
        let text = here.render("heading", Some(&there));
        assert_eq!(
            text,
            "# heading\n\
             pass    12.3  -     [sig-network] a\n\
             FAIL    12.3  pass  [sig-network] b :: no\n"
        );
        assert_eq!(Table::parse(&text).rows, here.rows);
        assert_eq!(Table::parse(&here.render("heading", None)).rows, here.rows);
        assert_eq!(here.worse_than(&there), [&here.rows[1]]);
        assert_eq!(here.counts(), (1, 1, 0));

        let mut both = here;
        both.replace(&there);
        assert_eq!(both.counts(), (2, 0, 0));
        assert_eq!(both.rows.len(), 2);
    }
}
