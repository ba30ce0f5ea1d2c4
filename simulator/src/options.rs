//! What a world is like: which faults are on and how strong, how slow things are, which jobs run. Drawn from the seed (a
//! swarm: each seed turns some things off altogether), or quiet for scenarios.

use crate::faults::Kind;
use crate::random::Random;
use crate::time::{MILLISECOND, SECOND};

/// How the network behaves without faults.
#[derive(Clone, Copy, Debug)]
pub struct NetworkOptions {
    /// The least time on the way, in microseconds.
    pub delay_min_us: u64,
    /// The most, unless there is a spike.
    pub delay_max_us: u64,
    /// How often something takes much longer.
    pub spike_per_mille: u32,
    /// How long that may be.
    pub spike_max_us: u64,
    /// How often an attempt to connect leads nowhere.
    pub lost_attempts_per_mille: u32,
}

/// How ZooKeeper behaves without faults.
#[derive(Clone, Copy, Debug)]
pub struct ZooKeeperOptions {
    /// The negotiated session timeout.
    pub session_timeout_us: u64,
    /// How much sooner than its clients think a session may expire: half a tick.
    pub session_lag_us: u64,
    /// The longest time from a change to a watch.
    pub watch_delay_max_us: u64,
    /// How often a connection breaks after a request was carried out and before its answer.
    pub lost_replies_per_mille: u32,
}

/// How the object store behaves without faults.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// The longest usual time for a request.
    pub latency_max_us: u64,
    /// How often one takes much longer.
    pub slow_per_mille: u32,
    /// How long that may be.
    pub slow_max_us: u64,
    /// How often a request fails and changes nothing.
    pub fails_per_mille: u32,
    /// How often a write succeeds and its answer is an error.
    pub lost_replies_per_mille: u32,
    /// How often, in ten thousand, a written object is damaged.
    pub damaged_per_ten_thousand: u32,
}

/// Which jobs there are.
#[derive(Clone, Copy, Debug)]
pub struct JobOptions {
    /// How many are submitted.
    pub count: usize,
    /// The most tasks of a stage.
    pub parallelism_max: u32,
    /// The least number of records of a job.
    pub records_min: u32,
    /// The most.
    pub records_max: u32,
    /// Between two checkpoints.
    pub checkpoint_interval_us: u64,
    /// How often a job is cancelled some time after it was acknowledged.
    pub cancelled_per_mille: u32,
    /// How often a user takes a savepoint of one that is not.
    pub saved_per_mille: u32,
    /// How often a job's restarts are limited.
    pub limited_restarts_per_mille: u32,
    /// How often a job's sinks are so slow that channels fill and barriers come late.
    pub slow_sinks_per_mille: u32,
}

/// Everything that a seed draws.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network.
    pub network: NetworkOptions,
    /// ZooKeeper.
    pub zookeeper: ZooKeeperOptions,
    /// The store.
    pub store: StoreOptions,
    /// The jobs.
    pub jobs: JobOptions,
    /// The heartbeat timeout: a connection that hears nothing for so long is over.
    pub idle_timeout_us: u64,
    /// How late the kernel says that a process has ended.
    pub end_of_file_max_us: u64,
    /// How long a new leader waits for reports.
    pub adoption_timeout_us: u64,
    /// How long a leader that reaches too few TaskManagers waits.
    pub reach_grace_us: u64,
    /// How long a TaskManager that leaves waits for its tasks to go on elsewhere.
    pub drain_timeout_us: u64,
    /// The most that a clock is wrong by, in millionths.
    pub drift_max_ppm: u64,
    /// The kinds of faults that are injected, with their weights.
    pub faults: Vec<(Kind, u64)>,
    /// The mean time between two faults.
    pub fault_interval_us: u64,
    /// When the first fault may come.
    pub faults_from_us: u64,
    /// When everything is mended.
    pub faults_until_us: u64,
    /// How long jobs may take to end from then on.
    pub calm_max_us: u64,
    /// Nothing happens that would justify to start a task again.
    pub restarts_nothing: bool,
}

