//! Compaction: the model is asked for a summary, and that takes the place of the conversation.
//!
//! OpenAI's upstreams make a conversation short by themselves: at its end stands a `compaction_trigger`, or it comes to
//! `/responses/compact`, and what comes back only they can read. Here the model writes the summary; it goes into an
//! `encrypted_content` of ours, and stands where it is handed back as what the user says of the conversation before.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::translate::json::{Object, list};

/// What an `encrypted_content` with a summary begins with.
const OURS: &str = "gateway.summary.";

/// What the model is asked for.
pub(super) const ASK: &str = "\
The conversation above has become too long and will be replaced by a summary. Write that summary now, for a model that goes \
on with the work and sees nothing else of what was said. State the task and what the user wants and forbids; what was done, \
found out and decided, and why; names of files, functions, commands and values as they are written; what is unfinished, and \
the next step. Call no tool, and write nothing but the summary.";

/// What stands before a summary that is handed back.
const SUMMARY: &str = "This is a summary of the conversation so far, which it replaces:";

/// In what a client gets a summary.
#[derive(Debug)]
pub(super) enum Form {
    /// A response with one item, for a `compaction_trigger`.
    Response,
    /// The document of `/responses/compact`: what the user said, as it was, and the item.
    Document(Vec<Value>),
}

impl Form {
    /// The document that a conversation with this input becomes.
    pub(super) fn document(input: Option<&RawValue>) -> Form {
        let items = input.and_then(list).unwrap_or_default();
        let said = items.into_iter().filter_map(|item| {
            let object = Object::read(item.get())?;
            let is_message = object.text("type").is_none_or(|kind| kind == "message");
            let is_user = is_message && object.text("role").as_deref() == Some("user");
            is_user.then(|| serde_json::from_str(item.get()).ok()).flatten()
        });
        Form::Document(said.collect())
    }
}

/// The item that a summary becomes, of an answer whose ids end so.
pub(super) fn item(summary: &str, answer: &str) -> Value {
    let packed = format!("{OURS}{}", URL_SAFE_NO_PAD.encode(summary));
    json!({"id": format!("cmp_{answer}"), "type": "compaction", "encrypted_content": packed})
}

/// What the model is told of the summary that an item brings back; `None`: it is not ours.
pub(super) fn read(item: &Object<'_>) -> Option<String> {
    let packed = item.text("encrypted_content")?;
    let summary = URL_SAFE_NO_PAD.decode(packed.strip_prefix(OURS)?).ok()?;
    Some(format!("{SUMMARY}\n\n{}", String::from_utf8(summary).ok()?))
}
