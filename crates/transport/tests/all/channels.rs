//! Channels between TaskManagers: thousands on one connection, and none waits for another.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_protocol::split::SplitRequest;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, Frame, FrameBody, JobId, TaskId};
use tidemill_transport::{
    ChannelError, ChannelReceiver, ChannelSender, ConnectError, ConnectionLoss, Credentials,
    TransportOptions,
};

use crate::{data_frame, data_plane, header, loopback, patient_options, soon};

/// One channel from one data plane to another.
async fn channel(options: TransportOptions) -> (ChannelSender, ChannelReceiver) {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (from, _) = data_plane(&credentials, options.clone());
    let (to, address) = data_plane(&credentials, options);
    let sender = soon("opening", from.open_channel(address, header(0)))
        .await
        .expect("opened");
    let incoming = soon("the channel", to.accept_channel()).await;
    (sender, incoming.receiver)
}

/// Sends until that fails.
async fn send_for_ever(sender: &mut ChannelSender) -> ChannelError {
    for sequence in 0.. {
        if let Err(error) = sender.send(data_frame(sequence, vec![0; 32 << 10])).await {
            return error;
        }
    }
    unreachable!("the numbers do not end")
}

#[tokio::test]
async fn frames_of_every_kind_and_size_arrive_in_order() {
    let (mut sender, mut receiver) = channel(patient_options()).await;
    let bodies = [
        FrameBody::Data(Bytes::new()),
        FrameBody::Data(Bytes::from(vec![1; 100])),
        FrameBody::Barrier(CheckpointId::new(Epoch(2), 9)),
        FrameBody::Data(Bytes::from(vec![2; 32 << 10])),
        FrameBody::Watermark(-1),
        // Many windows long.
        FrameBody::Data(Bytes::from(vec![3; 5 << 20])),
        FrameBody::EndOfInput,
    ];
    let frames: Vec<_> = (0..)
        .zip(bodies)
        .map(|(sequence, body)| Frame { sequence, body })
        .collect();
    let to_send = frames.clone();
    let sending = tokio::spawn(async move {
        for frame in to_send {
            sender.send(frame).await.expect("sent");
        }
        sender.finish().await.expect("finished");
    });
    for frame in frames {
        assert_eq!(
            soon("a frame", receiver.recv()).await.expect("received"),
            Some(frame)
        );
    }
    assert_eq!(
        soon("the end", receiver.recv()).await.expect("in order"),
        None
    );
    sending.await.expect("the sender went well");
}

