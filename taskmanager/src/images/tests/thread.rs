//! How long a task waits for the thread that keeps images.

use std::sync::Arc;
use std::sync::mpsc::channel;

use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{AttemptId, Epoch};

use super::{JOB, TASK};
use crate::images::Images;
use crate::task::Execution;

#[tokio::test]
async fn who_has_its_memory_waits_for_it_less_than_who_has_not() {
    // Nobody answers, as if the thread were writing something large.
    let (commands, _unanswered) = channel();
    let images = Images {
        commands: Some(commands),
        shown: Arc::default(),
    };
    let execution = Execution {
        job: JOB,
        task: TASK,
        attempt: AttemptId::new(Epoch(1), 1),
    };
    let manifest = ObjectRef {
        key: "manifest".to_owned(),
        len: 1,
        hash: [0; 32],
    };
    let survivor = images.claim(execution, &manifest, false);
    let lost = images.claim(execution, &manifest, true);
    tokio::select! {
        // Looked at first, so that both being late does not matter.
        biased;
        file = survivor => assert!(file.is_none(), "nobody has answered"),
        _ = lost => panic!("it waits longer"),
    }
}
