//! That the servers are what tests take them for.

use std::time::Instant;

use tidemill_zookeeper_ensemble::{Ensemble, EnsembleError, Mode, Options};

#[test]
fn one_server_comes_up_freezes_and_ends_with_its_value() {
    let ensemble = Ensemble::start(Options::with_servers(1)).unwrap();
    assert_eq!(ensemble.mode(0), Some(Mode::Standalone));
    assert_eq!(ensemble.ask(0, "ruok").as_deref(), Some("imok"));
    ensemble.freeze(0).unwrap();
    assert_eq!(ensemble.ask(0, "ruok"), None);
    ensemble.thaw(0).unwrap();
    assert_eq!(ensemble.wait_for_leader().unwrap(), 0);

    let process = ensemble.process_id(0).unwrap();
    drop(ensemble);
    assert!(!std::path::Path::new(&format!("/proc/{process}")).exists());
}

#[test]
fn three_servers_elect_one_and_another_when_it_is_killed() {
    let started = Instant::now();
    let ensemble = Ensemble::start(Options::with_servers(3)).unwrap();
    println!("3 servers serve after {:?}", started.elapsed());
    let first = ensemble.leader().unwrap();
    assert_eq!(ensemble.followers().len(), 2);

    let killed = Instant::now();
    ensemble.kill(first).unwrap();
    assert_eq!(ensemble.mode(first), None);
    assert!(matches!(
        ensemble.freeze(first),
        Err(EnsembleError::NotRunning { .. })
    ));
    let second = ensemble.wait_for_leader().unwrap();
    println!("another leads {:?} after the kill", killed.elapsed());
    assert_ne!(first, second);
    assert_eq!(ensemble.restart(first).unwrap(), Mode::Follower);

    ensemble.kill_all();
    assert_eq!(ensemble.leader(), None);
    ensemble.start_all().unwrap();
    assert_eq!(ensemble.followers().len(), 2);
}
