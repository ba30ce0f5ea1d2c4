//! Compiled code on disk, so that a restart or a second TaskManager on a machine does not compile again.
//!
//! Compiled code runs unchecked, so it never comes from a file that another user could have written, nor from one
//! whose contents changed since this user wrote it: owner and mode, the entry's own key, and a BLAKE3 checksum must
//! hold. The checksum is of the bytes that are then loaded, not of the file at another moment.
//!
//! A file is [`MAGIC`], key (32 bytes), checksum of the rest (32 bytes), wasmtime's serialized module.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tidemill_protocol::ModuleHash;

use crate::engine::Engine;

const MAGIC: &[u8; 16] = b"tidemill-code-1\n";
const HASH_BYTES: usize = 32;

/// The place of one module's compiled code, for one engine configuration.
pub(crate) struct Entry {
    path: PathBuf,
    key: [u8; HASH_BYTES],
}

/// Why an entry that is there was not used.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    #[error("it cannot be read")]
    Unreadable(#[from] io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it belongs to user {owner}, and this process runs as user {user}")]
    Owner { owner: u32, user: u32 },
    #[error("others may write to it (mode {mode:o})")]
    Writable { mode: u32 },
    #[error("it was written for something else, or by another version")]
    Foreign,
    #[error("its checksum does not hold")]
    Checksum,
    #[error("wasmtime refuses it: {0}")]
    Wasmtime(String),
}

impl Entry {
    /// Names the entry. The compatibility hash covers wasmtime's version, its configuration and the processor.
    pub(crate) fn new(engine: &Engine, directory: &Path, module: ModuleHash) -> Self {
        let mut hasher = KeyHasher(blake3::Hasher::new());
        engine
            .wasmtime()
            .precompile_compatibility_hash()
            .hash(&mut hasher);
        hasher.0.update(&module.0);
        let key = *hasher.0.finalize().as_bytes();
        let path = directory.join(format!("{}.cwasm", blake3::Hash::from_bytes(key).to_hex()));
        Self { path, key }
    }

    /// The compiled module, if the entry is there and can be trusted.
    pub(crate) fn load(&self, engine: &Engine) -> Option<wasmtime::Module> {
        match self.try_load(engine) {
            Ok(module) => module,
            Err(rejected) => {
                tracing::warn!(path = %self.path.display(), reason = %chain(&rejected), "compiled code in the cache is not used, and will be replaced");
                None
            }
        }
    }

    fn try_load(&self, engine: &Engine) -> Result<Option<wasmtime::Module>, Rejected> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path);
        let mut file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        trust(&file)?;
        let mut contents = Vec::new();
        file.read_to_end(&mut contents)?;
        let code = self.verify(&contents)?;
        deserialize(engine, code).map(Some)
    }

    /// The serialized module in an entry's contents.
    fn verify<'a>(&self, contents: &'a [u8]) -> Result<&'a [u8], Rejected> {
        let rest = contents.strip_prefix(MAGIC).ok_or(Rejected::Foreign)?;
        let (key, rest) = rest
            .split_first_chunk::<HASH_BYTES>()
            .ok_or(Rejected::Checksum)?;
        if *key != self.key {
            return Err(Rejected::Foreign);
        }
        let (checksum, code) = rest
            .split_first_chunk::<HASH_BYTES>()
            .ok_or(Rejected::Checksum)?;
        if blake3::hash(code) != *checksum {
            return Err(Rejected::Checksum);
        }
        Ok(code)
    }

    /// Writes the entry. A failure costs a compilation later, and is only warned about.
    pub(crate) fn store(&self, module: &wasmtime::Module) {
        if let Err(error) = self.try_store(module) {
            tracing::warn!(path = %self.path.display(), %error, "compiled code could not be cached");
        }
    }

    fn try_store(&self, module: &wasmtime::Module) -> io::Result<()> {
        let code = module
            .serialize()
            .map_err(|error| io::Error::other(format!("{error:#}")))?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        // Created with mode 0600; renamed whole, so that a reader sees an old entry or a new one.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        for part in [&MAGIC[..], &self.key, blake3::hash(&code).as_bytes(), &code] {
            file.write_all(part)?;
        }
        // A directory in the entry's place would make the rename fail for ever.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.is_dir()) {
            fs::remove_dir(&self.path)?;
        }
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Whether nobody but this process's user can have written the file.
fn trust(file: &File) -> Result<(), Rejected> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Rejected::NotAFile);
    }
    let (owner, user) = (metadata.uid(), effective_user());
    if owner != user {
        return Err(Rejected::Owner { owner, user });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Rejected::Writable { mode });
    }
    Ok(())
}

#[allow(
    unsafe_code,
    reason = "libc has no safe form of a call that cannot fail"
)]
fn effective_user() -> u32 {
    // SAFETY: geteuid has no preconditions, touches no memory of ours and always succeeds.
    unsafe { libc::geteuid() }
}

#[allow(unsafe_code, reason = "loading compiled code is unsafe by nature")]
fn deserialize(engine: &Engine, code: &[u8]) -> Result<wasmtime::Module, Rejected> {
    // SAFETY: the bytes must come from `Module::serialize`, unchanged. They do: only this user's processes can have
    // written the file (`trust`), they write only serialized modules there, and the checksum over exactly these bytes holds.
    let module = unsafe { wasmtime::Module::deserialize(engine.wasmtime(), code) };
    module.map_err(|error| Rejected::Wasmtime(format!("{error:#}")))
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Lets wasmtime's `Hash` feed BLAKE3.
struct KeyHasher(blake3::Hasher);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *self.0.finalize().as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}
