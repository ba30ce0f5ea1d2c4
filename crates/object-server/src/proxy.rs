//! The proxy in front of the server: one request a connection, each served or spoiled. It never changes what it hands on,
//! so that signatures stay valid.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::http::{Request, read_request};
use crate::{Fault, Faults};

/// Serves until its runtime ends.
pub(crate) async fn serve(listener: TcpListener, server: SocketAddr, faults: Faults) {
    while let Ok((client, _)) = listener.accept().await {
        let faults = faults.clone();
        tokio::spawn(async move {
            // A client that goes away, or a server that does, ends the connection: that is all there is to say.
            let _ = serve_one(client, server, &faults).await;
        });
    }
}

async fn serve_one(mut client: TcpStream, server: SocketAddr, faults: &Faults) -> io::Result<()> {
    let Some(request) = read_request(&mut client).await? else {
        return Ok(());
    };
    match faults.meet(&request.line) {
        None => {
            let reply = forward(&request, server).await?;
            client.write_all(&reply).await?;
        }
        Some(Fault::Status(status)) => {
            let reply = format!(
                "HTTP/1.1 {status} Trouble\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            client.write_all(reply.as_bytes()).await?;
        }
        Some(Fault::Hang) => {
            // Until the client has had enough.
            client.read_u8().await?;
        }
        Some(Fault::Cut) => return Ok(()),
        Some(Fault::LostReply) => {
            forward(&request, server).await?;
            return Ok(());
        }
        Some(Fault::HalfReply) => {
            let reply = forward(&request, server).await?;
            client.write_all(&reply[..reply.len() / 2]).await?;
        }
    }
    client.shutdown().await
}

/// Has a request served, and returns the whole reply.
async fn forward(request: &Request, server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&request.bytes).await?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await?;
    Ok(reply)
}
