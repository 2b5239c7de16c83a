//! What the model reads: one walk over the parts of a request that reach it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::fields::{Member, Name, members, unsupported};
use super::piece::Piece;
use super::{AllEncrypted, CallError, Endpoint, HostedTools, Instead, Problem, Reference};

/// Names such as a role or a type are part of a message's frame, not of its text. What is longer is no such name.
const MAX_LABEL_BYTES: usize = 64;

/// How a value is read.
#[derive(Clone, Copy)]
pub(super) enum Scope {
    /// `messages` or `input`: a text, or a list of items.
    Items,
    /// One message or item.
    Item,
    /// A part of one.
    Part,
    /// Text whose members mean nothing to an upstream: arguments, annotations.
    Plain,
    /// A short name that is no text.
    Label,
    /// `prediction`.
    Prediction,
    /// `prompt` of completions, `input` of embeddings: a text, several, or tokens.
    Prompts,
    /// One of several prompts.
    Prompt,
    /// An image's URL, or an object that holds it.
    Image,
    /// Bytes, not text.
    Blob,
    /// Bytes that only the account that made them can read.
    Encrypted,
    /// Bytes or a URL of something that is not counted.
    Beyond,
    /// A hosted tool's settings: no text, but perhaps ids.
    Setting,
    /// A container: an id is state of the upstream, an object is a setting.
    Container,
    /// Ids of what only the upstream holds.
    ServerState,
    /// The id of a file.
    File,
}

/// How members of messages, items and their parts are read.
fn scope_of_part(name: &str) -> Scope {
    match name {
        "role" | "type" | "status" | "detail" | "phase" | "id" => Scope::Label,
        "encrypted_content" => Scope::Encrypted,
        "file_data" | "input_audio" => Scope::Blob,
        "image_url" => Scope::Image,
        "file_url" | "video_url" | "audio" => Scope::Beyond,
        "annotations" | "arguments" | "logprobs" | "metadata" => Scope::Plain,
        "file_id" => Scope::File,
        _ => scope_of_id(name).unwrap_or(Scope::Part),
    }
}

/// Members that lead to files, containers, stores or skills of the upstream's account, which are not the user's alone.
fn scope_of_id(name: &str) -> Option<Scope> {
    let names = [
        "file_id",
        "file_ids",
        "container_id",
        "vector_store_id",
        "vector_store_ids",
        "skill_id",
    ];
    names.contains(&name).then_some(Scope::ServerState)
}

/// How a parameter of the request is read; `None` when no model reads it. What is not known counts as text, so that
/// the sums stay upper bounds for upstreams with parameters of their own.
fn scope_of_parameter(endpoint: Endpoint, name: &str) -> Option<Scope> {
    match (name, endpoint) {
        ("input", Endpoint::Embeddings) | ("prompt", Endpoint::Completions) => Some(Scope::Prompts),
        ("images" | "mask", Endpoint::ImageEdits) => Some(Scope::Part),
        ("messages" | "input" | "instructions", _) => Some(Scope::Items),
        ("prediction", _) => Some(Scope::Prediction),
        (
            "audio"
            | "background"
            | "client_metadata"
            | "conversation"
            | "encoding_format"
            | "function_call"
            | "include"
            | "metadata"
            | "modalities"
            | "model"
            | "previous_response_id"
            | "prompt_cache_key"
            | "prompt_cache_options"
            | "prompt_cache_retention"
            | "reasoning"
            | "reasoning_effort"
            | "safety_identifier"
            | "service_tier"
            | "stop"
            | "store"
            | "stream"
            | "stream_options"
            | "tool_choice"
            | "truncation"
            | "user"
            | "verbosity",
            _,
        ) => None,
        _ => Some(Scope::Plain),
    }
}

/// A walk and what it finds.
pub(super) struct Walk<'w> {
    /// Told of every piece.
    pub(super) emit: &'w mut dyn FnMut(Piece<'_>),
    /// State of the upstream that earlier answers made.
    pub(super) refers_to: Vec<Reference>,
    /// Hosted tools among the definitions.
    pub(super) tools: HostedTools,
    /// What is encrypted for the account that made it.
    pub(super) encrypted: AllEncrypted,
    refusal: Option<Refusal>,
}

/// What ends a walk early; the path grows on the way back.
struct Refusal {
    path: String,
    instead: Instead,
}

