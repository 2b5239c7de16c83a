//! The relay: passes an answer on unchanged, event by event, until only its end is left.
//!
//! The end waits for the settlement: of a whole answer its head, of a stream the terminal event and what follows it.
//! A keep-alive goes between two events only. The meter looks at everything and cannot delay or alter it.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::Response;
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::client::Client;
use super::counting::count;
use super::passage::{Passage, UsageEvent};
use super::{
    Admitted, Answer as Whole, Body, Ending, Gateway, Last, Settle, Watch, background, ending, upstream, while_wanted,
};
use crate::call::Endpoint;
use crate::codec::{self, Coding, DecodeError, Decoder};
use crate::fail_point::{self, Point};
use crate::meter::{End, Reading, Seen};
use crate::refusal::{Refusal, UpstreamFault};
use crate::retry;
use crate::sse::{MAX_EVENT_BYTES, Piece};
use crate::store::usage_log::State;
use crate::texts;
use crate::time::now;
use crate::tokens::{self, Encoding, Known};
use crate::translate::{Answer, Close};
use crate::usage::Tokens;

/// A stream that is silent for so long gets a keep-alive; Codex gives up after 300 s without an event.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// After a terminal event an upstream closes at once; what else it sends until then belongs to the end.
const AFTER_END: Duration = Duration::from_millis(250);

/// An event that has begun to come by then (`response.failed` after `error`, with the usage) is waited for so much longer.
const REST_OF_EVENT: Duration = Duration::from_secs(2);

/// How much may follow a terminal event.
const AFTER_END_BYTES: usize = 1 << 20;

/// A compressed stream that unfolds to more is no answer of a model; it is given up.
const DECODED_BYTES: usize = 2 * MAX_EVENT_BYTES;

/// A stream is ended this many tokens beyond its limit: counts of different tokenizers differ a little.
const LIMIT_SLACK: u64 = 64;

/// Ends an event that the upstream left unfinished.
const BLANK_LINE: Bytes = Bytes::from_static(b"\n\n");

/// An error's body is read up to here.
const ERROR_BYTES: usize = 1 << 20;

/// And within this time.
const ERROR_TIME: Duration = Duration::from_secs(30);

/// Passes the answer on until its end.
pub(super) async fn relay(
    gateway: &Gateway,
    admitted: &Admitted,
    response: Response,
    translation: Option<Box<dyn Answer>>,
    client: &mut Client,
    watch: &mut Watch,
) -> Ending {
    let coding = response
        .headers()
        .get(CONTENT_ENCODING)
        .map_or(Ok(Coding::Identity), |coding| {
            coding
                .to_str()
                .map_err(drop)
                .and_then(|coding| Coding::parse(coding).map_err(drop))
        });
    if !response.status().is_success() {
        let coding = coding.unwrap_or(Coding::Identity);
        return Box::pin(refused(gateway, admitted, response, coding)).await;
    }
    let kind = response
        .headers()
        .get(CONTENT_TYPE)
        .map(|kind| kind.as_bytes().to_ascii_lowercase());
    let streams = kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
    match coding {
        Err(()) => unreadable(admitted, UpstreamFault::Undecodable),
        Ok(coding) if streams => {
            let mut stream = Stream::new(gateway, admitted, response, coding, translation, client, watch);
            stream.run().await
        }
        Ok(coding) => Box::pin(whole(gateway, admitted, response, coding, translation, client, watch)).await,
    }
}

/// The upstream refused: its own words pass, but for what a client can do nothing about.
async fn refused(gateway: &Gateway, admitted: &Admitted, mut response: Response, coding: Coding) -> Ending {
    let of = admitted.upstream();
    let status = response.status();
    let headers = upstream::returned_headers(response.headers());
    let retry_after = retry::retry_after(response.headers(), now());
    let reading = upstream::read_whole(&mut response, ERROR_BYTES, of.idle_timeout());
    let body = tokio::select! {
        read = timeout(ERROR_TIME, reading) => read.unwrap_or(Err(UpstreamFault::Broken)),
        () = gateway.cutoff.cancelled() => Err(UpstreamFault::Broken),
    };
    let plain = decoded(coding, body.clone().unwrap_or_default(), ERROR_BYTES)
        .await
        .unwrap_or_default();
    let last = match (of.fault(status, retry_after, &plain), body) {
        (Some(fault), _) | (None, Err(fault)) => Last::Refusal(Refusal::Upstream(fault)),
        (None, Ok(body)) => Last::Answer(Whole {
            status,
            headers,
            body: Body::Whole(body),
        }),
    };
    Ending {
        state: State::Refused,
        settle: Settle::Nothing,
        last,
    }
}

