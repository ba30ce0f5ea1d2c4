//! Compiled modules: each is fetched from the leader once, checked against its hash, compiled through the cache on disk,
//! and shared by every task that runs it. A leader that dies meanwhile is followed by the next, which has it as well. It
//! never runs one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::ModuleHash;
use tidemill_runtime::{Engine, Module};
use tidemill_transport::{Endpoint, FetchError, FetchLimits, fetch_blob};
use tokio::sync::{OnceCell, watch};
use tracing::info;

use crate::error_chain;

/// A leader that cannot be asked may be about to be found dead: how long that may take.
const LOSS_NOTICED_IN: Duration = Duration::from_secs(5);

/// Every module this TaskManager has been asked for.
pub(crate) struct Modules {
    engine: Engine,
    endpoint: Endpoint,
    cache_dir: PathBuf,
    module_bytes_max: u64,
    /// Where the leader is; `None` while there is none.
    leader: watch::Receiver<Option<SocketAddr>>,
    modules: Mutex<HashMap<ModuleHash, Arc<OnceCell<Module>>>>,
}

/// A module that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ModuleUnavailable {
    #[error("module {0} could not be fetched from the leader: {1}")]
    Fetch(ModuleHash, String),
    #[error("module {0} could not be compiled: {1}")]
    Compile(ModuleHash, String),
    #[error(
        "module {0} is needed, but this TaskManager stops and looks for no leader to fetch it from"
    )]
    Stopping(ModuleHash),
}

impl Modules {
    pub(crate) fn new(
        engine: Engine,
        endpoint: Endpoint,
        cache_dir: PathBuf,
        module_bytes_max: u64,
        leader: watch::Receiver<Option<SocketAddr>>,
    ) -> Self {
        Self {
            engine,
            endpoint,
            cache_dir,
            module_bytes_max,
            leader,
            modules: Mutex::default(),
        }
    }

    /// The compiled module, fetched from the leader when it is not here; without a leader this waits for one. Concurrent
    /// calls for one module share the work.
    ///
    /// # Errors
    /// When it cannot be fetched or compiled. The next call tries again.
    pub(crate) async fn get(&self, hash: ModuleHash) -> Result<Module, ModuleUnavailable> {
        let cell = {
            let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(modules.entry(hash).or_default())
        };
        cell.get_or_try_init(|| self.make(hash)).await.cloned()
    }

    async fn make(&self, hash: ModuleHash) -> Result<Module, ModuleUnavailable> {
        let bytes = self.fetch(hash).await?;
        let (engine, cache_dir) = (self.engine.clone(), self.cache_dir.clone());
        let compiled =
            tokio::task::spawn_blocking(move || engine.compile(&bytes, Some(&cache_dir))).await;
        match compiled {
            Ok(Ok(module)) => Ok(module),
            Ok(Err(error)) => Err(ModuleUnavailable::Compile(hash, error_chain(&error))),
            Err(panic) => Err(ModuleUnavailable::Compile(hash, panic.to_string())),
        }
    }

    /// The module's bytes, from whoever leads: a leader that is lost meanwhile is given up for the next one.
    async fn fetch(&self, hash: ModuleHash) -> Result<Bytes, ModuleUnavailable> {
        let mut leader = self.leader.clone();
        let limits = FetchLimits {
            len_max_bytes: self.module_bytes_max,
            ..FetchLimits::default()
        };
        // What one leader sent is a part of what the next one will send: the hash says so.
        let mut received = Vec::new();
        loop {
            let known = leader.wait_for(Option::is_some).await.map(|known| *known);
            let Ok(Some(address)) = known else {
                return Err(ModuleUnavailable::Stopping(hash));
            };
            let fetching = fetch_blob(&self.endpoint, address, hash, &mut received, &limits);
            let error = tokio::select! {
                fetched = fetching => match fetched {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => error,
                },
                _ = left(leader.clone(), address) => continue,
            };
            let is_final = matches!(
                error,
                FetchError::Missing { .. } | FetchError::TooLong { .. }
            );
            let noticed = tokio::time::timeout(LOSS_NOTICED_IN, left(leader.clone(), address));
            if is_final || noticed.await.is_err() {
                return Err(ModuleUnavailable::Fetch(hash, error_chain(&error)));
            }
            info!(module = %hash, %address, "the leader was lost while a module was fetched; the next one is asked");
        }
    }
}

/// Resolves when the leader is not at this address any more.
async fn left(mut leader: watch::Receiver<Option<SocketAddr>>, address: SocketAddr) {
    // An error means that nobody looks for leaders any more, and the caller finds that out as well.
    let _ = leader.wait_for(|known| *known != Some(address)).await;
}
