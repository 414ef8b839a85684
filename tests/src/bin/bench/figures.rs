//! The figures of a run, as a table for people and as JSON for scripts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::Machine;
use crate::quantiles::quantile;

/// One quantity of one contender at one size.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    name: String,
    contender: &'static str,
    n: usize,
    unit: &'static str,
    median: f64,
    q1: f64,
    q3: f64,
    /// The ratio to each other contender of the same run, by its name.
    ratio_to: BTreeMap<String, f64>,
    /// The number of repetitions behind the median and the quartiles.
    runs: usize,
    /// The upper limit of the median.
    limit: Option<f64>,
}

impl Figure {
    /// A figure of Millrace.
    pub fn new(name: impl Into<String>, n: usize, unit: &'static str, samples: &[f64]) -> Self {
        let at = |q| quantile(samples, q);
        Self {
            name: name.into(),
            contender: "millrace",
            n,
            unit,
            median: at(0.5),
            q1: at(0.25),
            q3: at(0.75),
            ratio_to: BTreeMap::new(),
            runs: samples.len(),
            limit: None,
        }
    }

    /// Sets the upper limit of the median.
    #[must_use]
    pub fn limit(self, limit: f64) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// Makes this the figure of another contender.
    #[must_use]
    pub fn of(self, contender: &'static str) -> Self {
        Self { contender, ..self }
    }

    /// Adds the median of its ratios to another contender's, each formed within a round.
    #[must_use]
    pub fn ratio(mut self, to: &str, ratios: &[f64]) -> Self {
        self.ratio_to.insert(to.to_owned(), quantile(ratios, 0.5));
        self
    }

    fn verdict(&self) -> &'static str {
        match self.limit {
            Some(limit) if self.median <= limit => "met",
            Some(_) => "MISSED",
            None => "",
        }
    }
}

/// A quantity that could not be measured, and the reason.
#[derive(Serialize)]
struct Skipped {
    name: String,
    reason: String,
}

/// All figures so far.
#[derive(Default, Serialize)]
pub struct Figures {
    results: Vec<Figure>,
    skipped: Vec<Skipped>,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    machine: &'a Machine,
    #[serde(flatten)]
    figures: &'a Figures,
}

impl Figures {
    /// Adds a figure, and prints it at once.
    pub fn add(&mut self, figure: Figure) {
        let line = rows(std::slice::from_ref(&figure))
            .into_iter()
            .flatten()
            .filter(|cell| !cell.is_empty())
            .collect::<Vec<_>>();
        eprintln!("    {}", line.join("  "));
        self.results.push(figure);
    }

    /// Records a quantity that cannot be measured here.
    pub fn skip(&mut self, name: &str, reason: &str) {
        eprintln!("    skipped: {reason}");
        self.skipped.push(Skipped {
            name: name.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// The table of all figures, for people.
    pub fn table(&self) -> String {
        let titles = ["quantity", "n", "median", "q1 – q3", "unit", "limit", ""].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(titles).chain(rows(&self.results)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        let widths: [usize; 7] = std::array::from_fn(|column| width(column).unwrap_or(0));
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                let is_number = [1, 2, 3, 5].contains(&column);
                // write! to a String cannot fail.
                let _ = if is_number {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:<width$}  ")
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for Skipped { name, reason } in &self.skipped {
            let _ = writeln!(text, "{name} was skipped: {reason}");
        }
        text
    }

    /// Writes the JSON document.
    pub fn write(&self, path: &Path, machine: &Machine) -> Result<()> {
        let document = Document {
            machine,
            figures: self,
        };
        let mut text = serde_json::to_string_pretty(&document).context("writing the results as JSON")?;
        text.push('\n');
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

fn rows(figures: &[Figure]) -> Vec<[String; 7]> {
    let row = |figure: &Figure| {
        let spread = if figure.runs > 1 {
            format!("{} – {}", number(figure.q1), number(figure.q3))
        } else {
            String::new()
        };
        let limit = figure.limit.map(number).unwrap_or_default();
        let name = match figure.contender {
            "millrace" => figure.name.clone(),
            other => format!("{} ({other})", figure.name),
        };
        [
            name,
            figure.n.to_string(),
            number(figure.median),
            spread,
            figure.unit.to_owned(),
            limit,
            figure.verdict().to_owned(),
        ]
    };
    figures.iter().map(row).collect()
}

/// A number with three significant digits; whole numbers keep all digits.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_limits_and_the_document_has_the_promised_keys() {
        let mut figures = Figures::default();
        figures.add(Figure::new("sync.cold", 1000, "ms", &[1.0, 2.0, 4.0]).limit(1.5));
        figures.add(Figure::new("sync.writes", 1000, "writes", &[0.0]).limit(0.0));
        let table = figures.table();
        let cold = table
            .lines()
            .find(|line| line.contains("sync.cold"))
            .expect("a row");
        let words: Vec<_> = cold.split_whitespace().collect();
        assert_eq!(
            words,
            ["sync.cold", "1000", "2", "1.50", "–", "3", "ms", "1.50", "MISSED"],
            "{table}"
        );
        assert!(table.contains("met"), "{table}");
        let json = serde_json::to_value(&figures.results[0]).unwrap();
        for key in ["name", "contender", "n", "unit", "median", "q1", "q3", "ratioTo"] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }
}
