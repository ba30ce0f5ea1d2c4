//! What one connection carries over loopback at different packet sizes: `cargo run -p tidemill-transport --example
//! throughput`. Both ends share this process's two runtimes and the machine's cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_protocol::{AttemptId, ChannelHeader, ChannelId, Epoch, Frame, FrameBody, JobId};
use tidemill_transport::{Credentials, DataPlane, Endpoint, Incoming, TransportOptions};

const CHANNELS: u32 = 4;
const MEASURED: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let credentials = Credentials::ephemeral()?;
    for mtu in [1452, 4_300, 6_500, 32_000, 65_000] {
        for payload_bytes in [1 << 10, 32 << 10] {
            let options = TransportOptions {
                loopback_mtu_max_bytes: mtu,
                ..TransportOptions::default()
            };
            let (rate, cpu) = measure(&credentials, &options, payload_bytes)?;
            println!(
                "packets up to {mtu:>5} B, frames of {payload_bytes:>5} B: {rate:>5.0} MB/s, {cpu:.2} CPU s/GB"
            );
        }
    }
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
}

fn measure(
    credentials: &Credentials,
    options: &TransportOptions,
    payload_bytes: usize,
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let (sending, receiving) = (runtime()?, runtime()?);
    let bind = || {
        Endpoint::bind("127.0.0.1:0".parse()?, credentials, options.clone())
            .map_err(Box::<dyn std::error::Error>::from)
    };
    let to = receiving.block_on(async { bind() })?;
    let address = to.local_address();
    let (plane, listener) = (DataPlane::new(to.clone()), to);
    let adopting = plane.clone();
    receiving.spawn(async move {
        while let Some(incoming) = listener.accept().await {
            if let Incoming::Data(connection) = incoming {
                adopting.adopt(connection);
            }
        }
    });
    let received = Arc::<AtomicUsize>::default();
    receiving.spawn(take_all(plane, Arc::clone(&received)));
    let from = DataPlane::new(sending.block_on(async { bind() })?);
    for number in 0..CHANNELS {
        let header = ChannelHeader {
            job: JobId([0; 16]),
            attempt: AttemptId::new(Epoch(1), 1),
            channel: ChannelId {
                edge: 0,
                from: 0,
                to: number,
            },
        };
        let mut sender = sending.block_on(from.open_channel(address, header))?;
        let payload = Bytes::from(vec![1; payload_bytes]);
        sending.spawn(async move {
            let mut sequence = 0;
            loop {
                let mut batch: std::collections::VecDeque<_> = (sequence..sequence + 64)
                    .map(|sequence| Frame {
                        sequence,
                        body: FrameBody::Data(payload.clone()),
                    })
                    .collect();
                sequence += 64;
                if sender.send_all(&mut batch).await.is_err() {
                    return;
                }
            }
        });
    }
    std::thread::sleep(Duration::from_millis(500));
    let cpu_before = cpu_seconds()?;
    let (began, before) = (Instant::now(), received.load(Ordering::Relaxed));
    std::thread::sleep(MEASURED);
    let bytes = received.load(Ordering::Relaxed) - before;
    let gigabytes = bytes as f64 / 1e9;
    let rate = gigabytes * 1e3 / began.elapsed().as_secs_f64();
    let cpu = (cpu_seconds()? - cpu_before) / gigabytes;
    sending.shutdown_background();
    receiving.shutdown_background();
    Ok((rate, cpu))
}

/// Takes frames as fast as they come.
async fn take_all(plane: DataPlane, received: Arc<AtomicUsize>) {
    loop {
        let mut receiver = plane.accept_channel().await.receiver;
        let received = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = receiver.recv().await {
                received.fetch_add(frame.weight(), Ordering::Relaxed);
            }
        });
    }
}

/// CPU time of this process so far, in user and kernel mode: fields 14 and 15 of `proc_pid_stat(5)`, in hundredths.
fn cpu_seconds() -> std::io::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    Ok(ticks
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0)
}
