//! What a JobManager does about its own role: a function per action of
//! [`Leadership`](tidemill_core::leadership::Leadership). What comes of an action comes back to the driver as a
//! [`Fact`]. Nothing is decided here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_config::{Config, Coordination};
use tidemill_coordination::{LeadError, Leading, Registry, WriteError};
use tidemill_core::leader::LoadedJob;
use tidemill_core::leadership::StepDownReason;
use tidemill_protocol::Epoch;
use tidemill_protocol::record::JobManagerRecord;
use tidemill_runtime::Engine;
use tidemill_storage::Store;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::answers::Clock;
use crate::error_chain;
use crate::perform::Connections;
use crate::reign::Reign;
use crate::take_over::{self, LoadError, Loaded};
use crate::views::TakeOverView;

/// How long a resignation may take to be confirmed. After that the lock goes with the session.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a process has in every role.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) store: Store,
    pub(crate) engine: Engine,
    pub(crate) clock: Clock,
    /// What it stands for election with.
    pub(crate) record: JobManagerRecord,
}

/// How long a process that stops waits for its candidature to be gone.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// What came of an action.
pub(crate) enum Fact {
    Elected(Leading),
    NotElected(LeadError),
    Loaded { epoch: Epoch, loaded: Loaded },
    NotLoaded { epoch: Epoch, error: LoadError },
    Confirmed { epoch: Epoch, sent_at: Instant },
    NotConfirmed { epoch: Epoch, reason: String },
    Fenced { epoch: Epoch },
    Lost { epoch: Epoch },
    Resigned { epoch: Epoch },
    NotResigned { epoch: Epoch, reason: String },
}

/// Carries out what the leadership decided.
pub(crate) struct Roles {
    process: Process,
    facts: mpsc::UnboundedSender<Fact>,
    /// The candidature; dropping it withdraws.
    candidature: JoinSet<()>,
    held: Option<Held>,
    loaded: Option<Loaded>,
    /// Of a reign that is over, until its resignation is known: TaskManagers look for the next leader when there is one.
    closing: Option<Connections>,
    confirmed_at: Option<Instant>,
    take_over: Option<TakeOverView>,
}

/// A leadership that this process holds or gives up.
struct Held {
    leading: Leading,
    elected_at: Instant,
    /// Its confirmations and its loss; ended with it.
    watching: JoinSet<()>,
    /// Its take-over; ended by stepping down.
    loading: JoinSet<()>,
}

impl Roles {
    pub(crate) fn new(process: Process, facts: mpsc::UnboundedSender<Fact>) -> Self {
        Self {
            process,
            facts,
            candidature: JoinSet::new(),
            held: None,
            loaded: None,
            closing: None,
            confirmed_at: None,
            take_over: None,
        }
    }

    /// When the last confirmation that succeeded was sent.
    pub(crate) fn confirmed_at(&self) -> Option<Instant> {
        self.held.as_ref().and(self.confirmed_at)
    }

    /// How long the last take-over took.
    pub(crate) fn take_over_times(&self) -> Option<TakeOverView> {
        self.take_over
    }

    pub(crate) fn stand(&mut self) {
        self.let_go();
        let (registry, record) = (
            Arc::clone(&self.process.registry),
            self.process.record.clone(),
        );
        let facts = self.facts.clone();
        debug!(id = %record.id, "standing for election");
        self.candidature = JoinSet::new();
        self.candidature.spawn(async move {
            let elected = registry.lead(&record).await;
            let fact = elected.map_or_else(Fact::NotElected, Fact::Elected);
            // A driver that is gone does not lead; what it does not hear of is given up by being dropped.
            let _ = facts.send(fact);
        });
    }

    /// Withdraws from the election for good, and waits until nobody waits for this process any more. A registry that
    /// does not answer finds out for itself.
    pub(crate) async fn leave(&mut self) {
        self.candidature.shutdown().await;
        self.let_go();
        if tokio::time::timeout(LEAVE_LIMIT, self.process.registry.settled())
            .await
            .is_err()
        {
            warn!(
                "the registry does not answer: others wait for this process until its session is over"
            );
        }
    }

    /// This process was elected: its leadership is watched from now on.
    pub(crate) fn hold(&mut self, leading: Leading) {
        let mut watching = JoinSet::new();
        let (watched, facts) = (leading.clone(), self.facts.clone());
        watching.spawn(async move {
            watched.lost().await;
            let epoch = watched.epoch();
            let _ = facts.send(Fact::Lost { epoch });
        });
        self.confirmed_at = Some(leading.confirmed_at());
        self.held = Some(Held {
            elected_at: Instant::now(),
            leading,
            watching,
            loading: JoinSet::new(),
        });
    }

