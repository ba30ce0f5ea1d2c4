//! The reference scenarios, by name: a script each, played with the delays of a seed. The end-to-end suite plays them with
//! real processes under the same names.

use crate::node::{Node, ZOOKEEPER};
use crate::workload::JobSpec;
use crate::world::{Failure, World};

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub says: &'static str,
    script: fn(&mut World),
}

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "task-manager-fails",
        says: "three JobManagers and ten TaskManagers: TM-5 fails, its tasks go to three others",
        script: task_manager_fails,
    },
    Scenario {
        name: "leader-fails-during-recovery",
        says: "TM-5 fails, and the leader fails during that recovery",
        script: leader_fails_during_recovery,
    },
    Scenario {
        name: "replacement-fails-too",
        says: "TM-5 fails, and a reassigned task's new TaskManager fails too",
        script: replacement_fails_too,
    },
    Scenario {
        name: "leader-killed-while-checkpoint-completes",
        says: "the leader is killed while a checkpoint completes",
        script: leader_killed_while_checkpoint_completes,
    },
    Scenario {
        name: "leader-loses-session-with-pointer-in-doubt",
        says: "the leader loses its session while a pointer's write is in doubt",
        script: leader_loses_session_with_pointer_in_doubt,
    },
    Scenario {
        name: "leader-frozen",
        says: "the leader is frozen beyond its session and continued",
        script: leader_frozen,
    },
    Scenario {
        name: "task-manager-frozen",
        says: "a TaskManager is frozen until it is given up, and continued",
        script: task_manager_frozen,
    },
    Scenario {
        name: "zookeeper-away",
        says: "ZooKeeper is away for 20 s",
        script: zookeeper_away,
    },
    Scenario {
        name: "leader-cut-off-from-zookeeper",
        says: "the leader is cut off from ZooKeeper",
        script: leader_cut_off_from_zookeeper,
    },
    Scenario {
        name: "leader-cut-off-from-task-managers",
        says: "the leader is cut off from the TaskManagers",
        script: leader_cut_off_from_task_managers,
    },
    Scenario {
        name: "leader-cut-off-asymmetrically",
        says: "the leader hears the TaskManagers, and they do not hear it",
        script: leader_cut_off_asymmetrically,
    },
    Scenario {
        name: "task-manager-cut-off",
        says: "a TaskManager is cut off from everything",
        script: task_manager_cut_off,
    },
    Scenario {
        name: "leader-and-two-task-managers-killed",
        says: "the leader and two of three TaskManagers are killed together",
        script: leader_and_two_task_managers_killed,
    },
    Scenario {
        name: "rolling-restart",
        says: "all JobManagers and TaskManagers are restarted one after the other",
        script: rolling_restart,
    },
];

impl Scenario {
    /// The scenario of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Plays it in a quiet world, until every job has ended.
    pub fn play(&self, world: &mut World) -> Option<Failure> {
        (self.script)(world);
        world.finish()
    }
}

/// A job that takes some time and little room.
fn plain(world: &World) -> JobSpec {
    JobSpec::plain(&world.options)
}

/// A job that has three tasks of each stage on TM-5.
fn wide(world: &World) -> JobSpec {
    JobSpec {
        parallelism: [26, 26, 1],
        records: 6_000,
        ..plain(world)
    }
}

const TM_5: Node = Node::task_manager(5);

fn task_manager_fails(world: &mut World) {
    let job = world.running_job(wide(world));
    let before = world.places(job);
    let lost: Vec<_> = before
        .iter()
        .filter(|(_, node)| **node == TM_5)
        .map(|(task, _)| *task)
        .collect();
    world.expect(lost.len() == 6, "TM-5 runs three tasks of each stage");
    world.kill(TM_5);
    world.until_running(job);
    let after = world.places(job);
    let mut new: Vec<Node> = lost
        .iter()
        .filter_map(|task| after.get(task).copied())
        .collect();
    new.sort_unstable();
    new.dedup();
    world.expect(new.len() == 3, "its tasks are on three others");
    let stay = before
        .iter()
        .filter(|(task, _)| !lost.contains(task))
        .all(|(task, node)| after.get(task) == Some(node));
    world.expect(stay, "the others stay where they are");
}

fn leader_fails_during_recovery(world: &mut World) {
    let job = world.running_job(wide(world));
    world.kill(TM_5);
    world.until("the recovery begins", |world| world.counts.recoveries > 0);
    let leader = world.the_leader();
    let pause_us = world.random.below(400_000);
    let until_us = world.now_us + pause_us;
    world.until("some of it is done", |world| world.now_us >= until_us);
    world.kill(leader);
    world.until("another leads", |world| world.leader().is_some());
    world.until_running(job);
}

fn replacement_fails_too(world: &mut World) {
    let job = world.running_job(wide(world));
    let before = world.places(job);
    world.kill(TM_5);
    let deploys = |node: Node, world: &World| {
        let mut tasks = world.task_managers[node.worker()].tasks.values();
        tasks.any(|task| before.get(&task.key.task) == Some(&TM_5))
    };
    world.until("a lost task is deployed elsewhere", |world| {
        Node::task_managers().any(|node| node != TM_5 && deploys(node, world))
    });
    let replacement = Node::task_managers().find(|node| *node != TM_5 && deploys(*node, world));
    world.kill(replacement.unwrap_or(TM_5));
    world.pass(1);
    world.fault_ends(crate::faults::Fault::Dead(TM_5));
    world.until_running(job);
}

