//! The jobs that are run: a source with positions in a bounded sequence of records, a stage that counts by key, and a
//! transactional sink. Every record leads to exactly one record of the output, so the oracle is the sequence itself.

use std::collections::BTreeMap;

use tidemill_abi::StageInput;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::record::{JobOptions, JobRecord, JobState, RestartStrategy};
use tidemill_protocol::{
    ExecutionEdge, ExecutionGraph, ExecutionStage, JobId, ModuleHash, Routing, StageKind,
};

use crate::options::Options;
use crate::random::Random;
use crate::time::{MILLISECOND, SECOND};

/// Keys of a job, or of each source task of a job without exchange.
pub(crate) const KEYS: u32 = 7;

const MINUTE: u64 = 60 * SECOND;

/// One job.
#[derive(Clone, Debug)]
pub(crate) struct JobSpec {
    pub(crate) records: u32,
    pub(crate) parallelism: [u32; 3],
    /// Two, where the counting stage holds the sink, or three.
    pub(crate) stages: usize,
    /// Of the first edge.
    pub(crate) routing: Routing,
    /// Records that a source emits at once.
    pub(crate) batch: u32,
    /// And how often it does.
    pub(crate) interval_us: u64,
    /// How long a sink works on a frame, while more of them wait; 0 takes no time.
    pub(crate) slow_us: u64,
    pub(crate) options: JobOptions,
}

impl JobSpec {
    /// A job of two stages of two and three tasks, with an exchange between them.
    pub(crate) fn plain(options: &Options) -> Self {
        Self {
            records: options.jobs.records_min,
            parallelism: [2, 3, 1],
            stages: 2,
            routing: Routing::AllToAll,
            batch: 4,
            interval_us: 200 * MILLISECOND,
            slow_us: 0,
            options: JobOptions {
                parallelism: 3,
                max_parallelism: 128,
                checkpoint_interval_ms: options.jobs.checkpoint_interval_us / MILLISECOND,
                checkpoint_timeout_ms: 10_000,
                tolerable_failed_checkpoints: 1_000,
                retained_checkpoints: 2,
                aligned_checkpoint_timeout_ms: 0,
                retain_on_cancel: false,
                standby: false,
                restart: RestartStrategy::FixedDelay {
                    attempts: u32::MAX,
                    delay_ms: 100,
                },
            },
        }
    }

    /// What a seed draws.
    pub(crate) fn draw(options: &Options, random: &mut Random) -> Self {
        let jobs = options.jobs;
        let most = u64::from(jobs.parallelism_max);
        let routing = if random.chance(250) {
            Routing::Forward
        } else {
            Routing::AllToAll
        };
        let mut tasks = || random.between(1, most) as u32;
        let mut parallelism = [tasks(), tasks(), tasks()];
        if routing == Routing::Forward {
            parallelism[1] = parallelism[0];
        }
        let mut spec = Self::plain(options);
        spec.parallelism = parallelism;
        spec.routing = routing;
        spec.stages = if random.chance(400) { 3 } else { 2 };
        spec.records =
            random.between(u64::from(jobs.records_min), u64::from(jobs.records_max)) as u32;
        spec.batch = random.between(1, 6) as u32;
        spec.interval_us = random.between(50, 400) * MILLISECOND;
        spec.options.checkpoint_timeout_ms = random.between(1_000, 10_000);
        spec.draw_lateness(jobs.slow_sinks_per_mille, random);
        spec.options.retained_checkpoints = random.between(1, 3) as u32;
        spec.options.standby = random.chance(300);
        let tolerates_failures = options.restarts_nothing || random.chance(600);
        if !tolerates_failures {
            spec.options.tolerable_failed_checkpoints = random.between(0, 4) as u32;
        }
        spec.options.restart = match random.below(3) {
            _ if random.chance(jobs.limited_restarts_per_mille) => RestartStrategy::FixedDelay {
                attempts: random.between(1, 4) as u32,
                delay_ms: 200,
            },
            0 => RestartStrategy::ExponentialDelay {
                initial_ms: 100,
                max_ms: 4_000,
                multiplier_percent: 150,
                reset_after_ms: 30_000,
            },
            _ => RestartStrategy::FixedDelay {
                attempts: u32::MAX,
                delay_ms: random.below(1_500),
            },
        };
        spec
    }

    /// Whether barriers come late, and how long they are waited for.
    fn draw_lateness(&mut self, slow_sinks_per_mille: u32, random: &mut Random) {
        let is_slow = random.chance(slow_sinks_per_mille);
        if is_slow {
            // So that all of it would take one sink a minute at most.
            let most_us = (MINUTE * u64::from(self.batch) / u64::from(self.records)).min(SECOND);
            self.slow_us = random.between(most_us / 4, most_us);
        }
        // Checkpoints behind a slow sink that waited for every barrier would never complete.
        if is_slow || random.chance(500) {
            let most_ms = self.options.checkpoint_timeout_ms / 3;
            self.options.aligned_checkpoint_timeout_ms = random.between(20, most_ms);
        }
    }

    pub(crate) fn may_fail(&self) -> bool {
        matches!(self.options.restart, RestartStrategy::FixedDelay { attempts, .. } if attempts < u32::MAX)
    }

    /// The key of a record: fixed, and of its own source task when there is no exchange.
    pub(crate) fn key_of(&self, record: u32) -> u32 {
        let key = record.wrapping_mul(0x9E37_79B9) >> 16;
        match self.routing {
            Routing::Forward => key % KEYS * self.parallelism[0] + record % self.parallelism[0],
            Routing::AllToAll | Routing::Splits => key % KEYS,
        }
    }

    /// The subtask of the next stage that a record goes to; `None` where its channel leads to one only.
    pub(crate) fn target_of(&self, from_stage: u32, record: u32) -> Option<u32> {
        let next = from_stage as usize + 1;
        let forward = from_stage == 0 && self.routing == Routing::Forward;
        (!forward).then(|| self.key_of(record) % self.parallelism[next])
    }

    /// The graph, with stages that never meet a guest.
    pub(crate) fn graph(&self) -> ExecutionGraph {
        let stage = |index: usize| ExecutionStage {
            name: ["source", "count", "sink"][index].to_owned(),
            kind: StageKind::Wasm {
                input: if index == 0 {
                    StageInput::Guest
                } else {
                    StageInput::Edges
                },
                ports: u32::from(index > 0),
                outputs: Vec::new(),
            },
            parallelism: self.parallelism[index],
        };
        let edge = |from: u32| ExecutionEdge {
            from,
            from_output: 0,
            to: from + 1,
            to_port: 0,
            routing: if from == 0 {
                self.routing
            } else {
                Routing::AllToAll
            },
        };
        let edges = u32::try_from(self.stages).map_or(0, |stages| stages - 1);
        ExecutionGraph {
            stages: (0..self.stages).map(stage).collect(),
            edges: (0..edges).map(edge).collect(),
            max_parallelism: 128,
            job_graph_hash: 5,
        }
    }

    pub(crate) fn record(&self, id: JobId, submitted_at_ms: u64) -> JobRecord {
        JobRecord {
            id,
            name: format!("job-{}", crate::zookeeper::short(id)),
            module: ModuleHash([9; 32]),
            graph: ObjectRef {
                key: String::new(),
                len: 1,
                hash: [0; 32],
            },
            graph_hash: 5,
            parameters: BTreeMap::new(),
            options: self.options.clone(),
            submitted_at_ms,
            state: JobState::Active,
            restarts: 0,
            began_from: None,
            ended_at_ms: None,
        }
    }
}
