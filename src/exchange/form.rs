//! A form on its way through: it goes on to the upstream while it comes, and is read whole before its end does.
//!
//! ```text
//! receive   its fields are here, and its first file begins    the most that it may come to, else it is kept whole
//!    admit   price → hold of that most, of a share of the room  else it is kept whole, and admitted as any call
//!    pass    piece by piece, kept beside                       all but what ends the form
//!    read    as any form, when all of it is here               the call that it is: held for? then its end goes on
//! ```
//!
//! An upstream cannot have taken what it was not sent the end of. So a form that is none is refused although the most of it
//! has left, and one that comes to more than the hold (fields behind the file, silence packed tightly) is broken off, its
//! hold released, and it goes on as another exchange that has all of it, held for exactly. What has come is kept, so that a
//! form that was not taken is sent again from its beginning, to whatever upstream.
//!
//! Who is waited for is told as for a file (`uploading`): the client has `body_timeout` and more for what has come, the
//! upstream `idle_timeout` for each piece, and `first_byte_timeout` once it has the end.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use reqwest::Response;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use uuid::Uuid;

use super::admission::{self, Room};
use super::body::{Incoming, PARSE_INLINE};
use super::client::Client;
use super::dispatch::Said;
use super::sending::Asked;
use super::{Admitted, Ending, Gateway, Last, Request, Settle, while_wanted};
use crate::call::{Begun, Call, Endpoint, Opening, Shown};
use crate::fail_point::{self, Injected, Point};
use crate::hold::OfRoom;
use crate::refusal::{Refusal, UpstreamFault};
use crate::store::ExchangeId;

/// What has come of a form.
#[derive(Debug)]
pub enum Received {
    /// All of it, and the memory that it takes.
    Whole(Bytes, OwnedSemaphorePermit),
    /// What is before its first file: the call, as far as it is here.
    Begun(Box<Call>, Box<Arriving>),
}

/// A form that is still arriving.
pub struct Arriving {
    endpoint: Endpoint,
    content_type: String,
    /// The most that it may come to.
    most: Call,
    /// How long it is, and where in it the content of its first file begins.
    length: usize,
    file: usize,
    came: Came,
    incoming: Incoming,
    /// The request that it is of, with all that this has taken.
    request: Option<Box<Request>>,
}

/// Without what came: it never reaches a log.
impl fmt::Debug for Arriving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arriving")
            .field("endpoint", &self.endpoint)
            .field("length", &self.length)
            .field("came", &self.came.length)
            .finish_non_exhaustive()
    }
}

/// What has come, and how much of it may go on.
#[derive(Default)]
struct Came {
    pieces: Vec<Bytes>,
    length: usize,
    /// What ends the form, where that is, and the last bytes, in which it may have begun.
    closing: Vec<u8>,
    closes_at: Option<usize>,
    tail: Vec<u8>,
}

impl Came {
    fn new(closing: Vec<u8>) -> Came {
        Came {
            closing,
            ..Came::default()
        }
    }

    fn keep(&mut self, piece: Bytes) {
        let before = self.length - self.tail.len();
        let mut seam = std::mem::take(&mut self.tail);
        let kept = self.closing.len() - 1;
        if self.closes_at.is_none() {
            // Where it may lie in both, and in the piece alone.
            let here = seam.len();
            seam.extend_from_slice(&piece[..piece.len().min(kept)]);
            let across = memchr::memmem::find(&seam, &self.closing).map(|at| before + at);
            let inside = || memchr::memmem::find(&piece, &self.closing).map(|at| self.length + at);
            self.closes_at = across.or_else(inside);
            seam.truncate(here);
        }
        seam.extend_from_slice(&piece[piece.len().saturating_sub(kept)..]);
        self.tail = seam.split_off(seam.len().saturating_sub(kept));
        self.length += piece.len();
        self.pieces.push(piece);
    }

    /// So many bytes may go on before all of it is read: never the end, nor what may turn out to be it.
    fn open(&self) -> usize {
        let unless_it_begins = self.length.saturating_sub(self.closing.len());
        self.closes_at.unwrap_or(unless_it_begins)
    }
}

/// How far a form is handed on.
#[derive(Default)]
struct Cursor {
    /// The piece, and where it begins.
    piece: usize,
    start: usize,
    /// Bytes that are handed on.
    at: usize,
}

