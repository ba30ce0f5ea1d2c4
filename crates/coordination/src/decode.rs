//! What stored bytes mean. It never trusts that a record is under its own name.

use tidemill_protocol::JobId;
use tidemill_protocol::codec::{self, DecodeError, Versioned};
use tidemill_protocol::record::JobRecord;

use crate::DamagedJob;

/// The record that is stored under a job's id.
pub(crate) fn decode_job(job: JobId, bytes: &[u8]) -> Result<JobRecord, DamagedJob> {
    let damaged = |source| DamagedJob { job, source };
    let record: JobRecord = codec::decode(bytes).map_err(damaged)?;
    if record.id == job {
        Ok(record)
    } else {
        Err(damaged(DecodeError::Body {
            name: JobRecord::NAME,
            reason: "it is another job's",
        }))
    }
}