/// A unary answer: read whole, then settled, then sent.
async fn whole(
    gateway: &Gateway,
    admitted: &Admitted,
    mut response: Response,
    coding: Coding,
    translation: Option<Box<dyn Answer>>,
    client: &mut Client,
    watch: &mut Watch,
) -> Ending {
    let idle = admitted.upstream().idle_timeout();
    let (status, headers) = (response.status(), answer_headers(response.headers(), admitted));
    let reading = upstream::read_whole(&mut response, admitted.live.config.server.max_response, idle);
    let body = match while_wanted(gateway, admitted, client, reading).await {
        Ok(Ok(body)) => body,
        Ok(Err(fault)) => {
            return Ending {
                state: State::Broken,
                ..unreadable(admitted, fault)
            };
        }
        Err(ending) => return ending,
    };
    let plain = match decoded(coding, body.clone(), admitted.live.config.server.max_response).await {
        Ok(plain) => plain,
        Err(DecodeError::TooLarge) => return unreadable(admitted, UpstreamFault::TooLong),
        Err(DecodeError::Broken) => return unreadable(admitted, UpstreamFault::Undecodable),
    };
    watch.meter.observe_body(&plain);
    if let Err(refusal) = background::begin(gateway, admitted, watch).await {
        return unwritten(refusal);
    }
    let reading = watch.meter.reading();
    if admitted.sent.background && watch.background.is_none() && reading.end.is_none() {
        // It runs on, and nobody could ask for what becomes of it.
        return Ending::fault(UpstreamFault::Undecodable);
    }
    let end = reading.end.unwrap_or(End::Completed);
    watch.delivered = reading.visible_bytes() > 0 && !client.is_gone();
    let (body, end) = match translation {
        None => (body, end),
        Some(mut answer) => match answer.whole(&plain, reading) {
            Some(body) => (body.into(), as_told(end, &*answer)),
            None => return Ending::fault(UpstreamFault::Undecodable),
        },
    };
    let last = Last::Answer(Whole {
        status,
        headers,
        body: Body::Whole(body),
    });
    match client.is_gone() {
        _ if watch.background.is_some() => Ending::later(last),
        true => Ending::unread(end, last),
        false => Ending::of(end, last),
    }
}

/// How it ended as the client is told, which is how it is recorded: what could not be translated whole has failed.
fn as_told(end: End, answer: &dyn Answer) -> End {
    match answer.has_failed() {
        true => End::Failed,
        false => end,
    }
}

/// A whole answer that cannot be passed on. An image or sound that is too long, or that does not decode, was made all the
/// same, and its upstream bills it.
fn unreadable(admitted: &Admitted, fault: UpstreamFault) -> Ending {
    let came = matches!(fault, UpstreamFault::TooLong | UpstreamFault::Undecodable);
    let is_made = came && admitted.call.endpoint.is_medium();
    Ending {
        settle: if is_made { Settle::Usage } else { Settle::Nothing },
        ..Ending::fault(fault)
    }
}

/// A background response that is not written down: nobody learns of it.
fn unwritten(refusal: Refusal) -> Ending {
    Ending {
        last: Last::Refusal(refusal),
        ..Ending::failed(Settle::Nothing)
    }
}

/// A body in the clear, decoded off the async threads.
pub(super) async fn decoded(coding: Coding, body: Bytes, limit: usize) -> Result<Bytes, DecodeError> {
    if coding == Coding::Identity {
        return Ok(body);
    }
    tokio::task::spawn_blocking(move || codec::decode(coding, body, limit))
        .await
        .unwrap_or(Err(DecodeError::Broken))
}

/// What happens next in a stream.
enum Step {
    Chunk(Bytes),
    UpstreamEnded,
    UpstreamBroke,
    ClientLeft,
    /// The drain's time, the time after a terminal event, or the longest time for any call is over.
    Over,
    Silent,
    Cut,
}

