//! Tests of peers that hold a good certificate and still say what they should not: each costs them the stream or the
//! connection, and costs nobody else anything.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tidemill_protocol::control::{Report, ToLeader};
use tidemill_protocol::image::{PAGE_BYTES, PageRun};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{
    AttemptId, ChannelHeader, ChannelId, CheckpointId, Epoch, Frame, FrameBody, JobId, TaskId,
};

use crate::data::{
    ChannelError, ChannelReceiver, DataPlane, PAGES_REQUEST_MAX, PagesError, PagesRequest,
};
use crate::hello::{ConnectionKind, GreetedStream};
use crate::stream::{Inbox, Outbox};
use crate::{ConnectionLoss, Credentials, Endpoint, Incoming, RecvError, TransportOptions};

fn endpoint_pair() -> (Endpoint, Endpoint) {
    let credentials = Credentials::ephemeral().expect("credentials");
    let bind = || {
        let local = "127.0.0.1:0".parse().expect("an address");
        Endpoint::bind(local, &credentials, TransportOptions::default()).expect("bound")
    };
    (bind(), bind())
}

fn header(edge: u32) -> ChannelHeader {
    ChannelHeader {
        job: JobId([7; 16]),
        attempt: AttemptId::new(Epoch(1), 1),
        channel: ChannelId {
            edge,
            from: 0,
            to: 0,
        },
    }
}

fn report() -> ToLeader {
    ToLeader::Report(Report { tasks: vec![] })
}

/// A control connection whose dialler writes raw bytes after the greeting, as its listener sees it.
async fn told_on_control(bytes: &[u8], finish: bool) -> (RecvError, ConnectionLoss) {
    let (server, client) = endpoint_pair();
    let (dialled, accepted) = tokio::join!(
        client.connect(server.local_address(), ConnectionKind::Control),
        server.accept()
    );
    let (
        connection,
        _,
        GreetedStream {
            mut outbox,
            inbox: _inbox,
        },
    ) = dialled.expect("connected");
    outbox.put_slice(bytes);
    outbox.flush().await.expect("taken");
    if finish {
        outbox.finish();
    }
    let Some(Incoming::Control(accepted)) = accepted else {
        panic!("expected a control connection");
    };
    let (_sender, mut receiver, _handle) = accepted.split();
    let error = receiver
        .recv::<ToLeader>()
        .await
        .expect_err("no message was sent");
    assert!(error.to_string().contains("local at 127.0.0.1:"), "{error}");
    let loss = (&connection.closed().await).into();
    assert_still_serving(&server, &client).await;
    (error, loss)
}

