//! Building the graph in the sandbox: the answer, and every way in which a job function can fail to give one.

use std::time::Duration;

use tidemill_abi::{
    DescribeRequest, DescribeResponse, JobGraph, OpenRequest, OpenResponse, graph_hash,
};
use tidemill_runtime::{CallError, DescribeError, InstanceError, InstanceLimits, describe_job};

use crate::support::{INPUT, Job, escape, limits};

const ANSWER: u32 = 1024;

fn graph() -> JobGraph {
    JobGraph {
        name: "flights".into(),
        stages: Vec::new(),
        parameters: Vec::new(),
    }
}

fn request() -> DescribeRequest {
    DescribeRequest {
        parameters: Default::default(),
        allow_missing_parameters: false,
    }
}

/// A job whose `function` answers with these bytes.
fn answering(function: &'static str, bytes: &[u8]) -> Job {
    let packed = u64::from(ANSWER) << 32 | bytes.len() as u64;
    Job::default()
        .with(&format!(
            "(data (i32.const {ANSWER}) \"{}\")",
            escape(bytes)
        ))
        .function(
            function,
            &format!("(param i32 i32) (result i64) i64.const {packed}"),
        )
}

fn describe(job: &Job) -> Result<JobGraph, DescribeError> {
    describe_job(&job.compile(), &request(), limits())
}

#[test]
fn the_graph_comes_out_as_the_guest_encoded_it() {
    let answer: DescribeResponse = Ok(graph());
    let bytes = postcard::to_allocvec(&answer).expect("it encodes");
    assert_eq!(
        describe(&answering("tidemill_describe", &bytes)),
        Ok(graph())
    );
}

#[test]
fn the_users_own_mistake_is_told_in_his_words() {
    let answer: DescribeResponse = Err("parameter `input` is missing".into());
    let bytes = postcard::to_allocvec(&answer).expect("it encodes");
    let error = describe(&answering("tidemill_describe", &bytes)).expect_err("the job refuses");
    assert_eq!(
        error,
        DescribeError::Job("parameter `input` is missing".into())
    );
}

#[test]
fn a_builder_that_panics_loops_or_answers_nonsense_is_named() {
    let with = |body: &str| {
        Job::default().function(
            "tidemill_describe",
            &format!("(param i32 i32) (result i64) {body}"),
        )
    };
    assert!(matches!(
        describe(&with("unreachable")),
        Err(DescribeError::Trapped(CallError::Trap { .. }))
    ));

    let limit = Duration::from_millis(30);
    let endless = with("loop br 0 end i64.const 0").compile();
    let error = describe_job(
        &endless,
        &request(),
        InstanceLimits {
            call_deadline: limit,
            ..limits()
        },
    );
    assert!(
        matches!(error, Err(DescribeError::Deadline { limit: told, .. }) if told == limit),
        "{error:?}"
    );

    for nonsense in [&b""[..], &[7], &[0, 200], &[1, 1, b'x', 0]] {
        let error = describe(&answering("tidemill_describe", nonsense));
        assert!(
            matches!(error, Err(DescribeError::Undecodable(_))),
            "{nonsense:?}: {error:?}"
        );
    }
    let outside = describe(&with("i64.const 0x7fffffff00000010"))
        .expect_err("the answer is outside the memory");
    assert!(
        matches!(
            outside,
            DescribeError::Undecodable(CallError::BadResponse { .. })
        ),
        "{outside:?}"
    );
    let long = describe(&with("i64.const 0x401")).expect_err("the answer is too long");
    assert!(long.to_string().contains("cannot be read"), "{long}");
    assert!(
        matches!(long, DescribeError::Undecodable(CallError::BadResponse { reason, .. }) if reason.contains("call_output_max_bytes"))
    );

    let large = Job::default().memory("(memory (export \"memory\") 100)");
    assert!(matches!(
        describe(&large),
        Err(DescribeError::Instance(InstanceError::Limit(_)))
    ));
}

#[test]
fn a_graph_that_depends_on_addresses_is_not_deterministic() {
    // A bump allocator, and a name that is the address of the request: as a hash map seeded by addresses would do.
    let mut bytes = postcard::to_allocvec(&DescribeResponse::Ok(graph())).expect("it encodes");
    let job = answering("tidemill_describe", &bytes)
        .memory("(memory (export \"memory\") 4)")
        .with(&format!("(global $next (mut i32) (i32.const {INPUT}))"))
        .function(
            "tidemill_allocate",
            "(param i32) (result i32) global.get $next global.get $next local.get 0 i32.add global.set $next",
        );
    assert_eq!(describe(&job), Ok(graph()), "addresses alone do no harm");
    bytes[2] = b'?';
    let name = ANSWER + 2;
    let packed = u64::from(ANSWER) << 32 | bytes.len() as u64;
    let addressed = job.function(
        "tidemill_describe",
        &format!(
            "(param i32 i32) (result i64) i32.const {name} local.get 0 i32.const 15 i32.and i32.const 65 i32.add i32.store8 i64.const {packed}"
        ),
    );
    let error = describe(&addressed).expect_err("the two graphs differ");
    assert!(
        matches!(error, DescribeError::NotDeterministic { differs_at: 2, .. }),
        "{error}"
    );
}

#[test]
fn open_answers_the_graphs_hash_or_the_users_mistake() {
    let request = OpenRequest {
        stage: 0,
        subtask: 1,
        parallelism: 2,
        max_parallelism: 128,
        output_parallelism: vec![2],
        parameters: Default::default(),
    };
    for answer in [
        OpenResponse::Ok(graph_hash(&graph())),
        OpenResponse::Err("no such stage".into()),
    ] {
        let bytes = postcard::to_allocvec(&answer).expect("it encodes");
        assert_eq!(
            answering("tidemill_open", &bytes)
                .start(limits())
                .open(&request),
            Ok(answer)
        );
    }
}
