//! The streams against the letter of their definition, and the jobs from end to end.

use bench::state::{Row, checksum};
use bench::{bench, keyed, line, mix, parse};
use tidemill::ByteArray;
use tidemill::testing::TestRun;

#[test]
fn the_mixing_function_is_splitmix64() {
    // The first outputs of SplitMix64 with seed 0, as published with the reference implementation.
    let golden = 0x9E37_79B9_7F4A_7C15u64;
    assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
    assert_eq!(mix(golden), 0x6E78_9E6A_A1B9_65F4);
    assert_eq!(mix(golden.wrapping_mul(2)), 0x06C4_5D18_8009_454F);
}

#[test]
fn records_are_those_of_the_definition() {
    let every_few = (0..12_000_000_000).step_by(1_234_567);
    for n in every_few.chain([1, 99, 12_345_678_901, u64::from(u32::MAX), u64::MAX]) {
        let (key, value) = keyed()(n);
        assert_eq!(key, ((mix(n) >> 1) % 100_000) as i64);
        assert_eq!(
            (&value[..8], &value[8..]),
            (&n.to_be_bytes()[..], &[0; 92][..])
        );

        let hash = (mix(n) >> 1) % 1_000_000;
        let text = format!("{:010},{hash:06},{}", n % 10_000_000_000, "x".repeat(82));
        let record = line()(n);
        assert_eq!(
            record,
            ByteArray::<100>(text.as_bytes().try_into().expect("100 bytes"))
        );
        assert_eq!(
            parse(record),
            (
                (n % 10_000_000_000) as i64,
                hash as i64 * 908 / 1000,
                record
            )
        );
    }
}

#[test]
fn every_record_is_made_and_counted_once() {
    for (job, out) in [
        ("count-gen", 20_000),
        ("pass", 18_013),
        ("pass-rebalance", 18_013),
    ] {
        let run = TestRun::new(bench)
            .parameter("job", job)
            .parameter("count", 20_000);
        let outputs = run.parallelism(2).run().expect("runs");
        let counts = outputs.records_per_stage();
        assert_eq!(counts[0].0, 20_000, "{job} makes every record once");
        let passed = (0..20_000u64)
            .filter(|n| !(((mix(*n) >> 1) % 1_000_000) * 908 / 1000).is_multiple_of(10))
            .count() as u64;
        let expected = if job == "count-gen" { 20_000 } else { passed };
        assert_eq!(counts.last().map(|last| last.1), Some(expected));
        assert_eq!(expected, out);
    }
}

#[test]
fn a_task_with_a_table_ends_with_the_checksum_of_its_writes() {
    for exchange in ["no", "yes"] {
        let run = TestRun::new(bench)
            .parameter("job", "state")
            .parameter("mib", 1)
            .parameter("writes", 100_000)
            .parameter("count", 1_000)
            .parameter("exchange", exchange)
            .parameter("output", "rows");
        let outputs = run.parallelism(2).run().expect("runs");
        let rows: Vec<Row> = outputs.json("rows");
        assert_eq!(rows.len(), 2 * 1_001);
        for subtask in 0..2 {
            let mut of_task: Vec<&Row> = rows.iter().filter(|row| row.subtask == subtask).collect();
            of_task.sort_unstable();
            assert!((0..=1_000).eq(of_task.iter().map(|row| row.n)));
            let last = of_task[1_000];
            assert_eq!(last.checksum, Some(checksum(1, last.writes)));
        }
    }
}
