//! Compiled modules: each is fetched from the leader once, checked against its hash, compiled through the cache on disk,
//! and shared by every task that runs it. It never runs one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tidemill_protocol::ModuleHash;
use tidemill_runtime::{Engine, Module};
use tidemill_transport::{Endpoint, FetchLimits, fetch_blob};
use tokio::sync::OnceCell;

use crate::error_chain;

/// Every module this TaskManager has been asked for.
pub(crate) struct Modules {
    engine: Engine,
    endpoint: Endpoint,
    cache_dir: PathBuf,
    module_bytes_max: u64,
    modules: Mutex<HashMap<ModuleHash, Arc<OnceCell<Module>>>>,
}

/// A module that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ModuleUnavailable {
    #[error("module {0} could not be fetched from the leader: {1}")]
    Fetch(ModuleHash, String),
    #[error("module {0} could not be compiled: {1}")]
    Compile(ModuleHash, String),
    #[error("module {0} is needed, but no leader is connected to fetch it from")]
    NoLeader(ModuleHash),
}

impl Modules {
    pub(crate) fn new(
        engine: Engine,
        endpoint: Endpoint,
        cache_dir: PathBuf,
        module_bytes_max: u64,
    ) -> Self {
        Self {
            engine,
            endpoint,
            cache_dir,
            module_bytes_max,
            modules: Mutex::default(),
        }
    }

    /// The compiled module, fetched from `leader` when it is not here. Concurrent calls for one module share the work.
    ///
    /// # Errors
    /// When it cannot be fetched or compiled. The next call tries again.
    pub(crate) async fn get(
        &self,
        hash: ModuleHash,
        leader: Option<std::net::SocketAddr>,
    ) -> Result<Module, ModuleUnavailable> {
        let cell = {
            let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(modules.entry(hash).or_default())
        };
        cell.get_or_try_init(|| self.make(hash, leader))
            .await
            .cloned()
    }

    async fn make(
        &self,
        hash: ModuleHash,
        leader: Option<std::net::SocketAddr>,
    ) -> Result<Module, ModuleUnavailable> {
        let leader = leader.ok_or(ModuleUnavailable::NoLeader(hash))?;
        let limits = FetchLimits {
            len_max_bytes: self.module_bytes_max,
            ..FetchLimits::default()
        };
        let bytes = fetch_blob(&self.endpoint, leader, hash, &mut Vec::new(), &limits)
            .await
            .map_err(|error| ModuleUnavailable::Fetch(hash, error_chain(&error)))?;
        let (engine, cache_dir) = (self.engine.clone(), self.cache_dir.clone());
        let compiled =
            tokio::task::spawn_blocking(move || engine.compile(&bytes, Some(&cache_dir))).await;
        match compiled {
            Ok(Ok(module)) => Ok(module),
            Ok(Err(error)) => Err(ModuleUnavailable::Compile(hash, error_chain(&error))),
            Err(panic) => Err(ModuleUnavailable::Compile(hash, panic.to_string())),
        }
    }
}
