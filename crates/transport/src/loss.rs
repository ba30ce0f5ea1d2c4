//! Why a connection could not be made and why one ended, in words that name the peer and the remedy. It translates
//! what QUIC and TLS report; it never decides what a loss means for a job.

use std::fmt;
use std::net::SocketAddr;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The name in its certificate.
    pub name: String,
    /// Where its packets come from.
    pub address: SocketAddr,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

/// An address as it is compared: a dual-stack socket shows IPv4 peers in IPv6 form.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Why an established connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionLoss {
    /// Nothing was heard for the idle timeout: the machine, the network or the process is gone or stalled.
    #[error("nothing was heard from it for the idle timeout")]
    Silent,
    /// A new process with the same identity answers at the address.
    #[error("its process has been replaced by a new one")]
    Restarted,
    /// The peer closed the connection and said why.
    #[error("it closed the connection: {0}")]
    ClosedByPeer(String),
    /// This process closed the connection.
    #[error("this process closed the connection")]
    ClosedHere,
    /// The peer broke the protocol, or this end did in its eyes.
    #[error("the protocol was broken: {0}")]
    Protocol(String),
}

/// Why no connection was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers.
    #[error(
        "nothing answers at {address}: check that a Tidemill process runs there and that UDP port {} is open",
        address.port()
    )]
    Silent {
        /// Who was called.
        address: SocketAddr,
    },
    /// The peer's certificate, or this process's in the peer's eyes, is not of this cluster or not valid.
    #[error(
        "{address} and this process do not trust each other ({reason}): give every process of a cluster a certificate \
         of the same CA (`tidemill certs`), and check the machines' clocks"
    )]
    Foreign {
        /// Who was called.
        address: SocketAddr,
        /// What TLS said, and on which side.
        reason: String,
    },
    /// Something answers, but not in this protocol.
    #[error(
        "{address} does not speak this release's protocol ({reason}): check the address, and that all processes are of \
         one release"
    )]
    OtherProtocol {
        /// Who was called.
        address: SocketAddr,
        /// The details.
        reason: String,
    },
    /// The peer answered and turned the connection down, or was lost in the middle of the greeting.
    #[error("the connection to {address} was lost while it was made")]
    Lost {
        /// Who was called.
        address: SocketAddr,
        /// Why.
        #[source]
        loss: ConnectionLoss,
    },
    /// The address cannot be dialled from this endpoint.
    #[error("{address} cannot be reached from this endpoint: {reason}")]
    Address {
        /// Who was to be called.
        address: SocketAddr,
        /// The details.
        reason: String,
    },
}

impl From<&quinn::ConnectionError> for ConnectionLoss {
    fn from(error: &quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as Error;
        match error {
            Error::TimedOut => Self::Silent,
            Error::Reset => Self::Restarted,
            Error::LocallyClosed => Self::ClosedHere,
            Error::ApplicationClosed(close) => {
                Self::ClosedByPeer(printable(&close.reason, "it gave no reason"))
            }
            Error::ConnectionClosed(_)
            | Error::TransportError(_)
            | Error::VersionMismatch
            | Error::CidsExhausted => Self::Protocol(error.to_string()),
        }
    }
}

impl ConnectError {
    /// Sorts what QUIC said while a connection to `address` was made.
    pub(crate) fn from_quic(address: SocketAddr, error: &quinn::ConnectionError) -> Self {
        if let quinn::ConnectionError::TimedOut = error {
            return Self::Silent { address };
        }
        match tls_alert(error) {
            Some(alert @ (ALERT_NO_APPLICATION_PROTOCOL, _)) => Self::OtherProtocol {
                address,
                reason: alert.1,
            },
            Some((_, reason)) => Self::Foreign { address, reason },
            None => match error {
                quinn::ConnectionError::VersionMismatch => Self::OtherProtocol {
                    address,
                    reason: error.to_string(),
                },
                _ => Self::Lost {
                    address,
                    loss: error.into(),
                },
            },
        }
    }
}

/// RFC 7301, section 3.2.
const ALERT_NO_APPLICATION_PROTOCOL: u8 = 120;

/// The TLS alert that ended a handshake, with a sentence that says which side raised it. QUIC carries alerts as the
/// transport errors 0x100 to 0x1ff (RFC 9001, section 4.8).
pub(crate) fn tls_alert(error: &quinn::ConnectionError) -> Option<(u8, String)> {
    let (code, sentence) = match error {
        quinn::ConnectionError::TransportError(error) => (
            u64::from(error.code),
            format!("this process refuses: {}", error.reason),
        ),
        quinn::ConnectionError::ConnectionClosed(close) => (
            u64::from(close.error_code),
            format!(
                "the other refuses: {}",
                printable(&close.reason, &close.error_code.to_string())
            ),
        ),
        _ => return None,
    };
    let alert = u8::try_from(code.checked_sub(0x100)?).ok()?;
    Some((alert, sentence))
}

/// A peer's reason, fit for a log line: bounded, without control characters.
fn printable(reason: &[u8], otherwise: &str) -> String {
    const REASON_MAX_CHARS: usize = 300;
    if reason.is_empty() {
        return otherwise.into();
    }
    String::from_utf8_lossy(reason)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(REASON_MAX_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_reason_cannot_forge_log_lines() {
        let reason = printable("bye\n2026 ERROR forged\u{1b}[31m".as_bytes(), "");
        assert_eq!(reason, "bye 2026 ERROR forged [31m");
        assert_eq!(printable(&[b'x'; 5000], "").len(), 300);
        assert_eq!(printable(b"", "nothing"), "nothing");
    }
}
