//! Edits of a request, spliced into the bytes the client wrote.

use std::ops::Range;

use bytes::Bytes;

use super::{Call, ChatLimitField, Edits, Endpoint};
use crate::usage::Tokens;

/// Where in the body an edit would go, as byte offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// The model's value.
    pub(super) model: Range<usize>,
    /// The values of the limits of this endpoint, `null` ones included.
    pub(super) limits: Vec<StatedLimit>,
    /// `stream_options`.
    pub(super) stream_options: StreamOptions,
    /// The brace that closes the request; it is never an empty object.
    pub(super) end: usize,
}

/// An output limit the client wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StatedLimit {
    /// The parameter's name.
    pub(super) field: &'static str,
    /// Its value; `None` for `null`.
    pub(super) value: Option<Tokens>,
    /// Where its value lies.
    pub(super) place: Range<usize>,
}

/// How the client wrote `stream_options`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum StreamOptions {
    /// Not at all.
    #[default]
    Absent,
    /// As `null`, which lies here.
    Null(Range<usize>),
    /// As an object without `include_usage`.
    Object {
        /// Behind its opening brace.
        start: usize,
        /// Whether nothing else is in it.
        empty: bool,
    },
    /// With an `include_usage`, whose value lies here.
    Flag(Range<usize>),
}

struct Splice {
    place: Range<usize>,
    with: String,
}

impl Splice {
    fn replace(place: &Range<usize>, with: String) -> Splice {
        Splice {
            place: place.clone(),
            with,
        }
    }

    fn insert(at: usize, with: String) -> Splice {
        Splice { place: at..at, with }
    }
}

/// The body with `edits` made.
pub(super) fn spliced(call: &Call, edits: &Edits) -> Bytes {
    let mut splices: Vec<Splice> = model(call, edits).into_iter().chain(usage(call, edits)).collect();
    splices.extend(output_limit(call, edits));
    if splices.is_empty() {
        return call.body.clone();
    }
    splices.sort_by_key(|splice| splice.place.start);
    let added: usize = splices.iter().map(|splice| splice.with.len()).sum();
    let mut edited = Vec::with_capacity(call.body.len() + added);
    let mut copied = 0;
    for splice in splices {
        edited.extend_from_slice(&call.body[copied..splice.place.start]);
        edited.extend_from_slice(splice.with.as_bytes());
        copied = splice.place.end;
    }
    edited.extend_from_slice(&call.body[copied..]);
    Bytes::from(edited)
}

fn model(call: &Call, edits: &Edits) -> Option<Splice> {
    let model = edits.model.as_ref().filter(|model| **model != call.model)?;
    let written = match call.form {
        Some(_) => model.clone(),
        None => serde_json::Value::from(model.as_str()).to_string(),
    };
    Some(Splice::replace(&call.places.model, written))
}

fn usage(call: &Call, edits: &Edits) -> Option<Splice> {
    let has_usage_chunk = matches!(call.endpoint, Endpoint::ChatCompletions | Endpoint::Completions);
    if !(edits.include_usage && call.stream && has_usage_chunk && !call.include_usage) {
        return None;
    }
    Some(match &call.places.stream_options {
        StreamOptions::Absent => Splice::insert(
            call.places.end,
            ",\"stream_options\":{\"include_usage\":true}".to_owned(),
        ),
        StreamOptions::Null(place) => Splice::replace(place, "{\"include_usage\":true}".to_owned()),
        StreamOptions::Object { start, empty: true } => Splice::insert(*start, "\"include_usage\":true".to_owned()),
        StreamOptions::Object { start, empty: false } => Splice::insert(*start, "\"include_usage\":true,".to_owned()),
        StreamOptions::Flag(place) => Splice::replace(place, "true".to_owned()),
    })
}

/// Lowers every stated limit that is larger; adds one only when none was stated, in place of a `null` if there is one.
fn output_limit(call: &Call, edits: &Edits) -> Vec<Splice> {
    let Some(limit) = edits.output_limit else {
        return Vec::new();
    };
    let stated = &call.places.limits;
    if call.output_limit.is_some() {
        let larger = stated
            .iter()
            .filter(|stated| stated.value.is_some_and(|value| value > limit));
        return larger
            .map(|stated| Splice::replace(&stated.place, limit.get().to_string()))
            .collect();
    }
    let field = match (call.endpoint, edits.chat_limit_field) {
        (Endpoint::ChatCompletions, ChatLimitField::MaxCompletionTokens) => "max_completion_tokens",
        (Endpoint::ChatCompletions, ChatLimitField::MaxTokens) | (Endpoint::Completions, _) => "max_tokens",
        (Endpoint::Responses, _) => "max_output_tokens",
        _ => return Vec::new(),
    };
    vec![match stated.iter().find(|stated| stated.field == field) {
        Some(null) => Splice::replace(&null.place, limit.get().to_string()),
        None => Splice::insert(call.places.end, format!(",\"{field}\":{}", limit.get())),
    }]
}
