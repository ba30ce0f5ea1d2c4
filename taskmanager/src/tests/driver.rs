//! What a TaskManager says of itself to the leaders that it meets, and how it leaves.

use std::net::SocketAddr;
use std::time::Duration;

use tidemill_abi::StageInput;
use tidemill_config::Config;
use tidemill_core::worker::Worker;
use tidemill_protocol::control::{
    Blame, Command, Deployment, FromLeader, Registration, TaskDeployment, TaskLocation, TaskState,
    ToLeader,
};
use tidemill_protocol::{
    AttemptId, Epoch, ExecutionGraph, ExecutionStage, Incarnation, JobId, ModuleHash, StageKind,
    TaskId, TaskManagerId,
};
use tidemill_transport::{Credentials, DataPlane, Endpoint, TransportOptions};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::leader::soon;
use crate::driver::{Driver, State, Wanted};
use crate::link::{Introduction, Leader, LinkEvent};
use crate::perform::Performer;
use crate::task::{Execution, TaskEvent, failure};

const JOB: JobId = JobId([3; 16]);
const TASK: TaskId = TaskId::new(0, 0);
const ATTEMPT: AttemptId = AttemptId::new(Epoch(1), 1);
const EXECUTION: Execution = Execution {
    job: JOB,
    task: TASK,
    attempt: ATTEMPT,
};

/// A driver whose link and tasks are in the test's hands.
struct Subject {
    link: mpsc::Sender<LinkEvent>,
    tasks: mpsc::UnboundedSender<TaskEvent>,
    wanted: watch::Sender<Wanted>,
    run: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

/// What it says to the leader that it is introduced to.
struct Voice {
    registration: Registration,
    afterwards: mpsc::UnboundedReceiver<ToLeader>,
}

fn start(drain_timeout: Duration) -> Subject {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.cluster.checkpoint_store_url = "memory://".to_owned();
    config.taskmanager.data_dir = directory.path().to_owned();
    let credentials = Credentials::ephemeral().expect("certificates");
    let local = "127.0.0.1:0".parse().expect("an address");
    let endpoint = Endpoint::bind(local, &credentials, TransportOptions::default());
    let endpoint = endpoint.expect("a free port");
    let plane = DataPlane::new(endpoint.clone());
    let (leader, known_leader) = watch::channel(None);
    let (tasks, task_events) = mpsc::unbounded_channel();
    let resources = crate::resources(
        &config,
        (&endpoint, &plane),
        known_leader,
        tasks.clone(),
        Handle::current(),
    );
    let (link, link_events) = mpsc::channel(16);
    let (wanted, asked) = watch::channel(Wanted::Run);
    let driver = Driver {
        worker: Worker::default(),
        performer: Performer::new(resources.expect("a machine that runs Wasm")),
        leader,
        registration: Registration {
            id: TaskManagerId("tm".to_owned()),
            incarnation: Incarnation(1),
            data_address: endpoint.local_address().to_string(),
            slots: 1,
            cluster_config_hash: 0,
            version: String::new(),
            draining: false,
            running: Vec::new(),
            warm: Vec::new(),
        },
        link: link_events,
        tasks: task_events,
        plane,
        wanted: asked,
        drain_timeout,
        announcement: None,
        metrics: None,
        state: State::default(),
    };
    Subject {
        link,
        tasks,
        wanted,
        run: tokio::spawn(driver.run()),
        _directory: directory,
    }
}

/// One task, which waits for its module for ever.
fn deployment() -> Command {
    Command::Deploy(Deployment {
        job: JOB,
        job_name: String::new(),
        attempt: ATTEMPT,
        module: ModuleHash([9; 32]),
        parameters: Default::default(),
        graph: ExecutionGraph {
            stages: vec![ExecutionStage {
                name: "source".to_owned(),
                kind: StageKind::Wasm {
                    input: StageInput::Guest,
                    ports: 0,
                    outputs: Vec::new(),
                },
                parallelism: 1,
            }],
            edges: Vec::new(),
            max_parallelism: 128,
            job_graph_hash: 0,
        },
        tasks: vec![TaskDeployment {
            task: TASK,
            image: None,
            warm_at: Vec::new(),
        }],
        locations: vec![TaskLocation {
            task: TASK,
            task_manager: TaskManagerId("tm".to_owned()),
            address: "127.0.0.1:1".to_owned(),
        }],
        restore: None,
        aligned_checkpoint_timeout_ms: 0,
    })
}

impl Subject {
    async fn tell(&self, event: LinkEvent) {
        assert!(self.link.send(event).await.is_ok(), "the driver runs");
    }

    async fn hear(&self, epoch: u64, command: Command) {
        let epoch = Epoch(epoch);
        let message = Box::new(FromLeader { epoch, command });
        self.tell(LinkEvent::Message(message)).await;
    }

    /// A JobManager is reached, and the TaskManager is introduced to it.
    async fn introduced(&self) -> Voice {
        let (ask, answer) = oneshot::channel();
        self.tell(LinkEvent::Register(ask)).await;
        let introduction = soon("the introduction", answer).await;
        let Introduction {
            registration,
            afterwards,
        } = introduction.expect("the driver answers");
        Voice {
            registration,
            afterwards,
        }
    }

    /// It has accepted.
    async fn accepted(&self, epoch: u64) {
        let (ask, answer) = oneshot::channel();
        self.tell(LinkEvent::Met(Epoch(epoch), ask)).await;
        let obeyed = soon("the answer", answer)
            .await
            .expect("the driver answers");
        assert_eq!(obeyed, Ok(()));
        let leader = Leader {
            // Nothing answers there: no module ever comes.
            address: SocketAddr::from(([127, 0, 0, 1], 9)),
            report_interval: Duration::from_millis(5),
        };
        self.tell(LinkEvent::Connected(leader)).await;
    }

