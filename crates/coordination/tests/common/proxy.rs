//! A TCP proxy that a test breaks. It never changes what it passes on.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// They pass.
    Fair,
    /// What clients send passes; what servers answer is lost.
    AnswersLost,
    /// Connections are closed, and new ones too.
    Cut,
}

/// Stands between clients and a server.
pub(crate) struct Proxy {
    pub(crate) address: String,
    weather: watch::Sender<Weather>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn before(server: &str) -> Self {
        let server: SocketAddr = server.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let weather = watch::Sender::new(Weather::Fair);
        let seen = weather.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *seen.borrow() != Weather::Cut {
                    tokio::spawn(pass(client, server, seen.clone()));
                }
            }
        });
        Self {
            address,
            weather,
            accepting,
        }
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(client: TcpStream, server: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let seen = weather.clone();
    tokio::select! {
        () = copy(from_client, to_server, |_| true, seen.clone()) => {}
        () = copy(from_server, to_client, |weather| weather == Weather::Fair, seen) => {}
        _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    passes: impl Fn(Weather) -> bool,
    weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if passes(*weather.borrow()) && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
