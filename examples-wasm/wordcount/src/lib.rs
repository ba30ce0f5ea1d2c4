//! Word count: how often each word occurs in text files. Emits a word's count each time it changes, so the last line
//! of a word, which has its highest count, is the answer; it never forgets a word.

use serde::{Deserialize, Serialize};
use tidemill::prelude::*;

/// A word and how often it has been seen so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WordCount {
    /// In lower case, letters, digits and inner apostrophes only.
    pub word: String,
    /// Occurrences so far.
    pub count: u64,
}

/// Counts the words of `input` (a file, directory or glob) into the directory `output`. `rate` slows each source task
/// to so many lines a second; 0 is as fast as it goes.
#[tidemill::job]
pub fn wordcount(job: &mut Job) {
    let rate = job.param("rate").default(0u64);
    job.source(files(job.param("input")).rate(rate).lines())
        .flat_map(|line| words(&line).collect::<Vec<_>>())
        .name("words")
        .key_by(|word| word.clone())
        .count()
        .id("counts")
        .map(|(word, count)| WordCount { word, count })
        .sink(files(job.param("output")).json());
}

/// The words of a line, in lower case.
pub fn words(line: &str) -> impl Iterator<Item = String> + '_ {
    line.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.trim_matches('\''))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}
