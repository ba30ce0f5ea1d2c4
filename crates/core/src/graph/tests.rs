//! Graphs that run and graphs that do not, each with the words it is refused with.

use super::*;
use alloc::string::ToString;
use tidemill_abi::ConnectorSpec;

fn connector(kind: &str) -> ConnectorSpec {
    ConnectorSpec {
        kind: kind.into(),
        options: BTreeMap::new(),
    }
}

fn stage(name: &str, input: StageInput, outputs: Vec<Output>) -> Stage {
    let ports = u32::from(input == StageInput::Edges);
    Stage {
        name: name.into(),
        input,
        ports,
        outputs,
        parallelism: None,
        operators: Vec::new(),
    }
}

fn to(to: u32, partitioning: Partitioning) -> Output {
    Output::Edge {
        to,
        port: 0,
        partitioning,
    }
}

fn job(stages: Vec<Stage>) -> JobGraph {
    JobGraph {
        name: "test".into(),
        stages,
        parameters: Vec::new(),
    }
}

fn traits() -> ConnectorTraits {
    ConnectorTraits {
        enumerated: ["files".to_string()].into(),
    }
}

/// files → (hash) count → sink
fn word_count() -> JobGraph {
    let source = StageInput::Connector(connector("files"));
    job(vec![
        stage("read", source, vec![to(1, Partitioning::Hash)]),
        stage(
            "count",
            StageInput::Edges,
            vec![Output::Sink(connector("files"))],
        ),
    ])
}

fn refusal(graph: &JobGraph) -> String {
    resolve(graph, 2, 128, &traits())
        .expect_err("the graph cannot run")
        .to_string()
}

#[test]
fn a_file_source_gets_an_enumerator_behind_the_jobs_own_stages() {
    let graph = resolve(&word_count(), 3, 128, &traits()).expect("it runs");
    let names: Vec<_> = graph
        .stages
        .iter()
        .map(|stage| stage.name.as_str())
        .collect();
    assert_eq!(names, ["read", "count", "splits of read"]);
    assert_eq!(
        graph
            .stages
            .iter()
            .map(|stage| stage.parallelism)
            .collect::<Vec<_>>(),
        [3, 3, 1]
    );
    assert_eq!(graph.edges[1].routing, Routing::Splits);
    assert_eq!((graph.edges[1].from, graph.edges[1].to), (2, 0));
    assert_eq!(graph.channels().count(), 9 + 3);
    assert_eq!(graph.job_graph_hash, graph_hash(&word_count()));
}

#[test]
fn sinks_take_no_edge_and_outputs_keep_their_index() {
    let mut graph = word_count();
    graph.stages[0]
        .outputs
        .insert(0, Output::Sink(connector("print")));
    let graph = resolve(&graph, 1, 128, &ConnectorTraits::default()).expect("it runs");
    assert_eq!(graph.edges.len(), 1);
    assert_eq!(graph.edges[0].from_output, 1);
}

#[test]
fn bad_parallelism_is_refused_by_name() {
    let resolved = |parallelism, max| resolve(&word_count(), parallelism, max, &traits());
    assert!(matches!(
        resolved(0, 128),
        Err(GraphError::ParallelismZero { .. })
    ));
    assert!(matches!(
        resolved(129, 128),
        Err(GraphError::ParallelismAboveMax { .. })
    ));
    assert_eq!(
        resolved(1, 0),
        Err(GraphError::MaxParallelism { max_parallelism: 0 })
    );
    assert!(matches!(
        resolved(1, 40_000),
        Err(GraphError::MaxParallelism { .. })
    ));
    let mut graph = word_count();
    graph.stages[1].parallelism = Some(0);
    assert_eq!(
        refusal(&graph),
        "the parallelism of stage `count` is 0: it must be at least 1"
    );
    graph.stages[1].parallelism = Some(1000);
    assert!(refusal(&graph).contains("stage `count` is 1000, above max_parallelism 128"));
}

