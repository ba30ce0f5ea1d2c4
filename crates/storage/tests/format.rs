//! The stored objects' bytes, written down: a change here is a change of the format, which needs a new version number
//! and a reader for the old one.

mod common;

use common::{ATTEMPT, CHECKPOINT, JOB, TASK, hex, object, segment, unhex};
use tidemill_protocol::codec::{decode, encode};
use tidemill_protocol::image::GlobalValue;
use tidemill_protocol::manifest::{
    BlockRef, CheckpointMetadata, Manifest, ObjectRef, TaskImageRef,
};
use tidemill_protocol::{CheckpointId, Epoch, Image, ModuleHash};
use tidemill_storage::Store;

const MANIFEST: &str = "\
    4d4602000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a010403110080800c01077365676d656e748c02ce7bb8ff35\
    07e3a1818cf70c78fb75a8cc7d3fd2cb3a29eb9da6cb3aa1cbce7e01101000008c02e2de8f1a050003010602\
    808080fe070301048080808080808080808080808080808080800201020001ac0204686f737400";

const METADATA: &str = "\
    434d01000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a03114d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d\
    4d4d4d4d4d4d4d4d4d4def9bafcdf8acd191010101040205086d616e6966657374d9024d4d4d4d4d4d4d4d4d\
    4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d01";

fn manifest() -> Manifest {
    let segment = segment();
    Manifest {
        job: JOB,
        task: TASK,
        checkpoint: CHECKPOINT,
        base: None,
        memory_bytes: 3 * 65_536,
        segments: vec![object("segment", &segment)],
        blocks: vec![BlockRef {
            first_page: 16,
            pages: 16,
            segment: 0,
            offset: 0,
            len: segment.len() as u32,
            checksum: crc32fast::hash(&[b't'; 65_536]),
        }],
        globals: vec![
            GlobalValue::I32(-2),
            GlobalValue::I64(3),
            GlobalValue::F32(0x7fc0_0000),
            GlobalValue::F64(1),
            GlobalValue::V128(1 << 127),
        ],
        tables: vec![vec![None, Some(300)]],
        host_state: b"host".to_vec(),
        channel_state: vec![],
    }
}

fn metadata() -> CheckpointMetadata {
    CheckpointMetadata {
        job: JOB,
        checkpoint: CheckpointId::new(Epoch(3), 17),
        module: ModuleHash([0x4d; 32]),
        job_graph_hash: 0x0123_4567_89ab_cdef,
        tasks: vec![TaskImageRef {
            task: TASK,
            attempt: ATTEMPT,
            manifest: ObjectRef {
                key: "manifest".into(),
                len: 345,
                hash: [0x4d; 32],
            },
            finished: true,
        }],
    }
}

#[test]
fn a_manifest_has_these_bytes() {
    assert_eq!(hex(&encode(&manifest())), MANIFEST);
    assert_eq!(decode::<Manifest>(&unhex(MANIFEST)), Ok(manifest()));
}

#[test]
fn checkpoint_metadata_has_these_bytes() {
    assert_eq!(hex(&encode(&metadata())), METADATA);
    assert_eq!(
        decode::<CheckpointMetadata>(&unhex(METADATA)),
        Ok(metadata())
    );
}

#[tokio::test]
async fn an_image_that_an_older_build_wrote_can_be_read() {
    let store = Store::open("memory://").unwrap();
    store.put_object("segment", segment()).await.unwrap();
    let written = store.put_object("manifest", unhex(MANIFEST)).await.unwrap();
    let (image, _) = store.read_image(JOB, TASK, &written).await.unwrap();
    let mut memory = vec![0; 3 * 65_536];
    memory[65_536..2 * 65_536].fill(b't');
    let expected = Image {
        memory,
        globals: manifest().globals,
        tables: manifest().tables,
        host_state: b"host".to_vec(),
        channel_state: vec![],
    };
    assert!(image == expected);
}
