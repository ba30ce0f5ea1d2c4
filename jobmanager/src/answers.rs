//! The leader's state as users see it: views are made here from what the machines say of themselves, and nowhere else.
//! Nothing is decided or changed.

mod checkpoints;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidemill_abi::{Output, StageInput};
use tidemill_core::Time;
use tidemill_core::checkpoint::Outcome;
use tidemill_core::job::{Job, Phase, TaskStatus as CoreTaskStatus};
use tidemill_core::leader::Leader;
use tidemill_core::membership::Member;
use tidemill_protocol::control::{Blame, TaskProgress};
use tidemill_protocol::record::{JobState, RestartStrategy, TaskManagerRecord};
use tidemill_protocol::{JobId, Routing, StageKind, TaskId};

use crate::handle::QueryError;
use crate::standing::RegistryState;
use crate::views::{
    ClusterView, EdgeView, EventView, FailureView, JobDetail, JobMetricsView, JobStatus,
    JobSummary, NodeStatus, NodeView, OptionsView, ProgressView, StageView, StandbyView,
    TaskStatus, TaskView,
};

/// Joins the machines' time to this process's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_wall_ms: u64,
}

impl Clock {
    /// The machines' time begins now.
    pub(crate) fn start() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            start: Instant::now(),
            start_wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(crate) fn time(&self, instant: Instant) -> Time {
        Time::ZERO + instant.saturating_duration_since(self.start)
    }

    /// When a machine's moment comes; moments too far away to count come in a century.
    pub(crate) fn instant(&self, time: Time) -> Instant {
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        self.start + Duration::from_micros(time.as_micros()).min(CENTURY)
    }

    pub(crate) fn wall_ms(&self, time: Time) -> u64 {
        self.start_wall_ms + time.as_micros() / 1000
    }
}

/// Looks at a leader.
pub(crate) struct View<'a> {
    pub(crate) leader: &'a Leader,
    pub(crate) clock: &'a Clock,
    pub(crate) now: Time,
    /// When it began to lead.
    pub(crate) since: Time,
    pub(crate) registry: RegistryState,
    /// TaskManagers that have announced themselves in the registry.
    pub(crate) announced: &'a [TaskManagerRecord],
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What a job is doing, and in words when there is more to say.
pub(crate) fn status(job: &Job) -> (JobStatus, String) {
    let status = match job.phase() {
        Phase::Adopting => JobStatus::Adopting,
        Phase::Waiting => JobStatus::Waiting,
        Phase::Deploying => JobStatus::Deploying,
        Phase::Running => JobStatus::Running,
        Phase::Restarting => JobStatus::Restarting,
        Phase::Finishing => JobStatus::Finishing,
        Phase::Cancelling => JobStatus::Cancelling,
        // How it ended is told when it is stored.
        Phase::Ending if job.record().state == JobState::Cancelled => JobStatus::Cancelling,
        Phase::Ending => JobStatus::Finishing,
        Phase::Finished => JobStatus::Finished,
        Phase::Cancelled => JobStatus::Cancelled,
        Phase::Failed => JobStatus::Failed,
    };
    (status, format!("{status:?}").to_lowercase())
}

fn message(job: &Job, registry: &RegistryState) -> Option<String> {
    if let JobState::Failed { reason } = &job.record().state {
        return Some(reason.clone());
    }
    if let Some(shortfall) = job.shortfall() {
        let (needed, free) = (shortfall.needed, shortfall.free);
        return Some(format!(
            "waits for slots: {needed} are needed and {free} are free; start a TaskManager"
        ));
    }
    if let Some(failure) = job
        .last_failure()
        .filter(|_| job.phase() == Phase::Restarting)
    {
        return Some(failure.failure.message.clone());
    }
    let waits = !registry.is_connected() && job.checkpoints().is_publication_pending();
    waits.then(|| {
        let away = registry.since.elapsed().as_secs();
        format!(
            "its tasks go on, and its checkpoint waits to be published: ZooKeeper has not been reachable from the leader for {away} s"
        )
    })
}

