//! A thread whose only work is to hold a connection, so that it closes as soon as the process is killed.
//!
//! The threads of a process share one table of open files, and its last thread closes them, after it has given back the
//! process's memory: 0.1 s for each GiB. This thread has a table of its own, with nothing but its connection in it, which
//! the kernel closes with the thread: within a millisecond of the kill, if the thread is not the last to end. That it
//! may not be is the reason why it asks for the highest priority; where the system refuses that, or the table, the
//! connection closes with the others.
//!
//! The thread never sends anything on the connection, never opens a file, and wakes nobody but through its own end of a
//! pair of sockets: whatever else would wake a task writes to a descriptor that its table does not have.
#![allow(
    unsafe_code,
    reason = "tables of open files are beyond what the standard library knows of"
)]

use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::{mem, ptr};

use tokio::io::AsyncReadExt;

/// The highest priority there is.
const NICE: libc::c_int = -20;

/// Standard input, output and error: also a thread that panics has something to say.
const STANDARD: RawFd = 2;

/// What the thread says when the connection has ended, or has something to read; errors are said by their number, which
/// is between the two.
const ENDED: u8 = 0;
const SOMETHING: u8 = u8::MAX;

/// The thread. It lets go of the connection when this is dropped.
#[derive(Debug)]
pub(crate) struct Witness {
    /// The thread says one byte here, and sees it close.
    thread: tokio::net::UnixStream,
}

impl Witness {
    /// Gives the connection to a thread, or back where the system has no table of open files for it.
    pub(crate) async fn hold(stream: TcpStream) -> Result<Self, (io::Error, Option<TcpStream>)> {
        // What is begun here is done also if nobody waits for it: the thread relies on that.
        let given = tokio::task::spawn_blocking(move || match give(&stream) {
            Ok(thread) => Ok(thread),
            Err(error) => Err((error, Some(stream))),
        });
        let lost = |error| (error, None);
        let thread = given.await.map_err(|error| lost(error.into()))??;
        let thread = tokio::net::UnixStream::from_std(thread).map_err(lost)?;
        Ok(Self { thread })
    }

    /// What reading from the connection comes to. May be dropped and called again, until it has said it.
    pub(crate) async fn read(&mut self) -> io::Result<usize> {
        let mut said = [0];
        match self.thread.read(&mut said).await? {
            0 => Err(io::Error::other("the thread that held it is gone")),
            _ if said[0] == ENDED => Ok(0),
            _ if said[0] == SOMETHING => Ok(1),
            _ => Err(io::Error::from_raw_os_error(said[0].into())),
        }
    }
}

/// Starts the thread, and returns when it holds a copy of the connection in a table of its own.
fn give(stream: &TcpStream) -> io::Result<UnixStream> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    let (ready, is_ready) = mpsc::channel();
    let (held, end) = (stream.as_raw_fd(), far.as_raw_fd());
    std::thread::Builder::new()
        .name("liveness".to_owned())
        .spawn(move || {
            // SAFETY: both are open in the process's table until `ready` is heard or dropped, and from then on in the
            // thread's own, with which they close.
            let (held, mut end) = unsafe {
                (
                    ManuallyDrop::new(TcpStream::from_raw_fd(held)),
                    ManuallyDrop::new(UnixStream::from_raw_fd(end)),
                )
            };
            let taken = take_own_table([held.as_raw_fd(), end.as_raw_fd()]);
            let is_taken = taken.is_ok();
            let is_heard = ready.send(taken).is_ok();
            if is_taken && is_heard {
                // Whoever does not listen any more has let go of the connection.
                let _ = wait(&held, &end).and_then(|said| end.write_all(&[said]));
            }
        })?;
    // Until here nothing has closed `stream` and `far`.
    let taken = is_ready.recv();
    taken.map_err(|_| io::Error::other("the thread is gone"))??;
    Ok(near)
}

