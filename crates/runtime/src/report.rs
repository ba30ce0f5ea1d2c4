//! What a module contains, for people: the data behind `tidemill inspect`. It never decides whether a module is accepted.

use wasmparser::types::{EntityType, TypesRef};
use wasmparser::{FuncType, ValType};

use crate::scan::Scan;

/// Wasm pages are 64 KiB.
pub(crate) const PAGE_BYTES: u64 = 64 * 1024;

/// What a prepared module contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleReport {
    /// The ABI version it exports.
    pub abi_version: u32,
    /// The uploaded file, in bytes.
    pub size_bytes: u64,
    /// Its code, in bytes.
    pub code_bytes: u64,
    /// Its data segments, in bytes.
    pub data_bytes: u64,
    /// Functions it defines.
    pub functions: u32,
    /// Host functions it uses, as `module::name`.
    pub imports: Vec<String>,
    /// What it exports, without what instrumentation added.
    pub exports: Vec<ExportReport>,
    /// Its linear memory.
    pub memory: MemoryReport,
    /// Its mutable globals, in index order: each is part of an image.
    pub mutable_globals: Vec<GlobalReport>,
    /// Its tables, in index order.
    pub tables: Vec<TableReport>,
    /// Functions that its tables may hold. Reachable by the host when some table can change.
    pub functions_referenced: u32,
}

/// An export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportReport {
    /// Its name.
    pub name: String,
    /// What it is: a function's signature, `memory`, `table` or a global's type.
    pub kind: String,
}

/// The linear memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// What an instance starts with, in bytes.
    pub initial_bytes: u64,
    /// The module's own maximum, in bytes.
    pub maximum_bytes: Option<u64>,
}

/// A mutable global.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalReport {
    /// Its index among all globals.
    pub index: u32,
    /// `i32`, `i64`, `f32`, `f64` or `v128`.
    pub kind: String,
}

/// A table of function references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableReport {
    /// Its index.
    pub index: u32,
    /// What an instance starts with, in entries.
    pub initial: u64,
    /// The module's own maximum, in entries.
    pub maximum: Option<u64>,
    /// Whether no instruction can change it, so that images need not hold it.
    pub is_static: bool,
}

/// Describes a module whose exports, `exports`, are its own.
pub(crate) fn report(
    wasm: &[u8],
    scan: &Scan<'_>,
    types: TypesRef<'_>,
    exports: &[&wasmparser::Export<'_>],
    abi_version: u32,
) -> ModuleReport {
    let memory = types.memory_at(0);
    ModuleReport {
        abi_version,
        size_bytes: wasm.len() as u64,
        code_bytes: scan.code_bytes,
        data_bytes: scan.data_bytes,
        functions: types
            .function_count()
            .saturating_sub(scan.functions_imported),
        imports: scan
            .imports
            .iter()
            .map(|import| format!("{}::{}", import.module, import.name))
            .collect(),
        exports: exports
            .iter()
            .map(|export| ExportReport {
                name: export.name.to_owned(),
                kind: kind(types, export),
            })
            .collect(),
        memory: MemoryReport {
            initial_bytes: memory.initial.saturating_mul(PAGE_BYTES),
            maximum_bytes: memory.maximum.map(|pages| pages.saturating_mul(PAGE_BYTES)),
        },
        mutable_globals: mutable_globals(types)
            .map(|(index, kind)| GlobalReport {
                index,
                kind: kind.to_string(),
            })
            .collect(),
        tables: (0..types.table_count())
            .map(|index| {
                let table = types.table_at(index);
                let is_static = !scan.tables_changed.contains(&index);
                TableReport {
                    index,
                    initial: table.initial,
                    maximum: table.maximum,
                    is_static,
                }
            })
            .collect(),
        functions_referenced: u32::try_from(scan.functions_referenced.len()).unwrap_or(u32::MAX),
    }
}

/// Indices and types of the mutable globals, in order.
pub(crate) fn mutable_globals(types: TypesRef<'_>) -> impl Iterator<Item = (u32, ValType)> {
    (0..types.global_count()).filter_map(move |index| {
        let global = types.global_at(index);
        global.mutable.then_some((index, global.content_type))
    })
}

fn kind(types: TypesRef<'_>, export: &wasmparser::Export<'_>) -> String {
    match types.entity_type_from_export(export) {
        Some(EntityType::Func(id) | EntityType::FuncExact(id)) => {
            signature(types[id].unwrap_func())
        }
        Some(EntityType::Table(_)) => "table".into(),
        Some(EntityType::Memory(_)) => "memory".into(),
        Some(EntityType::Global(global)) => format!("global {}", global.content_type),
        Some(EntityType::Tag(_)) | None => "tag".into(),
    }
}

/// A signature as text: `(i32, i64) -> i64`.
pub(crate) fn signature(function: &FuncType) -> String {
    let list = |types: &[ValType]| {
        types
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match function.results() {
        [] => format!("({})", list(function.params())),
        results => format!("({}) -> {}", list(function.params()), list(results)),
    }
}