impl Cursor {
    /// The next bytes that may go on.
    fn next(&mut self, came: &Came) -> Option<Bytes> {
        let open = came.open();
        while let Some(piece) = came.pieces.get(self.piece) {
            let end = self.start + piece.len();
            let until = end.min(open);
            if self.at < until {
                let bytes = piece.slice(self.at - self.start..until - self.start);
                self.at = until;
                return Some(bytes);
            }
            if end > open {
                return None;
            }
            (self.piece, self.start) = (self.piece + 1, end);
        }
        None
    }
}

/// What became of a form while it was handed on.
enum Passed {
    /// All but its end is; and the head of an answer, should it have come already.
    ToItsEnd(Option<Response>),
    /// The upstream has said what it says.
    Said(Said),
    /// It did not come whole.
    Lost(Refusal),
}

impl Arriving {
    /// Receives a form of a length that is told, until its first file begins; or all of it, where nothing can be told before.
    ///
    /// # Errors
    /// It does not come.
    pub async fn receive(
        mut incoming: Incoming,
        endpoint: Endpoint,
        content_type: &str,
        length: usize,
    ) -> Result<Received, Refusal> {
        let (mut came, mut opening) = (BytesMut::new(), Opening::of(endpoint, content_type));
        while let Some(look) = &mut opening {
            let Some(piece) = incoming.next().await? else { break };
            came.extend_from_slice(&piece);
            match look.look(&came, length) {
                Shown::Little => {}
                Shown::Nothing => opening = None,
                Shown::File(begun) => {
                    let Begun { call, most, closing } = *begun;
                    let file = call.body.len();
                    let mut kept = Came::new(closing);
                    kept.keep(came.freeze());
                    let arriving = Arriving {
                        endpoint,
                        content_type: content_type.to_owned(),
                        most,
                        length,
                        file,
                        came: kept,
                        incoming,
                        request: None,
                    };
                    return Ok(Received::Begun(Box::new(call), Box::new(arriving)));
                }
            }
        }
        let (body, memory) = incoming.rest(vec![came.freeze()]).await?;
        Ok(Received::Whole(body, memory))
    }

    /// No memory beside what it takes by itself.
    pub fn no_memory(&mut self) -> Option<OwnedSemaphorePermit> {
        self.incoming.no_memory()
    }

    /// Admits the call by the most that it may come to; what cannot be admitted so is kept whole, and admitted or refused by
    /// what it is.
    pub(super) async fn admit(
        mut self: Box<Self>,
        gateway: &Gateway,
        mut request: Box<Request>,
    ) -> Result<Admitted, Refusal> {
        let (Some(memory), Some(place)) = (request.memory.split(0), request.place.split(0)) else {
            return Err(Refusal::Internal);
        };
        let early = Box::new(Request {
            id: request.id,
            live: Arc::clone(&request.live),
            key: Arc::clone(&request.key),
            call: self.most.clone(),
            arriving: None,
            origin: request.origin.clone(),
            once: None,
            sealing: None,
            headers: request.headers.clone(),
            tunnelled: None,
            language: request.language,
            memory,
            place,
        });
        match admission::admit_within(gateway, early, OfRoom::Share).await {
            Ok(mut admitted) => {
                self.request = Some(request);
                admitted.arriving = Some(self);
                Ok(admitted)
            }
            Err(_) => {
                let (call, memory) = tokio::select! {
                    whole = self.whole() => whole?,
                    () = gateway.cutoff.cancelled() => return Err(Refusal::ShuttingDown),
                };
                request.call = call;
                request.memory.merge(memory);
                admission::admit_within(gateway, request, OfRoom::All).await
            }
        }
    }

    /// The call, once all of it is here.
    async fn whole(self: Box<Self>) -> Result<(Call, OwnedSemaphorePermit), Refusal> {
        let (body, memory) = self.incoming.rest(self.came.pieces).await?;
        let call = read(self.endpoint, self.content_type, body).await?;
        Ok((call, memory))
    }

