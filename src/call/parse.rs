//! Reading a request: its deciding parameters, and a walk over what the model reads.

use std::ops::Range;

use bytes::Bytes;

use super::fields::{Deciding, Member, members, span, unsupported, wrong_type};
use super::input::{Walk, decoded};
use super::piece::Piece;
use super::splice::{Places, StatedLimit, StreamOptions};
use super::{BodyProblem, Call, CallError, Echo, Endpoint, InputShape, Instead, Problem, Reference, Wanted, media};
use crate::usage::{CacheTtl, Tier, Tokens};

/// Longest name of a model; it goes into tables, logs and messages.
const MAX_MODEL_BYTES: usize = 256;

/// OpenAI's bound of `n`.
pub(super) const MAX_CHOICES: u64 = 128;

/// Names of tiers that [`Tier::from_wire`] understands, or that mean the standard one.
static TIERS: [&str; 8] = [
    "auto",
    "default",
    "standard",
    "scale",
    "flex",
    "priority",
    "fast",
    "ultrafast",
];

/// Reads a request.
pub(super) fn parse(endpoint: Endpoint, body: &Bytes) -> Result<Call, CallError> {
    let text = std::str::from_utf8(body).map_err(|_| CallError::Body(BodyProblem::NotUtf8))?;
    if endpoint.takes_forms() && endpoint != Endpoint::ImageEdits {
        return Err(CallError::Body(BodyProblem::NotAForm));
    }
    let members = members(text)?;
    let fields = Deciding::pick(&members, "")?;
    refuse_unserved(endpoint, &fields)?;
    expect_kinds(endpoint, &fields)?;
    let (model, model_place) = model(text, &fields)?;
    let (stream_options, include_usage) = stream_options(text, &fields)?;
    let limits = limits(endpoint, text, &fields)?;
    let mut read = read(endpoint, &members, &fields)?;
    read.tools.web_search |= searches_by_itself(&model);
    let (medium, stream) = (
        media::of_json(endpoint, &members),
        fields.boolean("stream")?.unwrap_or(false),
    );
    let choices = choices(endpoint, &fields, read.input.prompts)?;
    media::one_image_in_a_stream(medium, stream, choices)?;
    Ok(Call {
        endpoint,
        stream,
        background: runs_in_background(endpoint, &fields)?,
        include_usage,
        output_limit: limits.iter().filter_map(|limit| limit.value).max(),
        choices,
        medium,
        form: None,
        tier: tier(&fields)?,
        input: read.input,
        tools: read.tools,
        refers_to: read.refers_to,
        encrypted: read.encrypted,
        cache_ttl: cache_ttl(&fields)?,
        echo: echo(&fields)?,
        body: body.clone(),
        cache_key: cache_key(text, &members),
        client_metadata: client_metadata(text, &members),
        places: Places {
            model: model_place,
            limits,
            stream_options,
            end: text.trim_end().len().saturating_sub(1),
        },
        model,
    })
}

/// Walks once more over a body that was parsed, telling every text the model reads.
pub(super) fn each_text(call: &Call, told: &mut dyn FnMut(&str)) {
    let parameters = std::str::from_utf8(&call.body)
        .ok()
        .and_then(|text| members(text).ok())
        .unwrap_or_default();
    let mut emit = |piece: Piece<'_>| {
        if let Some(text) = piece.text() {
            told(text);
        }
    };
    let walked = Walk::new(&mut emit).request(call.endpoint, &parameters);
    debug_assert!(walked.is_ok(), "a body that parsed walks again");
}

/// State that only the upstream keeps, and parameters by which a vendor would bill another model than the one priced;
/// what to do instead.
const UNSERVED: [(&str, Instead); 6] = [
    ("background", Instead::PostResponse),
    ("prompt", Instead::SendPrompt),
    ("n_predict", Instead::SetMaxTokens),
    ("models", Instead::OneModel),
    ("plugins", Instead::OneModel),
    ("preset", Instead::OneModel),
];

/// What the items of a document lean on. An upstream may take an item by any name.
pub(super) fn references(document: &[u8]) -> Result<Vec<Reference>, CallError> {
    let text = std::str::from_utf8(document).map_err(|_| CallError::Body(BodyProblem::NotUtf8))?;
    let mut nothing = |_: Piece<'_>| ();
    let mut walk = Walk::new(&mut nothing);
    for member in members(text)?.iter().filter(|member| member.name != "metadata") {
        walk.items(member)?;
    }
    Ok(walk.refers_to)
}

/// The model of a document that is no call; `null` is no name.
pub(super) fn named_model(document: &[u8]) -> Result<Option<String>, CallError> {
    let text = std::str::from_utf8(document).map_err(|_| CallError::Body(BodyProblem::NotUtf8))?;
    let fields = Deciding::pick(&members(text)?, "")?;
    match fields.written("model") {
        None => Ok(None),
        Some("null") => Err(wrong_type("model", Wanted::Text)),
        Some(_) => model(text, &fields).map(|(model, _)| Some(model)),
    }
}