/// One timer for moments that move on with every chunk. It stays armed for the earliest it was asked for, and is armed
/// anew only when it rings too early: to set a timer for each chunk costs as much as to pass it on.
struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    /// Resolves when this moment has come.
    async fn until(&mut self, moment: Instant) {
        if moment < self.0.deadline() {
            self.0.as_mut().reset(moment);
        }
        loop {
            self.0.as_mut().await;
            if moment <= Instant::now() {
                return;
            }
            self.0.as_mut().reset(moment);
        }
    }
}

/// A stream on its way.
struct Stream<'a> {
    gateway: &'a Gateway,
    admitted: &'a Admitted,
    response: Response,
    client: &'a mut Client,
    watch: &'a mut Watch,
    passage: Passage,
    /// Turns what passes into the client's wire format.
    translation: Option<Box<dyn Answer>>,
    /// `Some` when the answer came compressed; its bytes pass as they come, the meter reads what they decode to.
    decoder: Option<Decoder>,
    decoded_bytes: usize,
    limit: VisibleLimit,
    idle_until: Instant,
    keep_alive_at: Instant,
    alarm: Alarm,
    /// Fires when running streams have to end.
    cutoff: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When the end has begun: how long what follows is waited for.
    end_by: Option<Instant>,
    /// Whether it is known that the client is gone.
    left: bool,
    /// Whether a piece has passed.
    has_begun: bool,
}