fn leader_killed_while_checkpoint_completes(world: &mut World) {
    let job = world.running_job(plain(world));
    let (before, published) = (world.attempts(job), world.checkers.published());
    world.until("a checkpoint is published", |world| {
        world.checkers.published() > published
    });
    world.kill(world.the_leader());
    world.until("another leads", |world| world.leader().is_some());
    world.pass(15);
    world.expect(
        world.attempts(job) == before,
        "no task has changed its attempt",
    );
}

fn leader_loses_session_with_pointer_in_doubt(world: &mut World) {
    let job = world.running_job(plain(world));
    let before = world.attempts(job);
    world.zookeeper.lose_pointer_replies = 1;
    world.until("a reply is lost", |world| world.counts.lost_replies > 0);
    let leader = world.the_leader();
    world.force_session_end(leader);
    world.pass(3);
    world.until("somebody leads", |world| world.leader().is_some());
    world.pass(12);
    world.expect(
        world.attempts(job) == before,
        "no task has changed its attempt",
    );
}

fn leader_frozen(world: &mut World) {
    let job = world.running_job(plain(world));
    let (before, old) = (world.attempts(job), world.the_leader());
    world.freeze(old);
    world.until("another leads", |world| {
        world.leader().is_some_and(|leader| leader != old)
    });
    world.pass(5);
    world.thaw(old);
    world.pass(2);
    world.expect(
        world.job_managers[old.0].leads().is_none(),
        "the old leader follows",
    );
    world.expect(
        world.attempts(job) == before,
        "no task has changed its attempt",
    );
}

fn task_manager_frozen(world: &mut World) {
    let job = world.running_job(plain(world));
    let frozen = world.host(job);
    world.freeze(frozen);
    world.until_running(job);
    world.pass(2);
    world.thaw(frozen);
    world.until("it has stopped what runs elsewhere", |world| {
        world.task_managers[frozen.worker()].tasks.is_empty()
    });
}

fn zookeeper_away(world: &mut World) {
    let job = world.running_job(JobSpec {
        records: 2_000,
        ..plain(world)
    });
    let before = world.attempts(job);
    world.zookeeper.is_up = false;
    world.pass(2);
    let (published, read) = (world.checkers.published(), world.records_read(job));
    world.pass(18);
    world.expect(
        world.checkers.published() == published,
        "nothing is published meanwhile",
    );
    world.expect(world.records_read(job) > read + 200, "tasks go on");
    world.zookeeper.comes_back(world.now_us);
    world.until("checkpoints resume", |world| {
        world.checkers.published() > published
    });
    world.expect(
        world.attempts(job) == before,
        "no task has changed its attempt",
    );
}

fn leader_cut_off_from_zookeeper(world: &mut World) {
    let job = world.running_job(plain(world));
    let (before, old) = (world.attempts(job), world.the_leader());
    let links = World::links(old, [ZOOKEEPER].into_iter());
    world.block(&links);
    world.until("another is elected", |world| {
        world
            .zookeeper
            .leader()
            .is_some_and(|(_, node)| node != old)
    });
    world.expect(
        world.job_managers[old.0].leads().is_none(),
        "the old leader has stepped down before",
    );
    world.pass(12);
    world.unblock(&links);
    world.expect(
        world.attempts(job) == before,
        "no task has changed its attempt",
    );
}

fn leader_cut_off_from_task_managers(world: &mut World) {
    let job = world.running_job(JobSpec {
        records: 3_000,
        ..plain(world)
    });
    let old = world.the_leader();
    let links = World::links(old, Node::task_managers());
    world.block(&links);
    world.until("another leads", |world| {
        world.leader().is_some_and(|leader| leader != old)
    });
    world.until_connected();
    world.until_running(job);
    world.unblock(&links);
}

fn leader_cut_off_asymmetrically(world: &mut World) {
    let job = world.running_job(JobSpec {
        records: 3_000,
        ..plain(world)
    });
    let old = world.the_leader();
    let links: Vec<(Node, Node)> = Node::task_managers().map(|node| (old, node)).collect();
    world.block(&links);
    world.until("another leads", |world| {
        world.leader().is_some_and(|leader| leader != old)
    });
    world.until_connected();
    world.until_running(job);
    world.unblock(&links);
}

fn task_manager_cut_off(world: &mut World) {
    let job = world.running_job(plain(world));
    let cut = world.host(job);
    let links = World::all_links(cut);
    world.block(&links);
    world.until("its tasks run elsewhere", |world| {
        let others = world
            .places(job)
            .into_values()
            .filter(|node| *node != cut)
            .count();
        others == 5
    });
    world.pass(5);
    world.unblock(&links);
    world.until("it has stopped what runs elsewhere", |world| {
        world.task_managers[cut.worker()].tasks.is_empty()
    });
}

fn leader_and_two_task_managers_killed(world: &mut World) {
    for number in 4..=10 {
        world.kill(Node::task_manager(number));
    }
    let job = world.running_job(JobSpec {
        parallelism: [3, 3, 1],
        ..plain(world)
    });
    let killed = [
        world.the_leader(),
        Node::task_manager(1),
        Node::task_manager(2),
    ];
    killed.into_iter().for_each(|node| world.kill(node));
    world.pass(15);
    killed
        .into_iter()
        .for_each(|node| world.start_process(node));
    world.until_connected();
    world.until_running(job);
}

fn rolling_restart(world: &mut World) {
    let job = world.running_job(JobSpec {
        records: 8_000,
        ..plain(world)
    });
    for node in Node::job_managers().chain(Node::task_managers()) {
        let life = world.processes[node.0].life;
        world.terminate(node);
        world.until("it runs again", |world| world.processes[node.0].life > life);
        world.until_connected();
        world.until_running(job);
    }
    world.expect(world.counts.recoveries == 0, "nothing failed");
}