fn refuse_unserved(endpoint: Endpoint, fields: &Deciding<'_>) -> Result<(), CallError> {
    let background = runs_in_background(endpoint, fields)?;
    let is_asked_for = |name: &str| match name {
        "background" => background && endpoint != Endpoint::Responses,
        "prompt" if !endpoint.is_responses() => false,
        _ => fields.raw(name).is_some(),
    };
    match UNSERVED.into_iter().find(|(name, _)| is_asked_for(name)) {
        Some((name, instead)) => Err(unsupported(name, instead)),
        None => Ok(()),
    }
}

/// Whether the answer is to be made after the call is answered. Of an image it is what is behind it.
fn runs_in_background(endpoint: Endpoint, fields: &Deciding<'_>) -> Result<bool, CallError> {
    Ok(!endpoint.is_medium() && fields.boolean("background")? == Some(true))
}

fn expect_kinds(endpoint: Endpoint, fields: &Deciding<'_>) -> Result<(), CallError> {
    fields.expect_kind("messages", &['['], Wanted::Messages)?;
    fields.expect_kind("input", &['[', '"'], Wanted::TextOrList)?;
    fields.expect_kind("instructions", &['[', '"'], Wanted::Text)?;
    fields.expect_kind("tools", &['['], Wanted::Tools)?;
    fields.expect_kind("functions", &['['], Wanted::Functions)?;
    fields.expect_kind("prediction", &['{'], Wanted::Object)?;
    fields.expect_kind("web_search_options", &['{'], Wanted::Object)?;
    if endpoint == Endpoint::Completions {
        fields.expect_kind("prompt", &['[', '"'], Wanted::TextOrList)?;
    }
    fields.boolean("store").map(|_| ())
}

/// Whether a text can be the name of a model.
pub(super) fn is_model(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_MODEL_BYTES && !text.contains(char::is_control)
}

/// The model, and where in the text it stands.
fn model(text: &str, fields: &Deciding<'_>) -> Result<(String, Range<usize>), CallError> {
    let (Some(model), Some(raw)) = (fields.string("model")?, fields.raw("model")) else {
        return Err(CallError::of("model", Problem::NoModel));
    };
    if !is_model(&model) {
        return Err(CallError::of("model", Problem::NotAModel));
    }
    Ok((model, span(text, raw)))
}

/// Chat models that search the web in every call, asked to or not.
fn searches_by_itself(model: &str) -> bool {
    model.contains("-search-preview") || model.contains("-search-api")
}

fn stream_options(text: &str, fields: &Deciding<'_>) -> Result<(StreamOptions, bool), CallError> {
    let Some(written) = fields.written("stream_options") else {
        return Ok((StreamOptions::Absent, false));
    };
    let Some(object) = fields.expect_kind("stream_options", &['{'], Wanted::Object)? else {
        return Ok((StreamOptions::Null(span(text, written)), false));
    };
    let options = members(object)?;
    let flags = Deciding::pick(&options, "stream_options.")?;
    let wanted = flags
        .boolean("include_usage")
        .map_err(|_| wrong_type("stream_options.include_usage", Wanted::Bool))?;
    let place = match flags.written("include_usage") {
        Some(flag) => StreamOptions::Flag(span(text, flag)),
        None => StreamOptions::Object {
            start: span(text, object).start + 1,
            empty: options.is_empty(),
        },
    };
    Ok((place, wanted.unwrap_or(false)))
}

/// The limits that may bind at this endpoint. Two of them in a chat request are both kept: upstreams differ in which
/// one they obey, so the larger one is the call's limit.
fn limits(endpoint: Endpoint, text: &str, fields: &Deciding<'_>) -> Result<Vec<StatedLimit>, CallError> {
    for name in ["max_completion_tokens", "max_tokens", "max_output_tokens"] {
        fields.count(name)?;
    }
    let names: &[&'static str] = match endpoint {
        Endpoint::ChatCompletions => &["max_completion_tokens", "max_tokens"],
        Endpoint::Responses => &["max_output_tokens"],
        Endpoint::Completions => &["max_tokens"],
        _ => &[],
    };
    let mut limits = Vec::new();
    for &field in names {
        if let Some(written) = fields.written(field) {
            let value = fields.count(field)?.map(Tokens::saturating);
            limits.push(StatedLimit {
                field,
                value,
                place: span(text, written),
            });
        }
    }
    Ok(limits)
}

/// How many answers are generated: the better of `best_of` are paid for like the best.
fn choices(endpoint: Endpoint, fields: &Deciding<'_>, prompts: u32) -> Result<u32, CallError> {
    let bounded = |name| match fields.count(name)? {
        Some(count) if count > MAX_CHOICES => Err(CallError::of(name, Problem::Above { most: MAX_CHOICES })),
        count => Ok(count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1)),
    };
    let (n, best_of) = (bounded("n")?, bounded("best_of")?);
    Ok(match endpoint {
        Endpoint::ChatCompletions | Endpoint::ImageGenerations | Endpoint::ImageEdits => n,
        Endpoint::Completions => n.max(best_of).saturating_mul(prompts.max(1)),
        _ => 1,
    })
}

