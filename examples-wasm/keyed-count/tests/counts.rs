//! The keyed count against arithmetic: each key counts up by one, to the number of its multiples.

use keyed_count::{KeyCount, keyed_count};
use tidemill::testing::TestRun;

fn run(count: u64, keys: u64) -> Result<Vec<KeyCount>, String> {
    let run = TestRun::new(keyed_count)
        .parameter("count", count)
        .parameter("keys", keys)
        .parameter("output", "out");
    run.parallelism(3)
        .seed(1)
        .run()
        .map(|outputs| outputs.json("out"))
}

#[test]
fn each_key_counts_up_to_its_share_one_by_one() {
    let mut written = run(10_007, 100).expect("runs");
    written.sort();
    let expected: Vec<KeyCount> = (0..100)
        .flat_map(|key| {
            (1..=if key < 7 { 101 } else { 100 }).map(move |count| KeyCount { key, count })
        })
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn a_socket_gets_what_the_directory_gets() {
    let run = TestRun::new(keyed_count)
        .parameter("count", 1_000)
        .parameter("keys", 7)
        .parameter("socket", "localhost:7000")
        .parameter("output", "out");
    let outputs = run.parallelism(2).seed(1).run().expect("runs");
    let sorted = |sink: &str| {
        let mut written: Vec<KeyCount> = outputs.json(sink);
        written.sort();
        written
    };
    assert_eq!(sorted("out").len(), 1_000);
    assert_eq!(sorted("socket"), sorted("out"));
}

#[test]
fn no_keys_are_refused_in_words() {
    let error = run(5, 0).expect_err("refused");
    assert!(error.contains("parameter `keys` is 0"), "{error}");
}

#[test]
fn work_changes_how_long_it_takes_and_nothing_else() {
    let run = |work: u64| {
        let run = TestRun::new(keyed_count)
            .parameter("count", 500)
            .parameter("keys", 7)
            .parameter("work", work)
            .parameter("output", "out");
        let outputs = run.parallelism(2).seed(1).run().expect("runs");
        let mut written: Vec<KeyCount> = outputs.json("out");
        written.sort();
        written
    };
    assert_eq!(run(10), run(0));
}
