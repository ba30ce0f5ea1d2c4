//! A JobManager's whole driver, without sockets: TaskManagers are channels, and the registry gets into trouble at a word.

mod registry;
mod submissions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidemill_config::{Config, Coordination};
use tidemill_coordination::{Connection, Embedded, KnownLeader, Registry};
use tidemill_core::job;
use tidemill_core::leader::Action;
use tidemill_core::membership::ConnectionId;
use tidemill_protocol::control::{FromLeader, Registration};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::record::{
    CheckpointPointer, CheckpointPointers, JobManagerRecord, JobRecord, JobState, TaskManagerRecord,
};
use tidemill_protocol::{CheckpointId, Epoch, Incarnation, JobId, ModuleHash, TaskManagerId};
use tidemill_runtime::{Engine, EngineOptions};
use tidemill_storage::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::registry::{Trouble, TroubledRegistry};
use crate::answers::Clock;
use crate::driver::{Driver, Inputs};
use crate::perform::{Hands, Performer};
use crate::reign::Done;
use crate::roles::{Process, Roles};
use crate::sessions::{Answer, SessionEvent};
use crate::standing::Standing;
use crate::views::{JobStatus, NodeStatus, Role};
use crate::{ClusterHandle, SubmitError, SubmitOptions};

const JOB: JobId = JobId([7; 16]);

fn record(number: u64) -> JobManagerRecord {
    JobManagerRecord {
        id: format!("jm-{number}"),
        incarnation: Incarnation(number),
        control_address: format!("127.0.0.1:{number}"),
        rest_url: format!("http://127.0.0.1:{number}"),
    }
}

fn known(number: u64) -> Option<KnownLeader> {
    let (epoch, record) = (Epoch(90), record(number));
    Some(KnownLeader { epoch, record })
}

/// A job whose graph is lost: whoever takes over can only fail it, which is a write.
fn lost_job() -> JobRecord {
    JobRecord {
        id: JOB,
        name: "lost".into(),
        module: ModuleHash([0; 32]),
        graph: ObjectRef {
            key: "jobs/lost/graph".into(),
            len: 1,
            hash: [0; 32],
        },
        graph_hash: 0,
        parameters: BTreeMap::new(),
        options: Config::default().job_options(None),
        submitted_at_ms: 0,
        state: JobState::Active,
        restarts: 0,
        began_from: None,
        ended_at_ms: None,
    }
}

/// A running driver and everything around it.
struct Bench {
    registry: Arc<TroubledRegistry>,
    config: Arc<Config>,
    cluster: ClusterHandle,
    standing: watch::Receiver<Standing>,
    sessions: mpsc::Sender<SessionEvent>,
    stop: CancellationToken,
    running: JoinHandle<()>,
    connections: u64,
    _directory: tempfile::TempDir,
}

fn troubled(session_timeout: Option<Duration>) -> (TroubledRegistry, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let embedded = Embedded::open(directory.path()).expect("a new registry");
    (TroubledRegistry::new(embedded, session_timeout), directory)
}

/// A registry that somebody led who left behind a job whose graph is lost.
async fn with_job() -> (TroubledRegistry, tempfile::TempDir) {
    with_record(lost_job()).await
}

/// A registry that somebody led who left this job behind.
async fn with_record(job: JobRecord) -> (TroubledRegistry, tempfile::TempDir) {
    let (registry, directory) = troubled(None);
    let before = registry
        .embedded
        .lead(&record(9))
        .await
        .expect("nobody leads");
    let stored = registry.embedded.put_job(&before, &job).await;
    stored.expect("a leader may write");
    registry.embedded.resign(&before).await.expect("it leads");
    (registry, directory)
}

impl Bench {
    fn start((registry, directory): (TroubledRegistry, tempfile::TempDir)) -> Self {
        let store = Store::open("memory://").expect("memory is there");
        Self::start_with(registry, directory, store)
    }

