//! Captures a whole instance as an image, and lays an image over a fresh instance. Table entries travel as function
//! indices: a function reference is an address in one store, and means nothing in another.
//!
//! It never runs guest code.

use std::collections::HashMap;

use tidemill_protocol::image::GlobalValue;
use wasmtime::{Extern, Func, Instance, ModuleExport, Ref, Table, Val};

use crate::call_error::TrapReason;
use crate::dirty::{CAPTURE_PAGE_BYTES, ZEROS};
use crate::guest::Guest;
use crate::host::GuestHost;
use crate::instance::InstanceError;
use crate::module::Reachable;
use crate::report::PAGE_BYTES;

/// Why an instance could not be captured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// A call has failed before.
    #[error("the instance has failed before, and its state is undefined")]
    Failed,
    /// A table holds a function that no image can name. The checks at upload rule this out.
    #[error(
        "entry {element} of table {table} holds a function that is not one of the module's referenced ones"
    )]
    UnknownFunction {
        /// The table's index in the module.
        table: u32,
        /// The entry.
        element: u64,
    },
    /// Pages of the memory that were still to come did not come.
    #[error("the image that the instance was restored from is lost: {reason}")]
    ImageLost {
        /// Why they did not come.
        reason: String,
    },
    /// A global holds a reference, or the host cannot reach it. The checks at upload rule this out.
    #[error("{what} cannot be captured")]
    Unreachable {
        /// Which global or table.
        what: String,
    },
}

/// How an image differs from every image of the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageMismatch {
    /// The memory is no whole number of pages, or smaller than a fresh instance's.
    #[error(
        "its memory of {image_bytes} bytes must be a multiple of 65536 and at least {initial_bytes}"
    )]
    Memory {
        /// What the image holds, in bytes.
        image_bytes: u64,
        /// What a fresh instance has, in bytes.
        initial_bytes: u64,
    },
    /// The number of globals differs.
    #[error("it holds {image} mutable globals and the module has {module}")]
    Globals {
        /// What the image holds.
        image: usize,
        /// What the module has.
        module: usize,
    },
    /// A global has another type.
    #[error("its value for global {index} is of another type than the module's {expected}")]
    GlobalType {
        /// The global's index in the module.
        index: u32,
        /// The module's type.
        expected: String,
    },
    /// The number of tables differs.
    #[error("it holds {image} changeable tables and the module has {module}")]
    Tables {
        /// What the image holds.
        image: usize,
        /// What the module has.
        module: usize,
    },
    /// A table is smaller than a fresh instance's, or beyond the module's own maximum.
    #[error(
        "its table {index} of {image} entries is outside what the module allows (it starts with {initial})"
    )]
    TableSize {
        /// The table's index in the module.
        index: u32,
        /// What the image holds, in entries.
        image: u64,
        /// What a fresh instance has, in entries.
        initial: u64,
    },
    /// A table names a function to which no reference can exist.
    #[error(
        "entry {element} of its table {table} names function {function}, which no table of the module can hold"
    )]
    Function {
        /// The table's index in the module.
        table: u32,
        /// The entry.
        element: u64,
        /// The function's index.
        function: u32,
    },
}

/// The values of mutable globals, and the entries of changeable tables.
pub(crate) type OutsideMemory = (Vec<GlobalValue>, Vec<Vec<Option<u32>>>);

/// Captures mutable globals and changeable tables.
pub(crate) fn capture_outside_memory<H: GuestHost>(
    guest: &mut Guest<H>,
    instance: &Instance,
    reachable: &Reachable,
) -> Result<OutsideMemory, CaptureError> {
    let mut globals = Vec::with_capacity(reachable.globals.len());
    for (index, export) in &reachable.globals {
        let unreachable = || CaptureError::Unreachable {
            what: format!("global {index}"),
        };
        let Some(Extern::Global(global)) = instance.get_module_export(&mut guest.store, export)
        else {
            return Err(unreachable());
        };
        globals.push(from_val(&global.get(&mut guest.store)).ok_or_else(unreachable)?);
    }
    Ok((globals, capture_tables(guest, instance, reachable)?))
}

