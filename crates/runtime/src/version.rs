//! Reads the ABI version out of a module without running it: the version function must return a constant, which a
//! few instructions of an unoptimised build may carry through locals or one more call.
//!
//! It never loops: only straight-line code counts, and calls nest to a bound.

use wasmparser::types::TypesRef;
use wasmparser::{Operator, ValType};

use crate::scan::Scan;

const CALLS_NESTED_MAX: u32 = 8;
const OPERATORS_MAX: usize = 64;
const LOCALS_MAX: usize = 64;

/// The constant that a function without parameters returns, if it plainly returns one.
pub(crate) fn constant_result(scan: &Scan<'_>, types: TypesRef<'_>, function: u32) -> Option<i32> {
    evaluate(scan, types, function, CALLS_NESTED_MAX)
}

fn evaluate(scan: &Scan<'_>, types: TypesRef<'_>, function: u32, calls_left: u32) -> Option<i32> {
    let signature = types[types.core_function_at(function)].unwrap_func();
    if !signature.params().is_empty() || *signature.results() != [ValType::I32] {
        return None;
    }
    let body = scan.body_of(function)?;
    let mut locals = Vec::new();
    for group in body.get_locals_reader().ok()? {
        let (count, kind) = group.ok()?;
        if kind != ValType::I32 || locals.len() + count as usize > LOCALS_MAX {
            return None;
        }
        locals.resize(locals.len() + count as usize, 0);
    }
    let mut stack = Vec::new();
    for operator in body
        .get_operators_reader()
        .ok()?
        .into_iter()
        .take(OPERATORS_MAX)
    {
        match operator.ok()? {
            Operator::Nop => {}
            Operator::I32Const { value } => stack.push(value),
            Operator::LocalGet { local_index } => stack.push(*locals.get(local_index as usize)?),
            Operator::LocalSet { local_index } => {
                *locals.get_mut(local_index as usize)? = stack.pop()?
            }
            Operator::LocalTee { local_index } => {
                *locals.get_mut(local_index as usize)? = *stack.last()?
            }
            Operator::Drop => drop(stack.pop()?),
            Operator::Call { function_index } => {
                stack.push(evaluate(
                    scan,
                    types,
                    function_index,
                    calls_left.checked_sub(1)?,
                )?);
            }
            Operator::Return | Operator::End => return stack.pop(),
            _ => return None,
        }
    }
    None
}