impl<'a> Stream<'a> {
    fn new(
        gateway: &'a Gateway,
        admitted: &'a Admitted,
        response: Response,
        coding: Coding,
        translation: Option<Box<dyn Answer>>,
        client: &'a mut Client,
        watch: &'a mut Watch,
    ) -> Stream<'a> {
        let now = Instant::now();
        Stream {
            alarm: Alarm(Box::pin(sleep_until(now + KEEP_ALIVE))),
            cutoff: Box::pin(gateway.cutoff.clone().cancelled_owned()),
            idle_until: now + admitted.upstream().idle_timeout(),
            keep_alive_at: now + KEEP_ALIVE,
            end_by: None,
            left: false,
            has_begun: false,
            decoder: (coding != Coding::Identity).then(|| Decoder::new(coding, MAX_EVENT_BYTES)),
            decoded_bytes: 0,
            passage: Passage::new(usage_event(admitted)),
            translation,
            limit: VisibleLimit::new(&admitted.target.model, admitted.visible_bound),
            gateway,
            admitted,
            response,
            client,
            watch,
        }
    }

    async fn run(&mut self) -> Ending {
        // They are parts of the buffer that they were read into, and would keep it for as long as the stream.
        let headers = std::mem::take(self.response.headers_mut());
        self.client
            .begin(self.response.status(), stream_headers(&headers, self.admitted));
        drop(headers);
        loop {
            if self.client.is_gone() {
                if self.runs_on() {
                    return Ending::later(Last::Nothing);
                }
                let leaves = !std::mem::replace(&mut self.left, true);
                if leaves && self.admitted.ends_with_its_client() {
                    return Ending::left(Settle::Usage);
                }
            }
            let ending = match self.next().await {
                Step::Chunk(chunk) => match self.pass(chunk).await {
                    None => self.interfered(),
                    ending => ending,
                },
                Step::Silent => {
                    self.keep_alive().await;
                    None
                }
                Step::ClientLeft => None,
                Step::UpstreamEnded => Some(self.ended()),
                Step::UpstreamBroke => Some(self.broke()),
                Step::Over => Some(self.over()),
                Step::Cut => Some(self.cut()),
            };
            if let Some(ending) = ending {
                return ending;
            }
        }
    }

    async fn next(&mut self) -> Step {
        let (end_by, at_most) = self.end_by();
        if at_most <= Instant::now() {
            return Step::Over;
        }
        let mut wake_at = end_by.min(self.idle_until);
        if self.client.is_streaming() && self.between_events() {
            wake_at = wake_at.min(self.keep_alive_at);
        }
        tokio::select! {
            biased;
            () = &mut self.cutoff => Step::Cut,
            () = self.client.until_it_leaves() => Step::ClientLeft,
            chunk = self.response.chunk() => match chunk {
                Ok(Some(chunk)) => Step::Chunk(chunk),
                Ok(None) => Step::UpstreamEnded,
                Err(error) => {
                    tracing::warn!(exchange = %self.admitted.id(), error = upstream::chain(&error), "the upstream's stream broke off");
                    Step::UpstreamBroke
                }
            },
            () = self.alarm.until(wake_at) => match Instant::now() {
                now if end_by <= now => Step::Over,
                now if self.idle_until <= now => Step::UpstreamBroke,
                _ => Step::Silent,
            },
        }
    }

    /// When no more is waited for, unless it is there already; and when it is not even then.
    fn end_by(&self) -> (Instant, Instant) {
        let deadline = self.client.deadline();
        let Some(end_by) = self.end_by else {
            return (deadline, deadline);
        };
        let at_most = deadline.min(end_by + REST_OF_EVENT);
        match self.passage.event_has_begun() {
            true => (at_most, at_most),
            false => (deadline.min(end_by), at_most),
        }
    }

    fn between_events(&self) -> bool {
        !self.passes_coded() && self.passage.between_events()
    }

    /// Whether the client gets the stream compressed, so that nothing can be put into it.
    fn passes_coded(&self) -> bool {
        self.decoder.is_some() && self.translation.is_none()
    }

    /// Passes what came; `Some` when that ends the stream.
    async fn pass(&mut self, chunk: Bytes) -> Option<Ending> {
        self.watch.entry.came(chunk.len());
        let ending = match (self.decoder.take(), &self.translation) {
            (None, _) => self.pass_events(chunk).await,
            (Some(decoder), None) => Box::pin(self.pass_coded(decoder, chunk)).await,
            (Some(decoder), Some(_)) => Box::pin(self.pass_decoded(decoder, chunk)).await,
        };
        self.idle_until = Instant::now() + self.admitted.upstream().idle_timeout();
        ending.or_else(|| (self.passage.end_bytes() > AFTER_END_BYTES).then(|| self.over()))
    }

    /// Where the crash tests break a stream off.
    fn interfered(&mut self) -> Option<Ending> {
        let point = match std::mem::replace(&mut self.has_begun, true) {
            false => Point::FirstPiece,
            true => Point::MidStream,
        };
        fail_point::hit(point).is_err().then(|| self.broke())
    }

    /// Event by event.
    async fn pass_events(&mut self, chunk: Bytes) -> Option<Ending> {
        self.passage.push(chunk);
        loop {
            let before = self.watch.meter.visible_bytes();
            let (piece, seen) = self.next_piece()?;
            if let Err(refusal) = background::begin(self.gateway, self.admitted, self.watch).await {
                return Some(unwritten(refusal));
            }
            if self.passes_limit(seen).await {
                if self.passage.inside_event() {
                    // The most of it has left; it has to be ended before ours can follow.
                    self.forward(piece.bytes, seen, true).await;
                    if self.passage.end_has_begun() {
                        // It was the upstream's own end.
                        continue;
                    }
                }
                return Some(self.limited(before).await);
            }
            let whole_event = piece.event.is_some() || self.translation.is_some();
            let Some(bytes) = self.translated(piece) else {
                return Some(self.broke());
            };
            self.forward(bytes, seen, whole_event).await;
        }
    }

    /// A piece in the client's wire format: parts of an event wait for the rest of it. `None`: it is too long to be known.
    fn translated(&mut self, piece: Piece) -> Option<Bytes> {
        let Some(answer) = &mut self.translation else {
            return Some(piece.bytes);
        };
        match piece.event {
            Some(event) => {
                // One that is oversized is shown, too: the translation has to know that something is lost.
                let made = answer.event(&event, self.watch.meter.reading());
                (!event.oversized).then(|| made.into())
            }
            None => Some(Bytes::new()),
        }
    }

    /// Compressed, and translated: it leaves in the clear.
    async fn pass_decoded(&mut self, mut decoder: Decoder, chunk: Bytes) -> Option<Ending> {
        let plain = decoder.push(&chunk);
        self.decoder = Some(decoder);
        let Ok(plain) = plain else {
            return Some(self.broke());
        };
        self.decoded_bytes += plain.len();
        match self.decoded_bytes > DECODED_BYTES {
            true => Some(self.broke()),
            false => self.pass_events(plain).await,
        }
    }

    /// Compressed: the bytes pass as they come, and what they decode to is looked at. What does not decode is
    /// delivered all the same, and settled by estimate.
    async fn pass_coded(&mut self, mut decoder: Decoder, chunk: Bytes) -> Option<Ending> {
        let mut seen = Seen::default();
        match decoder.push(&chunk) {
            Ok(plain) => {
                self.decoded_bytes += plain.len();
                self.passage.push(plain);
            }
            Err(_) => seen.delivers = true,
        }
        self.decoder = Some(decoder);
        if self.decoded_bytes > DECODED_BYTES {
            return Some(self.broke());
        }
        let before = self.watch.meter.visible_bytes();
        while let Some((_, of_piece)) = self.next_piece() {
            seen.terminal = seen.terminal.or(of_piece.terminal);
            seen.delivers |= of_piece.delivers;
        }
        if let Err(refusal) = background::begin(self.gateway, self.admitted, self.watch).await {
            return Some(unwritten(refusal));
        }
        if self.passes_limit(seen).await {
            return Some(self.limited(before).await);
        }
        self.forward(chunk, seen, true).await;
        None
    }

    /// Whether the response goes on when this stream ends before it, and can be asked for.
    fn runs_on(&self) -> bool {
        self.watch.background.is_some() && self.watch.meter.reading().end.is_none()
    }

    /// Whether the output goes beyond the limit that the hold pays for. To end the stream of a response that runs on would
    /// save nothing.
    async fn passes_limit(&mut self, seen: Seen) -> bool {
        seen.delivers && self.watch.background.is_none() && self.limit.is_passed(self.watch).await
    }

    fn next_piece(&mut self) -> Option<(Piece, Seen)> {
        let (piece, seen) = self.passage.next_piece(&mut self.watch.meter)?;
        self.watch.events += u64::from(piece.event.is_some());
        self.watch.entry.has_events(self.watch.events);
        Some((piece, seen))
    }

    /// Sends a piece, unless it is held back because the end has begun, or left out.
    async fn forward(&mut self, bytes: Bytes, seen: Seen, whole_event: bool) {
        let had_begun = self.passage.end_has_begun();
        // What waits is delivered too: a compressed answer may come in one piece with its end.
        self.watch.delivered |= seen.delivers && !bytes.is_empty() && !self.client.is_gone();
        match self.passage.place(bytes, seen, whole_event) {
            Some(bytes) => {
                self.client.send(bytes).await;
                // Not for what came: the upstream's own signs of life may be none in the client's wire format.
                self.keep_alive_at = Instant::now() + KEEP_ALIVE;
            }
            None if !had_begun && self.passage.end_has_begun() => {
                self.end_by = Some(Instant::now() + AFTER_END);
            }
            None => {}
        }
    }

    async fn keep_alive(&mut self) {
        let before = Instant::now();
        // OpenAI's clients take no event ahead of `response.created`.
        let reading = self.watch.meter.reading();
        let opening = self.translation.as_mut().map(|answer| answer.open(reading));
        if let Some(opening) = opening.filter(|opening| !opening.is_empty()) {
            self.client.send(opening.into()).await;
        }
        self.client.send(ending::keep_alive(self.admitted.call.endpoint)).await;
        // The upstream's clock stands still while the client makes us wait.
        self.idle_until += before.elapsed();
        self.keep_alive_at = Instant::now() + KEEP_ALIVE;
    }

    /// The upstream closed cleanly: the rest is the last event, and leaves like a terminal one.
    fn ended(&mut self) -> Ending {
        while let Some((rest, seen)) = self.passage.last_piece(&mut self.watch.meter) {
            self.watch.events += u64::from(rest.event.is_some());
            self.watch.delivered |= seen.delivers && !self.client.is_gone();
            let Some(bytes) = self.translated(rest) else {
                return self.broke();
            };
            if !self.passes_coded() {
                self.passage.place_last(bytes, seen);
            }
        }
        match ended_as(self.admitted.sent.endpoint, self.watch.meter.reading()) {
            Some(end) => self.complete(end),
            None => self.ended_early(),
        }
    }

    /// Closed cleanly, but not whole: the rest is an event of the upstream's all the same, and leaves before ours.
    fn ended_early(&mut self) -> Ending {
        let rest = self.passage.take_end();
        let mut ending = self.broke();
        if let (Last::Pieces(words), false) = (&mut ending.last, rest.is_empty()) {
            words.splice(..0, rest.into_iter().chain([BLANK_LINE]));
        }
        ending
    }

    /// It ended as its own bytes say. Where the translation could make no end of them, it makes one of its own, and never
    /// a whole one of a failure.
    fn complete(&mut self, end: End) -> Ending {
        let broke_off = texts::broke_off(self.admitted.language);
        let end_of_ours = self.close(match end {
            End::Failed => Close::Failed(&broke_off),
            End::Completed | End::Incomplete => Close::Whole,
        });
        self.passage.place_last(end_of_ours, Seen::default());
        let last = Last::Pieces(self.passage.take_end());
        let end = self.translation.as_deref().map_or(end, |answer| as_told(end, answer));
        // An `error` may be the stream's alone: the response tells by itself what became of it.
        let is_told = end != End::Failed || self.watch.meter.reading().usage.is_some();
        match self.client.is_gone() {
            _ if self.watch.background.is_some() && !is_told => Ending::later(last),
            true => Ending::unread(end, last),
            false => Ending::of(end, last),
        }
    }

    /// No more is read: a terminal event was held back, there is nobody to read it for, or it takes too long.
    fn over(&mut self) -> Ending {
        match self.watch.meter.reading().end {
            Some(end) => self.complete(end),
            None if self.runs_on() => Ending::later(Last::Abort),
            None if self.client.is_gone() => Ending::left(Settle::Usage),
            None => self.broke(),
        }
    }

    /// The upstream broke off or paused too long. After a terminal event that does no harm.
    fn broke(&mut self) -> Ending {
        if let Some(end) = self.watch.meter.reading().end {
            return self.complete(end);
        }
        if self.runs_on() {
            // It has not failed: a client may read on where the stream broke off.
            return Ending::later(Last::Abort);
        }
        let error = self.failed(&texts::broke_off(self.admitted.language));
        Ending {
            state: State::Broken,
            settle: Settle::UsageOfDelivered,
            last: self.last_words(error),
        }
    }

    /// The gateway stops. An end that is already held back leaves all the same.
    fn cut(&mut self) -> Ending {
        if let Some(end) = self.watch.meter.reading().end {
            return self.complete(end);
        }
        if self.runs_on() {
            return Ending::later(Last::Abort);
        }
        let error = self.failed(&texts::restarted(self.admitted.language));
        Ending {
            state: State::Cancelled,
            settle: Settle::UsageOfDelivered,
            last: self.last_words(error),
        }
    }

    /// The output goes beyond the limit that the hold pays for; so many visible bytes were within it.
    async fn limited(&mut self, within: u64) -> Ending {
        self.watch.counted_bytes = Some(within);
        let as_it_came = self.translation.is_none().then(|| {
            ending::limited(
                self.admitted.call.endpoint,
                self.watch.meter.reading(),
                self.watch.events,
                self.admitted.call.choices,
            )
        });
        let left = self.client.is_gone();
        self.listen_for_usage().await;
        let end = as_it_came.unwrap_or_else(|| self.close(Close::Limited));
        if left {
            return Ending::left(Settle::Capped);
        }
        Ending {
            state: State::Limited,
            settle: Settle::Capped,
            last: self.last_words(end),
        }
    }

    /// The usage may come at once: many upstreams send the rest in one piece.
    async fn listen_for_usage(&mut self) {
        let until = Instant::now() + AFTER_END;
        loop {
            while self.next_piece().is_some() {}
            if self.watch.meter.reading().usage.is_some() {
                return;
            }
            match timeout_at(until, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let plain = self.decoder.as_mut().map(|decoder| decoder.push(&chunk));
                    // What does not decode tells no usage.
                    self.passage.push(plain.unwrap_or(Ok(chunk)).unwrap_or_default());
                }
                _ => return,
            }
        }
    }

    /// Says that it ends early, in the client's protocol.
    fn failed(&mut self, message: &str) -> Bytes {
        if self.translation.is_some() {
            return self.close(Close::Failed(message));
        }
        let (endpoint, events) = (self.admitted.call.endpoint, self.watch.events);
        ending::failed(endpoint, self.watch.meter.reading(), events, message)
    }

    /// The end of a translated stream, where the upstream's bytes brought none.
    fn close(&mut self, how: Close<'_>) -> Bytes {
        let reading = self.watch.meter.reading();
        let end = self.translation.as_mut().map(|answer| answer.close(how, reading));
        end.unwrap_or_default().into()
    }

    /// Our own end of the stream. Inside an event nothing can be said: a blank line would dispatch what is there of it.
    /// Nor can anything be put into a compressed stream.
    fn last_words(&self, words: Bytes) -> Last {
        match self.passage.inside_event() || self.passes_coded() {
            true => Last::Abort,
            false => Last::Pieces(vec![words]),
        }
    }
}

