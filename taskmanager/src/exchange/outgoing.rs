//! The pump of one outgoing remote channel: drains its queue into its stream. The stream's flow control is the credit:
//! while the peer does not read, the pump waits, the queue fills, and the task is not called.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;

use tidemill_protocol::{ChannelHeader, FrameBody};
use tidemill_transport::{ChannelError, DataPlane};
use tokio_util::sync::CancellationToken;

use super::queue::Consumer;

/// Pumps frames until the channel's end of input has been sent, its task is gone, or `stop` is cancelled.
///
/// # Errors
/// When the connection breaks or the peer refuses the channel.
pub(crate) async fn send_channel(
    plane: DataPlane,
    peer: SocketAddr,
    header: ChannelHeader,
    queue: Consumer,
    stop: CancellationToken,
) -> Result<(), ChannelError> {
    let pump = async {
        let mut sender = plane.open_channel(peer, header).await?;
        let mut frames = VecDeque::new();
        loop {
            if !poll_fn(|context| queue.poll_drain(context, &mut frames)).await {
                sender.reset();
                return Ok(());
            }
            let last = frames
                .back()
                .is_some_and(|frame| frame.body == FrameBody::EndOfInput);
            sender.send_all(&mut frames).await?;
            if last {
                return sender.finish().await;
            }
        }
    };
    tokio::select! {
        result = pump => result,
        () = stop.cancelled() => Ok(()),
    }
}
