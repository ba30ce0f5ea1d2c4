//! Top routes against a direct computation over the same rows.

use std::collections::BTreeMap;

use tidemill::testing::TestRun;
use top_routes::{Ranked, top_routes};

const FLIGHTS: &str = include_str!("../../data/flights-sample.csv");

#[test]
fn the_ranking_is_that_of_a_direct_count() {
    let mut flights_of: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for row in FLIGHTS.lines().skip(1) {
        let columns: Vec<&str> = row.split(',').collect();
        *flights_of.entry((columns[12], columns[13])).or_default() += 1;
    }
    let mut routes: Vec<_> = flights_of.into_iter().collect();
    routes.sort_by_key(|(route, flights)| (std::cmp::Reverse(*flights), *route));
    let expected: Vec<Ranked> = (1..)
        .zip(&routes[..25])
        .map(|(rank, ((origin, destination), flights))| Ranked {
            rank,
            origin: (*origin).to_owned(),
            destination: (*destination).to_owned(),
            flights: *flights,
        })
        .collect();

    for seed in 0..3 {
        let outputs = TestRun::new(top_routes)
            .parameter("input", "flights")
            .parameter("output", "routes")
            .parameter("top", 25)
            .file("flights", FLIGHTS)
            .parallelism(4)
            .seed(seed)
            .run()
            .expect("runs");
        assert_eq!(outputs.json::<Ranked>("routes"), expected);
    }
}
