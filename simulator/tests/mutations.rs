//! The checkers see: whatever is broken in the machines is found within a bounded number of seeds.

use std::collections::BTreeSet;

use tidemill_simulator::mutations::{Mutation, SEEDS_MAX, find, set};

/// One test, because a mutation is set for the whole process.
#[test]
fn every_mutation_is_found_and_without_one_nothing_is() {
    set(None);
    assert!(find(40).is_none(), "whole machines are found to be whole");
    let mut missed = BTreeSet::new();
    for mutation in Mutation::ALL {
        set(Some(mutation));
        match find(SEEDS_MAX) {
            Some(report) => println!(
                "{mutation:?}: seed {} shows it: {:?}",
                report.seed, report.failure
            ),
            None => drop(missed.insert(mutation)),
        }
    }
    set(None);
    assert_eq!(missed, BTreeSet::new(), "not found in {SEEDS_MAX} seeds");
}
