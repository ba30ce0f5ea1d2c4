//! A store that dies: after so many changes it refuses the next one, and from then on everything, as if its process had been
//! killed. For tests of what must survive that. What is in it can be looked at and gone on with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};

use crate::Store;

/// Objects in memory that can be changed only so often.
#[derive(Clone, Debug)]
pub(crate) struct Mortal {
    objects: Arc<InMemory>,
    /// Changes that are still made.
    left: Arc<AtomicUsize>,
    /// One more was asked for.
    dead: Arc<AtomicBool>,
    /// It overwrites what is only to be created, as services do that do not know the condition.
    careless: bool,
}

impl std::fmt::Display for Mortal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("mortal store")
    }
}

impl Mortal {
    /// A copy of these objects, which dies after so many changes.
    pub(crate) fn new(objects: &InMemory, changes: usize) -> Self {
        Self {
            objects: Arc::new(objects.fork()),
            left: Arc::new(AtomicUsize::new(changes)),
            dead: Arc::default(),
            careless: false,
        }
    }

    /// One that does not know that something is only to be created.
    pub(crate) fn careless() -> Self {
        Self {
            careless: true,
            ..Self::new(&InMemory::new(), usize::MAX)
        }
    }

    pub(crate) fn store(&self) -> Store {
        store(Arc::new(self.clone()))
    }

    /// The store as the next process finds it.
    pub(crate) fn store_of_the_next_life(&self) -> Store {
        store(Arc::clone(&self.objects) as Arc<dyn ObjectStore>)
    }

    /// What is in it, for others to be copies of.
    pub(crate) fn into_objects(self) -> InMemory {
        self.objects.fork()
    }

    /// How many changes it still allows.
    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// The keys of all objects.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let listed = self.objects.list(None);
        let keys = listed.map_ok(|object| object.location.to_string());
        let mut keys: Vec<String> = keys.try_collect().await.expect("memory can be listed");
        keys.sort_unstable();
        keys
    }

    /// Takes an object away, as somebody else might.
    pub(crate) fn remove(&self, key: &str) {
        let path = Path::from(key);
        let removed = self.objects.delete(&path).now_or_never();
        assert!(matches!(removed, Some(Ok(()))), "memory does not wait");
    }

    fn alive(&self) -> Result<()> {
        match self.dead.load(Ordering::Relaxed) {
            true => Err(dead()),
            false => Ok(()),
        }
    }

    fn change(&self) -> Result<()> {
        let one_less = |left: usize| left.checked_sub(1);
        let changed = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        changed.map(drop).map_err(|_| {
            self.dead.store(true, Ordering::Relaxed);
            dead()
        })
    }
}

fn store(objects: Arc<dyn ObjectStore>) -> Store {
    Store::over(objects, None, "mortal", Duration::from_secs(10))
}

fn dead() -> Error {
    Error::Generic {
        store: "mortal",
        source: "killed".into(),
    }
}

impl ObjectStore for Mortal {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            self.change()?;
            if self.careless {
                options.mode = PutMode::Overwrite;
            }
            self.objects.put_opts(location, payload, options).await
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        _location: &'b Path,
        _options: PutMultipartOptions,
    ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async { Err(dead()) })
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            self.alive()?;
            self.objects.get_opts(location, options).await
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let mortal = self.clone();
        locations
            .and_then(move |location| {
                let mortal = mortal.clone();
                async move {
                    mortal.change()?;
                    mortal.objects.delete(&location).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.alive() {
            Ok(()) => self.objects.list(prefix),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            self.alive()?;
            self.objects.list_with_delimiter(prefix).await
        })
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        Box::pin(async move {
            self.change()?;
            self.objects.copy_opts(from, to, options).await
        })
    }
}
