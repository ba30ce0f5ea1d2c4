//! What scenarios are written with: waiting for something, doing something to a process or a link, and saying what must
//! hold.

use std::collections::BTreeMap;

use tidemill_protocol::{AttemptId, JobId, TaskId};

use crate::connection::HowEnded;
use crate::node::Node;
use crate::time::SECOND;
use crate::user::Plan;
use crate::workload::JobSpec;
use crate::world::{Failure, World};

/// How long a scenario waits for what must come.
const PATIENCE_US: u64 = 120 * SECOND;

impl World {
    /// Lets things happen until this holds; that it never does is a failure.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline_us = self.now_us + PATIENCE_US;
        while self.failure().is_none() && !holds(self) {
            if self.now_us > deadline_us {
                return self.fail_liveness(&format!("waited in vain until {what}"));
            }
            self.step();
        }
    }

    /// Lets so much time pass.
    pub(crate) fn pass(&mut self, seconds: u64) {
        let until_us = self.now_us + seconds * SECOND;
        while self.failure().is_none() && self.now_us < until_us {
            self.step();
        }
    }

    /// What a scenario says must hold now.
    pub(crate) fn expect(&mut self, holds: bool, what: &str) {
        let judged = if holds {
            Ok(())
        } else {
            Err(format!("it does not hold that {what}"))
        };
        self.judge(judged);
    }

    /// A leader leads and every TaskManager that runs is registered with it.
    pub(crate) fn until_connected(&mut self) {
        self.until("every TaskManager is registered with a leader", |world| {
            let leader = world.leader();
            let members = leader
                .map(|node| world.job_managers[node.0].members())
                .unwrap_or_default();
            let mut running = Node::task_managers().filter(|node| world.processes[node.0].runs());
            leader.is_some() && running.all(|node| members.contains(&node))
        });
    }

    /// A user submits a job, and every task of it runs.
    pub(crate) fn running_job(&mut self, spec: JobSpec) -> JobId {
        self.until_connected();
        self.add_user(spec, 0, Plan::RunsOn);
        self.until("the user was told that the job is stored", |world| {
            world.users.are_content()
        });
        let job = self.users.last_job().unwrap_or(JobId([0; 16]));
        self.until_running(job);
        self.pass(3);
        job
    }

    /// Every task of a job runs.
    pub(crate) fn until_running(&mut self, job: JobId) {
        self.until("every task of the job runs", |world| world.is_running(job));
    }

    pub(crate) fn is_running(&self, job: JobId) -> bool {
        let tasks = self
            .users
            .spec(job)
            .map_or(0, |spec| spec.graph().tasks().count());
        self.attempts(job).len() == tasks
    }

    /// The attempt of every task that runs on a process that does.
    pub(crate) fn attempts(&self, job: JobId) -> BTreeMap<TaskId, AttemptId> {
        let running = self.places(job).into_iter();
        running
            .filter_map(|(task, node)| {
                Some((
                    task,
                    self.task_managers[node.worker()]
                        .tasks
                        .get(&(job, task))?
                        .key
                        .attempt,
                ))
            })
            .collect()
    }

    /// Where every task runs.
    pub(crate) fn places(&self, job: JobId) -> BTreeMap<TaskId, Node> {
        let alive = Node::task_managers().filter(|node| self.processes[node.0].runs());
        alive
            .flat_map(|node| {
                let tasks = self.task_managers[node.worker()].tasks.values();
                tasks
                    .filter(|task| task.key.job == job && task.running)
                    .map(move |task| (task.key.task, node))
            })
            .collect()
    }

    /// A TaskManager that runs a task of the job.
    pub(crate) fn host(&self, job: JobId) -> Node {
        self.places(job)
            .into_values()
            .next()
            .unwrap_or(Node::task_manager(1))
    }

    /// The leader, or the JobManager that is about to be it.
    pub(crate) fn the_leader(&self) -> Node {
        self.leader().unwrap_or(Node::job_manager(1))
    }

    /// How many records the sources have read.
    pub(crate) fn records_read(&self, job: JobId) -> u32 {
        let tasks = self
            .task_managers
            .iter()
            .flat_map(|task_manager| task_manager.tasks.values());
        tasks
            .filter(|task| task.key.job == job)
            .map(|task| task.state.position)
            .sum()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, node: Node) {
        self.end_process(node, HowEnded::Killed);
    }

    /// Cuts or mends all links between a node and others, in both directions.
    pub(crate) fn links(one: Node, others: impl Iterator<Item = Node>) -> Vec<(Node, Node)> {
        others
            .flat_map(|other| [(one, other), (other, one)])
            .collect()
    }

    /// Everything is mended and every job comes to its end.
    pub(crate) fn finish(&mut self) -> Option<Failure> {
        self.options.faults_until_us = self.now_us;
        self.run()
    }
}
