//! Free ports. It never takes one from the range that the system gives to outgoing connections: a server that is
//! restarted must find its port free.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, TcpListener};

use crate::EnsembleError;

/// Below what Linux gives to outgoing connections (32768 and above), and above what is commonly served.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// How many a server takes.
const NUMBER: usize = 4;

/// The ports of a server on another host, which cannot be tried from here and has no other servers than these.
pub(crate) fn fixed(server: usize) -> [u16; NUMBER] {
    std::array::from_fn(|port| {
        let offset = server * NUMBER + port;
        PORTS.start + u16::try_from(offset).expect("ensembles are small")
    })
}

/// Ports at an address that nobody listens on. Held for as long as the value lives.
pub(crate) fn free(address: IpAddr) -> Result<[TcpListener; NUMBER], EnsembleError> {
    // Tests that run at the same time begin elsewhere.
    let random = RandomState::new().hash_one(std::process::id());
    let span = u64::from(PORTS.end - PORTS.start);
    let first = PORTS.start + u16::try_from(random % span).expect("the span fits");
    let found: Vec<TcpListener> = (first..PORTS.end)
        .chain(PORTS.start..first)
        .filter_map(|port| TcpListener::bind((address, port)).ok())
        .take(NUMBER)
        .collect();
    found
        .try_into()
        .map_err(|_| EnsembleError::NoPort { address })
}
