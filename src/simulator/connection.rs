//! Connections: accepted sockets that can be reset, and that tell when they are written and when they are closed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long accepting rests after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a script may know about, and do to, the connection it plays on. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// Cancelled when the socket is gone.
    pub(super) closed: CancellationToken,
    reset: CancellationToken,
    closed_at: Arc<Mutex<Option<Timestamp>>>,
    flushes: watch::Sender<u64>,
}

impl Connection {
    fn new() -> Connection {
        Connection {
            closed: CancellationToken::new(),
            reset: CancellationToken::new(),
            closed_at: Arc::new(Mutex::new(None)),
            flushes: watch::Sender::new(0),
        }
    }

    /// From now on nothing is written, and the socket ends with a TCP reset.
    pub(super) fn reset(&self) {
        self.reset.cancel();
    }

    /// When the socket was closed, by either side.
    pub(super) fn closed_at(&self) -> Option<Timestamp> {
        *self.closed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often all that was buffered has been written.
    pub(super) fn flushes(&self) -> u64 {
        *self.flushes.borrow()
    }

    /// Waits until all that was buffered has been written once more than `seen` times.
    pub(super) async fn flushed_since(&self, seen: u64) {
        let mut flushes = self.flushes.subscribe();
        // The sender lives in `self`, so this cannot fail.
        flushes.wait_for(|&count| count > seen).await.map(drop).unwrap_or(());
    }

    fn note_closed(&self) {
        let mut at = self.closed_at.lock().unwrap_or_else(PoisonError::into_inner);
        at.get_or_insert_with(crate::time::now);
        drop(at);
        self.closed.cancel();
    }
}

/// A socket that obeys its [`Connection`].
pub(super) struct Socket {
    stream: TcpStream,
    connection: Connection,
}

impl Socket {
    fn check(&self) -> io::Result<()> {
        if self.connection.reset.is_cancelled() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.connection.reset.is_cancelled()
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::debug!(%error, "the simulator closes a connection that it was to reset");
        }
        self.connection.note_closed();
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.connection.flushes.send_modify(|count| *count += 1);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A listener whose sockets are [`Socket`]s.
pub(super) struct Listener(pub(super) TcpListener);

impl axum::serve::Listener for Listener {
    type Io = Socket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Socket, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => return (socket(stream), address),
                Err(error) => {
                    tracing::debug!(%error, "the simulator cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn socket(stream: TcpStream) -> Socket {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the simulator cannot set TCP_NODELAY");
    }
    Socket {
        stream,
        connection: Connection::new(),
    }
}

impl Connected<IncomingStream<'_, Listener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Connection {
        stream.io().connection.clone()
    }
}
