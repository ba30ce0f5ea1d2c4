//! Seeds of the full mix of faults: nothing is found, and the same seed is the same run, byte for byte.

use tidemill_simulator::run::run;

#[test]
fn nothing_is_found_in_seeds_of_the_full_mix_of_faults() {
    for seed in 0..60 {
        let report = run(seed, None, false);
        assert_eq!(report.failure, None, "cargo xtask sim --seed {seed} --step");
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for seed in [3, 17, 4_711] {
        let (one, other) = (run(seed, None, true), run(seed, None, true));
        assert!(one.lines.len() > 100, "something happens");
        assert_eq!(one.lines, other.lines);
        assert_eq!(one.events, other.events);
    }
}

#[test]
fn to_look_at_a_run_does_not_change_it() {
    let (seen, unseen) = (run(5, None, true), run(5, None, false));
    assert_eq!(seen.events, unseen.events);
}