#[tokio::test]
async fn many_small_frames_go_together_and_a_dropped_send_loses_none() {
    let (mut sender, mut receiver) = channel(patient_options()).await;
    const FRAMES: u64 = 50_000;
    let mut queue: VecDeque<_> = (0..FRAMES)
        .map(|n| data_frame(n, n.to_le_bytes().to_vec()))
        .collect();
    let sending = async {
        while !queue.is_empty() {
            // Polled once and dropped, as a `select!` does.
            tokio::select! {
                biased;
                sent = sender.send_all(&mut queue) => sent.expect("sent"),
                () = tokio::task::yield_now() => {}
            }
        }
        sender.finish().await.expect("finished");
    };
    let receiving = async {
        let mut received = 0;
        while let Some(frame) = receiver.recv().await.expect("received") {
            assert_eq!(frame, data_frame(received, received.to_le_bytes().to_vec()));
            received += 1;
            while let Some(frame) = receiver.recv_held().expect("received") {
                assert_eq!(frame.sequence, received);
                received += 1;
            }
        }
        assert_eq!(received, FRAMES);
    };
    soon("the frames", async { tokio::join!(sending, receiving) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_channels_share_one_connection_and_none_waits_for_another() {
    const CHANNELS: u32 = 10_000;
    const FRAMES: u64 = 5;
    let credentials = Credentials::ephemeral().expect("credentials");
    let (from, _) = data_plane(&credentials, patient_options());
    let (to, address) = data_plane(&credentials, patient_options());
    let began = Instant::now();

    let accepting = tokio::spawn(async move {
        let mut receivers = Vec::new();
        for _ in 0..CHANNELS {
            receivers.push(to.accept_channel().await.receiver);
        }
        (receivers, to)
    });
    let mut senders = Vec::new();
    for number in 0..CHANNELS {
        senders.push(
            soon("opening", from.open_channel(address, header(number)))
                .await
                .expect("opened"),
        );
    }
    let (mut receivers, _to) = soon("all channels", accepting).await.expect("accepted");
    println!("{CHANNELS} channels open after {:?}", began.elapsed());

    // The first channel's reader never reads, so its sender fills the window and waits.
    receivers.sort_by_key(|receiver| receiver.header().channel.to);
    let mut receivers = receivers.into_iter();
    let stalled_receiver = receivers.next().expect("ten thousand");
    let mut senders = senders.into_iter();
    let mut stalled = senders.next().expect("ten thousand");
    let mut stalled_sending = tokio::spawn(async move { send_for_ever(&mut stalled).await });

    let sending = tokio::spawn(async move {
        let mut senders: Vec<_> = senders.collect();
        for sequence in 0..FRAMES {
            for sender in &mut senders {
                sender
                    .send(data_frame(sequence, vec![7; 100]))
                    .await
                    .expect("sent");
            }
        }
        for sender in &mut senders {
            sender.finish().await.expect("finished");
        }
        senders
    });
    let mut readers = tokio::task::JoinSet::new();
    for mut receiver in receivers {
        readers.spawn(async move {
            let mut frames = 0;
            while receiver.recv().await.expect("received").is_some() {
                frames += 1;
            }
            frames
        });
    }
    let counts = soon("every other channel's end", readers.join_all()).await;
    assert_eq!(counts, vec![FRAMES; CHANNELS as usize - 1]);
    println!("{} frames each after {:?}", FRAMES, began.elapsed());
    drop(soon("the senders", sending).await.expect("sent"));

    let still_stalled = tokio::time::timeout(Duration::from_millis(50), &mut stalled_sending).await;
    assert!(still_stalled.is_err(), "nobody reads the first channel");
    stalled_receiver.stop();
    let error = soon("the stop", stalled_sending).await.expect("no panic");
    assert!(matches!(error, ChannelError::Stopped { .. }), "{error}");
}

#[tokio::test]
async fn an_unread_channel_stops_its_sender_after_its_window_and_no_other() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let options = patient_options();
    let window = u64::from(options.channel_window_bytes);
    let (from, _) = data_plane(&credentials, options.clone());
    let (to, address) = data_plane(&credentials, options);
    let mut unread = from.open_channel(address, header(0)).await.expect("opened");
    let mut unread_receiver = soon("the channel", to.accept_channel()).await.receiver;
    let mut other = from.open_channel(address, header(1)).await.expect("opened");
    let mut other_receiver = soon("the channel", to.accept_channel()).await.receiver;

    const PAYLOAD_BYTES: usize = 4 << 10;
    let mut sent = 0;
    while let Ok(result) = tokio::time::timeout(
        // Long enough for a machine that is busy with other tests.
        Duration::from_secs(2),
        unread.send(data_frame(sent, vec![0; PAYLOAD_BYTES])),
    )
    .await
    {
        result.expect("sent");
        sent += 1;
    }
    let in_flight = sent * PAYLOAD_BYTES as u64;
    assert!(
        in_flight <= window,
        "{in_flight} bytes were taken with a window of {window}"
    );
    assert!(
        in_flight > window * 9 / 10,
        "only {in_flight} bytes of a window of {window}"
    );

    for sequence in 0..500 {
        other
            .send(data_frame(sequence, vec![1; PAYLOAD_BYTES]))
            .await
            .expect("sent");
        let frame = soon("the other channel", other_receiver.recv())
            .await
            .expect("received");
        assert_eq!(frame.map(|frame| frame.sequence), Some(sequence));
    }

    // Reading gives the credit back, and the frame that was waiting is not lost.
    let reading = async {
        for sequence in 0..=sent {
            let frame = unread_receiver
                .recv()
                .await
                .expect("received")
                .expect("not the end");
            assert_eq!(frame.sequence, sequence);
        }
    };
    let finishing = async { unread.finish().await.expect("flushed") };
    soon("the backlog", async { tokio::join!(reading, finishing) }).await;
}

#[tokio::test]
async fn each_side_hears_how_the_other_left_a_channel() {
    let (sender, mut receiver) = channel(patient_options()).await;
    sender.reset();
    let error = soon("the reset", receiver.recv())
        .await
        .expect_err("given up");
    assert!(matches!(error, ChannelError::Reset { .. }), "{error}");

    let (sender, mut receiver) = channel(patient_options()).await;
    drop(sender);
    let error = soon("the drop", receiver.recv())
        .await
        .expect_err("given up, not finished");
    assert!(matches!(error, ChannelError::Reset { .. }), "{error}");

    let (mut sender, receiver) = channel(patient_options()).await;
    drop(receiver);
    let error = soon("the refusal", send_for_ever(&mut sender)).await;
    assert!(matches!(error, ChannelError::Stopped { .. }), "{error}");
}

#[tokio::test]
async fn a_disconnect_ends_every_channel_at_once_with_the_peers_address() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (from, from_address) = data_plane(&credentials, patient_options());
    let (to, address) = data_plane(&credentials, patient_options());
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for number in 0..20 {
        senders.push(
            from.open_channel(address, header(number))
                .await
                .expect("opened"),
        );
        receivers.push(soon("the channel", to.accept_channel()).await.receiver);
    }
    from.disconnect(address, "the leader has declared it lost");
    for sender in &mut senders {
        let error = sender
            .send(data_frame(0, vec![0; 10]))
            .await
            .expect_err("disconnected");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert!(matches!(
            error,
            ChannelError::Lost {
                loss: ConnectionLoss::ClosedHere,
                ..
            }
        ));
    }
    for receiver in &mut receivers {
        let error = soon("the loss", receiver.recv())
            .await
            .expect_err("disconnected");
        assert!(
            error.to_string().contains(&from_address.to_string()),
            "{error}"
        );
    }
    // Who asks for a channel afterwards gets a new connection.
    let mut sender = soon("a new one", from.open_channel(address, header(99)))
        .await
        .expect("opened");
    sender.send(data_frame(0, vec![1])).await.expect("sent");
    let incoming = soon("the new one", to.accept_channel()).await;
    assert_eq!(incoming.header, header(99));
}

#[tokio::test]
async fn a_connection_is_used_in_both_directions() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (one, one_address) = data_plane(&credentials, patient_options());
    let (other, other_address) = data_plane(&credentials, patient_options());
    let mut there = one
        .open_channel(other_address, header(1))
        .await
        .expect("opened");
    let incoming = soon("the channel", other.accept_channel()).await;
    assert_eq!(incoming.peer.address, one_address);
    let mut back = other
        .open_channel(incoming.peer.address, header(2))
        .await
        .expect("opened");
    let mut back_receiver = soon("the channel back", one.accept_channel())
        .await
        .receiver;

    // Both end when the first dialler disconnects: there was one connection.
    one.disconnect(other_address, "test");
    let error = soon("the loss", back_receiver.recv())
        .await
        .expect_err("disconnected");
    assert!(matches!(error, ChannelError::Lost { .. }), "{error}");
    soon("the loss", async {
        while back.send(data_frame(0, vec![0])).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    there
        .send(data_frame(0, vec![0]))
        .await
        .expect_err("disconnected");
}

#[tokio::test]
async fn those_who_wait_for_a_dead_peer_share_one_timeout() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let mute = std::net::UdpSocket::bind(loopback()).expect("a mute port");
    let address = mute.local_addr().expect("bound");
    let idle_timeout = Duration::from_millis(500);
    let options = TransportOptions {
        idle_timeout,
        ..TransportOptions::default()
    };
    let (from, _) = data_plane(&credentials, options);
    let began = Instant::now();
    let mut opening = tokio::task::JoinSet::new();
    for number in 0..100 {
        let from = from.clone();
        opening.spawn(async move { from.open_channel(address, header(number)).await.err() });
    }
    for error in soon("the errors", opening.join_all()).await {
        let Some(ChannelError::Connect(error)) = error else {
            panic!("{error:?}");
        };
        assert_eq!(error, ConnectError::Silent { address });
    }
    assert!(began.elapsed() < 20 * idle_timeout, "{:?}", began.elapsed());
}

#[tokio::test]
async fn hints_arrive_also_at_a_peer_that_was_not_connected() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (from, from_address) = data_plane(&credentials, patient_options());
    let (to, address) = data_plane(&credentials, patient_options());
    let hint = |wanted_total| SplitRequest {
        job: JobId([2; 16]),
        attempt: AttemptId::new(Epoch(1), 4),
        enumerator: TaskId::new(3, 0),
        subtask: 5,
        wanted_total,
    };
    for wanted_total in 0..20 {
        from.send_hint(address, &hint(wanted_total));
        let (peer, received) = soon("a hint", to.recv_hint()).await;
        assert_eq!(received, hint(wanted_total));
        assert_eq!(peer.address, from_address);
    }
}

#[tokio::test]
async fn more_channels_than_a_peer_allows_is_an_error_and_not_a_silent_wait() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let options = TransportOptions {
        channels_max: 3,
        ..patient_options()
    };
    let (from, _) = data_plane(&credentials, patient_options());
    let (_to, address) = data_plane(&credentials, options);
    let mut open = Vec::new();
    for number in 0..3 {
        open.push(
            from.open_channel(address, header(number))
                .await
                .expect("allowed"),
        );
    }
    let error = soon("the refusal", from.open_channel(address, header(3)))
        .await
        .expect_err("too many");
    assert!(matches!(error, ChannelError::TooMany { .. }), "{error}");
    assert!(error.to_string().contains("channels_max"), "{error}");
}