/// Gives the calling thread a table of open files with nothing but these two in it, which keep their numbers, and makes
/// it the first to run. After an error it has the process's table still, or a copy.
fn take_own_table(kept: [RawFd; 2]) -> io::Result<()> {
    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: a set of signals is plain data, and is filled before it is read. The handlers of the process write to
    // descriptors, so that none may run in this thread.
    unsafe {
        let mut every = mem::zeroed();
        done(libc::sigfillset(&raw mut every))?;
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const every, ptr::null_mut());
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
    }
    // SAFETY: without other flags this copies the table, for this thread alone.
    done(unsafe { libc::unshare(libc::CLONE_FILES) })?;
    let (low, high) = (kept[0].min(kept[1]), kept[0].max(kept[1]));
    for (first, last) in [
        (STANDARD + 1, low - 1),
        (low + 1, high - 1),
        (high + 1, RawFd::MAX),
    ] {
        if first <= last {
            // SAFETY: these are copies in this thread's own table, and nothing in this thread uses them.
            done(unsafe { libc::close_range(first as u32, last as u32, 0) })?;
        }
    }
    // SAFETY: it takes integers; 0 is the calling thread. Without the right to it, chance decides which thread ends last.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    Ok(())
}

/// Waits until something comes on the connection; what is to be said of it. An error if the other end has let go.
fn wait(mut stream: &TcpStream, end: &UnixStream) -> io::Result<u8> {
    let watched = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut both = [watched(stream.as_raw_fd()), watched(end.as_raw_fd())];
    loop {
        // SAFETY: it writes to an array of two, which lives through the call.
        let ready = unsafe { libc::poll(both.as_mut_ptr(), 2, -1) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        } else if both[1].revents != 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        } else if both[0].revents != 0 {
            return Ok(match stream.read(&mut [0]) {
                Ok(0) => ENDED,
                Ok(_) => SOMETHING,
                Err(error) => number(&error),
            });
        }
    }
}

/// The number of an error of the system, which is below 134 on Linux; of one that has none, that of a failed device.
fn number(error: &io::Error) -> u8 {
    let known = error
        .raw_os_error()
        .and_then(|number| number.try_into().ok());
    known
        .filter(|number| (ENDED + 1..SOMETHING).contains(number))
        .unwrap_or(libc::EIO as u8)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let near = TcpStream::connect(address).expect("it listens");
        let (far, _) = listener.accept().expect("somebody has connected");
        (near, far)
    }

    /// What the kernel calls this socket in tables of open files.
    fn name(socket: &impl AsRawFd) -> PathBuf {
        std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).expect("it is open")
    }

    fn is_in_table(socket: &PathBuf) -> bool {
        let table = std::fs::read_dir("/proc/self/fd").expect("a table");
        let names = table.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        names.into_iter().any(|name| name == *socket)
    }

    #[tokio::test]
    async fn the_connection_is_in_no_table_but_the_threads_and_ends_with_the_witness() {
        let (near, mut far) = connected();
        let socket = name(&near);
        assert!(is_in_table(&socket));
        let witness = Witness::hold(near).await.expect("this system can");
        assert!(!is_in_table(&socket));
        drop(witness);
        assert_eq!(far.read(&mut [0]).expect("an end"), 0);
    }

    #[tokio::test]
    async fn what_the_other_end_does_is_told() {
        let (near, far) = connected();
        let mut witness = Witness::hold(near).await.expect("this system can");
        drop(far);
        assert_eq!(witness.read().await.expect("an end"), 0);

        let (near, mut far) = connected();
        let mut witness = Witness::hold(near).await.expect("this system can");
        far.write_all(b"x").expect("sent");
        assert_eq!(witness.read().await.expect("a byte"), 1);
        assert_eq!(far.read(&mut [0]).expect("an end"), 0);

        let (near, far) = connected();
        let mut witness = Witness::hold(near).await.expect("this system can");
        socket2::SockRef::from(&far)
            .set_linger(Some(Duration::ZERO))
            .expect("a socket");
        drop(far);
        let error = witness.read().await.expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let error = witness.read().await.expect_err("it was told");
        assert!(error.to_string().contains("is gone"), "{error}");
    }

    /// Whoever is told may be asleep: the thread wakes its runtime without the runtime's descriptors.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_waits_is_woken() {
        let (near, far) = connected();
        let mut witness = Witness::hold(near).await.expect("this system can");
        let waiting = tokio::spawn(async move { witness.read().await });
        std::thread::spawn(move || drop(far));
        assert_eq!(waiting.await.expect("no panic").expect("an end"), 0);
    }
}
