//! The gate at upload: decides whether a module can be run, captured and restored, says by name what stands in the way,
//! and hands out the instrumented bytes, whose hash addresses the module from then on.
//!
//! It never runs or compiles anything, and no bytes make it panic.

use std::collections::BTreeMap;

use tidemill_abi::{ABI_VERSION, IMPORT_MODULE, export, import};
use tidemill_protocol::ModuleHash;
use wasmparser::types::TypesRef;
use wasmparser::{Export, ExternalKind, Operator, RefType, TypeRef, ValType};

use crate::features;
use crate::instrument::{instrument, is_reserved};
use crate::report::{self, ModuleReport, mutable_globals};
use crate::scan::Scan;
use crate::version;

/// The oldest ABI version that this host serves.
pub const ABI_VERSION_OLDEST: u32 = if ABI_VERSION > 1 { ABI_VERSION - 1 } else { 1 };

const I32: ValType = ValType::I32;
const I64: ValType = ValType::I64;

/// Bounds on what may be uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleLimits {
    /// The largest module, in bytes.
    pub module_max_bytes: u64,
}

impl Default for ModuleLimits {
    fn default() -> Self {
        Self {
            module_max_bytes: 64 * 1024 * 1024,
        }
    }
}

/// A module that passed the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedModule {
    /// The instrumented module: what is stored, distributed and compiled.
    pub bytes: Vec<u8>,
    /// What it contains.
    pub report: ModuleReport,
}

impl PreparedModule {
    /// The address of the module from now on.
    #[must_use]
    pub fn hash(&self) -> ModuleHash {
        ModuleHash(*blake3::hash(&self.bytes).as_bytes())
    }
}

/// Something in a module that cannot be run or captured, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Refusal {
    /// What, and where.
    pub what: String,
    /// Why it is refused, and what to do where something can be done.
    pub why: &'static str,
}

/// Why a module was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The bytes are something else.
    #[error(
        "not a WebAssembly module: it begins with {begins:?} where one begins with \"\\0asm\"; give the .wasm file that `tidemill build` wrote"
    )]
    NotWasm {
        /// The first bytes, as text.
        begins: String,
    },
    /// The module is larger than this cluster accepts.
    #[error(
        "the module is {size_bytes} bytes and at most {limit_bytes} are accepted; build it in release mode, or strip its debug information"
    )]
    TooLarge {
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The bytes are a component.
    #[error(
        "this is a WebAssembly component, which hides its memory; build a core module (target wasm32-unknown-unknown)"
    )]
    Component,
    /// The bytes do not make a valid module.
    #[error("the module is damaged or invalid at offset {offset:#x}: {message}")]
    Malformed {
        /// Where, in bytes from the start.
        offset: u64,
        /// What is wrong there.
        message: String,
    },
    /// It imports functions that no host function serves.
    #[error("no host function serves these imports: {}; a job imports only what the guest SDK declares", list(.names))]
    UnknownImports {
        /// Each as `module::name`.
        names: Vec<String>,
    },
    /// It imports host functions with other types than they have.
    #[error("these imports have other types than the host functions they name: {}; build against this version of the guest SDK", list(.imports))]
    ImportTypes {
        /// Each with the type found and the type wanted.
        imports: Vec<String>,
    },
    /// It is no job module, or an incomplete one.
    #[error("not a job module: these exports are missing: {}; mark the job function with #[tidemill::job]", list(.names))]
    MissingExports {
        /// Their names.
        names: Vec<String>,
    },
    /// Its exports have other types than the ABI says.
    #[error("these exports have other types than the ABI says: {}; build against this version of the guest SDK", list(.exports))]
    ExportTypes {
        /// Each with the type found and the type wanted.
        exports: Vec<String>,
    },
    /// It was built for another ABI version.
    #[error(
        "the module speaks ABI version {found} and this host {ABI_VERSION_OLDEST} to {ABI_VERSION}; build it again with a matching guest SDK"
    )]
    AbiVersion {
        /// The version it exports.
        found: u32,
    },
    /// Its version function computes instead of returning a constant.
    #[error(
        "the function tidemill_abi_version does not simply return a constant, so the module's ABI version cannot be read"
    )]
    AbiVersionUnreadable,
    /// It contains what cannot be run or captured.
    #[error("the module contains what a task cannot run or capture: {}", list(.refusals))]
    Refused {
        /// All that was found.
        refusals: Vec<Refusal>,
    },
}

impl ModuleError {
    pub(crate) fn malformed(error: &wasmparser::Error) -> Self {
        Self::Malformed {
            offset: error.offset() as u64,
            message: error.message().to_owned(),
        }
    }
}

