//! Splits a file into its documents without parsing them.
//!
//! In YAML a line that starts with `---` or `...` always ends a document (YAML 1.2.2 §9.1.2 forbids such a
//! line inside any scalar). So a file can be split into documents by its lines alone. That makes an edit
//! cheap: a document with unchanged text is not parsed again, even in a file of ten thousand.

/// The text of a document, and the line where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// The line of the file that the text starts on, counted from one.
    pub(super) line: usize,
    pub(super) text: &'a str,
}

impl Document<'_> {
    /// The first line with content.
    pub(super) fn first_line(&self) -> usize {
        self.line + self.text.lines().take_while(|line| !has_content(line)).count()
    }
}

/// Each document with content, in order. Comments, blank lines and directives are no content.
pub(super) fn documents(file: &str) -> impl Iterator<Item = Document<'_>> {
    let mut rest = Some(Document {
        line: 1,
        text: file.strip_prefix('\u{feff}').unwrap_or(file),
    });
    std::iter::from_fn(move || {
        let (document, next) = split(rest?);
        rest = next;
        Some(document)
    })
    .filter(|document| has_content(document.text))
}

/// Splits off the first document.
fn split(all: Document<'_>) -> (Document<'_>, Option<Document<'_>>) {
    let mut start = 0;
    for (number, line) in all.text.split_inclusive('\n').enumerate() {
        if is_marker(line) {
            let document = Document {
                line: all.line,
                text: &all.text[..start],
            };
            let next = Document {
                line: all.line + number,
                // The rest of the marker's line belongs to the next document.
                text: &all.text[start + 3..],
            };
            return (document, Some(next));
        }
        start += line.len();
    }
    (all, None)
}

fn is_marker(line: &str) -> bool {
    let after = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
    after.is_some_and(|after| after.is_empty() || after.starts_with(char::is_whitespace))
}

fn has_content(text: &str) -> bool {
    text.lines().any(|line| {
        let content = line.trim_start();
        !content.is_empty() && !content.starts_with('#') && !line.starts_with('%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(file: &str) -> Vec<(usize, &str)> {
        documents(file)
            .map(|document| (document.line, document.text))
            .collect()
    }

    #[test]
    fn a_file_without_markers_is_one_document() {
        assert_eq!(cut("a: 1\nb: 2\n"), [(1, "a: 1\nb: 2\n")]);
        assert_eq!(cut("\u{feff}{\"a\": 1}"), [(1, "{\"a\": 1}")]);
    }

    #[test]
    fn markers_cut_and_lines_are_counted_on() {
        assert_eq!(
            cut("---\na: 1\n---\nb: 2\n...\nc: 3"),
            [(1, "\na: 1\n"), (3, "\nb: 2\n"), (5, "\nc: 3")]
        );
        assert_eq!(
            cut("a: 1\r\n---\r\nb: 2\r\n"),
            [(1, "a: 1\r\n"), (2, "\r\nb: 2\r\n")]
        );
        assert_eq!(
            cut("--- {a: 1}\n--- # two\nb: 2"),
            [(1, " {a: 1}\n"), (2, " # two\nb: 2")]
        );
    }

    #[test]
    fn what_only_looks_like_a_marker_does_not_cut() {
        assert_eq!(cut("a: |\n  ---\n---b: 1\n").len(), 1);
    }

    #[test]
    fn documents_that_say_nothing_are_left_out() {
        assert_eq!(
            cut("# only\n---\n\n---\n%YAML 1.2\n---\na: 1\n---\n"),
            [(6, "\na: 1\n")]
        );
        assert!(cut("").is_empty());
    }
}
