//! Makes the hidden state of a module reachable: every mutable global, every table that can change and, where
//! there is such a table, every function that may stand in one is exported under a reserved name. The approach, and the
//! limits that make it sound, are Wizer's (`wizer: src/instrument.rs`).
//!
//! It never touches code or data: all other sections are copied byte for byte, and instrumenting twice changes nothing.

use wasm_encoder::{ExportKind, ExportSection, Module, RawSection, SectionId};
use wasmparser::types::TypesRef;
use wasmparser::{Export, ExternalKind};

use crate::report::mutable_globals;
use crate::scan::Scan;

/// Reserved names begin so; an uploaded module's own exports under them are replaced.
const RESERVED: &str = "tidemill:";

/// What a reserved name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    Global(u32),
    Table(u32),
    Function(u32),
}

impl Reserved {
    fn name(self) -> String {
        match self {
            Self::Global(index) => format!("{RESERVED}global:{index}"),
            Self::Table(index) => format!("{RESERVED}table:{index}"),
            Self::Function(index) => format!("{RESERVED}function:{index}"),
        }
    }

    /// Reads a reserved name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (kind, index) = name.strip_prefix(RESERVED)?.split_once(':')?;
        let index = index.parse().ok()?;
        match kind {
            "global" => Some(Self::Global(index)),
            "table" => Some(Self::Table(index)),
            "function" => Some(Self::Function(index)),
            _ => None,
        }
    }
}

/// Whether an export's name is reserved.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with(RESERVED)
}

/// Writes the module again with the additional exports. `own` are the module's exports that stay.
pub(crate) fn instrument(
    wasm: &[u8],
    scan: &Scan<'_>,
    types: TypesRef<'_>,
    own: &[&Export<'_>],
) -> Vec<u8> {
    let mut exports = ExportSection::new();
    for export in own {
        exports.export(export.name, kind(export.kind), export.index);
    }
    for (index, _) in mutable_globals(types) {
        exports.export(&Reserved::Global(index).name(), ExportKind::Global, index);
    }
    for index in &scan.tables_changed {
        exports.export(&Reserved::Table(*index).name(), ExportKind::Table, *index);
    }
    if !scan.tables_changed.is_empty() {
        // Exported functions may be named by `ref.func` as well, but then a `ref.func` names them.
        for index in &scan.functions_referenced {
            exports.export(&Reserved::Function(*index).name(), ExportKind::Func, *index);
        }
    }
    let mut module = Module::new();
    for (id, contents) in &scan.sections {
        if *id == SectionId::Export as u8 {
            module.section(&exports);
        } else {
            module.section(&RawSection {
                id: *id,
                data: &wasm[contents.clone()],
            });
        }
    }
    module.finish()
}

fn kind(kind: ExternalKind) -> ExportKind {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
        ExternalKind::Table => ExportKind::Table,
        ExternalKind::Memory => ExportKind::Memory,
        ExternalKind::Global => ExportKind::Global,
        ExternalKind::Tag => ExportKind::Tag,
    }
}
