//! A task that is deployed where its image is not: another TaskManager that keeps the image sends its pages, over QUIC, and
//! the object store has the rest when that TaskManager fails in any way.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tidemill_protocol::control::{ImageSource, WarmImages};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{CheckpointId, ModuleHash};
use tidemill_storage::Store;
use tidemill_transport::{Credentials, IncomingPages, PagesRequest};
use tokio::sync::mpsc::unbounded_channel;

use super::super::TaskEvent;
use super::revert::{TASK, World, module};
use super::{JOB, Node, node};
use crate::images::{Images, ImagesOptions, Peers, serve_peers};

/// A task of which two checkpoints are in a directory, and that runs nowhere any more; and two TaskManagers.
struct Scene {
    world: World,
    first: (CheckpointId, ObjectRef),
    second: (CheckpointId, ObjectRef),
    here: Node,
    there: Node,
    /// Of the TaskManager that keeps images.
    images: Images,
    kept: tempfile::TempDir,
    stored: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let stored = tempfile::tempdir().expect("a directory");
        let store = Store::open(stored.path().to_str().expect("a path")).expect("a store");
        let mut world = World::over(store, module(0, 0), false);
        let mut attempt = world.start(1, None, None);
        world.polled(1);
        let first = world.checkpoint(&mut attempt, 1);
        world.poke(&attempt, 2);
        let second = world.checkpoint(&mut attempt, 2);
        world.complete(&mut attempt, second.0);
        drop(attempt.handle.stop());
        let entered = world.runtime.enter();
        let credentials = Credentials::ephemeral().expect("certificates");
        let (here, there) = (
            node(0, &credentials, 256 << 10),
            node(1, &credentials, 256 << 10),
        );
        drop(entered);
        world.peers = Peers::asked(here.plane.clone(), here.endpoint.clone());
        Self {
            world,
            first,
            second,
            here,
            there,
            images: Images::none(),
            kept: tempfile::tempdir().expect("a directory"),
            stored,
        }
    }

    /// The other TaskManager keeps the image of a checkpoint.
    fn keep_there(&mut self, (checkpoint, manifest): &(CheckpointId, ObjectRef)) {
        let (events, mut received) = unbounded_channel();
        let options = ImagesOptions {
            directory: self.kept.path().to_owned(),
            max_bytes: 1 << 30,
        };
        let runtime = self.world.runtime.handle();
        let images = Images::start(options, self.world.store.clone(), runtime.clone(), events);
        let images = images.expect("a thread");
        images.keep_warm(WarmImages {
            job: JOB,
            module: ModuleHash([0; 32]),
            checkpoint: *checkpoint,
            images: vec![(TASK, manifest.clone())],
        });
        match self.world.next(&mut received) {
            TaskEvent::Warm(warm) => assert_eq!(warm.len(), 1, "it is there"),
            other => panic!("not kept, but {other:?}"),
        }
        runtime.spawn(serve_peers(self.there.plane.clone(), images.lender()));
        self.images = images;
    }

    /// The other TaskManager answers with `None` by never answering, and else with these pages or none.
    fn answer_there(
        &self,
        answer: impl Fn(usize, &PagesRequest) -> Option<Option<Bytes>> + Send + 'static,
    ) -> Arc<AtomicUsize> {
        let (plane, asked) = (self.there.plane.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        self.world.runtime.spawn(async move {
            let unanswered: Mutex<Vec<IncomingPages>> = Mutex::default();
            loop {
                let question = plane.accept_pages().await;
                let number = count.fetch_add(1, Ordering::SeqCst);
                match answer(number, question.request()) {
                    Some(pages) => {
                        tokio::spawn(question.answer(pages));
                    }
                    None => unanswered.lock().expect("unharmed").push(question),
                }
            }
        });
        asked
    }

    fn warm_at(&self) -> Vec<String> {
        vec![self.there.endpoint.local_address().to_string()]
    }

    /// Nothing of any task's pages is left in the store.
    fn lose_segments(&self) {
        fn lose(directory: &Path) -> usize {
            let entries = std::fs::read_dir(directory).expect("a directory");
            entries
                .map(|entry| entry.expect("an entry").path())
                .map(|path| match path.extension() {
                    _ if path.is_dir() => lose(&path),
                    Some(extension) if extension == "segment" => {
                        std::fs::remove_file(&path).expect("it was there");
                        1
                    }
                    _ => 0,
                })
                .sum()
        }
        assert_eq!(lose(self.stored.path()), 2, "one of each checkpoint");
    }

    /// The task's memory at the second checkpoint, from the store.
    fn memory(&self) -> Vec<u8> {
        let read = self.world.store.read_image(JOB, TASK, &self.second.1);
        self.world.runtime.block_on(read).expect("stored").0.memory
    }
}

