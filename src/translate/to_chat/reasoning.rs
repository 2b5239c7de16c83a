//! Reasoning that an upstream shows: told to the client as an item, and given back to the upstream as it was.
//!
//! Vendors call it `reasoning_content` or `reasoning`, or put it among the parts of the content. Which, and the text, go
//! into the item's `encrypted_content`, which clients hand back unread; that is the only form in which Codex keeps it.
//! What another upstream has encrypted there cannot be read, and was never this model's: it is left out.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::translate::json::Object;

/// What an `encrypted_content` of ours begins with.
const OURS: &str = "gateway.";

/// Where in a chat message the reasoning stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// DeepSeek, Moonshot, Z.ai, xAI, llama.cpp and others.
    ReasoningContent,
    /// Ollama, Groq, OpenRouter.
    Reasoning,
    /// Mistral: a part of the content.
    Thinking,
}

impl Field {
    const ALL: [Field; 3] = [Field::ReasoningContent, Field::Reasoning, Field::Thinking];

    const fn name(self) -> &'static str {
        match self {
            Field::ReasoningContent => "reasoning_content",
            Field::Reasoning => "reasoning",
            Field::Thinking => "thinking",
        }
    }
}

/// What a model thought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reasoning {
    pub(super) field: Field,
    pub(super) text: String,
}

impl Reasoning {
    /// As an `encrypted_content`.
    pub(super) fn packed(&self) -> String {
        format!("{OURS}{}.{}", self.field.name(), URL_SAFE_NO_PAD.encode(&self.text))
    }

    fn unpack(packed: &str) -> Option<Reasoning> {
        let (name, text) = packed.strip_prefix(OURS)?.split_once('.')?;
        let field = Field::ALL.into_iter().find(|field| field.name() == name)?;
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        Some(Reasoning { field, text })
    }
}

/// The reasoning that an item brings back, if it can be read.
pub(super) fn read(item: &Object<'_>) -> Option<Reasoning> {
    if let Some(ours) = item
        .text("encrypted_content")
        .and_then(|packed| Reasoning::unpack(&packed))
    {
        return Some(ours);
    }
    let parts = item.list("content")?;
    let texts = parts
        .into_iter()
        .filter_map(|part| Object::read(part.get())?.text("text"));
    let text: String = texts.collect();
    (!text.is_empty()).then_some(Reasoning {
        field: Field::ReasoningContent,
        text,
    })
}
