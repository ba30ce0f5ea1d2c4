//! Election and named locks inside the one process that has the embedded registry: whoever came first leads, the others
//! wait. It never touches the disk: the epoch there is the fence.

use std::collections::BTreeMap;
use std::future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tidemill_protocol::Epoch;
use tidemill_protocol::record::JobManagerRecord;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::KnownLeader;

/// Who leads, who waits for it, and which locks are taken.
#[derive(Debug)]
pub(super) struct Seats {
    /// One permit: the leader's. First come, first served.
    leadership: Arc<Semaphore>,
    leader: watch::Sender<Option<KnownLeader>>,
    candidates: Mutex<BTreeMap<u64, JobManagerRecord>>,
    next_candidate: AtomicU64,
    shown_candidates: watch::Sender<Vec<JobManagerRecord>>,
    locks: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

impl Seats {
    pub(super) fn new() -> Self {
        Self {
            leadership: Arc::new(Semaphore::new(1)),
            leader: watch::Sender::new(None),
            candidates: Mutex::default(),
            next_candidate: AtomicU64::new(0),
            shown_candidates: watch::Sender::new(Vec::new()),
            locks: Mutex::default(),
        }
    }

    /// Stands for election until the value is dropped.
    pub(super) fn stand(self: &Arc<Self>, record: JobManagerRecord) -> Candidate {
        let number = self.next_candidate.fetch_add(1, Ordering::Relaxed);
        self.change_candidates(|candidates| {
            candidates.insert(number, record.clone());
        });
        Candidate {
            seats: Arc::clone(self),
            number,
            record,
        }
    }

    fn change_candidates(&self, change: impl FnOnce(&mut BTreeMap<u64, JobManagerRecord>)) {
        let mut candidates = locked(&self.candidates);
        change(&mut candidates);
        let shown = candidates.values().cloned().collect();
        self.shown_candidates.send_replace(shown);
    }

    pub(super) fn leader(&self) -> watch::Receiver<Option<KnownLeader>> {
        self.leader.subscribe()
    }

    pub(super) fn candidates(&self) -> watch::Receiver<Vec<JobManagerRecord>> {
        self.shown_candidates.subscribe()
    }

    /// Takes the lock with this name.
    pub(super) async fn lock(&self, name: &str) -> Permit {
        let lock = {
            let mut locks = locked(&self.locks);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(Semaphore::new(1));
                locks.insert(name.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        let permit = lock.acquire_owned().await;
        Permit {
            _permit: permit.expect("nothing closes the semaphore of a lock"),
        }
    }
}

/// Somebody who stands for election, or leads.
#[derive(Debug)]
pub(super) struct Candidate {
    seats: Arc<Seats>,
    number: u64,
    record: JobManagerRecord,
}

impl Candidate {
    /// Waits for this candidate's turn, and gets its epoch only then.
    pub(super) async fn elected<E>(
        self,
        epoch: impl Future<Output = Result<Epoch, E>>,
    ) -> Result<(Epoch, Seat), E> {
        let permit = Arc::clone(&self.seats.leadership).acquire_owned().await;
        let permit = permit.expect("nothing closes the semaphore of the leadership");
        let epoch = epoch.await?;
        self.seats.leader.send_replace(Some(KnownLeader {
            epoch,
            record: self.record.clone(),
        }));
        let seat = Seat {
            seats: Arc::clone(&self.seats),
            over: watch::Sender::new(false),
            held: Mutex::new(Some((self, permit))),
        };
        Ok((epoch, seat))
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.seats.change_candidates(|candidates| {
            candidates.remove(&self.number);
        });
    }
}

/// The leader's seat, until it is resigned or dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    over: watch::Sender<bool>,
    held: Mutex<Option<(Candidate, OwnedSemaphorePermit)>>,
}

impl Seat {
    /// Whether it is the seat of these.
    pub(super) fn belongs_to(&self, seats: &Arc<Seats>) -> bool {
        Arc::ptr_eq(&self.seats, seats)
    }

    /// Leaves the seat to the next candidate.
    pub(super) fn leave(&self) {
        let held = locked(&self.held).take();
        if let Some((candidate, permit)) = held {
            self.over.send_replace(true);
            self.seats.leader.send_replace(None);
            drop(candidate);
            drop(permit);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    pub(crate) fn over(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// The epoch of whoever leads after this seat's.
    pub(super) fn successor(&self, ours: Epoch) -> Option<Epoch> {
        let leader = self.seats.leader.borrow();
        let epoch = leader.as_ref().map(|leader| leader.epoch);
        epoch.filter(|epoch| *epoch > ours)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A named lock that is held.
#[derive(Debug)]
pub(crate) struct Permit {
    _permit: OwnedSemaphorePermit,
}

impl Permit {
    /// Nobody can take it away.
    pub(crate) async fn lost(&self) {
        future::pending().await
    }
}

/// What a panic left behind is as good as ever: each change is one step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