    /// Hands the form on, and waits for what the upstream says, until all but the end of the form is handed on.
    async fn pass(
        &mut self,
        head: Bytes,
        to: &mpsc::Sender<Part>,
        mut sending: Pin<&mut impl Future<Output = Said>>,
        patience: Duration,
    ) -> Passed {
        let (mut answer, mut is_taken) = (None, true);
        let mut cursor = Cursor {
            at: self.file,
            ..Cursor::default()
        };
        let mut next = Some(head);
        loop {
            while let Some(bytes) = next.take().or_else(|| cursor.next(&self.came)) {
                if !is_taken {
                    continue;
                }
                let handed = tokio::select! {
                    biased;
                    said = &mut sending, if answer.is_none() => {
                        match said {
                            Ok(response) if response.status().is_success() => answer = Some(response),
                            said => return Passed::Said(said),
                        }
                        next = Some(bytes);
                        continue;
                    }
                    handed = timeout(patience, to.reserve()) => handed,
                };
                match handed {
                    Ok(Ok(room)) => room.send(Part::More(bytes)),
                    Err(_) if answer.is_none() => return Passed::Said(Err(UpstreamFault::Timeout)),
                    // It takes no more; why, it says.
                    _ => is_taken = false,
                }
                if !is_taken && answer.is_none() {
                    let said = timeout(patience, &mut sending).await;
                    match said.unwrap_or(Err(UpstreamFault::Timeout)) {
                        Ok(response) if response.status().is_success() => answer = Some(response),
                        said => return Passed::Said(said),
                    }
                }
            }
            if self.came.length == self.length {
                return Passed::ToItsEnd(answer);
            }
            tokio::select! {
                biased;
                said = &mut sending, if answer.is_none() => match said {
                    Ok(response) if response.status().is_success() => answer = Some(response),
                    said => return Passed::Said(said),
                },
                piece = self.incoming.next() => match piece {
                    Ok(Some(piece)) => self.came.keep(piece),
                    Ok(None) => return Passed::Lost(Refusal::BodyLost),
                    Err(refusal) => return Passed::Lost(refusal),
                },
            }
        }
    }

    /// Its client is answered before all of it has come. The rest is read all the same, or the client, still sending, would
    /// find its connection broken before it had read the answer.
    pub fn let_pass(self: Box<Self>, gateway: &Gateway) {
        let (incoming, cutoff) = (self.incoming, gateway.cutoff.clone());
        gateway.tracker.spawn(async move {
            tokio::select! {
                () = incoming.let_pass() => {}
                () = cutoff.cancelled() => {}
            }
        });
    }
}

/// Reads a form that is here.
async fn read(endpoint: Endpoint, content_type: String, body: Bytes) -> Result<Call, Refusal> {
    let inline = body.len() <= PARSE_INLINE;
    let parse = move || Call::parse_form(endpoint, &content_type, body).map_err(Refusal::Call);
    if inline {
        return parse();
    }
    let parsed = tokio::task::spawn_blocking(parse).await;
    parsed.map_err(|_| Refusal::Internal)?
}

/// Sends a form on while it comes, and waits for the head of the answer. From its end on the admitted call is what the form
/// is; before, it keeps the form for whoever sends it next.
pub(super) async fn send(
    gateway: &Gateway,
    admitted: &mut Admitted,
    mut arriving: Box<Arriving>,
    headers: &HeaderMap,
    client: &mut Client,
    asked: &Asked,
) -> Result<Said, Ending> {
    let upstream = Arc::clone(&admitted.live.upstreams[admitted.target.upstream]);
    let head = upstream.body(admitted);
    let (to, parts) = mpsc::channel(1);
    let body = Parts {
        parts,
        left: arriving.length - arriving.file + head.len(),
        state: State::Unasked,
    };
    let request = upstream.request(admitted, headers).body(reqwest::Body::wrap(body));
    let sending = async { upstream.answered(request.send().await) };
    let mut sending = Box::pin(sending);
    let passing = arriving.pass(head, &to, sending.as_mut(), upstream.idle_timeout());
    let answer = match while_wanted(gateway, admitted, client, passing).await {
        Ok(Passed::ToItsEnd(answer)) => answer,
        Ok(Passed::Said(said)) => {
            admitted.arriving = Some(arriving);
            return Ok(said);
        }
        Ok(Passed::Lost(refusal)) => {
            admitted.arriving = Some(arriving);
            return Err(Ending::lost(refusal));
        }
        Err(ending) => {
            admitted.arriving = Some(arriving);
            return Err(ending);
        }
    };
    let Arriving {
        endpoint,
        content_type,
        came,
        incoming,
        request,
        ..
    } = *arriving;
    let body: Bytes = came.pieces.concat().into();
    let end = body.slice(came.open()..);
    let call = match read(endpoint, content_type, body).await {
        Ok(call) => call,
        Err(refusal) => return Err(Ending::cut_before_anything(refusal)),
    };
    let Some(mut request) = request else {
        return Err(Ending::failed(Settle::Nothing));
    };
    request.memory.merge(incoming.into_memory());
    if !admission::pays_for(admitted, &call) {
        tracing::debug!(exchange = %admitted.id(), "the form is more than was held for; it is sent anew as another exchange");
        request.id = ExchangeId(Uuid::now_v7());
        request.call = call;
        admitted.again = Some(request);
        return Err(Ending {
            last: Last::Nothing,
            ..Ending::cut_before_anything(Refusal::Internal)
        });
    }
    admitted.room = Some(Room::of(request.memory, request.place));
    admitted.call = Arc::new(call);
    admitted.sent = Arc::clone(&admitted.call);
    asked.now();
    let patience = (upstream.idle_timeout(), upstream.first_byte_timeout());
    match answer {
        None => while_wanted(gateway, admitted, client, finish(to, end, sending, patience)).await,
        Some(response) => {
            // It has answered already; whether it takes the end is its own affair.
            drop(timeout(patience.0, to.send(Part::Last(end))).await);
            Ok(Ok(response))
        }
    }
}

