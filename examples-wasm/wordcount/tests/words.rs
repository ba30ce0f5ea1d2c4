//! Word count against a direct count of the same text.

use std::collections::BTreeMap;

use tidemill::testing::TestRun;
use wordcount::{WordCount, wordcount};

const SHAKESPEARE: &str = include_str!("../../data/shakespeare.txt");

#[test]
fn the_last_count_of_each_word_is_that_of_a_direct_count() {
    // Character by character, so that a mistake in the job's way of cutting words is not repeated here.
    let mut truth: BTreeMap<String, u64> = BTreeMap::new();
    let mut word = String::new();
    for c in SHAKESPEARE.chars().chain(['\n']) {
        if c.is_alphanumeric() || c == '\'' {
            word.extend(c.to_lowercase());
            continue;
        }
        let trimmed = word.trim_matches('\'');
        if !trimmed.is_empty() {
            *truth.entry(trimmed.to_owned()).or_default() += 1;
        }
        word.clear();
    }

    let run = TestRun::new(wordcount)
        .parameter("input", "plays")
        .parameter("output", "counts");
    let outputs = run
        .file("plays", SHAKESPEARE)
        .parallelism(4)
        .run()
        .expect("runs");
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for WordCount { word, count } in outputs.json("counts") {
        let before = last.insert(word, count).unwrap_or(0);
        assert_eq!(before + 1, count, "a word's counts rise one by one");
    }
    assert_eq!(last, truth);
    assert!(truth["the"] > 5_000, "the text is there");
}
