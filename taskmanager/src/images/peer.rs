//! Images that other TaskManagers keep: found and read where a task is restored, and served where they are.
//!
//! A peer is a convenience, like the local images that it reads from: whoever asks has the image's manifests from the
//! store, takes nothing that contradicts them, and goes to the store as soon as a peer has failed once.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tidemill_protocol::JobId;
use tidemill_protocol::control::TaskDeployment;
use tidemill_protocol::image::PageRun;
use tidemill_protocol::manifest::ObjectRef;
use tidemill_storage::{Store, StoredImage};
use tidemill_transport::{DataPlane, Endpoint, IncomingPages, PAGES_REQUEST_MAX, PagesRequest};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::Lender;
use super::source::PIECES_AT_ONCE;
use crate::error_chain;

/// How long a task that is restored waits for somebody who has its image.
const FIND_PATIENCE: Duration = Duration::from_secs(1);

/// How long a peer may take to send pages: at most 4 MiB, which a network takes a hundredth of this for.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// Requests that are answered at once: at most 16 MiB of pages.
const ANSWERS_MAX: usize = 4;

const _: () = assert!(
    PIECES_AT_ONCE * tidemill_protocol::manifest::BLOCK_PAGES_MAX as usize
        <= PAGES_REQUEST_MAX as usize
);

/// How other TaskManagers are asked for images.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    /// `None` asks nobody.
    ways: Option<(DataPlane, Endpoint)>,
}

impl Peers {
    /// Nobody is asked.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { ways: None }
    }

    /// Whoever has an image is asked for it, if that is sooner than to read it from this store: if the store is a bucket.
    /// A directory is read by the machine itself, compressed and without encryption, from a disk, its own memory
    /// or another machine that is no farther than a peer.
    pub(crate) fn unless_nearer(store: &Store, plane: DataPlane, endpoint: Endpoint) -> Self {
        match store.is_bucket() {
            true => Self::asked(plane, endpoint),
            false => Self { ways: None },
        }
    }

    /// Whoever has an image is asked for it.
    pub(crate) fn asked(plane: DataPlane, endpoint: Endpoint) -> Self {
        Self {
            ways: Some((plane, endpoint)),
        }
    }

    /// The first of those who are said to have a task's image that says so too. The others are asked in turn, all of them
    /// within a second.
    pub(crate) async fn find(
        &self,
        job: JobId,
        task: &TaskDeployment,
        manifest: &ObjectRef,
    ) -> Option<PeerImage> {
        let (plane, endpoint) = self.ways.as_ref()?;
        let finding = async {
            for name in &task.warm_at {
                let request = PagesRequest {
                    job,
                    task: task.task,
                    manifest: manifest.clone(),
                    runs: Vec::new(),
                };
                let address = match endpoint.resolve(name).await {
                    Ok(address) => address,
                    Err(error) => {
                        warn!(
                            reason = error_chain(&error),
                            "a TaskManager that has an image is not asked"
                        );
                        continue;
                    }
                };
                match plane.read_pages(address, &request, FIND_PATIENCE).await {
                    Ok(_) => {
                        return Some(PeerImage {
                            plane: plane.clone(),
                            address,
                            request,
                            has_failed: AtomicBool::new(false),
                        });
                    }
                    Err(error) => {
                        info!(%job, task = %task.task, reason = error_chain(&error), "an image is not read from another TaskManager");
                    }
                }
            }
            None
        };
        let found = tokio::time::timeout(FIND_PATIENCE, finding).await;
        found.unwrap_or_default()
    }
}

/// An image that another TaskManager keeps.
#[derive(Debug)]
pub(crate) struct PeerImage {
    plane: DataPlane,
    address: SocketAddr,
    /// Of no pages.
    request: PagesRequest,
    has_failed: AtomicBool,
}

impl PeerImage {
    /// Reads pieces of the image, whose manifests are here. `None` when the peer fails, now or before: it is not asked
    /// again.
    pub(super) async fn read(
        &self,
        image: &StoredImage,
        pieces: Range<usize>,
    ) -> Option<Vec<(PageRun, Bytes)>> {
        if self.has_failed.load(Ordering::Relaxed) {
            return None;
        }
        let read = self.try_read(image, pieces).await;
        let failed = |reason: &String| {
            if !self.has_failed.swap(true, Ordering::Relaxed) {
                let (job, task) = (self.request.job, self.request.task);
                warn!(%job, %task, address = %self.address, reason, "the rest of an image is read from the object store and not from another TaskManager");
            }
        };
        read.inspect_err(failed).ok()
    }

    async fn try_read(
        &self,
        image: &StoredImage,
        pieces: Range<usize>,
    ) -> Result<Vec<(PageRun, Bytes)>, String> {
        let wanted = &image.pieces()[pieces.clone()];
        let request = PagesRequest {
            runs: merged(wanted),
            ..self.request.clone()
        };
        let read = self.plane.read_pages(self.address, &request, READ_PATIENCE);
        let mut rest = read.await.map_err(|error| error_chain(&error))?;
        let mut read = Vec::with_capacity(wanted.len());
        for (index, piece) in pieces.zip(wanted) {
            let bytes = rest.split_to(piece.memory_range().len());
            if image.matches(index, &bytes) == Some(false) {
                return Err(format!(
                    "its {} pages from page {} on are not those that were stored",
                    piece.pages, piece.first
                ));
            }
            read.push((*piece, bytes));
        }
        Ok(read)
    }
}

/// The same pages in as few runs as can be.
fn merged(pieces: &[PageRun]) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some(run) if run.end() == piece.first as usize => run.pages += piece.pages,
            _ => runs.push(*piece),
        }
    }
    runs
}

/// Answers other TaskManagers that ask for pages of images, for as long as there is a data plane.
pub(crate) async fn serve_peers(plane: DataPlane, lender: Lender) {
    let turns = Arc::new(Semaphore::new(ANSWERS_MAX));
    loop {
        let asked = plane.accept_pages().await;
        // The semaphore is never closed.
        let turn = Arc::clone(&turns).acquire_owned().await;
        let lender = lender.clone();
        tokio::spawn(async move {
            let _turn = turn;
            answer(asked, &lender).await;
        });
    }
}

async fn answer(asked: IncomingPages, lender: &Lender) {
    let request = asked.request();
    let lent = lender.lend(request.job, request.task, &request.manifest);
    let pages = match lent {
        None => None,
        Some(loan) => {
            let runs = request.runs.clone();
            let read = tokio::task::spawn_blocking(move || loan.read(&runs)).await;
            read.ok().flatten()
        }
    };
    asked.answer(pages).await;
}
