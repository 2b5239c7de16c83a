//! A call on its way to its upstream: whether any of it can have left, and where the crash tests interfere with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use reqwest::{Body, RequestBuilder, Response};

use crate::fail_point::Injected;

/// Whether a connection has asked for a call's body. Before that there is none, and nothing of the call can have left.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Option<Arc<AtomicBool>>);

impl Asked {
    /// Of a body that is watched.
    pub(super) fn watched() -> Asked {
        Asked(Some(Arc::default()))
    }

    /// Whether it may have been asked for; always of one that is not watched.
    pub(super) fn perhaps(&self) -> bool {
        self.0.as_ref().is_none_or(|asked| asked.load(Ordering::Relaxed))
    }

    /// It is sent from here on.
    pub(super) fn now(&self) {
        if let Some(asked) = &self.0 {
            asked.store(true, Ordering::Relaxed);
        }
    }

    /// A body that notes it here.
    #[cfg(not(feature = "failpoints"))]
    fn body(&self, bytes: Bytes) -> Body {
        match &self.0 {
            None => bytes.into(),
            Some(_) => Body::wrap(Watched {
                bytes: Some(bytes),
                asked: self.clone(),
            }),
        }
    }
}

/// Sends a request with its body, and waits for the head of the answer.
#[cfg(not(feature = "failpoints"))]
pub(super) async fn send(
    request: RequestBuilder,
    body: Bytes,
    asked: &Asked,
) -> Result<reqwest::Result<Response>, Injected> {
    Ok(request.body(asked.body(body)).send().await)
}

/// Sends a request with its body, and waits for the head of the answer. The body is let go of when all of it is written.
#[cfg(feature = "failpoints")]
pub(super) async fn send(
    request: RequestBuilder,
    body: Bytes,
    asked: &Asked,
) -> Result<reqwest::Result<Response>, Injected> {
    use crate::fail_point::{Point, hit};

    let (written, all_written) = tokio::sync::oneshot::channel();
    let body = Watched {
        bytes: Some(body),
        asked: asked.clone(),
        _written: written,
    };
    let sending = request.body(Body::wrap(body)).send();
    let mut sending = std::pin::pin!(sending);
    tokio::select! {
        answered = &mut sending => return Ok(answered),
        _ = all_written => hit(Point::Sent)?,
    }
    Ok(sending.await)
}

/// A body that knows when it is asked for, and when it is not needed any more.
struct Watched {
    bytes: Option<Bytes>,
    asked: Asked,
    #[cfg(feature = "failpoints")]
    _written: tokio::sync::oneshot::Sender<()>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Injected;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Injected>>> {
        let this = self.get_mut();
        let Some(bytes) = this.bytes.take() else {
            return std::task::Poll::Ready(None);
        };
        if let Err(failed) = crate::fail_point::hit(crate::fail_point::Point::Connected) {
            return std::task::Poll::Ready(Some(Err(failed)));
        }
        if let Some(asked) = &this.asked.0 {
            asked.store(true, Ordering::Relaxed);
        }
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let length = self.bytes.as_ref().map_or(0, Bytes::len);
        http_body::SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
    }
}