fn list(items: &[impl ToString]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Checks and instruments an uploaded module. Deterministic, and idempotent: preparing what it returned changes nothing.
///
/// # Errors
/// Whatever keeps the module from being a job, each named with its reason.
pub fn prepare(wasm: &[u8], limits: &ModuleLimits) -> Result<PreparedModule, ModuleError> {
    let size_bytes = wasm.len() as u64;
    if size_bytes > limits.module_max_bytes {
        return Err(ModuleError::TooLarge {
            size_bytes,
            limit_bytes: limits.module_max_bytes,
        });
    }
    if !wasm.starts_with(b"\0asm") {
        let begins = String::from_utf8_lossy(&wasm[..wasm.len().min(8)]).into_owned();
        return Err(ModuleError::NotWasm { begins });
    }
    if wasmparser::Parser::is_component(wasm) {
        return Err(ModuleError::Component);
    }
    let (types, mut refusals) = features::validate(wasm)?;
    let types = types.as_ref();
    let scan = Scan::read(wasm).map_err(|error| ModuleError::malformed(&error))?;
    check_imports(&scan, types)?;
    let own: Vec<&Export<'_>> = scan
        .exports
        .iter()
        .filter(|export| !is_reserved(export.name))
        .collect();
    check_exports(&own, types)?;
    refusals.extend(refuse_imports(&scan));
    refusals.extend(refuse_state(types));
    refusals.extend(refuse_effects(&scan));
    if !refusals.is_empty() {
        return Err(ModuleError::Refused { refusals });
    }
    let abi_version = check_version(&own, &scan, types)?;
    let bytes = instrument(wasm, &scan, types, &own);
    let report = report::report(wasm, &scan, types, &own, abi_version);
    Ok(PreparedModule { bytes, report })
}

/// The type of a host function, if there is one of this name.
fn host_function(name: &str) -> Option<(&'static [ValType], &'static [ValType])> {
    match name {
        import::EMIT => Some((&[I32, I32, I32, I32], &[])),
        import::LOG => Some((&[I32, I32, I32], &[])),
        _ => None,
    }
}

/// The types of the functions that a job exports.
fn exported_function(name: &str) -> (&'static [ValType], &'static [ValType]) {
    match name {
        export::VERSION => (&[], &[I32]),
        export::RECORDS => (&[I32], &[I64]),
        export::ALLOCATE => (&[I32], &[I32]),
        export::DESCRIBE | export::OPEN => (&[I32, I32], &[I64]),
        export::PROCESS => (&[I32, I64, I32, I32, I64], &[I64]),
        export::WATERMARK => (&[I32, I64, I64], &[I64]),
        export::FLUSH => (&[], &[]),
        // `resume`, `poll`, `timer` and `finish` take the time and return a step.
        _ => (&[I64], &[I64]),
    }
}

fn check_imports(scan: &Scan<'_>, types: TypesRef<'_>) -> Result<(), ModuleError> {
    let mut unknown = Vec::new();
    let mut mistyped = Vec::new();
    let functions = scan
        .imports
        .iter()
        .filter(|import| matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)));
    for (import, index) in functions.zip(0u32..) {
        let name = format!("{}::{}", import.module, import.name);
        let known = host_function(import.name).filter(|_| import.module == IMPORT_MODULE);
        let Some((params, results)) = known else {
            unknown.push(name);
            continue;
        };
        let found = types[types.core_function_at(index)].unwrap_func();
        if found.params() != params || found.results() != results {
            mistyped.push(mismatch(&name, found, params, results));
        }
    }
    if !unknown.is_empty() {
        return Err(ModuleError::UnknownImports { names: unknown });
    }
    if !mistyped.is_empty() {
        return Err(ModuleError::ImportTypes { imports: mistyped });
    }
    Ok(())
}

fn mismatch(
    name: &str,
    found: &wasmparser::FuncType,
    params: &[ValType],
    results: &[ValType],
) -> String {
    let wanted = wasmparser::FuncType::new(params.iter().copied(), results.iter().copied());
    format!(
        "{name} is {} and must be {}",
        report::signature(found),
        report::signature(&wanted)
    )
}

