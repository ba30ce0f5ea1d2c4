//! What users are told of recoveries: how long each step took, and where images came from. Nothing here is ever read to
//! decide anything.

use serde::{Deserialize, Serialize};
use tidemill_protocol::control::{DeployTimings, ImageSource};
use utoipa::ToSchema;

/// Where the image of a task came from, the dearest last.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSourceName {
    /// Nowhere: the task began anew.
    #[default]
    None,
    /// Its own memory, in which what had changed was put back.
    Memory,
    /// An image file on the TaskManager.
    Local,
    /// Another TaskManager.
    Peer,
    /// The object store.
    Store,
}

impl ImageSourceName {
    /// As JSON and metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Memory => "memory",
            Self::Local => "local",
            Self::Peer => "peer",
            Self::Store => "store",
        }
    }
}

impl From<ImageSource> for ImageSourceName {
    fn from(source: ImageSource) -> Self {
        match source {
            ImageSource::None => Self::None,
            ImageSource::Memory => Self::Memory,
            ImageSource::Local => Self::Local,
            ImageSource::Peer => Self::Peer,
            ImageSource::Store => Self::Store,
        }
    }
}

/// How long the steps of a deployment took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimingsView {
    /// Getting and compiling the module.
    pub module_us: u64,
    /// Reading the image, as far as it had to be read before the task could run.
    pub fetch_us: u64,
    /// Making the instance and laying the image over it.
    pub restore_us: u64,
    /// Where the image came from; of several, the dearest.
    pub source: ImageSourceName,
    /// Bytes of memory that had to be written before the task could run.
    pub restored_bytes: u64,
}

impl From<DeployTimings> for TimingsView {
    fn from(timings: DeployTimings) -> Self {
        let DeployTimings {
            module_us,
            fetch_us,
            restore_us,
            source,
            restored_bytes,
        } = timings;
        Self {
            module_us,
            fetch_us,
            restore_us,
            source: source.into(),
            restored_bytes,
        }
    }
}

/// What was restored from one kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoredView {
    /// From where.
    pub source: ImageSourceName,
    /// So many tasks.
    pub tasks: u64,
    /// Bytes of memory that were written before they could run.
    pub bytes: u64,
}

/// One recovery: from a failure until every task ran again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveryView {
    /// The attempt it made, `epoch.counter`.
    pub attempt: Option<String>,
    /// What failed.
    pub cause: String,
    /// When the JobManager learned of it.
    pub detected_at_ms: u64,
    /// How long the lost TaskManager had been silent by then: no later than this after its end it was found lost. None
    /// when nobody was lost.
    pub detected_within_us: Option<u64>,
    /// From detection until the plan was made, the restart strategy's delay and the wait for slots included.
    pub planned_after_us: Option<u64>,
    /// Of that, the restart strategy's delay.
    pub delay_us: u64,
    /// From the plan until every task ran, without the longest of the tasks' own steps: commands, channels, answers.
    pub resume_us: Option<u64>,
    /// From detection until every task of the region ran.
    pub running_after_us: Option<u64>,
    /// The checkpoint it went back to, `epoch.counter`; none means the beginning.
    pub checkpoint: Option<String>,
    /// Tasks whose TaskManager was lost.
    pub tasks_lost: u32,
    /// Tasks that were started again, the lost ones included.
    pub tasks_restarted: u32,
    /// The longest of the restarted tasks' steps.
    pub timings_max: TimingsView,
    /// Where the tasks' images came from.
    pub restored: Vec<RestoredView>,
}
