//! The sockets of the node-to-node side: the only place to change for a simulated network.

use std::io;

/// A connection.
pub type Stream = tokio::net::TcpStream;

/// What accepts connections.
pub type Listener = tokio::net::TcpListener;

/// Connects to `host:port`. Messages are small and answered: waiting to fill a packet would only delay them.
pub async fn connect(to: &str) -> io::Result<Stream> {
    let stream = Stream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Listens on `host:port`; port 0 takes a free one.
pub async fn listen(on: &str) -> io::Result<Listener> {
    Listener::bind(on).await
}

/// The next connection.
pub async fn accept(listener: &Listener) -> io::Result<Stream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