#[test]
fn a_graph_needs_stages_a_source_and_no_cycle() {
    assert_eq!(
        resolve(&job(vec![]), 1, 1, &traits()),
        Err(GraphError::NoStages)
    );
    let looping = |input: StageInput| {
        job(vec![
            stage("in", input, vec![to(1, Partitioning::Hash)]),
            stage("a", StageInput::Edges, vec![to(2, Partitioning::Forward)]),
            stage("b", StageInput::Edges, vec![to(1, Partitioning::Rebalance)]),
        ])
    };
    assert_eq!(
        refusal(&looping(StageInput::Guest)),
        "the job's graph has a cycle: a → b → a"
    );
    assert_eq!(
        resolve(&looping(StageInput::Edges), 1, 1, &traits()),
        Err(GraphError::NoSource)
    );
}

#[test]
fn edges_must_lead_to_a_port_of_a_stage_that_takes_input() {
    let mut graph = word_count();
    graph.stages[0].outputs = vec![to(7, Partitioning::Hash)];
    assert_eq!(
        refusal(&graph),
        "an output of stage `read` leads to stage 7, and there are only 2 stages"
    );
    graph.stages[0].outputs = vec![to(0, Partitioning::Hash)];
    assert!(refusal(&graph).contains("`read`, which is a source"));
    graph.stages[0].outputs = vec![Output::Edge {
        to: 1,
        port: 3,
        partitioning: Partitioning::Hash,
    }];
    assert_eq!(
        refusal(&graph),
        "stage `read` sends to port 3 of stage `count`, which has 1 ports"
    );
    graph.stages[0].outputs = vec![];
    assert_eq!(
        refusal(&graph),
        "stage `count` cannot be reached from any source"
    );
}

#[test]
fn every_port_must_be_connected() {
    let mut graph = word_count();
    graph.stages[1].ports = 3;
    assert_eq!(
        refusal(&graph),
        "nothing is connected to port 1 of stage `count`"
    );
    graph.stages[0].outputs = vec![Output::Edge {
        to: 1,
        port: 2,
        partitioning: Partitioning::Hash,
    }];
    assert_eq!(
        refusal(&graph),
        "nothing is connected to port 0 of stage `count`"
    );
    graph.stages[1].ports = u32::MAX;
    assert!(
        refusal(&graph).contains("port 0"),
        "a huge number of ports costs nothing to check"
    );
}

#[test]
fn forwarding_needs_equal_parallelism() {
    let mut graph = word_count();
    graph.stages[0].outputs = vec![to(1, Partitioning::Forward)];
    graph.stages[1].parallelism = Some(5);
    assert_eq!(
        refusal(&graph),
        "stage `read` (2 tasks) forwards to stage `count` (5 tasks): give them the same parallelism, or rebalance between them"
    );
}

#[test]
fn graphs_too_large_to_run_are_refused_before_anything_is_built() {
    let wide = |parallelism| resolve(&word_count(), parallelism, 32_768, &traits());
    assert!(matches!(
        wide(3000),
        Err(GraphError::TooManyChannels { .. })
    ));
    assert!(matches!(wide(20_000), Err(GraphError::TooManyTasks { .. })));
    let many = (0..=STAGES_MAX)
        .map(|_| stage("s", StageInput::Guest, vec![]))
        .collect();
    assert!(matches!(
        resolve(&job(many), 1, 1, &traits()),
        Err(GraphError::TooManyStages { .. })
    ));
}

#[test]
fn regions_are_what_channels_join() {
    let forward = job(vec![
        stage("in", StageInput::Guest, vec![to(1, Partitioning::Forward)]),
        stage("out", StageInput::Edges, vec![]),
        stage("alone", StageInput::Guest, vec![]),
    ]);
    let graph = resolve(&forward, 2, 8, &traits()).expect("it runs");
    let pair = |subtask| BTreeSet::from([TaskId::new(0, subtask), TaskId::new(1, subtask)]);
    let alone = |subtask| BTreeSet::from([TaskId::new(2, subtask)]);
    assert_eq!(regions(&graph), [pair(0), pair(1), alone(0), alone(1)]);

    let graph = resolve(&word_count(), 4, 8, &traits()).expect("it runs");
    assert_eq!(regions(&graph), [graph.tasks().collect::<BTreeSet<_>>()]);
}
