//! What a task waits for before it is built: its module, and where its image comes from. Whatever is nearest is taken:
//! the memory in which its last attempt ran here, the image file that is kept here, one that another TaskManager keeps,
//! the object store.
//!
//! It never reads a page; the task's own thread does, or whoever fills its memory.

use std::sync::Arc;
use std::time::Instant;

use tidemill_protocol::StageKind;
use tidemill_protocol::control::{
    Blame, DeployTimings, Deployment, ImageSource, TaskDeployment, TaskState,
};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_storage::Store;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;

use crate::error_chain;
use crate::images::{Images, Peers, StoredSource, unreadable};
use crate::modules::Modules;
use crate::survivors::Survivor;
use crate::task::{Execution, Origin, Prepared, Restorable, TaskEvent, failure, micros};

/// Where everything that a task is made of comes from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) modules: Arc<Modules>,
    pub(crate) store: Store,
    pub(crate) images: Images,
    pub(crate) peers: Peers,
    pub(crate) runtime: Handle,
    pub(crate) events: UnboundedSender<TaskEvent>,
}

fn unavailable(error: &dyn std::error::Error) -> TaskState {
    TaskState::Failed(failure(Blame::Cluster, error_chain(error)))
}

impl Sources {
    /// Fetches what the task is made of.
    ///
    /// # Errors
    /// The state in which the task ends.
    pub(crate) async fn prepare(
        &self,
        deployment: &Deployment,
        task: &TaskDeployment,
        survivor: Option<Survivor>,
    ) -> Result<Prepared, TaskState> {
        let stage = deployment.graph.stage(task.task);
        let is_wasm = stage.is_some_and(|stage| matches!(stage.kind, StageKind::Wasm { .. }));
        let began = Instant::now();
        let module = async {
            let module = match is_wasm {
                true => Some(self.modules.get(deployment.module).await),
                false => None,
            };
            (module.transpose(), micros(began.elapsed()))
        };
        let image = async {
            let image = match &task.image {
                Some(manifest) => {
                    let sources = ImageSources {
                        store: &self.store,
                        images: &self.images,
                        peers: &self.peers,
                        runtime: &self.runtime,
                    };
                    let events = self.events.clone();
                    let image = sources.image_of(events, deployment, task, manifest, survivor);
                    Some(image.await)
                }
                None => None,
            };
            (image.transpose(), micros(began.elapsed()))
        };
        let ((module, module_us), (image, fetch_us)) = tokio::join!(module, image);
        let (module, image) = (module.map_err(|error| unavailable(&error))?, image?);
        let timings = DeployTimings {
            module_us,
            fetch_us,
            restore_us: 0,
            source: image.as_ref().map_or(ImageSource::None, Restorable::source),
            restored_bytes: 0,
        };
        Ok(Prepared {
            module,
            image,
            timings,
        })
    }
}

/// Where images come from.
pub(crate) struct ImageSources<'a> {
    pub(crate) store: &'a Store,
    pub(crate) images: &'a Images,
    pub(crate) peers: &'a Peers,
    /// Reads pages.
    pub(crate) runtime: &'a Handle,
}

impl ImageSources<'_> {
    /// Where the image of a task comes from. `events` hears when it turns out later that it cannot be read.
    ///
    /// # Errors
    /// The state in which the task ends.
    pub(crate) async fn image_of(
        &self,
        events: UnboundedSender<TaskEvent>,
        deployment: &Deployment,
        task: &TaskDeployment,
        manifest: &ObjectRef,
        survivor: Option<Survivor>,
    ) -> Result<Restorable, TaskState> {
        let execution = Execution {
            job: deployment.job,
            task: task.task,
            attempt: deployment.attempt,
        };
        let nearest = async {
            let changed = async {
                let remains = survivor?.remains().await?;
                let changed = remains.changed.since(deployment.restore?)?;
                Some((remains.instance, changed))
            };
            let changed = changed.await;
            let is_mapped = changed.is_none();
            let local = self.images.claim(execution, manifest, is_mapped).await;
            let peer = match (&changed, &local) {
                (None, None) => self.peers.find(execution.job, task, manifest).await,
                _ => None,
            };
            (changed, local, peer)
        };
        let opened = self
            .store
            .open_image(execution.job, execution.task, manifest);
        let ((changed, local, peer), opened) = tokio::join!(nearest, opened);
        let stored = opened.map_err(|error| unreadable(&error))?;
        let on_failure = Box::new(move |state| {
            // The driver outlives every task; when it is gone the process ends.
            let _ = events.send(TaskEvent::State { execution, state });
        });
        let source = StoredSource::new(stored.clone(), self.runtime.clone(), on_failure);
        let source = Arc::new(source.with_peer(peer));
        let origin = match (changed, local) {
            (Some((instance, changed)), local) => Origin::Memory {
                instance: Box::new(instance),
                changed,
                local,
                stored: source,
            },
            (None, Some(local)) => Origin::Local(local),
            (None, None) => Origin::Store(source),
        };
        Ok(Restorable {
            head: stored.head().clone(),
            chain: stored.chain(),
            origin,
        })
    }
}