impl<'w> Walk<'w> {
    /// A walk that tells `emit` what it meets.
    pub(super) fn new(emit: &'w mut dyn FnMut(Piece<'_>)) -> Walk<'w> {
        Walk {
            emit,
            refers_to: Vec::new(),
            tools: HostedTools::default(),
            encrypted: AllEncrypted::default(),
            refusal: None,
        }
    }

    /// Walks over all parameters of a request.
    pub(super) fn request(&mut self, endpoint: Endpoint, parameters: &[Member<'_>]) -> Result<(), CallError> {
        parameters
            .iter()
            .try_for_each(|parameter| self.parameter(endpoint, parameter))
    }

    /// Walks over a member that holds items.
    pub(super) fn items(&mut self, member: &Member<'_>) -> Result<(), CallError> {
        let walked = self.json(member.value, Scope::Items);
        walked.map_err(|error| self.call_error(&member.name, &error))
    }

    fn parameter(&mut self, endpoint: Endpoint, parameter: &Member<'_>) -> Result<(), CallError> {
        let value = parameter.value;
        let walked = match &*parameter.name {
            _ if value == "null" => Ok(()),
            "tools" | "functions" => self.definitions(value),
            "response_format" => self.format(value),
            "text" if endpoint.is_responses() => self.text_settings(value),
            name => match scope_of_parameter(endpoint, name) {
                Some(scope) => self.json(value, scope),
                None => Ok(()),
            },
        };
        walked.map_err(|error| self.call_error(&parameter.name, &error))
    }

    /// Walks over a piece of JSON.
    pub(super) fn json(&mut self, json: &str, scope: Scope) -> Result<(), serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        Node { walk: self, scope }.deserialize(&mut deserializer)
    }

    /// Walks over a list of tool definitions.
    fn definitions(&mut self, json: &str) -> Result<(), serde_json::Error> {
        (self.emit)(Piece::Tools(json));
        self.hosted_tools(json)
    }

    /// A format that only names its type adds nothing to what the model reads.
    fn format(&mut self, json: &str) -> Result<(), serde_json::Error> {
        if members(json).map_or(true, |members| members.len() > 1) {
            (self.emit)(Piece::Format(json));
        }
        Ok(())
    }

    /// `text` of the Responses API holds the format beside a word on verbosity.
    fn text_settings(&mut self, json: &str) -> Result<(), serde_json::Error> {
        let Ok(settings) = members(json) else {
            return self.json(json, Scope::Plain);
        };
        settings.iter().try_for_each(|setting| match &*setting.name {
            "verbosity" => Ok(()),
            "format" => self.format(setting.value),
            _ => self.json(setting.value, Scope::Plain),
        })
    }

    /// Ends the walk.
    pub(super) fn refuse<E: Error>(&mut self, instead: Instead) -> E {
        self.refusal = Some(Refusal {
            path: String::new(),
            instead,
        });
        E::custom("refused")
    }

    /// Notes on the way back where the walk ended: at a member's name, or an `[index]`.
    pub(super) fn at<E>(&mut self, step: impl fmt::Display, error: E) -> E {
        if let Some(Refusal { path, .. }) = &mut self.refusal {
            let dot = if path.is_empty() || path.starts_with('[') {
                ""
            } else {
                "."
            };
            *path = format!("{step}{dot}{path}");
        }
        error
    }

    fn call_error(&mut self, parameter: &str, error: &serde_json::Error) -> CallError {
        self.at(parameter, ());
        if let Some(Refusal { path, instead }) = self.refusal.take() {
            return unsupported(&path, instead);
        }
        let too_deep = error.to_string().starts_with("recursion limit");
        CallError::of(
            parameter,
            if too_deep {
                Problem::TooDeep
            } else {
                Problem::BrokenText
            },
        )
    }
}

/// One value on the walk.
pub(super) struct Node<'a, 'w> {
    /// The walk it belongs to.
    pub(super) walk: &'a mut Walk<'w>,
    /// How it is read.
    pub(super) scope: Scope,
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.scope {
            Scope::Beyond => Beyond(self).deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

/// Says once that a value is there before its strings are taken for blobs.
struct Beyond<'a, 'w>(Node<'a, 'w>);

impl<'de> DeserializeSeed<'de> for Beyond<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let node = self.0;
        let emit = &mut node.walk.emit;
        let mut there = false;
        let mut blobs = |piece: Piece<'_>| {
            there = true;
            emit(piece);
        };
        let mut inner = Walk::new(&mut blobs);
        Node {
            walk: &mut inner,
            scope: Scope::Blob,
        }
        .deserialize(deserializer)?;
        if there {
            (node.walk.emit)(Piece::Beyond);
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let emit = &mut self.walk.emit;
        match self.scope {
            Scope::Items => {
                emit(Piece::Message);
                emit(Piece::Text(text));
            }
            Scope::Prompts | Scope::Prompt => {
                emit(Piece::Prompt);
                emit(Piece::Text(text));
            }
            Scope::Item | Scope::Part | Scope::Plain => emit(Piece::Text(text)),
            Scope::Label if text.len() > MAX_LABEL_BYTES => emit(Piece::Text(text)),
            Scope::Label | Scope::Setting => {}
            Scope::Prediction => emit(Piece::Prediction(text)),
            Scope::Image => emit(Piece::Image),
            Scope::Blob | Scope::Beyond => emit(Piece::Blob(text.len())),
            Scope::Encrypted => {
                emit(Piece::Blob(text.len()));
                self.walk.encrypted.push(text);
            }
            Scope::Container | Scope::ServerState => return Err(self.walk.refuse(Instead::SendContent)),
            Scope::File => {
                emit(Piece::Beyond);
                self.walk.refers_to.push(Reference::File(text.to_owned()));
            }
        }
        Ok(())
    }

