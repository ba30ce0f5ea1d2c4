//! How long each step of a hand-over took: a row for each, and the least, the median and the greatest of each column.

use std::fmt;

/// Milliseconds, by named columns.
#[derive(Clone, Debug)]
pub struct TakeoverTable {
    columns: Vec<&'static str>,
    rows: Vec<(String, Vec<Option<u64>>)>,
}

impl TakeoverTable {
    /// A table with these columns.
    #[must_use]
    pub fn new(columns: &[&'static str]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; what is missing was not seen.
    pub fn add(&mut self, label: impl Into<String>, milliseconds: &[Option<u64>]) {
        self.rows.push((label.into(), milliseconds.to_vec()));
    }

    /// The values of a column, in order.
    ///
    /// # Panics
    /// When there is no such column.
    #[must_use]
    pub fn column(&self, name: &str) -> Vec<u64> {
        let index = self.columns.iter().position(|column| *column == name);
        let index = index.expect("a column of this table");
        let values = self.rows.iter().filter_map(|(_, row)| *row.get(index)?);
        let mut values: Vec<u64> = values.collect();
        values.sort_unstable();
        values
    }
}

impl fmt::Display for TakeoverTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, label: &str, cells: Vec<String>| {
            write!(f, "{label:<18}")?;
            for (cell, column) in cells.iter().zip(&self.columns) {
                write!(f, " {cell:>width$}", width = column.len().max(6))?;
            }
            writeln!(f)
        };
        let text = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
        let names = self.columns.iter().map(ToString::to_string).collect();
        line(f, "ms", names)?;
        for (label, row) in &self.rows {
            line(f, label, row.iter().copied().map(text).collect())?;
        }
        for name in ["min", "median", "max"] {
            let cells = self.columns.iter().map(|column| {
                let values = self.column(column);
                text(match name {
                    "min" => values.first().copied(),
                    "max" => values.last().copied(),
                    _ => values.get(values.len() / 2).copied(),
                })
            });
            line(f, name, cells.collect())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_has_its_least_median_and_greatest() {
        let mut table = TakeoverTable::new(&["elected", "adopted"]);
        table.add("kill 1", &[Some(30), Some(300)]);
        table.add("kill 2", &[Some(10), None]);
        table.add("kill 3", &[Some(20), Some(100)]);
        assert_eq!(table.column("adopted"), [100, 300]);
        let text = table.to_string();
        let words = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let line = line.expect("a line of the table");
            line[18..].split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(words("ms"), ["elected", "adopted"]);
        assert_eq!(words("kill 2"), ["10", "-"]);
        assert_eq!(words("min"), ["10", "100"]);
        assert_eq!(words("median"), ["20", "300"]);
        assert_eq!(words("max"), ["30", "300"]);
    }
}