    async fn linked(&self, epoch: u64) -> Voice {
        let voice = self.introduced().await;
        self.accepted(epoch).await;
        voice
    }

    async fn ends(self) {
        soon("the end", self.run).await.expect("no panic");
    }
}

impl Voice {
    async fn next(&mut self) -> ToLeader {
        soon("a message", self.afterwards.recv())
            .await
            .expect("the driver holds the other end")
    }

    /// Reads until something that is no report is said.
    async fn next_word(&mut self) -> ToLeader {
        loop {
            match self.next().await {
                ToLeader::Report(_) => {}
                word => return word,
            }
        }
    }
}

#[tokio::test]
async fn what_happens_while_a_leader_makes_up_its_mind_is_said_to_it() {
    let driver = start(Duration::ZERO);
    let _first = driver.linked(1).await;
    driver.hear(1, deployment()).await;
    driver.tell(LinkEvent::Lost).await;

    let mut voice = driver.introduced().await;
    assert_eq!(voice.registration.running.len(), 1);
    assert_eq!(voice.registration.running[0].state, TaskState::Deploying);
    let failed = TaskState::Failed(failure(Blame::Job, "between two leaders".to_owned()));
    let told = driver.tasks.send(TaskEvent::State {
        execution: EXECUTION,
        state: failed.clone(),
    });
    told.expect("the driver runs");
    assert_eq!(
        voice.next_word().await,
        ToLeader::TaskState {
            job: JOB,
            attempt: ATTEMPT,
            task: TASK,
            state: failed.clone(),
        }
    );
    // This one never answers. The next hears it with the registration.
    let voice = driver.introduced().await;
    assert_eq!(voice.registration.running[0].state, failed);
    driver.wanted.send_replace(Wanted::Stop);
    driver.ends().await;
}

#[tokio::test]
async fn a_channel_that_broke_without_a_leader_is_told_until_its_attempt_is_over() {
    let driver = start(Duration::ZERO);
    let _first = driver.linked(1).await;
    driver.hear(1, deployment()).await;
    driver.tell(LinkEvent::Lost).await;
    // The driver takes events as they come, from here and from there: what was said before is known when it answers.
    let _ = driver.introduced().await;
    driver.tell(LinkEvent::Lost).await;
    let broken = |attempt| TaskEvent::ChannelBroken {
        job: JOB,
        attempt,
        peer: TaskManagerId("other".to_owned()),
        reason: "silence".to_owned(),
    };
    let of_nobody = AttemptId::new(Epoch(1), 77);
    driver.tasks.send(broken(of_nobody)).expect("it runs");
    driver.tasks.send(broken(ATTEMPT)).expect("it runs");

    let mut voice = driver.linked(2).await;
    for _ in 0..3 {
        // A leader that does not know the other end yet forgets the first.
        let word = voice.next_word().await;
        assert!(
            matches!(&word, ToLeader::ChannelBroken { attempt, .. } if *attempt == ATTEMPT),
            "{word:?}"
        );
    }
    let all = Command::Cancel {
        job: JOB,
        attempt: ATTEMPT,
        tasks: Vec::new(),
    };
    driver.hear(2, all).await;
    let _ = driver.introduced().await;
    while let Ok(word) = voice.afterwards.try_recv() {
        drop(word);
    }
    let mut voice = driver.linked(3).await;
    for _ in 0..3 {
        let word = voice.next().await;
        assert!(matches!(word, ToLeader::Report(_)), "{word:?}");
    }
    driver.wanted.send_replace(Wanted::Stop);
    driver.ends().await;
}

#[tokio::test]
async fn it_leaves_when_the_leader_says_that_nothing_here_is_needed() {
    let driver = start(Duration::from_secs(3600));
    let mut voice = driver.linked(1).await;
    driver.hear(1, deployment()).await;
    // The word is for whoever asked.
    driver.hear(1, Command::Drained).await;
    assert!(!driver.introduced().await.registration.draining);
    let mut again = driver.linked(1).await;
    driver.wanted.send_replace(Wanted::Drain);
    assert_eq!(again.next_word().await, ToLeader::Draining);
    // The leader dies over it; the next one is told with the registration.
    driver.tell(LinkEvent::Lost).await;
    let registration = driver.linked(2).await.registration;
    assert!(registration.draining && registration.running.len() == 1);
    driver.hear(1, Command::Drained).await;
    let _ = driver.introduced().await;
    driver.hear(2, Command::Drained).await;
    driver.ends().await;
    while let Some(word) = voice.afterwards.recv().await {
        assert!(matches!(word, ToLeader::Report(_)), "{word:?}");
    }
}

#[tokio::test]
async fn it_waits_for_nobody_longer_than_its_timeout_or_a_second_word() {
    let impatient = start(Duration::from_millis(50));
    let _voice = impatient.linked(1).await;
    impatient.hear(1, deployment()).await;
    impatient.wanted.send_replace(Wanted::Drain);
    impatient.ends().await;

    let told_twice = start(Duration::from_secs(3600));
    let mut voice = told_twice.linked(1).await;
    told_twice.hear(1, deployment()).await;
    told_twice.wanted.send_replace(Wanted::Drain);
    assert_eq!(voice.next_word().await, ToLeader::Draining);
    told_twice.wanted.send_replace(Wanted::Stop);
    told_twice.ends().await;
}

#[tokio::test]
async fn with_nothing_here_and_no_leader_it_just_leaves() {
    let driver = start(Duration::from_secs(3600));
    driver.wanted.send_replace(Wanted::Drain);
    driver.ends().await;
}