    fn visit_u64<E: Error>(self, _number: u64) -> Result<(), E> {
        match self.scope {
            Scope::Prompts | Scope::Prompt => (self.walk.emit)(Piece::TokenId),
            Scope::Container | Scope::ServerState | Scope::File => {
                return Err(self.walk.refuse(Instead::SendContent));
            }
            _ => {}
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, _number: i64) -> Result<(), E> {
        self.visit_u64(0)
    }

    fn visit_f64<E: Error>(self, _number: f64) -> Result<(), E> {
        self.visit_u64(0)
    }

    fn visit_bool<E: Error>(self, _flag: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let scope = match self.scope {
            Scope::Items => Scope::Item,
            Scope::Prompts => Scope::Prompt,
            other => other,
        };
        if matches!(self.scope, Scope::Prompt) {
            (self.walk.emit)(Piece::Prompt);
        }
        let mut index = 0;
        loop {
            let element = list.next_element_seed(Node { walk: self.walk, scope });
            match element.map_err(|error| self.walk.at(format_args!("[{index}]"), error))? {
                Some(()) => index += 1,
                None => return Ok(()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if matches!(self.scope, Scope::Items | Scope::Item) {
            return self.walk.item(map);
        }
        while let Some(Name(name)) = map.next_key()? {
            let scope = match self.scope {
                Scope::Part | Scope::Items | Scope::Item => scope_of_part(&name),
                Scope::Setting | Scope::Container => scope_of_id(&name).unwrap_or(Scope::Setting),
                Scope::Prediction if name == "type" => Scope::Label,
                Scope::Image if name != "url" => Scope::Setting,
                other => other,
            };
            let value = map.next_value_seed(Node { walk: self.walk, scope });
            value.map_err(|error| self.walk.at(&name, error))?;
        }
        Ok(())
    }
}

/// What tells references and generated images from other items, whatever the order of the members.
#[derive(Default)]
struct ItemFrame<'a> {
    types: Vec<&'a str>,
    ids: Vec<&'a str>,
    results: Vec<&'a str>,
    more: bool,
}

impl ItemFrame<'_> {
    fn is(&self, name: &str) -> bool {
        self.types.iter().any(|json| decoded(json).as_deref() == Some(name))
    }

    /// An item with an id and nothing that the model could read is a reference too, whatever its type.
    fn is_reference(&self) -> bool {
        let is_drawn = || self.results.iter().any(|json| *json != "null");
        self.is("item_reference") || self.is("image_generation_call") && !is_drawn() || !self.more
    }
}

/// The string that a piece of JSON is.
pub(super) fn decoded(json: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str(json).ok().map(|Name(text)| text)
}

impl Walk<'_> {
    fn item<'de, A: MapAccess<'de>>(&mut self, mut map: A) -> Result<(), A::Error> {
        (self.emit)(Piece::Message);
        let mut frame = ItemFrame::default();
        while let Some(Name(name)) = map.next_key()? {
            let value = self.item_member(&name, &mut map, &mut frame);
            value.map_err(|error| self.at(&name, error))?;
        }
        if frame.is_reference() {
            let ids = frame.ids.iter().filter_map(|json| decoded(json));
            self.refers_to.extend(ids.map(|id| Reference::Item(id.into_owned())));
        }
        let scope = if frame.is("image_generation_call") {
            Scope::Image
        } else {
            Scope::Part
        };
        for result in frame.results {
            let walked = self.json(result, scope);
            walked.map_err(|error| self.at("result", A::Error::custom(error)))?;
        }
        Ok(())
    }

    fn item_member<'de, A>(&mut self, name: &str, map: &mut A, frame: &mut ItemFrame<'de>) -> Result<(), A::Error>
    where
        A: MapAccess<'de>,
    {
        let list = match name {
            "type" => &mut frame.types,
            "id" => &mut frame.ids,
            "result" => &mut frame.results,
            "tools" => {
                let json = map.next_value::<&'de RawValue>()?.get();
                frame.more = true;
                return self.definitions(json).map_err(A::Error::custom);
            }
            _ => {
                frame.more |= name != "status";
                return map.next_value_seed(Node {
                    walk: self,
                    scope: scope_of_part(name),
                });
            }
        };
        let json = map.next_value::<&'de RawValue>()?.get();
        list.push(json);
        if name != "result" {
            return self.json(json, Scope::Label).map_err(A::Error::custom);
        }
        frame.more = true;
        Ok(())
    }
}

/// A value that is passed over.
pub(super) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}
