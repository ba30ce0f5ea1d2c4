//! The server: started with a bucket, an account and a proxy in front, on ports that the system picks. It never outlives
//! its handle.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use crate::names::{ShortNames, lengthen, shorten};
use crate::{Faults, proxy};

const BUCKET: &str = "tidemill-tests";
const ACCESS_KEY_ID: &str = "tidemill";
const SECRET_ACCESS_KEY: &str = "not-much-of-a-secret";

/// A server with one bucket, which serves until it is dropped.
#[derive(Debug)]
pub struct ObjectServer {
    directory: TempDir,
    proxy: SocketAddr,
    faults: Faults,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl ObjectServer {
    /// Starts a server with an empty bucket.
    ///
    /// # Errors
    /// When its directory, its threads or its ports are not to be had.
    pub fn start() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::create_dir(directory.path().join(BUCKET))?;
        let files = FileSystem::new(directory.path())
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut service = S3ServiceBuilder::new(ShortNames {
            files,
            directory: directory.path().into(),
        });
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let service = service.build();

        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("object-server")
            .enable_all()
            .build()?;
        let faults = Faults::default();
        let context = runtime.enter();
        let (listener, server) = listen()?;
        runtime.spawn(serve(listener, service));
        let (listener, proxy) = listen()?;
        runtime.spawn(proxy::serve(listener, server, faults.clone()));
        drop(context);
        Ok(Self {
            directory,
            proxy,
            faults,
            runtime: Some(runtime),
        })
    }

    /// What a client needs in its environment.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            (
                "AWS_ENDPOINT_URL",
                format!("http://{}", self.proxy).as_str(),
            ),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into()
    }

    /// The URL of what is below `prefix` in the bucket.
    #[must_use]
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// What goes wrong on the way to the server.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The file of the object with this key.
    #[must_use]
    pub fn file(&self, key: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(shorten(key))
    }

    /// The keys of all objects, ascending.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn keys(&self) -> io::Result<Vec<String>> {
        let bucket = self.file("");
        let mut keys = Vec::new();
        collect(&bucket, &bucket, &mut keys)?;
        keys.sort();
        Ok(keys)
    }

    /// How many parts there are of uploads that were neither completed nor aborted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn parts_left(&self) -> io::Result<usize> {
        let mut parts = 0;
        for entry in std::fs::read_dir(self.directory.path())? {
            let name = entry?.file_name();
            // How s3s-fs calls them.
            parts += usize::from(name.to_string_lossy().starts_with(".upload_id-"));
        }
        Ok(parts)
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for its threads would not be allowed in an asynchronous test.
            runtime.shutdown_background();
        }
    }
}

fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((TcpListener::from_std(listener)?, address))
}

async fn serve(listener: TcpListener, service: S3Service) {
    while let Ok((stream, _)) = listener.accept().await {
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(async move {
            // The proxy's connection ended early, as its client's did.
            let _ = connection.await;
        });
    }
}

fn collect(root: &Path, directory: &Path, keys: &mut Vec<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, keys)?;
        } else if let Ok(key) = path.strip_prefix(root) {
            keys.push(lengthen(&key.to_string_lossy()));
        }
    }
    Ok(())
}
