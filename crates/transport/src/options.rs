//! What a deployment can tune about its connections, and its translation for QUIC. Nothing here is read from files.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How an endpoint's connections behave. The defaults suit a cluster in one data centre.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportOptions {
    /// Time between two keep-alives of an idle connection.
    pub keep_alive_interval: Duration,
    /// A connection from which nothing was heard for this long is lost.
    pub idle_timeout: Duration,
    /// Streams that a peer may have open at once on one connection: the number of channels that can come from it.
    /// Past it the peer's `open_channel` would wait for ever, so it is far above what is deployed.
    pub channels_max: u32,
    /// What a sender may have in flight on one channel before its receiver reads, in bytes: the channel's credit.
    pub channel_window_bytes: u32,
    /// What one connection keeps in memory until the peer's kernel has acknowledged it, in bytes.
    pub send_buffer_bytes: u64,
    /// The send and receive buffer to ask the kernel for, in bytes. What it gives is logged.
    pub socket_buffer_bytes: usize,
    /// The largest UDP payload that is tried on a network, in bytes; 1452 is Ethernet's over IPv6.
    pub mtu_max_bytes: u16,
    /// The same between processes of one machine, where a packet costs the same whatever its size: 65,000 instead of
    /// 1452 moves two to three times as much per CPU second (`examples/throughput.rs`).
    pub loopback_mtu_max_bytes: u16,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            keep_alive_interval: Duration::from_millis(200),
            idle_timeout: Duration::from_secs(2),
            channels_max: 100_000,
            channel_window_bytes: 256 << 10,
            send_buffer_bytes: 16 << 20,
            socket_buffer_bytes: 4 << 20,
            mtu_max_bytes: 1452,
            loopback_mtu_max_bytes: 65_000,
        }
    }
}

/// The smallest upper bound that QUIC accepts for its packets (RFC 9000, section 14).
const MTU_MIN_BYTES: u16 = 1200;

impl TransportOptions {
    /// The configuration of connections with `peer`.
    pub(crate) fn transport_config(&self, peer: SocketAddr) -> Arc<quinn::TransportConfig> {
        let mut config = quinn::TransportConfig::default();
        let idle_timeout = quinn::IdleTimeout::try_from(self.idle_timeout)
            .unwrap_or_else(|_| quinn::VarInt::MAX.into());
        config
            .keep_alive_interval(Some(self.keep_alive_interval))
            .max_idle_timeout(Some(idle_timeout))
            .max_concurrent_uni_streams(self.channels_max.into())
            .max_concurrent_bidi_streams(4_u32.into())
            .stream_receive_window(self.channel_window_bytes.into())
            .send_window(self.send_buffer_bytes)
            // The default is for the Internet; an estimate too high only delays the first retransmissions.
            .initial_rtt(Duration::from_millis(20))
            .datagram_receive_buffer_size(Some(64 << 10));
        let loopback = is_loopback(peer);
        let mtu_max_bytes = if loopback {
            self.loopback_mtu_max_bytes
        } else {
            self.mtu_max_bytes
        };
        let mut discovery = quinn::MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu_max_bytes.max(MTU_MIN_BYTES));
        config.mtu_discovery_config(Some(discovery));
        if loopback && self.loopback_mtu_max_bytes > SEGMENTED_MTU_MAX_BYTES {
            // Segmentation offload hands the kernel ten packets at once, in 64 KiB at most.
            config.enable_segmentation_offload(false);
        }
        Arc::new(config)
    }

    /// The largest packet that an endpoint may ever be sent, in bytes.
    pub(crate) fn udp_payload_max_bytes(&self) -> u16 {
        const UDP_PAYLOAD_MAX_BYTES: u16 = 65_527;
        const QUINN_DEFAULT_BYTES: u16 = 1472;
        self.mtu_max_bytes
            .max(self.loopback_mtu_max_bytes)
            .clamp(QUINN_DEFAULT_BYTES, UDP_PAYLOAD_MAX_BYTES)
    }
}

/// Ten packets of this size still fit the kernel's 64 KiB for one segmented send.
const SEGMENTED_MTU_MAX_BYTES: u16 = 6_500;

fn is_loopback(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}
