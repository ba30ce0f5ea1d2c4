//! Signals to processes that this crate has started. It never sends one to a process that it has already waited for.

use std::process::Child;

/// Sends a signal to a child that has not been waited for, so that its id is still its own.
pub(crate) fn send(child: &Child, signal: libc::c_int) -> bool {
    let Ok(pid) = libc::pid_t::try_from(child.id()) else {
        return false;
    };
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) == 0 }
}
