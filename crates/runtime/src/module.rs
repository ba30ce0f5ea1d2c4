//! Compiled modules: from the cache where that is safe, else by the compiler, and what of their hidden state the host
//! can reach. It never compiles bytes that [`crate::prepare`] would not hand out.

use std::path::Path;
use std::sync::Arc;

use tidemill_protocol::ModuleHash;
use wasmtime::ModuleExport;

use crate::cache;
use crate::engine::Engine;
use crate::instrument::Reserved;
use crate::prepare::{ModuleError, ModuleLimits, prepare};

/// A compiled module. Cheap to clone.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Inner>,
}

struct Inner {
    wasmtime: wasmtime::Module,
    hash: ModuleHash,
    reachable: Reachable,
}

/// The exports that instrumentation added, each list in index order.
#[derive(Default)]
pub(crate) struct Reachable {
    pub(crate) globals: Vec<(u32, ModuleExport)>,
    pub(crate) tables: Vec<(u32, ModuleExport)>,
    pub(crate) functions: Vec<(u32, ModuleExport)>,
}

/// Why a module could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The bytes did not pass, or would not pass, the checks at upload.
    #[error("the bytes are not a prepared module")]
    Refused(#[source] ModuleError),
    /// The module is acceptable, but these are not the bytes that preparing it gives.
    #[error("the module is not instrumented; upload it instead of placing it in the store by hand")]
    NotPrepared,
    /// The compiler gave up.
    #[error("the module cannot be compiled: {reason}")]
    Compiler {
        /// The compiler's words.
        reason: String,
    },
}

impl Engine {
    /// Compiles a prepared module, or loads what was compiled before from `cache_dir`. A damaged or untrustworthy
    /// entry is compiled anew and replaced; a cache that cannot be written is only warned about.
    ///
    /// # Errors
    /// When the bytes are not what [`prepare`] returned, or the compiler gives up.
    pub fn compile(
        &self,
        prepared: &[u8],
        cache_dir: Option<&Path>,
    ) -> Result<Module, CompileError> {
        let hash = ModuleHash(*blake3::hash(prepared).as_bytes());
        let entry = cache_dir.map(|directory| cache::Entry::new(self, directory, hash));
        if let Some(module) = entry.as_ref().and_then(|entry| entry.load(self)) {
            return Ok(Module::new(module, hash));
        }
        let limits = ModuleLimits {
            module_max_bytes: u64::MAX,
        };
        if prepare(prepared, &limits)
            .map_err(CompileError::Refused)?
            .bytes
            != prepared
        {
            return Err(CompileError::NotPrepared);
        }
        let module = wasmtime::Module::from_binary(self.wasmtime(), prepared).map_err(|error| {
            CompileError::Compiler {
                reason: format!("{error:#}"),
            }
        })?;
        if let Some(entry) = entry {
            entry.store(&module);
        }
        Ok(Module::new(module, hash))
    }
}

impl Module {
    fn new(wasmtime: wasmtime::Module, hash: ModuleHash) -> Self {
        let mut reachable = Reachable::default();
        for export in wasmtime.exports() {
            let Some(reserved) = Reserved::parse(export.name()) else {
                continue;
            };
            let Some(at) = wasmtime.get_export_index(export.name()) else {
                continue;
            };
            match reserved {
                Reserved::Global(index) => reachable.globals.push((index, at)),
                Reserved::Table(index) => reachable.tables.push((index, at)),
                Reserved::Function(index) => reachable.functions.push((index, at)),
            }
        }
        for list in [
            &mut reachable.globals,
            &mut reachable.tables,
            &mut reachable.functions,
        ] {
            list.sort_unstable_by_key(|(index, _)| *index);
        }
        Self {
            inner: Arc::new(Inner {
                wasmtime,
                hash,
                reachable,
            }),
        }
    }

    /// The hash of the prepared bytes.
    #[must_use]
    pub fn hash(&self) -> ModuleHash {
        self.inner.hash
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Module {
        &self.inner.wasmtime
    }

    pub(crate) fn reachable(&self) -> &Reachable {
        &self.inner.reachable
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module")
            .field("hash", &self.inner.hash)
            .finish_non_exhaustive()
    }
}
