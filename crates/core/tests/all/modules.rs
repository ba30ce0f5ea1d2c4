//! Who compiles a job's module ahead, a sentence each.

use tidemill_core::job::Phase;
use tidemill_protocol::Routing;

use crate::cluster::Cluster;
use crate::jobs::{JOB, graph, record};

/// How often this TaskManager was told to compile the job's module ahead.
fn told(cluster: &Cluster, name: &str) -> usize {
    let module = record(JOB).module;
    let modules = cluster.task_managers[name].modules.iter();
    modules.filter(|of| **of == module).count()
}

/// A job on `a`, and `b` and `c` beside it.
fn running() -> Cluster {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    cluster.submit(record(JOB), graph(1, Routing::AllToAll));
    assert_eq!(cluster.phase(JOB), Phase::Running);
    cluster
}

fn host(cluster: &Cluster) -> String {
    let placements = cluster.job(JOB).placements();
    let place = placements.values().next().expect("it runs somewhere");
    place.0.clone()
}

#[test]
fn whoever_could_run_the_tasks_is_told_once_and_whoever_runs_them_is_not() {
    let mut cluster = running();
    let host = host(&cluster);
    cluster.seconds(3);
    for name in ["a", "b", "c"] {
        assert_eq!(told(&cluster, name), usize::from(name != host), "{name}");
    }
}

#[test]
fn whoever_comes_later_or_again_is_told() {
    let mut cluster = running();
    let host = host(&cluster);
    cluster.join("d", 2);
    assert_eq!(told(&cluster, "d"), 1);
    let other = ["a", "b"].into_iter().find(|name| *name != host);
    let other = other.expect("one of them runs nothing");
    cluster.kill(other);
    cluster.join(other, 2);
    assert_eq!(told(&cluster, other), 1, "it is another process");
}

#[test]
fn a_job_that_does_not_run_yet_is_prepared_nowhere() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.behaviour.deployments_stall = true;
    cluster.submit(record(JOB), graph(1, Routing::AllToAll));
    cluster.join("d", 2);
    for name in ["a", "b", "d"] {
        assert_eq!(told(&cluster, name), 0, "{name}");
    }
}

#[test]
fn the_next_leader_tells_everybody_again() {
    let mut cluster = running();
    let before = ["a", "b", "c"].map(|name| told(&cluster, name));
    cluster.restart_jobmanager();
    cluster.connect_all();
    cluster.seconds(1);
    assert_eq!(cluster.phase(JOB), Phase::Running);
    let after = ["a", "b", "c"].map(|name| told(&cluster, name));
    assert_eq!(after, before.map(|times| times + 1));
}