impl View<'_> {
    pub(crate) fn jobs(&self) -> Vec<JobSummary> {
        let mut jobs: Vec<JobSummary> = self.leader.jobs().map(|job| self.summary(job)).collect();
        jobs.sort_by(|a, b| (b.submitted_at_ms, &b.id).cmp(&(a.submitted_at_ms, &a.id)));
        jobs
    }

    fn find(&self, id: JobId) -> Result<&Job, QueryError> {
        self.leader.job(id).ok_or(QueryError::UnknownJob(id))
    }

    fn summary(&self, job: &Job) -> JobSummary {
        let count = |status| {
            job.tasks()
                .values()
                .filter(|task| task.status == status)
                .count() as u32
        };
        let sum = |stages: &dyn Fn(&StageKind) -> bool, value: fn(&TaskProgress) -> u64| {
            let of_stages = |task: &TaskId| {
                job.graph()
                    .stage(*task)
                    .is_some_and(|stage| stages(&stage.kind))
            };
            let tasks = job.tasks().iter().filter(|(id, _)| of_stages(id));
            tasks
                .filter_map(|(_, task)| task.progress.as_ref())
                .map(value)
                .sum()
        };
        let record = job.record();
        JobSummary {
            id: record.id.to_string(),
            name: record.name.clone(),
            status: status(job).0,
            message: message(job, &self.registry),
            submitted_at_ms: record.submitted_at_ms,
            ended_at_ms: job.ended_at().map(|at| self.clock.wall_ms(at)),
            parallelism: record.options.parallelism,
            tasks: job.tasks().len() as u32,
            tasks_running: count(CoreTaskStatus::Running),
            tasks_finished: count(CoreTaskStatus::Finished),
            restarts: record.restarts,
            checkpoints_completed: job.checkpoints().history().completed(),
            last_checkpoint: job
                .checkpoints()
                .last()
                .map(|pointer| pointer.checkpoint.to_string()),
            records_in: sum(&is_source, |progress| progress.records_in),
            records_out: sum(&has_sink, |progress| progress.records_out),
        }
    }

    pub(crate) fn job(&self, id: JobId) -> Result<JobDetail, QueryError> {
        let job = self.find(id)?;
        let record = job.record();
        let options = &record.options;
        let failure = job.last_failure().map(|last| FailureView {
            at_ms: self.clock.wall_ms(last.at),
            task: last.task.map(|task| task.to_string()),
            stage: last
                .task
                .and_then(|task| job.graph().stage(task))
                .map(|stage| stage.name.clone()),
            blame: blame(last.failure.blame).to_owned(),
            message: last.failure.message.clone(),
            backtrace: last.failure.backtrace.clone(),
            last_log_lines: last.failure.last_log_lines.clone(),
            batch_preview: last.failure.batch_preview.clone(),
        });
        let event = |(at, note): &(Time, tidemill_core::job::Note)| EventView {
            at_ms: self.clock.wall_ms(*at),
            text: note.to_string(),
        };
        Ok(JobDetail {
            summary: self.summary(job),
            module: record.module.to_string(),
            parameters: record.parameters.clone(),
            options: OptionsView {
                max_parallelism: options.max_parallelism,
                checkpoint_interval_ms: options.checkpoint_interval_ms,
                checkpoint_timeout_ms: options.checkpoint_timeout_ms,
                tolerable_failed_checkpoints: options.tolerable_failed_checkpoints,
                retained_checkpoints: options.retained_checkpoints,
                aligned_checkpoint_timeout_ms: options.aligned_checkpoint_timeout_ms,
                retain_on_cancel: options.retain_on_cancel,
                standby: options.standby,
                restart: restart(&options.restart),
            },
            stages: stages(job),
            edges: edges(job),
            tasks_detail: tasks(job),
            began_from: record.began_from.clone(),
            kept_checkpoint: checkpoints::kept(job),
            last_failure: failure,
            recoveries: job
                .history()
                .recoveries()
                .map(|recovery| self.recovery(recovery))
                .collect(),
            events: job.history().notes().map(event).collect(),
        })
    }

    pub(crate) fn nodes(&self) -> Vec<NodeView> {
        let connected = self
            .leader
            .slots()
            .map(|(member, used)| self.connected(member, used));
        let lost = self.leader.lost_members().iter().map(|lost| NodeView {
            id: lost.registration.id.to_string(),
            incarnation: lost.registration.incarnation.to_string(),
            status: NodeStatus::Lost,
            data_address: lost.registration.data_address.clone(),
            slots: lost.registration.slots,
            slots_free: 0,
            tasks: 0,
            version: lost.registration.version.clone(),
            registered_at_ms: 0,
            lost: Some(EventView {
                at_ms: self.clock.wall_ms(lost.at),
                text: lost.reason.clone(),
            }),
        });
        let members = self.leader.membership();
        // One that died stays announced until its session has expired.
        let away = |record: &&TaskManagerRecord| {
            members.member(&record.id).is_none()
                && !members
                    .lost()
                    .iter()
                    .any(|lost| lost.registration.incarnation == record.incarnation)
        };
        let announced = self.announced.iter().filter(away).map(announced);
        connected.chain(announced).chain(lost).collect()
    }

    fn connected(&self, member: &Member, used: u32) -> NodeView {
        let registration = &member.registration;
        let here = |job: &Job| {
            job.placements()
                .values()
                .filter(|place| **place == registration.id)
                .count()
        };
        NodeView {
            id: registration.id.to_string(),
            incarnation: registration.incarnation.to_string(),
            status: if member.is_draining() {
                NodeStatus::Draining
            } else {
                NodeStatus::Connected
            },
            data_address: registration.data_address.clone(),
            slots: registration.slots,
            slots_free: registration.slots.saturating_sub(used),
            tasks: self.leader.jobs().map(here).sum::<usize>() as u32,
            version: registration.version.clone(),
            registered_at_ms: self.clock.wall_ms(member.registered_at),
            lost: None,
        }
    }

    pub(crate) fn cluster(&self) -> ClusterView {
        let (mut task_managers, mut slots, mut slots_used) = (0, 0, 0);
        for (member, used) in self.leader.slots() {
            task_managers += 1;
            slots += member.registration.slots;
            slots_used += used;
        }
        ClusterView {
            leading_for_ms: micros(self.now.since(self.since)) / 1000,
            task_managers,
            slots,
            slots_free: slots - slots_used,
            jobs_active: self
                .leader
                .jobs()
                .filter(|job| !job.phase().is_terminal())
                .count() as u32,
        }
    }

    pub(crate) fn job_metrics(&self) -> Vec<JobMetricsView> {
        let job = |job: &Job| {
            let history = job.checkpoints().history();
            let completed = history
                .records()
                .rev()
                .find(|record| record.outcome == Outcome::Completed);
            JobMetricsView {
                summary: self.summary(job),
                tasks: tasks(job),
                checkpoints_failed: history.failed(),
                checkpoint_totals: checkpoints::totals(history),
                recoveries: job.history().recovered(),
                restored: checkpoints::restored(job.history().restored()),
                last_checkpoint: completed.map(|record| self.checkpoint(record)),
                last_recovery: job
                    .history()
                    .recoveries()
                    .next_back()
                    .map(|last| self.recovery(last)),
            }
        };
        self.leader.jobs().map(job).collect()
    }
}