    fn start_with(registry: TroubledRegistry, directory: tempfile::TempDir, store: Store) -> Self {
        let registry = Arc::new(registry);
        let mut config = Config::default();
        config.jobmanager.data_dir = directory.path().to_owned();
        config.cluster.coordination = Coordination::ZooKeeper;
        let config = Arc::new(config);
        let process = Process {
            config: Arc::clone(&config),
            registry: Arc::<TroubledRegistry>::clone(&registry),
            store,
            engine: Engine::new(EngineOptions::default()).expect("the defaults work"),
            clock: Clock::start(),
            record: record(1),
        };
        let (facts_in, facts) = mpsc::unbounded_channel();
        let (requests_in, requests) = mpsc::channel(8);
        let (sessions, sessions_out) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let beginning =
            Standing::beginning(record(1), Coordination::ZooKeeper, Connection::Connected);
        let (standing_in, standing) = watch::channel(beginning);
        let inputs = Inputs {
            requests,
            sessions: sessions_out,
            facts,
            stop: stop.clone(),
        };
        let roles = Roles::new(process.clone(), facts_in);
        let driver = Driver::new(process, roles, standing_in, inputs, None);
        Self {
            cluster: ClusterHandle::new(requests_in, standing.clone()),
            running: tokio::spawn(driver.run()),
            registry,
            config,
            standing,
            sessions,
            stop,
            connections: 0,
            _directory: directory,
        }
    }

    async fn until(&mut self, role: Role, epoch: Option<u64>) {
        let reached =
            |standing: &Standing| (standing.role, standing.epoch) == (role, epoch.map(Epoch));
        self.standing.wait_for(reached).await.expect("it runs");
    }

    /// A TaskManager says who it is.
    async fn register(&mut self, name: &str) -> oneshot::Receiver<Answer> {
        self.connections += 1;
        let (answer, answered) = oneshot::channel();
        let registration = Registration {
            id: TaskManagerId(name.into()),
            incarnation: Incarnation(self.connections),
            data_address: "127.0.0.1:9".into(),
            slots: 1,
            cluster_config_hash: self.config.cluster.hash(),
            version: String::new(),
            draining: false,
            running: Vec::new(),
            warm: Vec::new(),
        };
        let registering = SessionEvent::Registering {
            connection: ConnectionId(self.connections),
            registration,
            remote: "127.0.0.1:9".parse().expect("an address"),
            answer,
        };
        let sent = self.sessions.send(registering).await;
        assert!(sent.is_ok(), "the driver runs");
        answered
    }

    async fn accepted(&mut self, name: &str) -> (Epoch, mpsc::UnboundedReceiver<FromLeader>) {
        match self.register(name).await.await {
            Ok(Answer::Accepted { epoch, outbox, .. }) => (epoch, outbox),
            Ok(Answer::Refused { reason, .. }) => panic!("refused: {reason}"),
            Err(_) => panic!("let go"),
        }
    }

