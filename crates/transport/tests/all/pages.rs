//! Pages of images between TaskManagers: many requests at once, beside channels, and peers that do not have them or do
//! not answer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::image::{PAGE_BYTES, PageRun};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{JobId, TaskId};
use tidemill_transport::{Credentials, DataPlane, PAGES_REQUEST_MAX, PagesError, PagesRequest};

use crate::{PATIENCE, data_plane, header, patient_options, soon};

fn request(first: u32, pages: u32) -> PagesRequest {
    let run = PageRun {
        first,
        pages,
        zero: false,
    };
    PagesRequest {
        job: JobId([1; 16]),
        task: TaskId::new(0, 0),
        manifest: ObjectRef {
            key: "manifest".to_owned(),
            len: 1,
            hash: [0; 32],
        },
        runs: if pages == 0 { Vec::new() } else { vec![run] },
    }
}

/// Each page is filled with its number; there are 2000.
fn page_bytes(request: &PagesRequest) -> Option<Bytes> {
    let pages = request
        .runs
        .iter()
        .flat_map(|run| run.first..run.first + run.pages);
    let mut bytes = Vec::new();
    for page in pages {
        if page >= 2000 {
            return None;
        }
        bytes.resize(bytes.len() + PAGE_BYTES, page as u8);
    }
    Some(bytes.into())
}

fn planes() -> (DataPlane, DataPlane, SocketAddr) {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (asking, _) = data_plane(&credentials, patient_options());
    let (asked, address) = data_plane(&credentials, patient_options());
    (asking, asked, address)
}

fn serve(plane: &DataPlane) {
    let plane = plane.clone();
    tokio::spawn(async move {
        loop {
            let asked = plane.accept_pages().await;
            let pages = page_bytes(asked.request());
            tokio::spawn(asked.answer(pages));
        }
    });
}

#[tokio::test]
async fn pages_come_as_they_were_asked_for_many_requests_at_once_and_beside_a_channel() {
    let (asking, asked, address) = planes();
    let opened = asking.open_channel(address, header(0)).await;
    let _channel = opened.expect("nobody reads it, and nobody waits for it");
    serve(&asked);
    let reads = (0..40_u32).map(|number| {
        let asking = asking.clone();
        tokio::spawn(async move {
            let wanted = request(number, PAGES_REQUEST_MAX - number);
            let read = asking.read_pages(address, &wanted, PATIENCE).await;
            assert_eq!(
                read.expect("pages"),
                page_bytes(&wanted).expect("they are there")
            );
        })
    });
    for read in reads.collect::<Vec<_>>() {
        soon("pages", read).await.expect("they are right");
    }
}

#[tokio::test]
async fn what_is_not_there_is_missing_and_an_image_can_be_asked_for_without_pages() {
    let (asking, asked, address) = planes();
    serve(&asked);
    let missing = asking
        .read_pages(address, &request(1999, 2), PATIENCE)
        .await;
    assert!(
        matches!(missing, Err(PagesError::Missing { .. })),
        "{missing:?}"
    );
    let there = asking.read_pages(address, &request(0, 0), PATIENCE).await;
    assert_eq!(there.expect("it is there"), Bytes::new());
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_waited_for_no_longer_than_was_said() {
    let (asking, asked, address) = planes();
    let patience = Duration::from_millis(300);
    // Asked, and silent.
    let read = soon(
        "the time",
        asking.read_pages(address, &request(0, 1), patience),
    )
    .await;
    assert!(matches!(read, Err(PagesError::Late { .. })), "{read:?}");
    // Whoever listens later finds a question that nobody waits for, and drops it or answers it; the next one is served.
    let wanted = request(5, 3);
    let (read, ()) = tokio::join!(asking.read_pages(address, &wanted, PATIENCE), async {
        loop {
            let question = soon("a question", asked.accept_pages()).await;
            let is_new = *question.request() == wanted;
            let pages = page_bytes(question.request());
            question.answer(pages).await;
            if is_new {
                return;
            }
        }
    });
    assert_eq!(read.expect("answered"), page_bytes(&wanted).expect("pages"));
    // A wrong number of bytes is as good as none.
    let (read, ()) = tokio::join!(asking.read_pages(address, &wanted, PATIENCE), async {
        let question = soon("a question", asked.accept_pages()).await;
        question.answer(Some(Bytes::from_static(b"short"))).await;
    });
    assert!(matches!(read, Err(PagesError::Missing { .. })), "{read:?}");
    // One that is dropped is an error at once.
    let (read, ()) = tokio::join!(asking.read_pages(address, &wanted, PATIENCE), async {
        drop(soon("a question", asked.accept_pages()).await);
    });
    assert!(matches!(read, Err(PagesError::Garbage { .. })), "{read:?}");
}

#[tokio::test]
async fn nobody_at_the_address_is_an_error_in_time() {
    let (asking, _, _) = planes();
    let nobody = "127.0.0.1:1".parse().expect("an address");
    let patience = Duration::from_millis(300);
    let read = soon(
        "the time",
        asking.read_pages(nobody, &request(0, 1), patience),
    )
    .await;
    assert!(
        matches!(read, Err(PagesError::Late { .. } | PagesError::Connect(_))),
        "{read:?}"
    );
}