impl Options {
    /// Nothing goes wrong by itself: for scenarios.
    #[must_use]
    pub fn quiet() -> Self {
        Self {
            network: NetworkOptions {
                delay_min_us: 100,
                delay_max_us: 2 * MILLISECOND,
                spike_per_mille: 0,
                spike_max_us: 0,
                lost_attempts_per_mille: 0,
            },
            zookeeper: ZooKeeperOptions {
                session_timeout_us: 6 * SECOND,
                session_lag_us: SECOND,
                watch_delay_max_us: 20 * MILLISECOND,
                lost_replies_per_mille: 0,
            },
            store: StoreOptions {
                latency_max_us: 30 * MILLISECOND,
                slow_per_mille: 0,
                slow_max_us: 0,
                fails_per_mille: 0,
                lost_replies_per_mille: 0,
                damaged_per_ten_thousand: 0,
            },
            jobs: JobOptions {
                count: 0,
                parallelism_max: 4,
                records_min: 2_000,
                records_max: 2_000,
                checkpoint_interval_us: SECOND,
                cancelled_per_mille: 0,
                saved_per_mille: 0,
                limited_restarts_per_mille: 0,
                slow_sinks_per_mille: 0,
            },
            idle_timeout_us: 3 * SECOND,
            end_of_file_max_us: 50 * MILLISECOND,
            adoption_timeout_us: 10 * SECOND,
            reach_grace_us: 10 * SECOND,
            drain_timeout_us: 60 * SECOND,
            drift_max_ppm: 200,
            faults: Vec::new(),
            fault_interval_us: SECOND,
            faults_from_us: 0,
            faults_until_us: 0,
            calm_max_us: 400 * SECOND,
            restarts_nothing: false,
        }
    }

    /// What a seed draws.
    #[must_use]
    pub fn swarm(random: &mut Random) -> Self {
        let mut options = Self::quiet();
        options.draw_services(random);
        options.jobs = JobOptions {
            count: random.between(1, 4) as usize,
            parallelism_max: random.between(1, 4) as u32,
            records_min: 100,
            records_max: 600,
            checkpoint_interval_us: random.between(300, 3_000) * MILLISECOND,
            cancelled_per_mille: if random.chance(400) { 300 } else { 0 },
            saved_per_mille: if random.chance(400) { 600 } else { 0 },
            limited_restarts_per_mille: if random.chance(150) { 300 } else { 0 },
            slow_sinks_per_mille: if random.chance(400) { 700 } else { 0 },
        };
        options.drift_max_ppm = *random.pick(&[0, 200, 5_000, 20_000]).unwrap_or(&0);
        options.end_of_file_max_us = random.between(1, 800) * MILLISECOND;
        options.adoption_timeout_us = random.between(3, 12) * SECOND;
        options.idle_timeout_us = random.between(1_000, 3_000) * MILLISECOND;
        options.drain_timeout_us = random.between(5, 60) * SECOND;
        options.fault_interval_us = random.between(300, 6_000) * MILLISECOND;
        options.faults_from_us = random.between(1, 6) * SECOND;
        options.faults_until_us = options.faults_from_us + random.between(5, 40) * SECOND;
        if random.chance(200) {
            options.disturb_only_leaders();
        } else {
            for kind in Kind::ALL {
                // About half of the kinds, each with a weight of its own.
                if random.chance(500) {
                    options.faults.push((*kind, random.between(1, 5)));
                }
            }
        }
        options
    }

    fn draw_services(&mut self, random: &mut Random) {
        if random.chance(500) {
            self.network.delay_max_us = random.between(1, 60) * MILLISECOND;
        }
        if random.chance(500) {
            self.network.spike_per_mille = random.between(1, 20) as u32;
            self.network.spike_max_us =
                self.network.delay_max_us + random.between(100, 2_000) * MILLISECOND;
        }
        if random.chance(300) {
            self.network.lost_attempts_per_mille = random.between(10, 200) as u32;
        }
        self.zookeeper.session_timeout_us = random.between(2_000, 8_000) * MILLISECOND;
        self.zookeeper.session_lag_us = random.below(self.zookeeper.session_timeout_us / 4);
        if random.chance(500) {
            self.zookeeper.watch_delay_max_us = random.between(1, 1_000) * MILLISECOND;
        }
        if random.chance(500) {
            self.zookeeper.lost_replies_per_mille = random.between(1, 60) as u32;
        }
        self.store.latency_max_us = random.between(5, 200) * MILLISECOND;
        if random.chance(400) {
            self.store.slow_per_mille = random.between(1, 30) as u32;
            self.store.slow_max_us = random.between(1, 15) * SECOND;
        }
        if random.chance(400) {
            self.store.fails_per_mille = random.between(1, 40) as u32;
        }
        if random.chance(400) {
            self.store.lost_replies_per_mille = random.between(1, 40) as u32;
        }
        if random.chance(80) {
            self.store.damaged_per_ten_thousand = random.between(1, 40) as u32;
        }
    }

    /// JobManagers and ZooKeeper fail, and nothing else: no task may notice.
    fn disturb_only_leaders(&mut self) {
        self.restarts_nothing = true;
        self.network.spike_per_mille = 0;
        self.network.lost_attempts_per_mille = 0;
        self.store.fails_per_mille = 0;
        self.store.lost_replies_per_mille = 0;
        self.store.slow_per_mille = 0;
        self.store.damaged_per_ten_thousand = 0;
        self.adoption_timeout_us = 12 * SECOND;
        self.faults = Kind::ALL
            .iter()
            .filter(|kind| kind.spares_tasks())
            .map(|kind| (*kind, 1))
            .collect();
    }
}
