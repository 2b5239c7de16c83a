//! The meter: an answer passing by → a [`Reading`]. It only looks.

use crate::call::Endpoint;
use crate::pricing::Tier;
use crate::sse::Event;
use crate::usage::{Dialect, Usage};

/// How an answer ended, as far as its bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `[DONE]`, `response.completed`, a whole unary body.
    Completed,
    /// `response.incomplete`; `finish_reason: "length"` is completed.
    Incomplete,
    /// `response.failed`, `error` inside a 200.
    Failed,
}

/// What one event means to the relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The event is the stream's end: it leaves after the charge is durable.
    pub terminal: Option<End>,
    /// The event is the usage chunk that `include_usage` causes (empty `choices`, non-null `usage`).
    pub usage_only: bool,
    /// The event carries visible output (text, refusal, arguments): something is delivered when it leaves.
    pub delivers: bool,
}

/// What the meter knows at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The last usage seen, with the tools' usage.
    pub usage: Option<Usage>,
    /// The response's tier; the last one seen.
    pub tier: Option<Tier>,
    /// The upstream's response id.
    pub response_id: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// How it ended; `None`: no terminal event came.
    pub end: Option<End>,
    /// Visible output, for an estimate.
    pub visible: String,
    /// Bytes of visible output that were too many to keep.
    pub visible_beyond: u64,
    /// Ids of output items, so that an `item_reference` can be shown to be this user's.
    pub item_ids: Vec<String>,
}

/// Watches one answer.
#[derive(Debug)]
pub struct Meter {}

impl Meter {
    /// A meter for one answer.
    pub fn new(_endpoint: Endpoint, _dialect: Dialect) -> Meter {
        Meter {}
    }

    /// Looks at an event of a stream.
    pub fn observe(&mut self, _event: &Event) -> Seen {
        todo!()
    }

    /// Looks at a unary body.
    pub fn observe_body(&mut self, _body: &[u8]) {
        todo!()
    }

    /// What has been seen so far.
    pub fn reading(&self) -> &Reading {
        todo!()
    }

    /// The reading at the end.
    pub fn into_reading(self) -> Reading {
        todo!()
    }
}
