//! A directory in memory that dies on demand. Killing the process keeps what was appended; losing power keeps, of names
//! and bytes that were not synced, whatever the coin says, as a file system may.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use super::directory::OutputDirectory;

/// The directory as one process sees it. A clone is the same process.
#[derive(Clone, Default)]
pub(crate) struct MemoryDirectory {
    world: Rc<RefCell<World>>,
    is_dead: Rc<Cell<bool>>,
}

#[derive(Default)]
struct World {
    names: BTreeMap<String, Rc<RefCell<Bytes>>>,
    durable_names: BTreeMap<String, Rc<RefCell<Bytes>>>,
    /// Changes of names since they were last synced.
    journal: Vec<NameChange>,
    /// The operation after this many does not happen.
    operations_left: Option<u32>,
    operations: u32,
}

#[derive(Default)]
pub(crate) struct Bytes {
    bytes: Vec<u8>,
    durable: usize,
}

enum NameChange {
    Create(String, Rc<RefCell<Bytes>>),
    Rename(String, String),
    Remove(String),
}

impl MemoryDirectory {
    /// The same directory, as another process sees it.
    pub(crate) fn other_process(&self) -> Self {
        Self {
            world: self.world.clone(),
            is_dead: Rc::default(),
        }
    }

    /// Nothing that this process does from now on happens.
    pub(crate) fn kill(&self) {
        self.is_dead.set(true);
    }

    /// Lets so many operations happen, and then one fail half done.
    pub(crate) fn die_after(&self, operations: u32) {
        self.world.borrow_mut().operations_left = Some(operations);
    }

    pub(crate) fn live(&self) {
        self.world.borrow_mut().operations_left = None;
    }

    /// Operations so far.
    pub(crate) fn operations(&self) -> u32 {
        self.world.borrow().operations
    }

    /// The machine goes dark: `coin(n)` chooses, in `0..n`, what becomes of each thing not synced.
    pub(crate) fn lose_power(&self, mut coin: impl FnMut(usize) -> usize) {
        let mut world = self.world.borrow_mut();
        let mut names = world.durable_names.clone();
        for change in world.journal.drain(..) {
            if coin(2) == 0 {
                continue;
            }
            match change {
                NameChange::Create(name, file) => {
                    names.insert(name, file);
                }
                NameChange::Rename(from, to) => {
                    if let Some(file) = names.remove(&from) {
                        names.insert(to, file);
                    }
                }
                NameChange::Remove(name) => {
                    names.remove(&name);
                }
            }
        }
        for file in names.values() {
            let mut file = file.borrow_mut();
            let undecided = file.bytes.len() - file.durable;
            let kept = file.durable + coin(undecided + 1);
            file.bytes.truncate(kept);
            file.durable = kept;
        }
        world.durable_names = names.clone();
        world.names = names;
    }

    /// The bytes of every file that is not hidden, by name.
    pub(crate) fn visible(&self) -> BTreeMap<String, Vec<u8>> {
        let world = self.world.borrow();
        let visible = world
            .names
            .iter()
            .filter(|(name, _)| !name.starts_with('.'));
        visible
            .map(|(name, file)| (name.clone(), file.borrow().bytes.clone()))
            .collect()
    }

    fn operation(&self) -> io::Result<()> {
        if self.is_dead.get() {
            return Err(io::Error::other("the process is dead"));
        }
        let mut world = self.world.borrow_mut();
        world.operations += 1;
        match &mut world.operations_left {
            Some(0) => Err(io::Error::other("the process was killed here")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl OutputDirectory for MemoryDirectory {
    type File = Rc<RefCell<Bytes>>;

    fn path(&self) -> &Path {
        Path::new("/memory")
    }

    fn elsewhere(&self, path: &Path) -> io::Result<Self> {
        // There is one directory in memory.
        let is_it = path == self.path();
        is_it
            .then(|| self.clone())
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn create(&self, name: &str) -> io::Result<Self::File> {
        self.operation()?;
        let mut world = self.world.borrow_mut();
        if world.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Self::File::default();
        world.names.insert(name.into(), file.clone());
        world
            .journal
            .push(NameChange::Create(name.into(), file.clone()));
        Ok(file)
    }

    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()> {
        let happens = self.operation();
        let written = if happens.is_ok() {
            bytes.len()
        } else {
            bytes.len() / 2
        };
        file.borrow_mut().bytes.extend_from_slice(&bytes[..written]);
        happens
    }

    fn sync(&self, file: &mut Self::File) -> io::Result<()> {
        self.operation()?;
        let mut file = file.borrow_mut();
        file.durable = file.bytes.len();
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.operation()?;
        let mut world = self.world.borrow_mut();
        world.durable_names = world.names.clone();
        world.journal.clear();
        Ok(())
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        let world = self.world.borrow();
        Ok(world
            .names
            .get(name)
            .map(|file| file.borrow().bytes.len() as u64))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operation()?;
        let mut world = self.world.borrow_mut();
        let file = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        assert!(!world.names.contains_key(to), "{to} is overwritten");
        world.names.insert(to.into(), file);
        world
            .journal
            .push(NameChange::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operation()?;
        let mut world = self.world.borrow_mut();
        if world.names.remove(name).is_some() {
            world.journal.push(NameChange::Remove(name.into()));
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.world.borrow().names.keys().cloned().collect())
    }

    fn same_content(&self, a: &str, b: &str) -> io::Result<bool> {
        let world = self.world.borrow();
        let bytes = |name| Some(world.names.get(name)?.borrow().bytes.clone());
        Ok(bytes(a) == bytes(b))
    }
}
