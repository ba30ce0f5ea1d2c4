//! A wire between one client and one server that can be watched and cut.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;

use crate::loopback;

/// Packets kept by [`Proxy::captured`].
const CAPTURED_MAX: usize = 64;

pub(crate) struct Proxy {
    address: SocketAddr,
    captured: Arc<Mutex<Vec<Vec<u8>>>>,
    to_client_bytes: Arc<AtomicU64>,
    cuts: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Forwards between whoever writes to it and the server. After `cut_every_bytes` towards the client it forwards
    /// nothing more until the client begins a new connection.
    pub(crate) async fn start(server: SocketAddr, cut_every_bytes: Option<u64>) -> Self {
        let front = UdpSocket::bind(loopback()).await.expect("a port");
        let back = UdpSocket::bind(loopback()).await.expect("a port");
        back.connect(server).await.expect("an address");
        let address = front.local_addr().expect("bound");
        let captured = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let (to_client_bytes, cuts) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (capturing, bytes, cutting) = (
            Arc::clone(&captured),
            Arc::clone(&to_client_bytes),
            Arc::clone(&cuts),
        );
        let task = tokio::spawn(async move {
            let mut client = None;
            let mut left = cut_every_bytes.unwrap_or(u64::MAX);
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    Ok((len, from)) = front.recv_from(&mut up) => {
                        client = Some(from);
                        let packet = &up[..len];
                        if left == 0 && is_initial(packet) {
                            left = cut_every_bytes.unwrap_or(u64::MAX);
                        }
                        if left > 0 {
                            remember(&capturing, packet);
                            back.send(packet).await.ok();
                        }
                    }
                    Ok(len) = back.recv(&mut down) => {
                        if let Some(client) = client && left > 0 {
                            bytes.fetch_add(len as u64, Ordering::Relaxed);
                            front.send_to(&down[..len], client).await.ok();
                            left = left.saturating_sub(len as u64);
                            if left == 0 {
                                cutting.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                    else => {}
                }
            }
        });
        Self {
            address,
            captured,
            to_client_bytes,
            cuts,
            task,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first packets from the client.
    pub(crate) fn captured(&self) -> Vec<Vec<u8>> {
        self.captured.lock().expect("not poisoned").clone()
    }

    pub(crate) fn to_client_bytes(&self) -> u64 {
        self.to_client_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn remember(captured: &Mutex<Vec<Vec<u8>>>, packet: &[u8]) {
    let mut captured = captured.lock().expect("not poisoned");
    if captured.len() < CAPTURED_MAX {
        captured.push(packet.to_vec());
    }
}

/// A long header of type Initial (RFC 9000, section 17.2).
fn is_initial(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0xb0 == 0x80)
}
