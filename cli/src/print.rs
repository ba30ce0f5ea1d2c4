//! Standard output: text or JSON, and tables. A reader that went away (`tidemill list | head -1`) ends the program in peace.

use std::io::{self, ErrorKind, Write};
use std::process;

use serde::Serialize;

use crate::failure::{Exit, Failure};

/// Prints a line, or lines.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => process::exit(0),
        Err(error) => Err(Failure::because(
            Exit::Failed,
            "standard output cannot be written",
            &error,
        )),
    }
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::because(Exit::Failed, "the answer has no JSON form", &error))?;
    text(&json)
}

/// A table whose columns are as wide as they need to be. The last column is not padded.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![
                headings
                    .iter()
                    .map(|heading| (*heading).to_owned())
                    .collect(),
            ],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Without the headings alone: an empty table is `none` of what it lists.
    pub(crate) fn rendered(&self, none: &str) -> String {
        if self.rows.len() == 1 {
            return none.to_owned();
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let lines = self.rows.iter().map(|row| {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(&["ID", "NAME", "MESSAGE"]);
        table.row(["1", "größe", ""].map(str::to_owned));
        table.row(["22", "b", "waits"].map(str::to_owned));
        assert_eq!(
            table.rendered("none"),
            "ID  NAME   MESSAGE\n1   größe\n22  b      waits"
        );
        assert_eq!(Table::new(&["ID"]).rendered("no jobs"), "no jobs");
    }
}
