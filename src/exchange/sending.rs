//! A call on its way to its upstream; where the crash tests interfere with it.

use bytes::Bytes;
use reqwest::{RequestBuilder, Response};

use crate::fail_point::Injected;

/// Sends a request with its body, and waits for the head of the answer.
#[cfg(not(feature = "failpoints"))]
pub(super) async fn send(request: RequestBuilder, body: Bytes) -> Result<reqwest::Result<Response>, Injected> {
    Ok(request.body(body).send().await)
}

/// Sends a request with its body, and waits for the head of the answer. The body is looked at by the connection when
/// there is one, and let go of when all of it is written.
#[cfg(feature = "failpoints")]
pub(super) async fn send(request: RequestBuilder, body: Bytes) -> Result<reqwest::Result<Response>, Injected> {
    use crate::fail_point::{Point, hit};

    let (written, all_written) = tokio::sync::oneshot::channel();
    let body = Watched {
        bytes: Some(body),
        _written: written,
    };
    let sending = request.body(reqwest::Body::wrap(body)).send();
    let mut sending = std::pin::pin!(sending);
    tokio::select! {
        answered = &mut sending => return Ok(answered),
        _ = all_written => hit(Point::Sent)?,
    }
    Ok(sending.await)
}

/// A body that knows when it is asked for, and when it is not needed any more.
#[cfg(feature = "failpoints")]
struct Watched {
    bytes: Option<Bytes>,
    _written: tokio::sync::oneshot::Sender<()>,
}

#[cfg(feature = "failpoints")]
impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Injected;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Injected>>> {
        let Some(bytes) = self.get_mut().bytes.take() else {
            return std::task::Poll::Ready(None);
        };
        let asked = crate::fail_point::hit(crate::fail_point::Point::Connected);
        std::task::Poll::Ready(Some(asked.map(|()| http_body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let length = self.bytes.as_ref().map_or(0, Bytes::len);
        http_body::SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
    }
}
