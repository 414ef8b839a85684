//! Tables: columns as wide as their widest cell, with two spaces between them.
//!
//! Invariant: the text of a cell stays in its line, for all names in it.

use std::fmt;

use anstyle::Style;

use super::text::{self, FAINT};

const GAP: usize = 2;

/// The side of its column on which a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Left, for text.
    Left,
    /// Right, for numbers.
    Right,
}

/// One cell of a table.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell in a colour.
    pub fn styled(style: Style, text: impl Into<String>) -> Self {
        Self {
            text: text::line(text.into()),
            style,
        }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(Style::new(), text)
    }
}

/// A table with a title over each column.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let titles = columns
            .iter()
            .map(|(title, _)| Cell::styled(FAINT, *title))
            .collect();
        Self {
            columns: columns.iter().map(|(_, align)| *align).collect(),
            rows: vec![titles],
        }
    }

    /// Adds a row, one cell for each column.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len(), "a cell for each column");
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0))
            .collect();
        for row in &self.rows {
            // Trailing spaces are left out, so that lines can be compared and copied.
            let mut spaces = 0;
            for ((cell, align), width) in row.iter().zip(&self.columns).zip(&widths) {
                let padding = width - cell.width();
                if *align == Align::Right {
                    spaces += padding;
                }
                if !cell.text.is_empty() {
                    write!(f, "{:spaces$}{}{}{:#}", "", cell.style, cell.text, cell.style)?;
                    spaces = 0;
                }
                if *align == Align::Left {
                    spaces += padding;
                }
                spaces += GAP;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::BAD;
    use super::*;

    fn sample() -> String {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("SIZE", Align::Right),
            ("NOTE", Align::Left),
        ]);
        table.row(["a".into(), "1".into(), "".into()]);
        table.row(["längst".into(), "10,000".into(), Cell::styled(BAD, "full")]);
        table.row(["".into(), "".into(), "x".into()]);
        table.to_string()
    }

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let text = anstream::adapter::strip_str(&sample()).to_string();
        assert_eq!(
            text,
            "NAME      SIZE  NOTE\na            1\nlängst  10,000  full\n                x\n"
        );
    }

    #[test]
    fn colours_take_no_room() {
        assert!(
            sample().contains("10,000  \x1b[1m\x1b[31mfull\x1b[0m\n"),
            "{:?}",
            sample()
        );
    }

    #[test]
    fn a_name_does_not_end_its_line() {
        let mut table = Table::new(&[("NAME", Align::Left)]);
        table.row(["a\n\x1b[2Jb".into()]);
        let text = anstream::adapter::strip_str(&table.to_string()).to_string();
        assert_eq!(text, "NAME\na\\n\\u{1b}[2Jb\n");
    }
}