fn tier(fields: &Deciding<'_>) -> Result<Tier, CallError> {
    let Some(name) = fields.string("service_tier")? else {
        return Ok(Tier::default());
    };
    match name.as_str() {
        "auto" | "default" | "standard" | "scale" => Ok(Tier::Standard),
        known if TIERS.contains(&known) => Ok(Tier::from_wire(Some(known))),
        _ => Err(CallError::of("service_tier", Problem::NotOneOf(&TIERS))),
    }
}

/// The text of `prompt_cache_key`, as it is written. It decides where the call goes, never whether it may.
fn cache_key(text: &str, members: &[Member<'_>]) -> Option<Range<usize>> {
    let named = members.iter().find(|member| member.name == "prompt_cache_key")?;
    let written = named.value.strip_prefix('"')?.strip_suffix('"')?;
    Some(span(text, written))
}

/// The JSON of `client_metadata`. What cannot be read of it says nothing.
fn client_metadata(text: &str, members: &[Member<'_>]) -> Option<Range<usize>> {
    let named = members.iter().find(|member| member.name == "client_metadata")?;
    Some(span(text, named.value))
}

/// `prompt_cache_options.ttl`: a longer life costs more.
fn cache_ttl(fields: &Deciding<'_>) -> Result<CacheTtl, CallError> {
    let Some(options) = fields.expect_kind("prompt_cache_options", &['{'], Wanted::Object)? else {
        return Ok(CacheTtl::default());
    };
    let options = members(options)?;
    let ttl = Deciding::pick(&options, "prompt_cache_options.")?.string("ttl")?;
    match ttl.as_deref() {
        None | Some("30m") => Ok(CacheTtl::Minutes30),
        Some("12h") => Ok(CacheTtl::Hours12),
        Some(_) => Err(CallError::of(
            "prompt_cache_options.ttl",
            Problem::NotOneOf(&["30m", "12h"]),
        )),
    }
}

fn echo(fields: &Deciding<'_>) -> Result<Echo, CallError> {
    Ok(match fields.boolean("echo")? {
        Some(true) => Echo::Prompt,
        _ => Echo::No,
    })
}

/// What a walk over the request found.
struct Read {
    input: InputShape,
    tools: super::HostedTools,
    refers_to: Vec<Reference>,
    encrypted: super::AllEncrypted,
}

fn read(endpoint: Endpoint, parameters: &[Member<'_>], fields: &Deciding<'_>) -> Result<Read, CallError> {
    let mut input = InputShape::default();
    let mut emit = |piece: Piece<'_>| piece.add_to(&mut input);
    let mut walk = Walk::new(&mut emit);
    walk.request(endpoint, parameters)?;
    let Walk {
        mut tools,
        mut refers_to,
        encrypted,
        ..
    } = walk;
    refers_to.extend(fields.string("previous_response_id")?.map(Reference::Response));
    let conversation = conversation(fields)?;
    input.unbounded |= reasons_beyond_the_body(fields)? || conversation.is_some();
    refers_to.extend(conversation.map(Reference::Conversation));
    tools.web_search |= searches(fields)?;
    let most = fields.count("max_tool_calls")?;
    tools.max_calls = most.map(|most| u32::try_from(most).unwrap_or(u32::MAX));
    Ok(Read {
        input,
        tools,
        refers_to,
        encrypted,
    })
}

/// Whether a parameter asks for searches: OpenAI's, xAI's (which an empty one asks for, too) or Alibaba's.
fn searches(fields: &Deciding<'_>) -> Result<bool, CallError> {
    let by_parameters = match fields.expect_kind("search_parameters", &['{'], Wanted::Object)? {
        None => false,
        Some(object) => {
            let members = members(object)?;
            let mut modes = members.iter().filter(|member| member.name == "mode").peekable();
            modes.peek().is_none() || modes.any(|mode| mode.value != "\"off\"")
        }
    };
    let by_flag = fields.boolean("enable_search")? == Some(true);
    Ok(by_parameters || by_flag || fields.raw("web_search_options").is_some())
}

/// `conversation`: an id, or an object with nothing but one. All that is in it is read again.
fn conversation(fields: &Deciding<'_>) -> Result<Option<String>, CallError> {
    let Some(object) = fields.expect_kind("conversation", &['{', '"'], Wanted::TextOrObject)? else {
        return Ok(None);
    };
    if object.starts_with('"') {
        return fields.string("conversation");
    }
    match &members(object)?[..] {
        [Member { name, value }] if name == "id" => decoded(value).map(|id| Some(id.into_owned())),
        _ => None,
    }
    .ok_or_else(|| wrong_type("conversation", Wanted::TextOrObject))
}

/// `reasoning.mode: "pro"` makes a model read its own drafts: a prompt of 12 tokens was billed as 1,549.
fn reasons_beyond_the_body(fields: &Deciding<'_>) -> Result<bool, CallError> {
    let Some(object) = fields.expect_kind("reasoning", &['{'], Wanted::Object)? else {
        return Ok(false);
    };
    let members = members(object)?;
    let mut modes = members
        .iter()
        .filter(|member| member.name == "mode" && member.value != "null");
    Ok(modes.any(|mode| mode.value != "\"default\"" && mode.value != "\"standard\""))
}
