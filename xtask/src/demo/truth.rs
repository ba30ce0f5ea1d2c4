//! Whether the job's output is what the text says: a count of the text that shares no code with the job, and a
//! comparison that sees a record which is missing and one which is there twice.
//!
//! It never reads what the sink has not committed: hidden files do not exist for it, as for any reader of a sink.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

/// How many of the differences are told in full.
const DIFFERENCES_SHOWN_MAX: usize = 10;

/// How often each word occurs.
pub(super) struct Truth {
    counts: BTreeMap<String, u64>,
}

impl Truth {
    /// Counts a text: words are runs of letters, digits and apostrophes, in lower case, without apostrophes at their ends.
    pub(super) fn of(text: &str) -> Self {
        let mut counts = BTreeMap::new();
        let mut word = String::new();
        for character in text.chars().chain([' ']) {
            if character.is_alphanumeric() || character == '\'' {
                word.push(character);
                continue;
            }
            let bare = word.trim_matches('\'');
            if !bare.is_empty() {
                *counts.entry(bare.to_lowercase()).or_insert(0) += 1;
            }
            word.clear();
        }
        Self { counts }
    }

    /// Different words.
    pub(super) fn words(&self) -> u64 {
        self.counts.len() as u64
    }

    /// Occurrences of all words.
    pub(super) fn occurrences(&self) -> u64 {
        self.counts.values().sum()
    }

    /// How `output` differs, a line for each word; empty if it does not. The job emits a word's count with each of its
    /// occurrences, so the counts of a word that occurs n times must be 1 to n, each once.
    pub(super) fn differences(&self, output: &Output) -> Vec<String> {
        let mut differences = Vec::new();
        for (word, &count) in &self.counts {
            let none = BTreeMap::new();
            let emitted = output.emitted.get(word).unwrap_or(&none);
            let missing: Vec<u64> = (1..=count).filter(|n| !emitted.contains_key(n)).collect();
            let wrong: Vec<u64> = emitted
                .iter()
                .filter(|&(&n, &times)| times > 1 || n == 0 || n > count)
                .map(|(&n, _)| n)
                .collect();
            if !missing.is_empty() || !wrong.is_empty() {
                differences.push(format!(
                    "`{word}` occurs {count} times; missing: {}; twice or too high: {}",
                    First(&missing),
                    First(&wrong)
                ));
            }
        }
        for word in output.emitted.keys() {
            if !self.counts.contains_key(word) {
                differences.push(format!("`{word}` does not occur, and was counted"));
            }
        }
        differences
    }
}

/// Differences as the end of an error message.
pub(super) fn list(differences: &[String]) -> String {
    let mut text = differences[..differences.len().min(DIFFERENCES_SHOWN_MAX)].join("\n  ");
    if differences.len() > DIFFERENCES_SHOWN_MAX {
        let more = differences.len() - DIFFERENCES_SHOWN_MAX;
        text.push_str(&format!("\n  and {more} more"));
    }
    text
}

/// The first few of many numbers, for messages.
struct First<'a>(&'a [u64]);

impl std::fmt::Display for First<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [] => f.write_str("none"),
            numbers if numbers.len() <= 5 => write!(f, "{numbers:?}"),
            numbers => write!(f, "{:?} and {} more", &numbers[..5], numbers.len() - 5),
        }
    }
}

/// What the job has committed.
#[derive(Default)]
pub(super) struct Output {
    /// Of each word, each count with how often it was emitted.
    emitted: BTreeMap<String, BTreeMap<u64, u64>>,
    /// Records in all.
    pub(super) records: u64,
    /// Files in all.
    pub(super) files: u64,
}

impl Output {
    /// Reads every file that the sink has committed to `directory`.
    pub(super) fn read(directory: &Path) -> anyhow::Result<Self> {
        let mut output = Self::default();
        for path in committed(directory)? {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            output
                .add(&text)
                .with_context(|| format!("in {}", path.display()))?;
        }
        Ok(output)
    }

    /// The words with the highest counts, and these.
    pub(super) fn most_frequent(&self, number: usize) -> Vec<(&str, u64)> {
        let highest = |counts: &BTreeMap<u64, u64>| counts.keys().next_back().copied();
        let mut words: Vec<(&str, u64)> = self
            .emitted
            .iter()
            .filter_map(|(word, counts)| Some((word.as_str(), highest(counts)?)))
            .collect();
        words.sort_by(|(word, count), (other, other_count)| {
            other_count.cmp(count).then_with(|| word.cmp(other))
        });
        words.truncate(number);
        words
    }

    fn add(&mut self, text: &str) -> anyhow::Result<()> {
        ensure!(
            text.is_empty() || text.ends_with('\n'),
            "the last line is cut short"
        );
        self.files += 1;
        for line in text.lines() {
            let record: Value =
                serde_json::from_str(line).with_context(|| format!("`{line}` is not JSON"))?;
            let (Some(word), Some(count)) = (record["word"].as_str(), record["count"].as_u64())
            else {
                anyhow::bail!("`{line}` has no word with a count");
            };
            let counts = self.emitted.entry(word.to_owned()).or_default();
            *counts.entry(count).or_insert(0) += 1;
            self.records += 1;
        }
        Ok(())
    }
}

/// The files that readers of the sink's directory may see.
pub(super) fn committed(directory: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // Made with the first file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot list {}", directory.display()));
        }
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(records: &[(&str, u64)]) -> Output {
        let mut output = Output::default();
        let lines = records
            .iter()
            .map(|(word, count)| format!("{{\"word\":\"{word}\",\"count\":{count}}}\n"));
        output.add(&lines.collect::<String>()).unwrap();
        output
    }

    #[test]
    fn a_word_keeps_its_inner_apostrophe_and_loses_the_outer_ones() {
        let truth = Truth::of("'Tis o'er, 'tis O'ER!\n''\nÉté 2");
        let counts: Vec<(&str, u64)> = truth
            .counts
            .iter()
            .map(|(word, count)| (word.as_str(), *count))
            .collect();
        assert_eq!(counts, [("2", 1), ("o'er", 2), ("tis", 2), ("été", 1)]);
        assert_eq!((truth.words(), truth.occurrences()), (4, 6));
    }

    #[test]
    fn an_equal_output_has_no_differences_in_whatever_order() {
        let output = output(&[("be", 2), ("to", 1), ("be", 1)]);
        assert!(Truth::of("to be be").differences(&output).is_empty());
        assert_eq!(output.most_frequent(1), [("be", 2)]);
    }

    #[test]
    fn a_lost_a_doubled_and_a_foreign_record_are_all_told() {
        let truth = Truth::of("to be or not to be");
        let output = output(&[
            ("to", 1),
            ("to", 2),
            ("be", 2),
            ("or", 1),
            ("or", 1),
            ("ox", 1),
        ]);
        assert_eq!(
            truth.differences(&output),
            [
                "`be` occurs 2 times; missing: [1]; twice or too high: none",
                "`not` occurs 1 times; missing: [1]; twice or too high: none",
                "`or` occurs 1 times; missing: none; twice or too high: [1]",
                "`ox` does not occur, and was counted",
            ]
        );
    }
}