    /// Waits until it is known that the job has failed.
    async fn until_failed(&self) {
        loop {
            let jobs = self.cluster.jobs().await.expect("it leads");
            if jobs[0].status == JobStatus::Failed {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn stored_state(&self) -> JobState {
        let jobs = self.registry.embedded.jobs().await.expect("readable");
        let job = jobs.into_iter().next().expect("there is a job");
        job.expect("whole").state
    }
}

#[tokio::test]
async fn a_follower_refuses_task_managers_and_names_the_leader() {
    let (registry, directory) = troubled(None);
    registry.answers.send_replace(false);
    registry.leader.send_replace(known(2));
    let mut bench = Bench::start((registry, directory));
    let answer = bench.register("a").await.await;
    let Ok(Answer::Refused { epoch, reason }) = answer else {
        panic!("a follower accepts nobody");
    };
    assert_eq!(epoch, Epoch(0));
    assert!(reason.contains("jm-2 at http://127.0.0.1:2"), "{reason}");
    let health = bench.cluster.health().await.expect("it answers");
    assert_eq!((health.role, health.leading), (Role::Follower, false));
    assert_eq!(health.leader.map(|leader| leader.id), Some("jm-2".into()));
    assert!(health.cluster.is_none());
    assert!(bench.cluster.jobs().await.is_err());
    let refused = bench.cluster.submit("x".into(), SubmitOptions::default());
    assert!(matches!(refused.await, Err(SubmitError::Unavailable(_))));

    bench.registry.answers.send_replace(true);
    bench.until(Role::Leader, Some(1)).await;
    assert_eq!(bench.accepted("a").await.0, Epoch(1));
}

#[tokio::test]
async fn a_process_that_was_frozen_performs_nothing_before_it_steps_down() {
    // A machine that is busy with other tests does not make it step down before.
    const TIMEOUT: Duration = Duration::from_secs(3);
    let mut bench = Bench::start(troubled(Some(TIMEOUT)));
    bench.until(Role::Leader, Some(1)).await;
    let (_, mut outbox) = bench.accepted("a").await;
    let late = bench.register("b").await;
    // Every task of this process is on this thread: nothing of it runs, as after SIGSTOP.
    std::thread::sleep(TIMEOUT);
    match late.await {
        Ok(Answer::Accepted { epoch, .. }) => assert_eq!(epoch, Epoch(2), "by the next reign"),
        Ok(Answer::Refused { epoch, .. }) => assert_eq!(epoch, Epoch(0)),
        Err(_) => {}
    }
    assert_eq!(
        outbox.recv().await,
        None,
        "nothing was said, and it is closed"
    );
    bench.until(Role::Leader, Some(2)).await;
    assert_eq!(bench.accepted("a").await.0, Epoch(2));
}

#[tokio::test]
async fn a_leader_that_is_not_confirmed_steps_down_before_its_session_can_end() {
    // A third of it is for a machine that is busy with other tests.
    const TIMEOUT: Duration = Duration::from_millis(4_500);
    let mut bench = Bench::start(troubled(Some(TIMEOUT)));
    bench.until(Role::Leader, Some(1)).await;
    let (_, mut outbox) = bench.accepted("a").await;
    let begun = std::time::Instant::now();
    bench.registry.answers.send_replace(false);
    bench.until(Role::SteppingDown, None).await;
    assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
    assert!(bench.cluster.jobs().await.is_err());
    bench.registry.answers.send_replace(true);
    assert_eq!(outbox.recv().await, None);
    bench.until(Role::Leader, Some(2)).await;
}

#[tokio::test]
async fn a_fenced_write_ends_the_reign_and_the_next_one_finishes_its_work() {
    let (registry, directory) = with_job().await;
    registry.expect(&[Trouble::Fenced]);
    let mut bench = Bench::start((registry, directory));
    bench.until(Role::Leader, Some(3)).await;
    bench.until_failed().await;
    assert!(matches!(
        bench.stored_state().await,
        JobState::Failed { .. }
    ));
}

/// Waits for the job's failure to be stored, and says how often it was written.
async fn writes_until_stored(troubles: &[Trouble]) -> usize {
    let (registry, directory) = with_job().await;
    registry.expect(troubles);
    let mut bench = Bench::start((registry, directory));
    bench.until(Role::Leader, Some(2)).await;
    bench.until_failed().await;
    assert!(matches!(
        bench.stored_state().await,
        JobState::Failed { .. }
    ));
    let asked = bench.registry.asked.borrow();
    asked.iter().filter(|one| **one == "put_job").count()
}

#[tokio::test]
async fn a_record_in_doubt_is_read_back_and_written_again_only_when_it_is_not_there() {
    assert_eq!(writes_until_stored(&[Trouble::LostAfter]).await, 1);
    assert_eq!(writes_until_stored(&[Trouble::LostBefore]).await, 2);
}

#[tokio::test]
async fn a_registry_that_is_away_is_waited_for() {
    let (registry, directory) = with_job().await;
    registry.expect(&[Trouble::Failed]);
    registry.connection.send_replace(Connection::Suspended);
    let mut bench = Bench::start((registry, directory));
    bench.until(Role::Leader, Some(2)).await;
    bench.registry.asked("put_job", 1).await;
    let health = bench.cluster.health().await.expect("it answers");
    assert_eq!(health.registry.kind, "zookeeper");
    let refused = bench.cluster.submit("x".into(), SubmitOptions::default());
    let refused = refused.await.expect_err("nothing can be stored");
    assert!(matches!(refused, SubmitError::RegistryAway { .. }));
    assert!(
        refused.to_string().contains("nothing was kept"),
        "{refused}"
    );
    assert_eq!(bench.stored_state().await, JobState::Active);

    bench
        .registry
        .connection
        .send_replace(Connection::Connected);
    bench.until_failed().await;
    assert!(matches!(
        bench.stored_state().await,
        JobState::Failed { .. }
    ));
}

#[tokio::test]
async fn task_managers_that_come_during_a_take_over_are_answered_when_it_is_done() {
    let (registry, directory) = troubled(None);
    *registry.unreadable.lock().expect("no test panics here") = 2;
    let mut bench = Bench::start((registry, directory));
    bench.until(Role::TakingOver, Some(1)).await;
    assert_eq!(bench.accepted("a").await.0, Epoch(1));
    bench.until(Role::Leader, Some(1)).await;
    let metrics = bench.cluster.metrics().await.expect("it answers");
    let times = metrics.take_over.expect("it took over");
    assert!(times.total_us >= times.list_us, "{times:?}");
}

#[tokio::test]
async fn announced_task_managers_are_shown_and_others_that_stand_by() {
    let mut bench = Bench::start(troubled(None));
    bench.until(Role::Leader, Some(1)).await;
    let announced = |name: &str| TaskManagerRecord {
        id: TaskManagerId(name.into()),
        incarnation: Incarnation(1),
        data_address: "127.0.0.1:9".into(),
        slots: 3,
    };
    let _outbox = bench.accepted("a").await;
    let all = vec![announced("a"), announced("b")];
    bench.registry.task_managers.send_replace(all);
    bench.registry.leader.send_replace(known(1));
    bench
        .registry
        .job_managers
        .send_replace(vec![record(1), record(2)]);
    let two = |standing: &Standing| standing.candidates.len() == 2;
    bench.standing.wait_for(two).await.expect("it runs");
    let nodes = bench.cluster.nodes().await.expect("it leads");
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| (node.id.as_str(), node.status))
        .collect();
    assert_eq!(
        nodes,
        [("a", NodeStatus::Connected), ("b", NodeStatus::Announced)]
    );
    let job_managers = bench.cluster.job_managers().await.expect("it leads");
    let roles: Vec<_> = job_managers
        .iter()
        .map(|one| (one.id.as_str(), one.role, one.epoch))
        .collect();
    assert_eq!(
        roles,
        [
            ("jm-1", Role::Leader, Some(90)),
            ("jm-2", Role::Follower, None)
        ]
    );
}

#[tokio::test]
async fn a_leader_that_is_stopped_resigns_then_lets_its_task_managers_go() {
    let mut bench = Bench::start(troubled(None));
    bench.until(Role::Leader, Some(1)).await;
    let (_, mut outbox) = bench.accepted("a").await;
    bench.registry.answers.send_replace(false);
    bench.stop.cancel();
    bench.registry.asked("resign", 1).await;
    let nothing_yet = outbox.try_recv();
    assert_eq!(nothing_yet, Err(mpsc::error::TryRecvError::Empty));
    bench.registry.answers.send_replace(true);
    assert_eq!(outbox.recv().await, None);
    bench.running.await.expect("no panic");
    let next = bench.registry.embedded.lead(&record(2)).await;
    assert_eq!(next.expect("nobody leads").epoch(), Epoch(2));
}

#[tokio::test]
async fn a_follower_that_is_stopped_withdraws() {
    let (registry, directory) = troubled(None);
    registry.answers.send_replace(false);
    let bench = Bench::start((registry, directory));
    bench.registry.asked("lead", 1).await;
    bench.stop.cancel();
    bench.running.await.expect("no panic");
    // Else the next leader would be elected only after this one's session.
    bench.registry.asked("settled", 1).await;
}

#[tokio::test]
async fn a_checkpoint_waits_for_the_registry_and_is_published_when_it_is_back() {
    let (registry, _directory) = with_job().await;
    let registry = Arc::new(registry);
    let leading = registry
        .embedded
        .lead(&record(1))
        .await
        .expect("nobody leads");
    registry.connection.send_replace(Connection::Suspended);
    registry.expect(&[Trouble::Failed]);
    let (done, mut results) = mpsc::unbounded_channel();
    let (facts, _facts) = mpsc::unbounded_channel();
    let checkpoint = CheckpointId::new(leading.epoch(), 1);
    let mut performer = Performer::new(Hands {
        registry: Arc::<TroubledRegistry>::clone(&registry),
        leading,
        store: Store::open("memory://").expect("memory is there"),
        done,
        facts,
        over: CancellationToken::new(),
        swept: CancellationToken::new(),
        report_interval_ms: 0,
    });
    let pointers = CheckpointPointers {
        completed: vec![CheckpointPointer {
            checkpoint,
            metadata: lost_job().graph,
        }],
    };
    performer.perform(Action::PublishPointers {
        job: JOB,
        checkpoint,
        pointers: pointers.clone(),
    });
    registry.asked("put_pointers", 1).await;
    assert!(
        results.try_recv().is_err(),
        "it is neither done nor given up"
    );
    registry.connection.send_replace(Connection::Connected);
    let Some(Done::Performed { result, .. }) = results.recv().await else {
        panic!("something else was done");
    };
    let published = tidemill_core::checkpoint::Event::Published { checkpoint };
    assert_eq!(
        format!("{result:?}"),
        format!("{:?}", job::Event::Checkpoint(published))
    );
    let stored = registry.embedded.pointers(JOB).await.expect("readable");
    assert_eq!(stored, pointers);
}