/// Whether the gateway asks for usage in the client's place, and takes it out of the answer again.
fn usage_event(admitted: &Admitted) -> UsageEvent {
    let call = &admitted.call;
    // A translation makes events of its own.
    let in_place = !admitted.is_translated();
    match in_place && upstream::asks_for_usage(call.endpoint) && !call.include_usage {
        true => UsageEvent::IsTakenOut,
        false => UsageEvent::Passes,
    }
}

/// How a stream ended that was closed cleanly. Some vendors send no `[DONE]`: a chat stream is whole when a choice has
/// finished or the usage has come alone. A response without its terminal event is not.
fn ended_as(endpoint: Endpoint, reading: &Reading) -> Option<End> {
    let whole = !endpoint.is_responses() && reading.finished;
    reading.end.or(whole.then_some(End::Completed))
}

/// The upstream's headers that may be seen, and the output limit that the hold paid for, if it lowered one.
fn answer_headers(of_upstream: &HeaderMap, admitted: &Admitted) -> HeaderMap {
    let mut headers = upstream::returned_headers(of_upstream);
    if admitted.is_translated() {
        headers.remove(CONTENT_ENCODING);
    }
    if let Some(left_out) = left_out(admitted) {
        headers.insert(HeaderName::from_static("x-gateway-left-out"), left_out);
    }
    if let Some(limit) = admitted.hold.output_limit {
        headers.insert(
            HeaderName::from_static("x-gateway-output-limit"),
            HeaderValue::from(limit.get()),
        );
    }
    headers
}