fn capture_tables<H: GuestHost>(
    guest: &mut Guest<H>,
    instance: &Instance,
    reachable: &Reachable,
) -> Result<Vec<Vec<Option<u32>>>, CaptureError> {
    if reachable.tables.is_empty() {
        return Ok(Vec::new());
    }
    // One function has one address within a store, however it is reached.
    let mut index_of = HashMap::with_capacity(reachable.functions.len());
    for (index, export) in &reachable.functions {
        if let Some(function) = function(guest, instance, export) {
            index_of.insert(function.to_raw(&mut guest.store) as usize, *index);
        }
    }
    let mut tables = Vec::with_capacity(reachable.tables.len());
    for (table_index, export) in &reachable.tables {
        let Some(table) = table(guest, instance, export) else {
            return Err(CaptureError::Unreachable {
                what: format!("table {table_index}"),
            });
        };
        let mut entries = Vec::new();
        for element in 0..table.size(&guest.store) {
            let unknown = CaptureError::UnknownFunction {
                table: *table_index,
                element,
            };
            let entry = match table.get(&mut guest.store, element) {
                Some(Ref::Func(None)) => None,
                Some(Ref::Func(Some(function))) => {
                    let address = function.to_raw(&mut guest.store) as usize;
                    Some(*index_of.get(&address).ok_or(unknown)?)
                }
                _ => {
                    return Err(CaptureError::Unreachable {
                        what: format!("table {table_index}"),
                    });
                }
            };
            entries.push(entry);
        }
        tables.push(entries);
    }
    Ok(tables)
}

/// Sets globals and tables.
pub(crate) fn lay_outside_memory<H: GuestHost>(
    guest: &mut Guest<H>,
    instance: &Instance,
    reachable: &Reachable,
    globals: &[GlobalValue],
    tables: &[Vec<Option<u32>>],
) -> Result<(), InstanceError> {
    lay_globals(guest, instance, reachable, globals)?;
    lay_tables(guest, instance, reachable, tables)
}

/// Lays the first bytes of an image over a memory whose first `initial_bytes` may hold anything; the rest is zero.
pub(crate) fn lay_memory(memory: &mut [u8], initial_bytes: usize, image: &[u8]) {
    let (initial, grown) = memory.split_at_mut(initial_bytes);
    let (image_initial, image_grown) = image.split_at(initial_bytes.min(image.len()));
    let (laid, beyond) = initial.split_at_mut(image_initial.len());
    laid.copy_from_slice(image_initial);
    beyond.fill(0);
    // Pages that are never written take no room.
    for (to, from) in grown
        .chunks_mut(CAPTURE_PAGE_BYTES)
        .zip(image_grown.chunks(CAPTURE_PAGE_BYTES))
    {
        if *from != ZEROS[..from.len()] {
            to[..from.len()].copy_from_slice(from);
        }
    }
}

/// Grows a fresh instance's memory to the size of an image's, which it may not exceed. Returns what it had, in bytes.
pub(crate) fn grow_to<H: GuestHost>(
    guest: &mut Guest<H>,
    image_bytes: u64,
) -> Result<usize, InstanceError> {
    let initial_bytes = guest.memory.data_size(&guest.store) as u64;
    if image_bytes < initial_bytes || !image_bytes.is_multiple_of(PAGE_BYTES) {
        return Err(InstanceError::Image(ImageMismatch::Memory {
            image_bytes,
            initial_bytes,
        }));
    }
    if let Err(error) = guest
        .memory
        .grow(&mut guest.store, (image_bytes - initial_bytes) / PAGE_BYTES)
    {
        return Err(not_grown(guest, &error));
    }
    Ok(initial_bytes as usize)
}

fn lay_globals<H: GuestHost>(
    guest: &mut Guest<H>,
    instance: &Instance,
    reachable: &Reachable,
    image: &[GlobalValue],
) -> Result<(), InstanceError> {
    if image.len() != reachable.globals.len() {
        let mismatch = ImageMismatch::Globals {
            image: image.len(),
            module: reachable.globals.len(),
        };
        return Err(InstanceError::Image(mismatch));
    }
    for ((index, export), value) in reachable.globals.iter().zip(image) {
        let Some(Extern::Global(global)) = instance.get_module_export(&mut guest.store, export)
        else {
            return Err(unreachable("global", *index));
        };
        if global.set(&mut guest.store, to_val(*value)).is_err() {
            let expected = global.ty(&guest.store).content().to_string();
            return Err(InstanceError::Image(ImageMismatch::GlobalType {
                index: *index,
                expected,
            }));
        }
    }
    Ok(())
}

