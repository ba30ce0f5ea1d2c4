//! The registry of one JobManager on one machine: a redb database in a directory that only one process can hold.
//!
//! The lock on the directory keeps other processes out, and a counter in the database gives the epochs. Every write is a
//! transaction that compares the epoch first and is on the disk when it is answered. It never waits on an async thread.

mod seats;

use std::fmt::Display;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use tidemill_protocol::codec;
use tidemill_protocol::record::{
    CheckpointPointers, JobManagerRecord, JobRecord, TaskManagerRecord,
};
use tidemill_protocol::{Epoch, JobId};
use tokio::sync::watch;

use self::seats::Seats;
pub(crate) use self::seats::{Permit, Seat};
use crate::decode::decode_job;
use crate::error::{Cause, LockError, check_lock_name};
use crate::leading::{LeadingHold, LockHold};
use crate::{
    Answer, Connection, DamagedJob, KnownLeader, LeadError, Leading, NamedLock, OpenError,
    ReadError, Registry, WriteError,
};

/// The leader's epoch, under [`EPOCH`].
const COUNTERS: TableDefinition<'static, &str, u64> = TableDefinition::new("counters");
/// Encoded [`JobRecord`]s by job.
const JOBS: TableDefinition<'static, &[u8; 16], &[u8]> = TableDefinition::new("jobs");
/// Encoded [`CheckpointPointers`] by job.
const POINTERS: TableDefinition<'static, &[u8; 16], &[u8]> = TableDefinition::new("checkpoints");

const EPOCH: &str = "leader_epoch";

/// The registry is small; redb's default would reserve a gigabyte for it.
const CACHE_BYTES: usize = 8 << 20;

/// The registry in a directory of this machine.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    seats: Arc<Seats>,
    /// Of what never changes here: it is always connected, and nobody announces himself.
    connection: watch::Sender<Connection>,
    task_managers: watch::Sender<Vec<TaskManagerRecord>>,
}

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    /// `None` after an I/O error, which redb does not outlive: the next use opens the file anew and finds what is true.
    database: Mutex<Option<Database>>,
    /// Held for as long as this value lives; also while the database is being reopened.
    _lock: File,
}

impl Embedded {
    /// Opens the registry in `directory`, and makes both where there is none. The directory is locked until the value
    /// is dropped.
    ///
    /// # Errors
    /// When another process has it, when it cannot be written to, or when it is damaged.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let unusable = |source: Cause| OpenError::Unusable {
            directory: directory.display().to_string(),
            source,
        };
        fs::create_dir_all(directory).map_err(|error| unusable(error.into()))?;
        let lock = lock(directory)?;
        let file = directory.join("registry.redb");
        let database = open_database(&file).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
                directory: directory.display().to_string(),
                holder: "another process".into(),
            },
            DatabaseError::Storage(redb::StorageError::Io(error)) if !tells_damage(&error) => {
                unusable(error.into())
            }
            error => OpenError::Damaged {
                file: file.display().to_string(),
                source: error.into(),
            },
        })?;
        sync_directories(directory).map_err(|error| unusable(error.into()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                file,
                database: Mutex::new(Some(database)),
                _lock: lock,
            }),
            seats: Arc::new(Seats::new()),
            connection: watch::Sender::new(Connection::Connected),
            task_managers: watch::Sender::new(Vec::new()),
        })
    }

    /// Runs a transaction off the async threads. A panic in it, which only a damaged file could cause, is an error too.
    async fn run<T: Send + 'static, E: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, E> + Send + 'static,
        lost: impl FnOnce(Cause) -> E,
    ) -> Result<T, E> {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || work(&shared)).await {
            Ok(result) => result,
            Err(error) => Err(lost(error.into())),
        }
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Answer<'_, T, ReadError> {
        let unavailable = |place: String, source| ReadError::Unavailable { place, source };
        let place = self.shared.place();
        Box::pin(self.run(
            move |shared| {
                shared
                    .with(|database| work(&database.begin_read()?))
                    .map_err(|error| unavailable(shared.place(), error.into()))
            },
            move |source| unavailable(place, source),
        ))
    }

    /// Runs a fenced write.
    fn write(
        &self,
        leading: &Leading,
        what: String,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), Refusal> + Send + 'static,
    ) -> Answer<'_, (), WriteError> {
        let ours = leading.epoch();
        let seat = match &leading.hold {
            LeadingHold::Embedded(seat) if seat.belongs_to(&self.seats) => Arc::clone(seat),
            // That proof is another registry's.
            _ => return Box::pin(async move { Err(WriteError::Fenced { ours, stored: None }) }),
        };
        let (place, lost_what) = (self.shared.place(), what.clone());
        Box::pin(self.run(
            move |shared| {
                shared
                    .with(|database| fenced(database, ours, &seat, change))
                    .map_err(|refusal| refusal.explain(shared.place(), what))
            },
            move |source| WriteError::Unknown {
                place,
                what: lost_what,
                source,
            },
        ))
    }
}

