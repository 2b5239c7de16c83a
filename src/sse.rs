//! Server-sent events: bytes to events, whatever pieces they come in, without changing a byte.

use bytes::Bytes;

/// An event over this size leaves as it comes, but for its blank line.
pub const PASS_THROUGH_BYTES: usize = 64 * 1024;

/// The data of one event kept for the meter, at most.
pub const MAX_EVENT_BYTES: usize = 32 * 1024 * 1024;

/// Bytes that may leave together, and the event they end, if they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Exactly the upstream's bytes.
    pub bytes: Bytes,
    /// The event that is complete with these bytes; `None` for a part of a long event.
    pub event: Option<Event>,
}

/// One event, as a browser's parser would dispatch it, comments and blank lines included as events without data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The `event:` field.
    pub name: Option<String>,
    /// All `data:` lines joined by newlines; `None` without any, or beyond [`MAX_EVENT_BYTES`].
    pub data: Option<Bytes>,
    /// Whether the data was too long to keep.
    pub oversized: bool,
}

/// Splits a stream into pieces.
#[derive(Debug, Default)]
pub struct Splitter {}

impl Splitter {
    /// A splitter at the start of a stream.
    pub fn new() -> Splitter {
        Splitter::default()
    }

    /// Takes what came from the upstream.
    pub fn push(&mut self, _chunk: Bytes) {
        todo!()
    }

    /// The next piece that may leave, if there is one.
    pub fn next_piece(&mut self) -> Option<Piece> {
        todo!()
    }

    /// Whether the stream stands between two events: the only place for a keep-alive.
    pub fn between_events(&self) -> bool {
        todo!()
    }

    /// At the upstream's clean end: the rest, as the last event.
    pub fn finish(&mut self) -> Option<Piece> {
        todo!()
    }
}