fn check_exports(own: &[&Export<'_>], types: TypesRef<'_>) -> Result<(), ModuleError> {
    let by_name: BTreeMap<&str, &Export<'_>> =
        own.iter().map(|export| (export.name, *export)).collect();
    let mut missing = Vec::new();
    let mut mistyped = Vec::new();
    match by_name.get(export::MEMORY) {
        None => missing.push(export::MEMORY.to_owned()),
        Some(found) if found.kind != ExternalKind::Memory => {
            mistyped.push(format!("{} must be a memory", export::MEMORY));
        }
        Some(_) => {}
    }
    for name in export::FUNCTIONS.into_iter().chain([export::RECORDS]) {
        let (params, results) = exported_function(name);
        match by_name.get(name) {
            None if name == export::RECORDS => {}
            None => missing.push(name.to_owned()),
            Some(found) if found.kind != ExternalKind::Func => {
                mistyped.push(format!("{name} must be a function"))
            }
            Some(found) => {
                let function = types[types.core_function_at(found.index)].unwrap_func();
                if function.params() != params || function.results() != results {
                    mistyped.push(mismatch(name, function, params, results));
                }
            }
        }
    }
    if !missing.is_empty() {
        return Err(ModuleError::MissingExports { names: missing });
    }
    if !mistyped.is_empty() {
        return Err(ModuleError::ExportTypes { exports: mistyped });
    }
    Ok(())
}

fn check_version(
    own: &[&Export<'_>],
    scan: &Scan<'_>,
    types: TypesRef<'_>,
) -> Result<u32, ModuleError> {
    let found = own
        .iter()
        .find(|export| export.name == export::VERSION)
        .and_then(|export| version::constant_result(scan, types, export.index))
        .ok_or(ModuleError::AbiVersionUnreadable)?;
    let found = found.cast_unsigned();
    if (ABI_VERSION_OLDEST..=ABI_VERSION).contains(&found) {
        Ok(found)
    } else {
        Err(ModuleError::AbiVersion { found })
    }
}

fn refuse_imports(scan: &Scan<'_>) -> Vec<Refusal> {
    let state = "a task's state must be its own; define it in the module";
    let reason = |import: &wasmparser::Import<'_>| match import.ty {
        TypeRef::Func(_) => None,
        TypeRef::Memory(_) => Some(("memory", state)),
        TypeRef::Table(_) => Some(("table", state)),
        TypeRef::Global(_) => Some(("global", state)),
        TypeRef::Tag(_) => Some(("tag", "exceptions do not cross from the host")),
        // The validator lets this pass as if it were an ordinary function; the compiler does not.
        TypeRef::FuncExact(_) => Some((
            "exact function",
            "custom descriptors are not standardised yet",
        )),
    };
    let refusal = |import: &wasmparser::Import<'_>| {
        let (kind, why) = reason(import)?;
        Some(Refusal {
            what: format!("imported {kind} {}::{}", import.module, import.name),
            why,
        })
    };
    scan.imports.iter().filter_map(refusal).collect()
}

/// State that an image could not hold.
fn refuse_state(types: TypesRef<'_>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if types.memory_count() > 1 {
        refusals.push(Refusal {
            what: format!("{} memories", types.memory_count()),
            why: "an image holds one memory",
        });
    }
    for index in 0..types.table_count() {
        let element = types.table_at(index).element_type;
        if element != RefType::FUNCREF {
            refusals.push(Refusal {
                what: format!("table {index} of {element}"),
                why: "only tables of funcref can be captured",
            });
        }
    }
    for (index, kind) in mutable_globals(types) {
        if matches!(kind, ValType::Ref(_)) {
            refusals.push(Refusal {
                what: format!("mutable global {index} of {kind}"),
                why: "a reference in a global cannot be captured",
            });
        }
    }
    refusals
}

/// Effects that would leave state outside an image, or run before one is laid over.
fn refuse_effects(scan: &Scan<'_>) -> Vec<Refusal> {
    let mut refusals: Vec<Refusal> = scan
        .drops
        .iter()
        .map(|(instruction, function)| Refusal {
            what: format!("{instruction} in function {function}"),
            why: "whether a segment was dropped is state that no image holds; build without threads",
        })
        .collect();
    if let Some(start) = scan.start.filter(|start| !is_empty_function(scan, *start)) {
        refusals.push(Refusal {
            what: format!("start function {start}"),
            why: "it would run again before an image is restored; do the work in `describe` and `open`",
        });
    }
    refusals
}

fn is_empty_function(scan: &Scan<'_>, function: u32) -> bool {
    let operators = scan
        .body_of(function)
        .and_then(|body| body.get_operators_reader().ok());
    operators.is_some_and(|operators| {
        operators.into_iter().all(|operator| {
            matches!(
                operator,
                Ok(Operator::Nop | Operator::Return | Operator::End)
            )
        })
    })
}
