//! The reference scenarios, by name: a script each. The end-to-end suite plays them with real processes under the same
//! names.

/// Every scenario: its name, and what it says.
pub const SCENARIOS: &[(&str, &str)] = &[
    ("task-manager-fails", "three JobManagers and ten TaskManagers: TM-5 fails, its tasks go to three others"),
    ("leader-fails-during-recovery", "TM-5 fails, and the leader fails during that recovery"),
    ("replacement-fails-too", "TM-5 fails, and a reassigned task's new TaskManager fails too"),
    ("leader-killed-while-checkpoint-completes", "the leader is killed while a checkpoint completes"),
    ("leader-loses-session-with-pointer-in-doubt", "the leader loses its session while a pointer's write is in doubt"),
    ("leader-frozen", "the leader is frozen beyond its session and continued"),
    ("task-manager-frozen", "a TaskManager is frozen until it is given up, and continued"),
    ("zookeeper-away", "ZooKeeper is away for 20 s"),
    ("leader-cut-off-from-zookeeper", "the leader is cut off from ZooKeeper"),
    ("leader-cut-off-from-task-managers", "the leader is cut off from the TaskManagers"),
    ("leader-cut-off-asymmetrically", "the leader hears the TaskManagers, and they do not hear it"),
    ("task-manager-cut-off", "a TaskManager is cut off from everything"),
    ("leader-and-two-task-managers-killed", "the leader and two of three TaskManagers are killed together"),
    ("rolling-restart", "all JobManagers and TaskManagers are restarted one after the other"),
];

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
}

impl Scenario {
    /// Plays it.
    pub fn play(&self, world: &mut crate::World) -> Option<crate::Failure> {
        world.run()
    }
}
