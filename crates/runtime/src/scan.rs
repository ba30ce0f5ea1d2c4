//! One pass over a valid module: everything that checks and instrumentation need to know about it.
//! It never judges; [`crate::prepare`] does.

use std::collections::BTreeSet;
use std::ops::Range;

use wasmparser::{
    ConstExpr, ElementItems, ElementKind, Export, FunctionBody, Import, Operator, Parser, Payload,
    TableInit, TypeRef,
};

/// What a module contains.
#[derive(Default)]
pub(crate) struct Scan<'a> {
    /// Every section in order: its id and where its contents lie.
    pub(crate) sections: Vec<(u8, Range<usize>)>,
    pub(crate) imports: Vec<Import<'a>>,
    /// Imported functions come first in the index space.
    pub(crate) functions_imported: u32,
    pub(crate) exports: Vec<Export<'a>>,
    pub(crate) start: Option<u32>,
    /// Bodies of the defined functions, in index order.
    pub(crate) bodies: Vec<FunctionBody<'a>>,
    pub(crate) code_bytes: u64,
    pub(crate) data_bytes: u64,
    /// Functions to which a reference may exist: named by an element segment or a `ref.func`.
    pub(crate) functions_referenced: BTreeSet<u32>,
    /// Tables that some instruction may change.
    pub(crate) tables_changed: BTreeSet<u32>,
    /// Instructions that drop a segment, with the function they are in.
    pub(crate) drops: Vec<(&'static str, u32)>,
}

impl<'a> Scan<'a> {
    /// Reads a module that has been validated.
    pub(crate) fn read(wasm: &'a [u8]) -> wasmparser::Result<Self> {
        let mut scan = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload?;
            if let Some(section) = payload.as_section() {
                scan.sections.push(section);
            }
            scan.payload(payload)?;
        }
        for position in 0..scan.bodies.len() {
            scan.body(position)?;
        }
        Ok(scan)
    }

    /// The body of a function, when the module defines it.
    pub(crate) fn body_of(&self, function: u32) -> Option<&FunctionBody<'a>> {
        self.bodies
            .get(function.checked_sub(self.functions_imported)? as usize)
    }

    fn payload(&mut self, payload: Payload<'a>) -> wasmparser::Result<()> {
        match payload {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    if matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                        self.functions_imported += 1;
                    }
                    self.imports.push(import);
                }
            }
            Payload::TableSection(tables) => {
                for table in tables {
                    if let TableInit::Expr(expression) = table?.init {
                        self.expression(&expression)?;
                    }
                }
            }
            Payload::GlobalSection(globals) => {
                for global in globals {
                    self.expression(&global?.init_expr)?;
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    self.exports.push(export?);
                }
            }
            Payload::StartSection { func, .. } => self.start = Some(func),
            Payload::ElementSection(elements) => {
                for element in elements {
                    self.element(element?)?;
                }
            }
            Payload::CodeSectionStart { size, .. } => self.code_bytes = u64::from(size),
            Payload::CodeSectionEntry(body) => self.bodies.push(body),
            Payload::DataSection(segments) => {
                for segment in segments {
                    self.data_bytes += segment?.data.len() as u64;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn element(&mut self, element: wasmparser::Element<'a>) -> wasmparser::Result<()> {
        if let ElementKind::Active { offset_expr, .. } = &element.kind {
            self.expression(offset_expr)?;
        }
        match element.items {
            ElementItems::Functions(functions) => {
                for function in functions {
                    self.functions_referenced.insert(function?);
                }
            }
            ElementItems::Expressions(_, expressions) => {
                for expression in expressions {
                    self.expression(&expression?)?;
                }
            }
        }
        Ok(())
    }

    fn expression(&mut self, expression: &ConstExpr<'a>) -> wasmparser::Result<()> {
        for operator in expression.get_operators_reader() {
            if let Operator::RefFunc { function_index } = operator? {
                self.functions_referenced.insert(function_index);
            }
        }
        Ok(())
    }

    fn body(&mut self, position: usize) -> wasmparser::Result<()> {
        let function = self
            .functions_imported
            .saturating_add(u32::try_from(position).unwrap_or(u32::MAX));
        for operator in self.bodies[position].get_operators_reader()? {
            match operator? {
                Operator::RefFunc { function_index } => {
                    self.functions_referenced.insert(function_index);
                }
                Operator::TableSet { table }
                | Operator::TableGrow { table }
                | Operator::TableFill { table }
                | Operator::TableInit { table, .. }
                | Operator::TableCopy {
                    dst_table: table, ..
                } => {
                    self.tables_changed.insert(table);
                }
                Operator::DataDrop { .. } => self.drops.push(("data.drop", function)),
                Operator::ElemDrop { .. } => self.drops.push(("elem.drop", function)),
                _ => {}
            }
        }
        Ok(())
    }
}
