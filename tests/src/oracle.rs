//! What a job's output must be, computed directly from its input; and the output, as a reader of the sink's directory
//! sees it. Nothing here resembles the jobs' own code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// How many differences an error tells.
const DIFFERENCES_SHOWN_MAX: usize = 12;

/// The output of a job that emits a key's count each time it changes: for each key every number from 1 to its count,
/// exactly once, in whatever order. A lost record leaves a gap, a doubled one shows twice, and a state that went back
/// without its output, or the other way round, shows as either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollingCounts {
    key_field: &'static str,
    counts: BTreeMap<String, u64>,
}

impl RollingCounts {
    /// The words of a text, as the job `wordcount` counts them.
    #[must_use]
    pub fn of_words(text: &str) -> Self {
        let mut counts = BTreeMap::new();
        let mut word = String::new();
        for c in text.chars().chain(['\n']) {
            if c.is_alphanumeric() || c == '\'' {
                word.extend(c.to_lowercase());
                continue;
            }
            let bare = word.trim_matches('\'');
            if !bare.is_empty() {
                *counts.entry(bare.to_owned()).or_default() += 1;
            }
            word.clear();
        }
        Self {
            key_field: "word",
            counts,
        }
    }

    /// The numbers from 0 to `count` by their remainder of division by `keys`, as the job `keyed-count` counts them.
    #[must_use]
    pub fn of_numbers(count: u64, keys: u64) -> Self {
        let counts = (0..keys.min(count))
            .map(|key| (key.to_string(), (count - key).div_ceil(keys)))
            .collect();
        Self {
            key_field: "key",
            counts,
        }
    }

    /// How many records the output must have.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Compares the files of a directory with what must be there.
    ///
    /// # Errors
    /// When they differ, with the first differences.
    pub fn check(&self, directory: &Path) -> anyhow::Result<()> {
        self.check_records(&records(directory)?)
    }

    /// Compares records, wherever they came out, with what they must be.
    ///
    /// # Errors
    /// When they differ, with the first differences.
    pub fn check_records(&self, records: &[Value]) -> anyhow::Result<()> {
        let mut seen: BTreeMap<String, BTreeMap<u64, u64>> = BTreeMap::new();
        for record in records {
            let key = match &record[self.key_field] {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                other => bail!("{record} has {other} for its {}", self.key_field),
            };
            let count = record["count"]
                .as_u64()
                .with_context(|| format!("{record} has no count"))?;
            *seen.entry(key).or_default().entry(count).or_default() += 1;
        }
        let differences = self.differences(&seen);
        ensure!(
            differences.is_empty(),
            "{} differences between the output and the truth:\n  {}",
            differences.len(),
            differences[..differences.len().min(DIFFERENCES_SHOWN_MAX)].join("\n  ")
        );
        Ok(())
    }

    fn differences(&self, seen: &BTreeMap<String, BTreeMap<u64, u64>>) -> Vec<String> {
        let mut differences = Vec::new();
        for (key, count) in &self.counts {
            let emitted = seen.get(key);
            let times = |n: &u64| {
                emitted
                    .and_then(|emitted| emitted.get(n))
                    .copied()
                    .unwrap_or(0)
            };
            let missing: Vec<u64> = (1..=*count).filter(|n| times(n) == 0).collect();
            let doubled: Vec<u64> = (1..=*count).filter(|n| times(n) > 1).collect();
            let foreign = emitted
                .into_iter()
                .flat_map(BTreeMap::keys)
                .filter(|n| **n == 0 || *n > count);
            let foreign: Vec<u64> = foreign.copied().collect();
            for (what, numbers) in [
                ("lost", missing),
                ("doubled", doubled),
                ("too high", foreign),
            ] {
                if let Some(first) = numbers.first() {
                    let of = format!(
                        "of the {count} records of `{key}`, {} are {what}",
                        numbers.len()
                    );
                    differences.push(format!("{of}, {first} the first"));
                }
            }
        }
        let unknown = seen.keys().filter(|key| !self.counts.contains_key(*key));
        differences.extend(unknown.map(|key| format!("`{key}` does not occur, and was counted")));
        differences
    }
}

/// Every record in the files of a directory that are not hidden.
///
/// # Errors
/// When there is no such directory, a file's last line has no end, or a line is not JSON.
pub fn records(directory: &Path) -> anyhow::Result<Vec<Value>> {
    let mut records = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            text.ends_with('\n'),
            "the last line of {} is cut short",
            path.display()
        );
        for line in text.lines() {
            let record = serde_json::from_str(line);
            records.push(
                record.with_context(|| format!("`{line}` of {} is not JSON", path.display()))?,
            );
        }
    }
    Ok(records)
}

/// The hidden files of a directory: what sinks have not committed.
///
/// # Errors
/// When there is no such directory.
pub fn hidden_files(directory: &Path) -> anyhow::Result<Vec<String>> {
    let names = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(names
        .into_iter()
        .filter(|name| name.starts_with('.'))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &str) -> String {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("part-1"), lines).expect("a small file");
        fs::write(directory.path().join(".hidden"), "not JSON").expect("a small file");
        match RollingCounts::of_words("To be, to 'be'").check(directory.path()) {
            Ok(()) => "equal".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    fn line(word: &str, count: u64) -> String {
        format!("{{\"word\":\"{word}\",\"count\":{count}}}\n")
    }

    #[test]
    fn order_does_not_matter_and_all_else_does() {
        let [to_1, to_2, be_1, be_2] = [line("to", 1), line("to", 2), line("be", 1), line("be", 2)];
        assert_eq!(outcome(&[&*to_2, &be_1, &be_2, &to_1].concat()), "equal");
        let lost = outcome(&[&*to_2, &be_1, &be_2].concat());
        assert!(
            lost.contains("of the 2 records of `to`, 1 are lost, 1 the first"),
            "{lost}"
        );
        let doubled = outcome(&[&*to_2, &be_1, &be_2, &to_1, &to_1].concat());
        assert!(doubled.contains("1 are doubled, 1 the first"), "{doubled}");
        let high = outcome(&[&*to_2, &be_1, &be_2, &to_1, &line("to", 3)].concat());
        assert!(high.contains("1 are too high, 3 the first"), "{high}");
        let foreign = outcome(&[&*to_2, &be_1, &be_2, &to_1, &line("ox", 1)].concat());
        assert!(foreign.contains("`ox` does not occur"), "{foreign}");
        let cut = outcome("{\"word\":\"to\",\"count\":1}");
        assert!(cut.contains("cut short"), "{cut}");
    }

    #[test]
    fn numbers_are_dealt_to_their_keys() {
        let expected = [("0", 3), ("1", 2), ("2", 2)].map(|(key, count)| (key.to_owned(), count));
        assert_eq!(RollingCounts::of_numbers(7, 3).counts, expected.into());
        assert_eq!(RollingCounts::of_numbers(2, 5).records(), 2);
    }
}