impl Registry for Embedded {
    fn lead(&self, candidate: &JobManagerRecord) -> Answer<'_, Leading, LeadError> {
        let unavailable = |place: String, source| LeadError::Unavailable { place, source };
        let place = self.shared.place();
        let candidate = self.seats.stand(candidate.clone());
        Box::pin(async move {
            let mut asked_at = Instant::now();
            let epoch = async {
                asked_at = Instant::now();
                let next = move |shared: &Shared| {
                    shared
                        .with(next_epoch)
                        .map_err(|error| unavailable(shared.place(), error.into()))
                };
                self.run(next, move |source| unavailable(place, source))
                    .await
            };
            let (epoch, seat) = candidate.elected(epoch).await?;
            let hold = LeadingHold::Embedded(Arc::new(seat));
            Ok(Leading::new(epoch, asked_at, hold))
        })
    }

    fn confirm(&self, leading: &Leading) -> Answer<'_, (), WriteError> {
        self.write(leading, "nothing, to prove who leads".into(), |_| Ok(()))
    }

    fn resign(&self, leading: &Leading) -> Answer<'_, (), WriteError> {
        let leading = leading.clone();
        Box::pin(async move {
            if let LeadingHold::Embedded(seat) = &leading.hold {
                let seat = Arc::clone(seat);
                let place = self.shared.place();
                let left = self.run(
                    move |shared| {
                        // Not between a write's comparison and its commit.
                        let _database = shared.lock();
                        seat.leave();
                        Ok(())
                    },
                    move |source| WriteError::Unknown {
                        place,
                        what: "the end of a leadership".into(),
                        source,
                    },
                );
                left.await?;
            }
            Ok(())
        })
    }

    /// The directory's lock goes with the process that has it: there is never anything left to depose.
    fn depose(&self, _leader: &KnownLeader) -> Answer<'_, (), WriteError> {
        Box::pin(async { Ok(()) })
    }

    fn jobs(&self) -> Answer<'_, Vec<Result<JobRecord, DamagedJob>>, ReadError> {
        self.read(|transaction| {
            let table = transaction.open_table(JOBS)?;
            let mut jobs = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                jobs.push(decode_job(JobId(*key.value()), value.value()));
            }
            Ok(jobs)
        })
    }

    fn put_job(&self, leading: &Leading, job: &JobRecord) -> Answer<'_, (), WriteError> {
        let id = job.id;
        let record = codec::encode(job);
        self.write(leading, format!("job {id}"), move |transaction| {
            let mut table = transaction.open_table(JOBS)?;
            table.insert(&id.0, record.as_slice())?;
            Ok(())
        })
    }

    fn remove_job(&self, leading: &Leading, job: JobId) -> Answer<'_, (), WriteError> {
        self.write(
            leading,
            format!("the end of job {job}"),
            move |transaction| {
                transaction.open_table(JOBS)?.remove(&job.0)?;
                transaction.open_table(POINTERS)?.remove(&job.0)?;
                Ok(())
            },
        )
    }

    fn pointers(&self, job: JobId) -> Answer<'_, CheckpointPointers, ReadError> {
        let stored = self.read(move |transaction| {
            let table = transaction.open_table(POINTERS)?;
            let value = table.get(&job.0)?;
            Ok(value.map(|value| value.value().to_vec()))
        });
        Box::pin(async move {
            let Some(bytes) = stored.await? else {
                return Ok(CheckpointPointers::default());
            };
            codec::decode(&bytes).map_err(|source| ReadError::DamagedPointers { job, source })
        })
    }

    fn put_pointers(
        &self,
        leading: &Leading,
        job: JobId,
        pointers: &CheckpointPointers,
    ) -> Answer<'_, (), WriteError> {
        let record = codec::encode(pointers);
        let what = format!("the checkpoint pointers of job {job}");
        self.write(leading, what, move |transaction| {
            if transaction.open_table(JOBS)?.get(&job.0)?.is_none() {
                return Err(Refusal::UnknownJob(job));
            }
            let mut table = transaction.open_table(POINTERS)?;
            table.insert(&job.0, record.as_slice())?;
            Ok(())
        })
    }

    fn lock(&self, name: &str) -> Answer<'_, NamedLock, LockError> {
        let name = name.to_owned();
        Box::pin(async move {
            check_lock_name(&name)?;
            let permit = self.seats.lock(&name).await;
            Ok(NamedLock::new(name, LockHold::Embedded(permit)))
        })
    }

    fn leader(&self) -> watch::Receiver<Option<KnownLeader>> {
        self.seats.leader()
    }

    fn job_managers(&self) -> watch::Receiver<Vec<JobManagerRecord>> {
        self.seats.candidates()
    }

    fn task_managers(&self) -> watch::Receiver<Vec<TaskManagerRecord>> {
        self.task_managers.subscribe()
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    fn session_timeout(&self) -> Option<Duration> {
        None
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        // What is dropped is gone at once.
        Box::pin(std::future::ready(()))
    }
}

impl Shared {
    fn place(&self) -> String {
        self.file.display().to_string()
    }