/// A TaskManager that the registry knows and the leader does not.
fn announced(record: &TaskManagerRecord) -> NodeView {
    NodeView {
        id: record.id.to_string(),
        incarnation: record.incarnation.to_string(),
        status: NodeStatus::Announced,
        data_address: record.data_address.clone(),
        slots: record.slots,
        slots_free: 0,
        tasks: 0,
        version: String::new(),
        registered_at_ms: 0,
        lost: None,
    }
}

fn is_source(kind: &StageKind) -> bool {
    matches!(
        kind,
        StageKind::Wasm {
            input: StageInput::Guest | StageInput::Connector(_),
            ..
        }
    )
}

fn has_sink(kind: &StageKind) -> bool {
    matches!(kind, StageKind::Wasm { outputs, .. } if outputs.iter().any(|output| matches!(output, Output::Sink(_))))
}

fn blame(blame: Blame) -> &'static str {
    match blame {
        Blame::Job => "job",
        Blame::Cluster => "cluster",
        Blame::Bug => "bug",
    }
}

fn restart(strategy: &RestartStrategy) -> String {
    match strategy {
        RestartStrategy::None => "none".to_owned(),
        RestartStrategy::FixedDelay { attempts, delay_ms } => {
            format!("fixed-delay: {attempts} restarts, {delay_ms} ms before each")
        }
        RestartStrategy::FailureRate {
            failures_max,
            interval_ms,
            delay_ms,
        } => {
            format!(
                "failure-rate: {failures_max} failures in {interval_ms} ms, {delay_ms} ms before each restart"
            )
        }
        RestartStrategy::ExponentialDelay {
            initial_ms,
            max_ms,
            multiplier_percent,
            ..
        } => {
            format!(
                "exponential-delay: from {initial_ms} ms to {max_ms} ms, growing to {multiplier_percent} %"
            )
        }
    }
}

