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

/// Waits until a child that was sent SIGSTOP has stopped with all its threads: the signal itself only asks for that,
/// and a thread that runs on another processor goes on for a moment. False when it ended instead.
pub(crate) fn wait_until_stopped(child: &Child) -> bool {
    // SAFETY: all-zero bytes are a valid `siginfo_t`, which is a C structure of integers and pointers.
    let mut what: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // Without WNOWAIT the standard library's own wait would miss an end that is seen here.
    let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
    loop {
        // SAFETY: waitid(2) writes one `siginfo_t` to the address of a live local one.
        let result = unsafe { libc::waitid(libc::P_PID, child.id(), &raw mut what, options) };
        if result == 0 {
            return what.si_code == libc::CLD_STOPPED;
        }
        if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return false;
        }
    }
}