fn lay_tables<H: GuestHost>(
    guest: &mut Guest<H>,
    instance: &Instance,
    reachable: &Reachable,
    image: &[Vec<Option<u32>>],
) -> Result<(), InstanceError> {
    if image.len() != reachable.tables.len() {
        let mismatch = ImageMismatch::Tables {
            image: image.len(),
            module: reachable.tables.len(),
        };
        return Err(InstanceError::Image(mismatch));
    }
    let mut function_at = HashMap::with_capacity(reachable.functions.len());
    for (index, export) in &reachable.functions {
        if let Some(function) = function(guest, instance, export) {
            function_at.insert(*index, function);
        }
    }
    for ((table_index, export), entries) in reachable.tables.iter().zip(image) {
        let Some(table) = table(guest, instance, export) else {
            return Err(unreachable("table", *table_index));
        };
        resize(guest, *table_index, &table, entries.len() as u64)?;
        for (element, entry) in (0u64..).zip(entries) {
            let value = match entry {
                None => Ref::Func(None),
                Some(function) => {
                    let unknown = ImageMismatch::Function {
                        table: *table_index,
                        element,
                        function: *function,
                    };
                    Ref::Func(Some(
                        *function_at
                            .get(function)
                            .ok_or(InstanceError::Image(unknown))?,
                    ))
                }
            };
            table
                .set(&mut guest.store, element, value)
                .map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

fn resize<H: GuestHost>(
    guest: &mut Guest<H>,
    index: u32,
    table: &Table,
    image: u64,
) -> Result<(), InstanceError> {
    let initial = table.size(&guest.store);
    let maximum = table.ty(&guest.store).maximum();
    if image < initial || maximum.is_some_and(|maximum| image > maximum) {
        return Err(InstanceError::Image(ImageMismatch::TableSize {
            index,
            image,
            initial,
        }));
    }
    match table.grow(&mut guest.store, image - initial, Ref::Func(None)) {
        Ok(_) => Ok(()),
        Err(error) => Err(not_grown(guest, &error)),
    }
}

fn not_grown<H: GuestHost>(guest: &mut Guest<H>, error: &wasmtime::Error) -> InstanceError {
    let refused: Option<TrapReason> = guest.store.data_mut().limiter.take_refused();
    refused.map_or_else(|| failed(error), InstanceError::Limit)
}

fn failed(error: &wasmtime::Error) -> InstanceError {
    InstanceError::Instantiation {
        reason: format!("{error:#}"),
    }
}

fn unreachable(kind: &str, index: u32) -> InstanceError {
    InstanceError::Instantiation {
        reason: format!("{kind} {index} cannot be reached; prepare the module again"),
    }
}

fn function<H: GuestHost>(
    guest: &mut Guest<H>,
    instance: &Instance,
    export: &ModuleExport,
) -> Option<Func> {
    instance
        .get_module_export(&mut guest.store, export)?
        .into_func()
}

fn table<H: GuestHost>(
    guest: &mut Guest<H>,
    instance: &Instance,
    export: &ModuleExport,
) -> Option<Table> {
    instance
        .get_module_export(&mut guest.store, export)?
        .into_table()
}

fn from_val(value: &Val) -> Option<GlobalValue> {
    Some(match value {
        Val::I32(value) => GlobalValue::I32(*value),
        Val::I64(value) => GlobalValue::I64(*value),
        Val::F32(bits) => GlobalValue::F32(*bits),
        Val::F64(bits) => GlobalValue::F64(*bits),
        Val::V128(value) => GlobalValue::V128(value.as_u128()),
        _ => return None,
    })
}

fn to_val(value: GlobalValue) -> Val {
    match value {
        GlobalValue::I32(value) => Val::I32(value),
        GlobalValue::I64(value) => Val::I64(value),
        GlobalValue::F32(bits) => Val::F32(bits),
        GlobalValue::F64(bits) => Val::F64(bits),
        GlobalValue::V128(value) => Val::V128(value.into()),
    }
}