    pub(crate) fn take_over(&mut self, epoch: Epoch) {
        info!(%epoch, id = %self.process.record.id, "elected: taking over");
        let Some(held) = &mut self.held else { return };
        let (process, facts) = (self.process.clone(), self.facts.clone());
        // The only JobManager there is says what it cannot read instead of waiting for it when it starts.
        let patient = process.config.cluster.coordination != Coordination::Embedded;
        held.loading.spawn(async move {
            let fact = match take_over::load(&process.registry, &process.store, patient).await {
                Ok(loaded) => Fact::Loaded { epoch, loaded },
                Err(error) => Fact::NotLoaded { epoch, error },
            };
            let _ = facts.send(fact);
        });
    }

    /// What the registry holds is known.
    pub(crate) fn keep(&mut self, loaded: Loaded) {
        self.loaded = Some(loaded);
    }

    /// Begins to lead with what was loaded.
    pub(crate) fn lead(&mut self, epoch: Epoch) -> Option<Reign> {
        let (held, loaded) = (self.held.as_ref()?, self.loaded.take()?);
        let jobs: Vec<LoadedJob> = loaded.jobs;
        let (elected_at, confirmed_at) = (held.elected_at, held.leading.confirmed_at());
        let times = TakeOverView {
            total_us: micros(confirmed_at.elapsed()),
            elected_us: micros(elected_at.saturating_duration_since(confirmed_at)),
            list_us: micros(loaded.list),
            load_us: micros(loaded.load),
        };
        self.take_over = Some(times);
        let TakeOverView {
            total_us,
            list_us,
            load_us,
            ..
        } = times;
        info!(
            %epoch,
            id = %self.process.record.id,
            jobs = jobs.len(),
            total_us,
            list_us,
            load_us,
            "leading"
        );
        let facts = self.facts.clone();
        Some(Reign::begin(
            &self.process,
            held.leading.clone(),
            jobs,
            facts,
        ))
    }

    pub(crate) fn confirm(&mut self, epoch: Epoch) {
        let Some(held) = &mut self.held else { return };
        while held.watching.try_join_next().is_some() {}
        let (registry, leading) = (Arc::clone(&self.process.registry), held.leading.clone());
        let facts = self.facts.clone();
        // An answer that comes later than this could not save the leadership.
        let patience = registry.session_timeout().unwrap_or(RESIGN_TIMEOUT) / 3;
        held.watching.spawn(async move {
            let sent_at = Instant::now();
            let answer = tokio::time::timeout(patience, registry.confirm(&leading)).await;
            let fact = match answer {
                Ok(Ok(())) => Fact::Confirmed { epoch, sent_at },
                Ok(Err(WriteError::Fenced { .. })) => Fact::Fenced { epoch },
                Ok(Err(error)) => Fact::NotConfirmed {
                    epoch,
                    reason: error_chain(&error),
                },
                Err(_) => Fact::NotConfirmed {
                    epoch,
                    reason: format!("no answer in {patience:?}"),
                },
            };
            let _ = facts.send(fact);
        });
    }

    /// A confirmation succeeded.
    pub(crate) fn confirmed(&mut self, sent_at: Instant) {
        self.confirmed_at = self.confirmed_at.max(Some(sent_at));
    }

    pub(crate) fn step_down(
        &mut self,
        epoch: Epoch,
        reason: &StepDownReason,
        reign: Option<Reign>,
    ) {
        match reason {
            StepDownReason::Stopping => info!(%epoch, "stepping down: {reason}"),
            _ => warn!(%epoch, "stepping down: {reason}"),
        }
        self.loaded = None;
        if let Some(held) = &mut self.held {
            held.loading.abort_all();
        }
        let connections = reign.map(Reign::end);
        let has_successor = matches!(reason, StepDownReason::Lost | StepDownReason::Fenced);
        // Otherwise they are closed when there can be one.
        self.closing = connections.filter(|_| !has_successor);
    }

    pub(crate) fn resign(&mut self, epoch: Epoch) {
        let Some(held) = &mut self.held else { return };
        let (registry, leading) = (Arc::clone(&self.process.registry), held.leading.clone());
        let facts = self.facts.clone();
        held.watching.spawn(async move {
            let answer = tokio::time::timeout(RESIGN_TIMEOUT, registry.resign(&leading)).await;
            let fact = match answer {
                // Whoever has been replaced has nothing left to give up.
                Ok(Ok(()) | Err(WriteError::Fenced { .. })) => Fact::Resigned { epoch },
                Ok(Err(error)) => Fact::NotResigned {
                    epoch,
                    reason: error_chain(&error),
                },
                Err(_) => Fact::NotResigned {
                    epoch,
                    reason: format!("no answer in {RESIGN_TIMEOUT:?}"),
                },
            };
            let _ = facts.send(fact);
        });
    }

    /// A resignation is known to have succeeded or not: whoever is still connected is let go.
    pub(crate) fn close_connections(&mut self) {
        self.closing = None;
    }

    /// Nothing is held any more.
    fn let_go(&mut self) {
        self.held = None;
        self.loaded = None;
        self.closing = None;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
