//! The allow-list of WebAssembly features, and names with reasons for those outside it. The same list configures
//! the validator at upload and the compiler. It never judges what a module does with an accepted feature.

use wasmparser::types::Types;
use wasmparser::{Validator, WasmFeatures};

use crate::prepare::{ModuleError, Refusal};

/// What a module may use: the MVP and what LLVM and other toolchains emit by default or on request, as long as it is
/// deterministic and leaves no state outside memory, globals and tables.
pub(crate) const ACCEPTED: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::RELAXED_SIMD)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::WIDE_ARITHMETIC);

/// Features outside the list that a toolchain can be asked for, and why each is outside.
const REASONS: [(WasmFeatures, &str, &str); 13] = [
    (
        WasmFeatures::THREADS,
        "threads and shared memory",
        "a task is one thread and owns its memory; build without atomics",
    ),
    (
        WasmFeatures::SHARED_EVERYTHING_THREADS,
        "shared-everything threads",
        "a task is one thread and owns its memory",
    ),
    (
        WasmFeatures::MULTI_MEMORY,
        "more than one memory",
        "an image holds one memory",
    ),
    (
        WasmFeatures::EXCEPTIONS,
        "exceptions",
        "a thrown exception is a reference that no image can hold; build with panic=abort",
    ),
    (
        WasmFeatures::LEGACY_EXCEPTIONS,
        "legacy exceptions",
        "the proposal was withdrawn; build with panic=abort",
    ),
    (
        WasmFeatures::MEMORY64,
        "memory64",
        "the ABI's addresses have 32 bits; build for wasm32",
    ),
    (
        WasmFeatures::FUNCTION_REFERENCES,
        "typed function references",
        "only funcref tables can be captured",
    ),
    (
        WasmFeatures::GC,
        "garbage-collected types",
        "objects outside linear memory cannot be captured",
    ),
    (
        WasmFeatures::GC_TYPES,
        "externref and other managed references",
        "references outside linear memory cannot be captured",
    ),
    (
        WasmFeatures::STACK_SWITCHING,
        "stack switching",
        "a suspended stack cannot be captured",
    ),
    (
        WasmFeatures::CUSTOM_PAGE_SIZES,
        "custom page sizes",
        "images are made of 64 KiB pages",
    ),
    (
        WasmFeatures::MEMORY_CONTROL,
        "memory control",
        "an image holds one flat memory",
    ),
    (
        WasmFeatures::COMPACT_IMPORTS,
        "compact imports",
        "the encoding is not standardised yet",
    ),
];

/// Validates a module. Features outside the allow-list come back as refusals, so that all are named at once.
pub(crate) fn validate(wasm: &[u8]) -> Result<(Types, Vec<Refusal>), ModuleError> {
    let mut features = ACCEPTED;
    let mut refusals = Vec::new();
    loop {
        let error = match Validator::new_with_features(features).validate_all(wasm) {
            Ok(types) => return Ok((types, refusals)),
            Err(error) => error,
        };
        let missing = error
            .missing_wasm_feature()
            .map(|missing| missing.difference(features));
        let missing = match missing {
            Some(missing) if !missing.is_empty() => missing,
            _ => needed(wasm, features).ok_or_else(|| ModuleError::malformed(&error))?,
        };
        refusals.push(name(missing, &error));
        features = features.union(missing);
    }
}

/// Not every error of a missing feature says which. A module that is valid with all features, but not with all except
/// one, needs that one. `None` when no feature makes it valid.
fn needed(wasm: &[u8], features: WasmFeatures) -> Option<WasmFeatures> {
    let all = WasmFeatures::all();
    let valid = |features| {
        Validator::new_with_features(features)
            .validate_all(wasm)
            .is_ok()
    };
    if !valid(all) {
        return None;
    }
    let outside = REASONS
        .iter()
        .map(|(feature, _, _)| *feature)
        .filter(|feature| !features.contains(*feature));
    let named = outside
        .into_iter()
        .find(|feature| !valid(all.difference(*feature)));
    Some(named.unwrap_or(all.difference(features)))
}

fn name(missing: WasmFeatures, error: &wasmparser::Error) -> Refusal {
    let known = REASONS.iter().find(|(feature, _, _)| *feature == missing);
    match known {
        Some((_, what, why)) => Refusal {
            what: format!("{what} (offset {:#x})", error.offset()),
            why,
        },
        None => Refusal {
            what: format!("{} (offset {:#x})", error.message(), error.offset()),
            why: "the feature is not on the list of accepted ones",
        },
    }
}
