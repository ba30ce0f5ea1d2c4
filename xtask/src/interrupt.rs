//! Ctrl-C as a value: a verb that started processes asks here while it waits, and ends by the error path, where every
//! process is killed by what owns it.
//!
//! It never ends this program by itself; a second Ctrl-C does, and the processes die with it (see `cluster::process`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How long a wait sleeps before it looks again whether somebody wants to leave.
const STEP: Duration = Duration::from_millis(20);

/// From now on the first SIGINT, SIGTERM or SIGHUP only makes [`check`] fail.
pub(crate) fn watch() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: all fields of the C struct may be zero, the handler only stores to an atomic, which a signal handler
        // may do, and every pointer lives as long as the call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Fails once somebody wants to leave.
pub(crate) fn check() -> anyhow::Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Waits, unless somebody wants to leave.
pub(crate) fn pause(duration: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + duration;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(STEP));
    }
}

/// Asks `probe` again and again until it has an answer. `what` completes "waited 10 s for …".
pub(crate) fn wait_for<Answer>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Option<Answer>>,
) -> anyhow::Result<Answer> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        pause(STEP)?;
    }
}
