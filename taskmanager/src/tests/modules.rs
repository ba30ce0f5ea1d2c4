//! Modules across leaders.

use std::sync::Arc;

use bytes::Bytes;
use tidemill_protocol::ModuleHash;
use tidemill_runtime::{Engine, EngineOptions};
use tidemill_transport::{BlobServed, Credentials, Endpoint, TransportOptions};
use tokio::sync::watch;

use super::leader::{TestLeader, soon};
use crate::modules::{ModuleUnavailable, Modules};

#[tokio::test]
async fn a_module_whose_leader_dies_while_it_is_fetched_comes_from_the_next_one() {
    let credentials = Credentials::ephemeral().expect("certificates");
    let (first, second) = (
        TestLeader::start(&credentials),
        TestLeader::start(&credentials),
    );
    let local = "127.0.0.1:0".parse().expect("an address");
    let endpoint = Endpoint::bind(local, &credentials, TransportOptions::default());
    let directory = tempfile::tempdir().expect("a directory");
    let (leader, known) = watch::channel(None);
    let modules = Arc::new(Modules::new(
        Engine::new(EngineOptions::default()).expect("an engine"),
        endpoint.expect("a free port"),
        directory.path().to_owned(),
        1 << 20,
        known,
    ));
    // Good enough to be fetched: that it is no module is found afterwards.
    let bytes = Bytes::from_static(b"not a module at all");
    let hash = ModuleHash(*blake3::hash(&bytes).as_bytes());
    let asking = tokio::spawn({
        let modules = Arc::clone(&modules);
        async move { modules.get(hash).await.map(drop) }
    });
    // There is no leader when the task is deployed; then there is one, which dies without an answer.
    leader.send_replace(Some(first.address()));
    let unanswered = first.asked_for_a_module().await;
    first.die();
    drop(unanswered);
    leader.send_replace(None);
    leader.send_replace(Some(second.address()));
    let request = second.asked_for_a_module().await;
    let served = soon("the answer", request.serve(|_| Some(bytes))).await;
    assert_eq!(served, BlobServed::Sent { hash, offset: 0 });
    let result = soon("the module", asking).await.expect("no panic");
    assert!(
        matches!(&result, Err(ModuleUnavailable::Compile(of, _)) if *of == hash),
        "fetched, and then found to be none: {result:?}"
    );
    // When nobody looks for leaders any more, nobody waits for one.
    leader.send_replace(None);
    drop(leader);
    let result = soon("an answer", modules.get(hash)).await.map(drop);
    assert_eq!(result, Err(ModuleUnavailable::Stopping(hash)));
}