async fn assert_still_serving(server: &Endpoint, client: &Endpoint) {
    let (dialled, accepted) = tokio::join!(
        client.connect_control(server.local_address()),
        server.accept()
    );
    let (mut sender, _, _) = dialled.expect("a second connection").split();
    let Some(Incoming::Control(accepted)) = accepted else {
        panic!("expected a control connection");
    };
    let (_, mut receiver, _) = accepted.split();
    sender.send(&report()).await.expect("sent");
    assert_eq!(receiver.recv().await.expect("received"), Some(report()));
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_refused_with_the_remedy() {
    let ca = crate::ClusterCa::generate().expect("a CA");
    let credentials = |identity| Credentials::new(&ca, &identity).expect("usable");
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(24 * 60 * 60);
    let expired = credentials(ca.issue_until("worker", yesterday).expect("issued"));
    let valid = credentials(ca.issue("leader").expect("issued"));
    let bind = |credentials| {
        let local = "127.0.0.1:0".parse().expect("an address");
        Endpoint::bind(local, credentials, TransportOptions::default()).expect("bound")
    };
    let (leader, worker) = (bind(&valid), bind(&expired));
    for (from, to) in [(&worker, &leader), (&leader, &worker)] {
        let error = within(from.connect_control(to.local_address())).await;
        let error = error.expect_err("expired").to_string();
        assert!(
            error.contains("expired") && error.contains("tidemill certs"),
            "{error}"
        );
    }
    assert_still_serving(&leader, &bind(&valid)).await;
}

#[tokio::test]
async fn garbage_on_a_control_stream_costs_its_sender_the_connection() {
    let (error, loss) = told_on_control(b"\x05\0\0\0hello", false).await;
    assert!(matches!(error, RecvError::Garbage { .. }), "{error}");
    let ConnectionLoss::ClosedByPeer(reason) = loss else {
        panic!("{loss}");
    };
    assert!(reason.contains("no control message"), "{reason}");
}

#[tokio::test]
async fn a_control_message_of_impossible_length_is_refused_before_it_is_read() {
    let (error, _) = told_on_control(&u32::MAX.to_le_bytes(), false).await;
    assert!(
        matches!(
            error,
            RecvError::TooLong {
                len: 0xffff_ffff,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_control_stream_that_ends_inside_a_message_is_an_error() {
    let (error, _) = told_on_control(b"\x05\0\0\0he", true).await;
    assert!(matches!(error, RecvError::CutShort { .. }), "{error}");
}

#[tokio::test]
async fn a_peer_that_does_not_greet_is_turned_away_with_a_reason() {
    let (server, client) = endpoint_pair();
    // A blob request's greeting is followed by garbage where the request should be.
    let (
        connection,
        _,
        GreetedStream {
            mut outbox,
            inbox: _inbox,
        },
    ) = client
        .connect(server.local_address(), ConnectionKind::Blob)
        .await
        .expect("connected");
    outbox.put_slice(b"\x04\0\0\0GET ");
    outbox.flush().await.expect("taken");
    let Some(Incoming::Blob(blob)) = server.accept().await else {
        panic!("expected a request for a module");
    };
    let served = blob.serve(|_| panic!("nothing was asked for")).await;
    assert!(
        matches!(served, crate::BlobServed::Failed { .. }),
        "{served:?}"
    );
    let reason = connection.closed().await.to_string();
    assert!(reason.contains("module request"), "{reason}");
    assert_still_serving(&server, &client).await;
}

/// Two data planes, the first with a connection to the second.
async fn plane_pair() -> (DataPlane, DataPlane, quinn::Connection, Endpoint) {
    let (server, client) = endpoint_pair();
    let (dialled, accepted) = tokio::join!(
        client.connect(server.local_address(), ConnectionKind::Data),
        server.accept()
    );
    let (connection, _, _) = dialled.expect("connected");
    let Some(Incoming::Data(accepted)) = accepted else {
        panic!("expected a data connection");
    };
    let receiving = DataPlane::new(server.clone());
    receiving.adopt(accepted);
    (DataPlane::new(client), receiving, connection, server)
}

/// A channel on which raw bytes are written after the opening.
async fn raw_channel(
    connection: &quinn::Connection,
    receiving: &DataPlane,
    bytes: &[u8],
) -> ChannelReceiver {
    let mut outbox = Outbox::new(connection.open_uni().await.expect("opened"));
    outbox.put_slice(&opening());
    outbox.put_slice(bytes);
    outbox.flush().await.expect("taken");
    outbox.finish();
    let channel = within(receiving.accept_channel()).await;
    assert_eq!(channel.header, header(3));
    channel.receiver
}

fn opening() -> Vec<u8> {
    let message = crate::data::encode_opening(header(3));
    let len = u32::try_from(message.len()).expect("short");
    [&len.to_le_bytes()[..], &message].concat()
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("in time")
}

fn encoded(frames: &[(u64, FrameBody)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sequence, body) in frames.iter().cloned() {
        let frame = Frame { sequence, body };
        bytes.extend(frame.encode_head());
        if let FrameBody::Data(payload) = &frame.body {
            bytes.extend_from_slice(payload);
        }
    }
    bytes
}

fn data(text: &'static str) -> FrameBody {
    FrameBody::Data(Bytes::from_static(text.as_bytes()))
}

/// Frames received until the channel's end or error.
async fn drain(mut receiver: ChannelReceiver) -> (u64, Option<ChannelError>) {
    let mut frames = 0;
    loop {
        match within(receiver.recv()).await {
            Ok(Some(_)) => frames += 1,
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

#[tokio::test]
async fn lost_doubled_and_late_frames_are_found() {
    let (_sending, receiving, connection, _server) = plane_pair().await;
    let barrier = FrameBody::Barrier(CheckpointId::new(Epoch(1), 1));
    let told = async |frames: &[(u64, FrameBody)]| {
        drain(raw_channel(&connection, &receiving, &encoded(frames)).await).await
    };

    let (count, error) = told(&[(0, data("a")), (1, barrier), (2, FrameBody::EndOfInput)]).await;
    assert!(count == 3 && error.is_none(), "{count} {error:?}");

    let (count, error) = told(&[(0, data("a")), (2, data("c"))]).await;
    assert!(
        matches!(
            error,
            Some(ChannelError::Sequence {
                expected: 1,
                found: 2,
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!(count, 1);

    let (_, error) = told(&[(0, data("a")), (0, data("a"))]).await;
    assert!(
        matches!(
            error,
            Some(ChannelError::Sequence {
                expected: 1,
                found: 0,
                ..
            })
        ),
        "{error:?}"
    );

    let (_, error) = told(&[(0, FrameBody::EndOfInput), (1, data("a"))]).await;
    assert!(
        matches!(error, Some(ChannelError::AfterEnd { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_channel_cut_at_any_byte_is_an_error_but_at_frame_boundaries() {
    let (_sending, receiving, connection, _server) = plane_pair().await;
    let whole = encoded(&[(0, data("records")), (1, FrameBody::Watermark(5))]);
    let boundary = encoded(&[(0, data("records"))]).len();
    for cut in 0..whole.len() {
        let receiver = raw_channel(&connection, &receiving, &whole[..cut]).await;
        let (count, error) = drain(receiver).await;
        assert_eq!(count, u64::from(cut >= boundary), "cut at {cut}");
        match error {
            None => assert!(cut == 0 || cut == boundary, "cut at {cut}"),
            Some(error) => assert!(matches!(error, ChannelError::CutShort { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_channel_with_a_broken_opening_is_dropped_and_the_next_one_works() {
    let (_sending, receiving, connection, _server) = plane_pair().await;
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\x02\0\0\0xx", b"\x09\0"] {
        let mut outbox = Outbox::new(connection.open_uni().await.expect("opened"));
        outbox.put_slice(garbage);
        outbox.flush().await.expect("taken");
        outbox.finish();
    }
    connection
        .send_datagram(Bytes::from_static(b"no hint"))
        .expect("sent");
    let receiver = raw_channel(&connection, &receiving, &encoded(&[(0, data("a"))])).await;
    let (count, error) = drain(receiver).await;
    assert!(count == 1 && error.is_none(), "{error:?}");
}

#[test]
fn whatever_bytes_come_a_channel_ends_in_frames_or_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (_sending, receiving, connection, _server) = runtime.block_on(plane_pair());
    let garbage = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        // A good frame with one bit flipped gets further than noise does.
        (0..8_usize * 33).prop_map(|bit| {
            let mut bytes = encoded(&[(0, data("records")), (1, FrameBody::EndOfInput)]);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        }),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(200)
    });
    runner
        .run(&garbage, |bytes| {
            let (frames, error) = runtime.block_on(async {
                drain(raw_channel(&connection, &receiving, &bytes).await).await
            });
            prop_assert!(frames <= 2);
            if let Some(error) = error {
                prop_assert!(
                    !matches!(error, ChannelError::Lost { .. }),
                    "the connection must survive: {error}"
                );
            }
            Ok(())
        })
        .expect("no counterexample");
}

fn request(runs: &[(u32, u32)]) -> PagesRequest {
    let run = |(first, pages): &(u32, u32)| PageRun {
        first: *first,
        pages: *pages,
        zero: false,
    };
    PagesRequest {
        job: JobId([7; 16]),
        task: TaskId::new(0, 0),
        manifest: ObjectRef {
            key: "manifest".to_owned(),
            len: 1,
            hash: [0; 32],
        },
        runs: runs.iter().map(run).collect(),
    }
}

/// What a data plane says of a peer that answers a request for two pages with these bytes, and then with nothing.
async fn told_of_answer(
    asking: &DataPlane,
    (peer, connection): (std::net::SocketAddr, &quinn::Connection),
    answer: &[u8],
    finish: bool,
) -> Result<Bytes, PagesError> {
    let answering = async {
        let (send, _receive) = connection.accept_bi().await.expect("asked");
        let mut outbox = Outbox::new(send);
        outbox.put_slice(answer);
        outbox.flush().await.expect("taken");
        if finish {
            outbox.finish();
        }
        // Unfinished, the stream stays open for as long as the question is.
        (outbox, _receive)
    };
    let patience = if finish { 20_000 } else { 200 };
    let wanted = request(&[(3, 2)]);
    let asked = asking.read_pages(peer, &wanted, Duration::from_millis(patience));
    let (asked, _open) = within(async { tokio::join!(asked, answering) }).await;
    asked
}

/// An answer as a peer makes it that means well.
fn answer_of(pages: &[u8]) -> Vec<u8> {
    let head = crate::data::encode_answer(pages);
    let len = u32::try_from(head.len()).expect("short");
    [&len.to_le_bytes()[..], &head, pages].concat()
}

#[tokio::test]
async fn an_answer_that_is_cut_damaged_or_never_comes_is_an_error_and_the_next_one_is_not() {
    let (sending, asking, connection, _server) = plane_pair().await;
    let peer = (sending.endpoint().local_address(), &connection);
    let pages = vec![5; 2 * PAGE_BYTES];
    let good = answer_of(&pages);
    for cut in [0, 3, 7, good.len() - 1] {
        let cut_short = told_of_answer(&asking, peer, &good[..cut], true).await;
        assert!(
            matches!(cut_short, Err(PagesError::Garbage { .. })),
            "{cut_short:?}"
        );
        let late = told_of_answer(&asking, peer, &good[..cut], false).await;
        assert!(matches!(late, Err(PagesError::Late { .. })), "{late:?}");
    }
    let mut flipped = good.clone();
    *flipped.last_mut().expect("it has bytes") ^= 1;
    let damaged = told_of_answer(&asking, peer, &flipped, true).await;
    assert!(
        matches!(damaged, Err(PagesError::Damaged { .. })),
        "{damaged:?}"
    );
    for garbage in [
        &b"\xff\xff\xff\xff"[..],
        b"\x04\0\0\0PA\x02\0",
        b"\x02\0\0\0xx",
    ] {
        let told = told_of_answer(&asking, peer, garbage, true).await;
        assert!(matches!(told, Err(PagesError::Garbage { .. })), "{told:?}");
    }
    let read = told_of_answer(&asking, peer, &good, true).await;
    assert_eq!(read.expect("a good answer"), pages);
}

#[tokio::test]
async fn requests_that_nobody_may_make_are_refused_and_the_next_one_is_served() {
    let (_sending, receiving, connection, _server) = plane_pair().await;
    let of = |runs: &[(u32, u32)]| {
        let message = crate::data::encode_request(&request(runs));
        let len = u32::try_from(message.len()).expect("short");
        [&len.to_le_bytes()[..], &message].concat()
    };
    for bytes in [
        of(&[(0, PAGES_REQUEST_MAX + 1)]),
        of(&[(0, u32::MAX), (1, u32::MAX)]),
        of(&[(7, 0)]),
        of(&vec![(u32::MAX, 1); 16 << 10]),
        b"\x04\0\0\0PQ\x02\0".to_vec(),
        b"\x09\0".to_vec(),
    ] {
        let (send, receive) = connection.open_bi().await.expect("opened");
        let (mut outbox, mut inbox) = (Outbox::new(send), Inbox::new(receive));
        outbox.put_slice(&bytes);
        // It may be refused before all of it is taken.
        outbox.flush().await.ok();
        outbox.finish();
        let answered = within(inbox.fill(1)).await;
        assert!(!answered.expect("the connection lives"), "{bytes:?}");
    }
    let (send, receive) = connection.open_bi().await.expect("opened");
    let (mut outbox, mut inbox) = (Outbox::new(send), Inbox::new(receive));
    outbox.put_slice(&of(&[(u32::MAX, 1)]));
    outbox.flush().await.expect("taken");
    let asked = within(receiving.accept_pages()).await;
    assert_eq!(*asked.request(), request(&[(u32::MAX, 1)]));
    tokio::join!(asked.answer(None), async {
        assert!(inbox.fill(1).await.expect("answered"));
    });
}
