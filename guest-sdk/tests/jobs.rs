//! Jobs as users write them, run whole: what is described, what comes out at any parallelism and in any order of steps,
//! and what mistakes are told.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tidemill::abi::{Output, Partitioning, StageInput};
use tidemill::prelude::*;
use tidemill::testing::{TestRun, describe};

fn counting(job: &mut Job) {
    job.source(files("in").lines())
        .flat_map(|line| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .key_by(|word| word.clone())
        .count()
        .sink(files("out").json());
}

fn counted(text: &str, parallelism: u32, seed: u64) -> BTreeMap<String, u64> {
    let outputs = TestRun::new(counting)
        .file("in", text)
        .parallelism(parallelism)
        .seed(seed)
        .run()
        .expect("runs");
    let mut counts = BTreeMap::new();
    for (word, count) in outputs.json::<(String, u64)>("out") {
        let last = counts.insert(word, count);
        assert_eq!(
            last.unwrap_or(0) + 1,
            count,
            "counts of one key rise one by one"
        );
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_keyed_count_is_the_same_at_any_parallelism_and_in_any_order(
        words in proptest::collection::vec("[a-e]{1,3}", 0..300), per_line in 1usize..9, parallelism in 1u32..6, seed: u64
    ) {
        let text = words.chunks(per_line).map(|line| line.join(" ")).collect::<Vec<_>>().join("\n");
        let mut truth = BTreeMap::new();
        for word in &words {
            *truth.entry(word.clone()).or_insert(0u64) += 1;
        }
        prop_assert_eq!(&counted(&text, 1, seed), &truth);
        prop_assert_eq!(&counted(&text, parallelism, seed), &truth);
    }
}

#[test]
fn a_job_is_described_as_stages_edges_and_connectors() {
    let graph = describe(counting, &[]).expect("right");
    assert_eq!(graph.stages.len(), 2);
    let [source, counts] = &graph.stages[..] else {
        panic!("two stages")
    };
    assert_eq!(source.name, "files → flat_map");
    assert!(
        matches!(&source.input, StageInput::Connector(files) if files.kind == "files" && files.options["path"] == "in")
    );
    assert_eq!(
        source.outputs,
        [Output::Edge {
            to: 1,
            port: 0,
            partitioning: Partitioning::Hash
        }]
    );
    assert_eq!(
        (counts.name.as_str(), counts.ports),
        ("key_by → count → files", 1)
    );
    assert!(
        matches!(&counts.outputs[..], [Output::Sink(sink)] if sink.options["records"] == "lines" && sink.options["path"] == "out")
    );
    let count = &counts.operators[1];
    assert_eq!(
        (
            count.id.as_str(),
            count.named,
            count.portable_state,
            count.closure_state
        ),
        ("1.1-count", false, true, false)
    );
}

fn named(job: &mut Job) {
    job.name("readings");
    job.source(generator(3))
        .name("numbers")
        .map(|n| n * 2)
        .id("double")
        .parallelism(2)
        .rebalance()
        .stage_name("writers")
        .sink(discard())
        .id("end");
}

#[test]
fn names_ids_and_parallelism_reach_the_graph() {
    let graph = describe(named, &[]).expect("right");
    assert_eq!(graph.name, "readings");
    assert_eq!(
        (graph.stages[0].name.as_str(), graph.stages[0].parallelism),
        ("numbers → map", Some(2))
    );
    assert_eq!(
        (graph.stages[1].name.as_str(), graph.stages[1].parallelism),
        ("writers", None)
    );
    let ids: Vec<_> = graph
        .stages
        .iter()
        .flat_map(|stage| &stage.operators)
        .map(|o| (o.id.as_str(), o.named))
        .collect();
    assert_eq!(
        ids,
        [
            ("0.0-generator", false),
            ("double", true),
            ("1.0-rebalance", false),
            ("end", true)
        ]
    );
}

fn shapes(job: &mut Job) {
    let (even, odd) = job.source(generator(1_000)).split(|n| n % 2 == 0);
    let [small, large] = odd.map(|n| n * 10).split_into(|n| usize::from(*n >= 5_000));
    small.sink(files("small").json());
    even.union(large.rebalance())
        .parallelism(3)
        .broadcast()
        .parallelism(2)
        .sink(files("all").json());
}

#[test]
fn splits_unions_and_broadcasts_lose_and_double_nothing() {
    for seed in 0..5 {
        let outputs = TestRun::new(shapes)
            .parallelism(3)
            .seed(seed)
            .run()
            .expect("runs");
        let mut small: Vec<u64> = outputs.json("small");
        small.sort_unstable();
        assert_eq!(
            small,
            (0..500)
                .filter(|n| n % 2 == 1)
                .map(|n| n * 10)
                .collect::<Vec<_>>()
        );
        let mut all: Vec<u64> = outputs.json("all");
        all.sort_unstable();
        let evens = (0..1_000).filter(|n| n % 2 == 0);
        let mut expected: Vec<u64> = evens
            .chain((501..1_000).step_by(2).map(|n| n * 10))
            .flat_map(|n| [n, n])
            .collect();
        expected.sort_unstable();
        assert_eq!(
            all, expected,
            "each record once for each of the two subtasks"
        );
    }
}

#[test]
fn a_union_is_forward_only_between_stages_of_one_parallelism() {
    let graph = describe(shapes, &[]).expect("right");
    let partitionings: Vec<_> = graph.stages[0]
        .outputs
        .iter()
        .filter_map(|output| match output {
            Output::Edge {
                to,
                port,
                partitioning,
            } => Some((*to, *port, *partitioning)),
            Output::Sink(_) => None,
        })
        .collect();
    let (_, _, into_union) = partitionings
        .iter()
        .find(|(_, port, _)| *port == 0)
        .expect("an edge to port 0");
    assert_eq!(
        *into_union,
        Partitioning::Rebalance,
        "the union fixes its own parallelism: {partitionings:?}"
    );
}

fn lonely(job: &mut Job) {
    let [a, b] = job.source(generator(1)).split_into(|_| 0);
    a.sink(discard()).id("same");
    let _forgotten = b.map(|n| n + 1);
    job.source(generator(1))
        .parallelism(0)
        .sink(discard())
        .id("same");
}

fn empty(_job: &mut Job) {}

fn failing(job: &mut Job) -> Result<(), String> {
    let low: u32 = job.param("low").required();
    let high: u32 = job.param("high").required();
    job.source(generator(1)).sink(discard());
    if low > high {
        Err(format!("low ({low}) is above high ({high})"))
    } else {
        Ok(())
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let told = describe(lonely, &[]).expect_err("wrong");
    assert_eq!(
        told,
        "stage 1 (generator) asks for parallelism 0: ask for 1 or more\n\
         nothing follows `map` of stage 0: end the stream with `.sink(…)`, or with `.sink(discard())`\n\
         two operators have the id `same`: ids are unique in a job"
    );
    assert_eq!(
        describe(empty, &[]).expect_err("wrong"),
        "the job has no source: begin with `job.source(…)`"
    );
    assert_eq!(
        describe(failing, &[("low", "9"), ("high", "3")]).expect_err("wrong"),
        "low (9) is above high (3)"
    );
    let told = describe(failing, &[("low", "-1"), ("hgih", "3")]).expect_err("wrong");
    assert_eq!(
        told,
        "parameter `low` is `-1`, which is not an integer from 0 to 4294967295\n\
         parameter `high` (integer) is missing: give it as high=VALUE\n\
         the job has no parameter `hgih`: did you mean `high`?"
    );
}

/// Numbers with a pause before each hundredth.
struct Paced {
    next: u64,
    step: u64,
    resting: bool,
}

impl Source for Paced {
    type Item = u64;

    fn open(&mut self, subtask: u32, parallelism: u32) {
        (self.next, self.step) = (subtask.into(), parallelism.into());
    }

    fn next(&mut self, cx: &Context) -> Next<u64> {
        if self.next >= 1_000 {
            return Next::End;
        }
        if self.next % 100 == 99 && !self.resting {
            self.resting = true;
            return Next::Idle {
                until_ms: cx.now_ms() + 50,
            };
        }
        self.resting = false;
        let n = self.next;
        self.next += self.step;
        Next::Record(n)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Session {
    readings: u32,
    sum: u64,
}

/// Gives a key's readings when none came for 20 ms, and what is left at the end.
struct Sessions;

impl KeyedOperator<u64, u64> for Sessions {
    type State = Session;
    type Out = (u64, Session);

    fn process(
        &mut self,
        _key: &u64,
        session: &mut Session,
        n: u64,
        out: &mut impl Emit<Self::Out>,
    ) {
        session.readings += 1;
        session.sum += n;
        out.set_timer_ms(out.now_ms() + 20);
    }

    fn timer(&mut self, key: &u64, session: &mut Session, out: &mut impl Emit<Self::Out>) {
        out.emit((*key, std::mem::take(session)));
    }

    fn finish(&mut self, key: u64, session: Session, out: &mut impl Emit<Self::Out>) {
        out.emit((key, session));
    }

    fn is_spent(&self, session: &Session) -> bool {
        session.readings == 0
    }
}

fn sessions(job: &mut Job) {
    job.source(Paced {
        next: 0,
        step: 1,
        resting: false,
    })
    .key_by(|n| n % 7)
    .process(Sessions)
    .sink(files("out").json());
}

#[test]
fn keyed_timers_fire_at_their_time_and_spent_keys_are_forgotten() {
    for parallelism in [1, 3] {
        let outputs = TestRun::new(sessions)
            .parallelism(parallelism)
            .seed(5)
            .run()
            .expect("runs");
        let out: Vec<(u64, Session)> = outputs.json("out");
        assert!(
            out.iter().all(|(_, session)| session.readings > 0),
            "no key was left behind empty"
        );
        assert!(out.len() > 7, "pauses end sessions before the input ends");
        let sums = out.iter().fold([0u64; 7], |mut sums, (key, session)| {
            sums[*key as usize] += session.sum;
            sums
        });
        let truth = (0..1_000u64).fold([0u64; 7], |mut sums, n| {
            sums[(n % 7) as usize] += n;
            sums
        });
        assert_eq!(sums, truth);
    }
}

fn totals(job: &mut Job) {
    job.source(generator(20_000))
        .key_by(|n| n % 9_000)
        .fold_until_end(|| 0u64, |sum, n| *sum += n)
        .sink(files("out").json());
}

#[test]
fn an_end_with_many_keys_comes_in_steps() {
    let outputs = TestRun::new(totals).parallelism(2).run().expect("runs");
    let mut out: Vec<(u64, u64)> = outputs.json("out");
    out.sort_unstable();
    let mut truth = BTreeMap::new();
    for n in 0..20_000u64 {
        *truth.entry(n % 9_000).or_insert(0) += n;
    }
    assert_eq!(out, truth.into_iter().collect::<Vec<_>>());
}

fn options(job: &mut Job) {
    job.source(files("in").option("spilt_bytes", 5).bytes())
        .map(|bytes| bytes.len())
        .sink(print().option("x", "y"));
}

#[test]
fn options_pass_through_for_the_host_to_check() {
    let graph = describe(options, &[]).expect("the host checks options");
    assert!(
        matches!(&graph.stages[0].input, StageInput::Connector(files) if files.options["spilt_bytes"] == "5")
    );
    assert!(
        matches!(&graph.stages[0].outputs[0], Output::Sink(print) if print.options["x"] == "y")
    );
    let outputs = TestRun::new(options)
        .file("in", "äö\n")
        .run()
        .expect("runs");
    assert_eq!(outputs.lines("print"), ["4"]);
}
