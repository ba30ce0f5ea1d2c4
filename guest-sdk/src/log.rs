//! Where a job's words go: `println!`, `eprintln!`, `dbg!` and panics. In a Wasm instance they reach the task's log;
//! natively they print as std's do. It never buffers: a line is logged when it is written.

use core::fmt::Arguments;

#[cfg(target_arch = "wasm32")]
use tidemill_abi::LogLevel;

/// A line on standard output: what the SDK's `println!` calls.
pub fn out(line: Arguments<'_>) {
    #[cfg(target_arch = "wasm32")]
    crate::host::log(LogLevel::Out, &line.to_string());
    #[cfg(not(target_arch = "wasm32"))]
    std::println!("{line}");
}

/// A line on standard error: what the SDK's `eprintln!` and `dbg!` call.
pub fn err(line: Arguments<'_>) {
    #[cfg(target_arch = "wasm32")]
    crate::host::log(LogLevel::Err, &line.to_string());
    #[cfg(not(target_arch = "wasm32"))]
    std::eprintln!("{line}");
}

/// Makes a panic log its message and location before it traps. The hook lives in the instance's memory, so it
/// needs no installing after a restore.
#[cfg(target_arch = "wasm32")]
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        crate::host::log(LogLevel::Panic, &info.to_string())
    }));
}

/// Writes a line to the task's log: std's `println!`, which a Wasm instance would discard.
#[macro_export]
macro_rules! println {
    () => { $crate::log::out(::core::format_args!("")) };
    ($($argument:tt)*) => { $crate::log::out(::core::format_args!($($argument)*)) };
}

/// Writes a line to the task's log as an error: std's `eprintln!`, which a Wasm instance would discard.
#[macro_export]
macro_rules! eprintln {
    () => { $crate::log::err(::core::format_args!("")) };
    ($($argument:tt)*) => { $crate::log::err(::core::format_args!($($argument)*)) };
}

/// Writes an expression and its value to the task's log and gives the value back: std's `dbg!`.
#[macro_export]
macro_rules! dbg {
    () => { $crate::log::err(::core::format_args!("[{}:{}]", ::core::file!(), ::core::line!())) };
    ($value:expr $(,)?) => {
        match $value {
            value => {
                $crate::log::err(::core::format_args!(
                    "[{}:{}] {} = {:#?}", ::core::file!(), ::core::line!(), ::core::stringify!($value), &value
                ));
                value
            }
        }
    };
    ($($value:expr),+ $(,)?) => { ($($crate::dbg!($value)),+,) };
}