/// Tools that were offered to the model in vain.
fn left_out(admitted: &Admitted) -> Option<HeaderValue> {
    let tools = Some(&admitted.left_out).filter(|tools| !tools.is_empty())?;
    HeaderValue::try_from(tools.join(", ")).ok()
}

fn stream_headers(of_upstream: &HeaderMap, admitted: &Admitted) -> HeaderMap {
    let mut headers = answer_headers(of_upstream, admitted);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    headers
}

/// Watches that a stream's visible output stays within what the hold pays for.
struct VisibleLimit {
    encoding: Encoding,
    /// In tokens of the encoding, slack and the margin of a guessed vocabulary included.
    most: u64,
    /// A token has at least one byte: below this many bytes nothing has to be counted.
    count_at: u64,
}

impl VisibleLimit {
    fn new(model: &str, bound: Tokens) -> VisibleLimit {
        let (encoding, known) = Encoding::of(model);
        let margin = match known {
            Known::Exact => 0,
            Known::Guess => bound.get() / 2,
        };
        let most = bound.get() + margin + LIMIT_SLACK;
        VisibleLimit {
            encoding,
            most,
            count_at: most,
        }
    }

    /// Whether the output is beyond the limit, the event just looked at included.
    async fn is_passed(&mut self, watch: &Watch) -> bool {
        let bytes = watch.meter.visible_bytes();
        if bytes <= self.count_at {
            return false;
        }
        let (encoding, text) = (self.encoding, watch.meter.reading().visible.clone());
        let beyond = watch.meter.reading().visible_beyond;
        let guess = || tokens::guess_output(bytes.saturating_sub(beyond));
        let tokens = count(move || encoding.count(&text), guess).await.get() + beyond;
        self.count_at = bytes + self.most.saturating_sub(tokens);
        tokens > self.most
    }
}