/// Hands on the end of a form, and waits for the head of the answer.
async fn finish(
    to: mpsc::Sender<Part>,
    end: Bytes,
    mut sending: Pin<Box<impl Future<Output = Said>>>,
    (idle, head): (Duration, Duration),
) -> Said {
    tokio::select! {
        biased;
        said = &mut sending => return said,
        handed = timeout(idle, to.reserve()) => match handed {
            Ok(Ok(room)) => room.send(Part::Last(end)),
            Ok(Err(_)) => {}
            Err(_) => return Err(UpstreamFault::Timeout),
        },
    }
    timeout(head, sending).await.unwrap_or(Err(UpstreamFault::Timeout))
}

/// A part of a form on its way to the upstream.
#[derive(Debug)]
enum Part {
    More(Bytes),
    Last(Bytes),
}

/// The form as the upstream is sent it: without its last part it is broken off.
struct Parts {
    parts: mpsc::Receiver<Part>,
    /// Bytes that are still to go.
    left: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unasked,
    Asked,
    Ended,
}

/// Why a form is broken off.
#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    #[error("the form is not sent to its end")]
    Unended,
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.state == State::Unasked {
            self.state = State::Asked;
            if let Err(failed) = fail_point::hit(Point::Connected) {
                return Poll::Ready(Some(Err(failed.into())));
            }
        }
        if self.state == State::Ended {
            return Poll::Ready(None);
        }
        let bytes = match ready!(self.parts.poll_recv(context)) {
            None => return Poll::Ready(Some(Err(BrokenOff::Unended))),
            Some(Part::More(bytes)) => bytes,
            Some(Part::Last(bytes)) => {
                self.state = State::Ended;
                bytes
            }
        };
        self.left = self.left.saturating_sub(bytes.len());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.left).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What may go on of pieces, after each of them; and what has, in the end.
    fn handed_on(pieces: &[&str]) -> (Vec<usize>, String) {
        let (mut came, mut cursor) = (Came::new(b"\r\n--mark--".to_vec()), Cursor::default());
        let (mut open, mut handed) = (Vec::new(), Vec::new());
        for piece in pieces {
            came.keep(Bytes::copy_from_slice(piece.as_bytes()));
            while let Some(bytes) = cursor.next(&came) {
                handed.extend_from_slice(&bytes);
            }
            open.push(came.open());
            assert_eq!(handed.len(), came.open());
        }
        (open, String::from_utf8(handed).expect("text"))
    }

    #[test]
    fn the_end_of_a_form_is_kept_back_however_it_comes() {
        let form = "content\r\n--mark\r\n--mar\r\n--mark--\r\n \r\n";
        let before = form.find("\r\n--mark--").expect("an end");
        for first in 1..form.len() {
            for second in first..form.len() {
                let (open, handed) = handed_on(&[&form[..first], &form[first..second], &form[second..]]);
                assert!(open.is_sorted() && open[2] == before, "{first} {second}: {open:?}");
                assert_eq!(handed, form[..before], "{first} {second}");
            }
        }
        let one_by_one: Vec<&str> = form.split("").filter(|byte| !byte.is_empty()).collect();
        assert_eq!(handed_on(&one_by_one).1, form[..before]);
        let (open, _) = handed_on(&["no end, and never one"]);
        assert_eq!(open, [11], "what has none is not sent to its last byte");
    }

    #[test]
    fn bytes_behind_the_end_do_not_go_on_either() {
        let (_, handed) = handed_on(&["content\r\n--mark", "--\r\n", &" ".repeat(1_000), "\r\n--mark--\r\n"]);
        assert_eq!(handed, "content");
    }
}
