//! Signals to children, for whoever starts processes in tests. It never sends one to a process that it has already waited
//! for.

use std::io;
use std::process::Child;

/// Sends a signal to a child that has not been waited for, so that its id is still its own.
///
/// # Errors
/// What the system says, as when the child has ended and been waited for.
pub fn send(child: &Child, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stops a child with SIGSTOP, and waits until it has stopped with all its threads: the signal itself only asks for that,
/// and a thread that runs on another processor goes on for a moment.
///
/// # Errors
/// When it has ended, or ends instead.
pub fn freeze(child: &Child) -> io::Result<()> {
    send(child, libc::SIGSTOP)?;
    // SAFETY: all-zero bytes are a valid `siginfo_t`, which is a C structure of integers and pointers.
    let mut what: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // Without WNOWAIT the standard library's own wait would miss an end that is seen here.
    let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
    loop {
        // SAFETY: waitid(2) writes one `siginfo_t` to the address of a live local one.
        let result = unsafe { libc::waitid(libc::P_PID, child.id(), &raw mut what, options) };
        if result == 0 && what.si_code == libc::CLD_STOPPED {
            return Ok(());
        }
        if result == 0 {
            return Err(io::Error::other("it ended instead of stopping"));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Lets a child that was stopped go on, with SIGCONT.
///
/// # Errors
/// When it has ended.
pub fn thaw(child: &Child) -> io::Result<()> {
    send(child, libc::SIGCONT)
}