    /// Uses the database, opened anew after an error.
    fn with<T, E: From<redb::Error> + Spoils>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut slot = self.lock();
        let database = match slot.take() {
            Some(database) => database,
            None => open_database(&self.file).map_err(redb::Error::from)?,
        };
        // Out of the slot while it is used: a panic leaves the slot empty.
        let result = work(&database);
        if !matches!(&result, Err(error) if error.spoils()) {
            *slot = Some(database);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Option<Database>> {
        self.database.lock().unwrap_or_else(|poisoned| {
            self.database.clear_poison();
            poisoned.into_inner()
        })
    }
}

/// Whether the database must be opened anew after an error.
trait Spoils {
    fn spoils(&self) -> bool;
}

impl Spoils for redb::Error {
    fn spoils(&self) -> bool {
        true
    }
}

impl Spoils for Refusal {
    fn spoils(&self) -> bool {
        matches!(self, Self::Before(_) | Self::During(_))
    }
}

/// Why a write was not done, or not for certain.
enum Refusal {
    Fenced {
        ours: Epoch,
        stored: Option<Epoch>,
    },
    UnknownJob(JobId),
    /// An error before the commit: nothing was written.
    Before(redb::Error),
    /// An error of the commit itself: it may be on the disk.
    During(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Before(error.into())
    }
}

impl Refusal {
    fn explain(self, place: String, what: String) -> WriteError {
        match self {
            Self::Fenced { ours, stored } => WriteError::Fenced { ours, stored },
            Self::UnknownJob(job) => WriteError::UnknownJob { job },
            Self::Before(error) => WriteError::Failed {
                place,
                what,
                source: error.into(),
            },
            Self::During(error) => WriteError::Unknown {
                place,
                what,
                source: error.into(),
            },
        }
    }
}

fn fenced(
    database: &Database,
    ours: Epoch,
    seat: &Seat,
    change: impl FnOnce(&redb::WriteTransaction) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    if seat.is_over() {
        let stored = seat.successor(ours);
        return Err(Refusal::Fenced { ours, stored });
    }
    // redb's commits are durable unless they are asked not to be.
    let transaction = database.begin_write()?;
    let stored = stored_epoch(&transaction)?;
    // A greater epoch than the stored one was never given out here: that proof is another registry's.
    if stored != ours {
        let stored = Some(stored);
        return Err(Refusal::Fenced { ours, stored });
    }
    change(&transaction)?;
    transaction
        .commit()
        .map_err(|error| Refusal::During(error.into()))
}

fn next_epoch(database: &Database) -> Result<Epoch, redb::Error> {
    let transaction = database.begin_write()?;
    let epoch = Epoch(stored_epoch(&transaction)?.0 + 1);
    transaction.open_table(COUNTERS)?.insert(EPOCH, epoch.0)?;
    transaction.commit()?;
    Ok(epoch)
}

fn stored_epoch(transaction: &redb::WriteTransaction) -> Result<Epoch, redb::Error> {
    let table = transaction.open_table(COUNTERS)?;
    let epoch = table.get(EPOCH)?;
    Ok(Epoch(epoch.map_or(0, |epoch| epoch.value())))
}

/// Takes the lock on the directory and leaves this process's id there for whoever else wants it.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let shown = directory.display();
    let unusable = |source: std::io::Error| OpenError::Unusable {
        directory: shown.to_string(),
        source: source.into(),
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join("lock"))
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use(&shown, &mut file)),
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", process::id()))
        .map_err(unusable)?;
    Ok(file)
}

fn in_use(directory: &impl Display, lock: &mut File) -> OpenError {
    let mut text = String::new();
    // The holder may be just about to write it; the error is as good without.
    let read = lock.take(32).read_to_string(&mut text);
    let holder = match text.trim().parse::<u32>() {
        Ok(id) if read.is_ok() => format!("the process {id}"),
        _ => "another process".into(),
    };
    OpenError::InUse {
        directory: directory.to_string(),
        holder,
    }
}

/// Whether an error of the system's is about the file's content: it is no database, or cut short.
fn tells_damage(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof
    )
}

/// Opens the database and makes its tables, so that readers find them. Every page is verified: a file that was changed
/// from outside is refused instead of believed.
fn open_database(file: &Path) -> Result<Database, DatabaseError> {
    let database = redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create(file)?;
    make_tables(&database).map_err(|error| match error {
        redb::Error::Io(error) => DatabaseError::Storage(redb::StorageError::Io(error)),
        error => DatabaseError::Storage(redb::StorageError::Corrupted(error.to_string())),
    })?;
    Ok(database)
}

fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(COUNTERS)?;
    transaction.open_table(JOBS)?;
    transaction.open_table(POINTERS)?;
    transaction.commit()?;
    Ok(())
}

/// Makes the files' names durable: a database synced under a name that a crash takes back is lost.
fn sync_directories(directory: &Path) -> std::io::Result<()> {
    let directory = directory.canonicalize()?;
    File::open(&directory)?.sync_all()?;
    // The directory above may belong to somebody else, and then it was not this process that changed it.
    match directory.parent().map(File::open) {
        Some(Ok(parent)) => parent.sync_all(),
        Some(Err(_)) | None => Ok(()),
    }
}
