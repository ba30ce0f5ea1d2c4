//! The stored records' bytes, written down: a change here is a change of the format, which needs a new version number
//! and a reader for the old one.

mod common;

use common::{job, job_manager, pointers, task_manager};
use tidemill_protocol::codec::{DecodeError, decode, encode};
use tidemill_protocol::record::{
    CheckpointPointers, JobManagerRecord, JobRecord, TaskManagerRecord,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_job_record_has_these_bytes() {
    let bytes = encode(&job(1));
    assert_eq!(hex(&bytes), JOB_RECORD);
    assert_eq!(decode::<JobRecord>(&bytes), Ok(job(1)));
}

#[test]
fn checkpoint_pointers_have_these_bytes() {
    let bytes = encode(&pointers(17));
    assert_eq!(hex(&bytes), CHECKPOINT_POINTERS);
    assert_eq!(decode::<CheckpointPointers>(&bytes), Ok(pointers(17)));
}

#[test]
fn a_job_manager_record_has_these_bytes() {
    let bytes = encode(&job_manager(1));
    assert_eq!(hex(&bytes), JOB_MANAGER_RECORD);
    assert_eq!(decode::<JobManagerRecord>(&bytes), Ok(job_manager(1)));
}

#[test]
fn a_task_manager_record_has_these_bytes() {
    let bytes = encode(&task_manager(1));
    assert_eq!(hex(&bytes), TASK_MANAGER_RECORD);
    assert_eq!(decode::<TaskManagerRecord>(&bytes), Ok(task_manager(1)));
}

#[test]
fn a_record_of_a_newer_release_is_refused_by_name() {
    let mut bytes = encode(&pointers(1));
    bytes[2] = 2;
    let error = decode::<CheckpointPointers>(&bytes).unwrap_err();
    assert!(matches!(error, DecodeError::Version { found: 2, .. }));
    assert!(error.to_string().contains("use the release that wrote it"));
}

const JOB_RECORD: &str = "\
    4a520200010101010101010101010101010101010c776f72642d636f756e742d314d4d4d4d4d4d4d4d4d4d4d4d4d4d4d\
    4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d2b6a6f62732f30313031303130313031303130313031303130313031303130\
    313031303130312f6772617068d9024747474747474747474747474747474747474747474747474747474747474747ef\
    9bafcdf8acd191010105696e7075740b2f646174612f2a2e747874048001e807c0cf240302000000010a6480d8c1a28c\
    3400010000";

const CHECKPOINT_POINTERS: &str = "\
    4350010002021019636865636b706f696e74732f782f31362f6d657461646174616350505050505050505050\
    50505050505050505050505050505050505050505050021119636865636b706f696e74732f782f31372f6d65\
    746164617461635050505050505050505050505050505050505050505050505050505050505050";

const JOB_MANAGER_RECORD: &str = "\
    4a4d0100046a6d2d31819aafcdf8acd191010d31302e302e302e313a3734323214687474703a2f2f31302e30\
    2e302e313a37343231";

const TASK_MANAGER_RECORD: &str =
    "544d010004746d2d31818695bb98f5f2f60f0d31302e302e312e313a3734333204";
