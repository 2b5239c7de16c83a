//! HTTP/1.1 only: connections that begin as HTTP/2 are closed, in the clear and within TLS.
//!
//! The server library serves upgrades only where it looks for the version by itself, and would then speak HTTP/2 with
//! whoever begins with its preface (RFC 9113 §3.4). Nothing else begins so, and nothing has been read of it as a request.
//!
//! Its look is answered with nothing, which it takes for HTTP/1 at once. Else it would read the preface's 24 bytes and hand
//! them to HTTP/1, whose buffer then has no room for a whole read and is made twice as large, for as long as the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use futures_util::TryFutureExt;
use futures_util::future::MapOk;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::accept::Visitor;

/// What a client of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Accepts what another one accepts, as HTTP/1.1.
#[derive(Clone, Debug)]
pub(super) struct Http1Only<A>(pub(super) A);

impl<A> Accept<TcpStream, Visitor> for Http1Only<A>
where
    A: Accept<TcpStream, Visitor>,
{
    type Stream = Http1<A::Stream>;
    type Service = A::Service;
    type Future = MapOk<A::Future, fn((A::Stream, A::Service)) -> (Http1<A::Stream>, A::Service)>;

    fn accept(&self, stream: TcpStream, visitor: Visitor) -> Self::Future {
        let begin: fn(_) -> _ = |(stream, service)| (Http1::new(stream), service);
        self.0.accept(stream, visitor).map_ok(begin)
    }
}

/// A stream that fails where the preface of HTTP/2 would be whole.
#[derive(Debug)]
pub(super) struct Http1<S> {
    stream: S,
    /// Whether its first read is over: the look for the version.
    is_looked_at: bool,
    /// How much of the preface has come; beyond its length, it is none.
    of_preface: usize,
}

impl<S> Http1<S> {
    fn new(stream: S) -> Http1<S> {
        Http1 {
            stream,
            is_looked_at: false,
            of_preface: 0,
        }
    }

    /// Looks at the first bytes. Whether they are the preface.
    fn is_http2(&mut self, came: &[u8]) -> bool {
        let missing = PREFACE.get(self.of_preface..).unwrap_or_default();
        let length = came.len().min(missing.len());
        self.of_preface = match came[..length] == missing[..length] {
            true => self.of_preface + length,
            false => PREFACE.len() + 1,
        };
        self.of_preface == PREFACE.len() && length > 0
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Http1<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.is_looked_at, true) {
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if self.of_preface < PREFACE.len() && self.is_http2(&into.filled()[before..]) {
            into.set_filled(before);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "HTTP/2 is not spoken")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http1<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// What can be read of these bytes, when they come in such pieces.
    async fn read(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let (mut theirs, stream) = duplex(piece);
        let mut ours = Http1::new(stream);
        let looked_at = ours.read(&mut [0; PREFACE.len()]).await;
        assert_eq!(
            looked_at.expect("nothing fails"),
            0,
            "the look for the version takes nothing"
        );
        let sending = async move {
            // What is not read any more is not written, either.
            theirs.write_all(bytes).await.unwrap_or(());
        };
        let mut read = Vec::new();
        let reading = async move {
            let done = ours.read_to_end(&mut read).await;
            done.map(|_| read)
        };
        tokio::join!(sending, reading).1
    }

    #[tokio::test]
    async fn the_preface_of_http2_ends_a_connection_and_everything_else_passes() {
        let long = [PREFACE, b"more"].concat();
        for piece in [1, 5, 24, 100] {
            for bytes in [PREFACE, &long] {
                let error = read(bytes, piece).await.expect_err("it is HTTP/2");
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{piece}");
            }
            let late = [b"POST /v1 HTTP/1.1\r\n\r\n", PREFACE].concat();
            for bytes in [
                &b""[..],
                b"PRI",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r",
                b"GET / HTTP/1.1\r\n\r\n",
                &late,
            ] {
                assert_eq!(read(bytes, piece).await.expect("it passes"), bytes, "{piece}");
            }
        }
    }
}
