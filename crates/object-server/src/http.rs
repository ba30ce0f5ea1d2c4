//! As much of HTTP/1.1 as a proxy needs that serves one request a connection. It never reads chunked bodies: the clients
//! under test send lengths.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest head that is read, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A request, whole.
pub(crate) struct Request {
    /// Its first line.
    pub(crate) line: String,
    /// All of it, with the wish that the server closes the connection afterwards.
    pub(crate) bytes: Vec<u8>,
}

/// Reads a request; `None` when the connection ends before one.
pub(crate) async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("the head of a request is too long"));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let total = end + content_length(&head)?;
    let read = bytes.len();
    if read < total {
        bytes.resize(total, 0);
        stream.read_exact(&mut bytes[read..]).await?;
    }
    bytes.splice(end - 2..end - 2, *b"connection: close\r\n");
    Ok(Some(Request {
        line: head.lines().next().unwrap_or_default().into(),
        bytes,
    }))
}

fn content_length(head: &str) -> io::Result<usize> {
    for line in head.lines() {
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            return value.trim().parse().map_err(io::Error::other);
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(io::Error::other("chunked requests are not understood"));
        }
    }
    Ok(0)
}