#[test]
fn a_task_goes_on_from_the_image_that_another_taskmanager_keeps() {
    let mut scene = Scene::new();
    scene.keep_there(&scene.second.clone());
    let memory = scene.memory();
    scene.lose_segments();
    let second = scene.second.clone();
    let image = scene.world.restorable_at(2, &second, scene.warm_at());
    assert_eq!(image.source(), ImageSource::Peer);
    assert!(
        scene.world.restored(image).memory == memory,
        "every page came from there"
    );
    // And once more, as a task that runs: what it touches comes when it does, and it goes on where it was.
    let image = scene.world.restorable_at(3, &second, scene.warm_at());
    let mut attempt = scene.world.start(3, Some(image), Some(second.0));
    assert_eq!(attempt.timings.source, ImageSource::Peer);
    scene.world.polled(3);
    scene.world.checkpoint(&mut attempt, 3);
    drop(attempt.handle.stop());
}

#[test]
fn an_image_of_another_checkpoint_is_not_taken() {
    let mut scene = Scene::new();
    scene.keep_there(&scene.first.clone());
    let second = scene.second.clone();
    let image = scene.world.restorable_at(2, &second, scene.warm_at());
    assert_eq!(image.source(), ImageSource::Store);
    scene.world.assert_is(image, &second.1);
}

#[test]
fn the_second_who_is_said_to_have_it_is_asked_when_the_first_is_gone() {
    let mut scene = Scene::new();
    scene.keep_there(&scene.second.clone());
    let second = scene.second.clone();
    let mut warm_at = scene.warm_at();
    warm_at.insert(0, "not an address".to_owned());
    let image = scene.world.restorable_at(2, &second, warm_at);
    assert_eq!(image.source(), ImageSource::Peer);
    scene.world.assert_is(image, &second.1);
    let gone = vec!["127.0.0.1:1".to_owned()];
    let image = scene.world.restorable_at(3, &second, gone);
    assert_eq!(image.source(), ImageSource::Store);
    scene.world.assert_is(image, &second.1);
}

#[test]
fn a_peer_that_falls_silent_or_loses_the_image_is_not_asked_again() {
    for is_silent in [true, false] {
        let mut scene = Scene::new();
        // It says that it has the image, and that is all.
        let asked = scene.answer_there(move |number, _| match (number, is_silent) {
            (0, _) => Some(Some(Bytes::new())),
            (_, true) => None,
            (_, false) => Some(None),
        });
        let second = scene.second.clone();
        let image = scene.world.restorable_at(2, &second, scene.warm_at());
        assert_eq!(image.source(), ImageSource::Peer);
        scene.world.assert_is(image, &second.1);
        let reads = asked.load(Ordering::SeqCst) - 1;
        // Those who were filling the memory had asked already when the first of them found out.
        assert!((1..=3).contains(&reads), "{reads}");
    }
}

#[test]
fn pages_that_are_not_the_stored_ones_are_refused() {
    let mut scene = Scene::new();
    scene.answer_there(|_, request| Some(Some(vec![0xee; request.bytes()].into())));
    let second = scene.second.clone();
    let image = scene.world.restorable_at(2, &second, scene.warm_at());
    assert_eq!(image.source(), ImageSource::Peer);
    scene.world.assert_is(image, &second.1);
}

#[test]
fn a_peer_that_dies_in_the_middle_is_followed_by_the_store() {
    let mut scene = Scene::new();
    let plane = scene.there.plane.clone();
    let here = scene.here.endpoint.local_address();
    scene.answer_there(move |number, _| {
        if number > 0 {
            plane.disconnect(here, "the process is gone");
            return None;
        }
        Some(Some(Bytes::new()))
    });
    let second = scene.second.clone();
    let image = scene.world.restorable_at(2, &second, scene.warm_at());
    assert_eq!(image.source(), ImageSource::Peer);
    scene.world.assert_is(image, &second.1);
}