fn stages(job: &Job) -> Vec<StageView> {
    let view = |(index, stage): (u32, &tidemill_protocol::ExecutionStage)| StageView {
        index,
        name: stage.name.clone(),
        kind: match stage.kind {
            StageKind::Wasm { .. } => "wasm",
            StageKind::Enumerator { .. } => "enumerator",
        }
        .to_owned(),
        parallelism: stage.parallelism,
    };
    (0u32..).zip(&job.graph().stages).map(view).collect()
}

fn edges(job: &Job) -> Vec<EdgeView> {
    let view = |edge: &tidemill_protocol::ExecutionEdge| EdgeView {
        from: edge.from,
        to: edge.to,
        routing: match edge.routing {
            Routing::Forward => "forward",
            Routing::AllToAll => "all-to-all",
            Routing::Splits => "splits",
        }
        .to_owned(),
    };
    job.graph().edges.iter().map(view).collect()
}

fn tasks(job: &Job) -> Vec<TaskView> {
    let view = |(id, task): (&TaskId, &tidemill_core::job::Task)| TaskView {
        id: id.to_string(),
        stage: id.stage,
        subtask: id.subtask,
        name: job
            .graph()
            .stage(*id)
            .map(|stage| stage.name.clone())
            .unwrap_or_default(),
        status: match task.status {
            CoreTaskStatus::Idle => TaskStatus::Idle,
            CoreTaskStatus::Deploying => TaskStatus::Deploying,
            CoreTaskStatus::Running => TaskStatus::Running,
            CoreTaskStatus::Finished => TaskStatus::Finished,
            CoreTaskStatus::Failed => TaskStatus::Failed,
            CoreTaskStatus::Cancelled => TaskStatus::Cancelled,
        },
        attempt: job.attempt(*id).map(|attempt| attempt.to_string()),
        task_manager: job.placements().get(id).map(ToString::to_string),
        standby: job.keepers().get(id).map(|keeper| StandbyView {
            task_manager: keeper.to_string(),
            checkpoint: job
                .warm()
                .get(keeper)
                .and_then(|images| images.get(id))
                .map(ToString::to_string),
        }),
        timings: task.timings.into(),
        progress: task.progress.as_ref().map(progress).unwrap_or_default(),
    };
    job.tasks().iter().map(view).collect()
}

fn progress(progress: &TaskProgress) -> ProgressView {
    ProgressView {
        records_in: progress.records_in,
        records_out: progress.records_out,
        bytes_in: progress.bytes_in,
        bytes_out: progress.bytes_out,
        busy_us: progress.busy_us,
        backpressured_us: progress.backpressured_us,
        memory_bytes: progress.memory_bytes,
    }
}
