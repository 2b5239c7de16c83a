//! Reading a request: its deciding parameters, and a walk over what the model reads.

use std::ops::Range;

use bytes::Bytes;

use super::fields::{Deciding, Member, members, span, unsupported, wrong_type, wrong_value};
use super::input::Walk;
use super::piece::Piece;
use super::splice::{Places, StatedLimit, StreamOptions};
use super::{Call, CallError, Echo, Endpoint, InputShape, Reference};
use crate::usage::{CacheTtl, Tier, Tokens};

/// Longest name of a model; it goes into tables, logs and messages.
const MAX_MODEL_BYTES: usize = 256;

/// OpenAI's bound of `n`.
const MAX_CHOICES: u64 = 128;

/// Names of tiers that [`Tier::from_wire`] understands, or that mean the standard one.
const TIERS: [&str; 8] = [
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
    let text = std::str::from_utf8(body).map_err(|_| not_utf8())?;
    let members = members(text)?;
    let fields = Deciding::pick(&members, "")?;
    refuse_unserved(endpoint, &fields)?;
    expect_kinds(endpoint, &fields)?;
    let (model, model_place) = model(text, &fields)?;
    let (stream_options, include_usage) = stream_options(text, &fields)?;
    let limits = limits(endpoint, text, &fields)?;
    let mut read = read(endpoint, &members, &fields)?;
    read.tools.web_search |= searches_by_itself(&model);
    Ok(Call {
        endpoint,
        stream: fields.boolean("stream")?.unwrap_or(false),
        include_usage,
        output_limit: limits.iter().filter_map(|limit| limit.value).max(),
        choices: choices(endpoint, &fields, read.prompts)?,
        tier: tier(&fields)?,
        input: read.input,
        tools: read.tools,
        refers_to: read.refers_to,
        cache_ttl: cache_ttl(&fields)?,
        echo: echo(&fields)?,
        body: body.clone(),
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

fn not_utf8() -> CallError {
    let message = "The request body is not UTF-8. Send JSON in UTF-8.".to_owned();
    CallError::of_body("invalid_json", message)
}

const ONE_MODEL: &str = "A call is priced by one model and its tools: name the model in `model`.";

/// State that only the upstream keeps, and parameters by which a vendor would bill another model than the one priced;
/// what to do instead.
const UNSERVED: [(&str, &str); 7] = [
    (
        "background",
        "Leave it out, and keep the connection open for the answer.",
    ),
    ("conversation", "Send the earlier messages in `input` instead."),
    ("prompt", "Send the prompt's text in `instructions` or `input` instead."),
    (
        "n_predict",
        "It would override the limit that is paid for. Set `max_tokens` instead.",
    ),
    ("models", ONE_MODEL),
    ("plugins", ONE_MODEL),
    ("preset", ONE_MODEL),
];

fn refuse_unserved(endpoint: Endpoint, fields: &Deciding<'_>) -> Result<(), CallError> {
    let background = fields.boolean("background")? == Some(true);
    let is_asked_for = |name: &str| match name {
        "background" => background,
        "prompt" if endpoint != Endpoint::Responses => false,
        _ => fields.raw(name).is_some(),
    };
    match UNSERVED.into_iter().find(|(name, _)| is_asked_for(name)) {
        Some((name, instead)) => Err(unsupported(name, instead)),
        None => Ok(()),
    }
}

fn expect_kinds(endpoint: Endpoint, fields: &Deciding<'_>) -> Result<(), CallError> {
    fields.expect_kind("messages", &['['], "a list of messages")?;
    fields.expect_kind("input", &['[', '"'], "a string or a list")?;
    fields.expect_kind("instructions", &['[', '"'], "a string")?;
    fields.expect_kind("tools", &['['], "a list of tools")?;
    fields.expect_kind("functions", &['['], "a list of functions")?;
    fields.expect_kind("prediction", &['{'], "an object")?;
    fields.expect_kind("web_search_options", &['{'], "an object")?;
    if endpoint == Endpoint::Completions {
        fields.expect_kind("prompt", &['[', '"'], "a string or a list")?;
    }
    fields.boolean("store").map(|_| ())
}

/// The model, and where in the text it stands.
fn model(text: &str, fields: &Deciding<'_>) -> Result<(String, Range<usize>), CallError> {
    let (Some(model), Some(raw)) = (fields.string("model")?, fields.raw("model")) else {
        let message = "The request names no model. Set `model`; GET /v1/models lists what this key may use.".to_owned();
        return Err(CallError::of("model", "missing_required_parameter", message));
    };
    if model.is_empty() || model.len() > MAX_MODEL_BYTES || model.contains(char::is_control) {
        return Err(wrong_value(
            "model",
            "must be the name of a model; GET /v1/models lists what this key may use",
        ));
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
    let Some(object) = fields.expect_kind("stream_options", &['{'], "an object")? else {
        return Ok((StreamOptions::Null(span(text, written)), false));
    };
    let options = members(object)?;
    let flags = Deciding::pick(&options, "stream_options.")?;
    let wanted = flags
        .boolean("include_usage")
        .map_err(|_| wrong_type("stream_options.include_usage", "true or false"))?;
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
        Endpoint::Embeddings => &[],
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
        Some(count) if count > MAX_CHOICES => Err(wrong_value(name, "must be at most 128")),
        count => Ok(count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1)),
    };
    let (n, best_of) = (bounded("n")?, bounded("best_of")?);
    Ok(match endpoint {
        Endpoint::ChatCompletions => n,
        Endpoint::Completions => n.max(best_of).saturating_mul(prompts.max(1)),
        Endpoint::Responses | Endpoint::Embeddings => 1,
    })
}

fn tier(fields: &Deciding<'_>) -> Result<Tier, CallError> {
    let Some(name) = fields.string("service_tier")? else {
        return Ok(Tier::default());
    };
    match name.as_str() {
        "auto" | "default" | "standard" | "scale" => Ok(Tier::Standard),
        known if TIERS.contains(&known) => Ok(Tier::from_wire(Some(known))),
        _ => Err(wrong_value(
            "service_tier",
            &format!("must be one of {}", TIERS.join(", ")),
        )),
    }
}

/// `prompt_cache_options.ttl`: a longer life costs more.
fn cache_ttl(fields: &Deciding<'_>) -> Result<CacheTtl, CallError> {
    let Some(options) = fields.expect_kind("prompt_cache_options", &['{'], "an object")? else {
        return Ok(CacheTtl::default());
    };
    let options = members(options)?;
    let ttl = Deciding::pick(&options, "prompt_cache_options.")?.string("ttl")?;
    match ttl.as_deref() {
        None | Some("30m") => Ok(CacheTtl::Minutes30),
        Some("12h") => Ok(CacheTtl::Hours12),
        Some(_) => Err(wrong_value("prompt_cache_options.ttl", "must be \"30m\" or \"12h\"")),
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
    prompts: u32,
    tools: super::HostedTools,
    refers_to: Vec<Reference>,
}

fn read(endpoint: Endpoint, parameters: &[Member<'_>], fields: &Deciding<'_>) -> Result<Read, CallError> {
    let (mut input, mut prompts) = (InputShape::default(), 0);
    let mut emit = |piece: Piece<'_>| piece.add_to(&mut input, &mut prompts);
    let mut walk = Walk::new(&mut emit);
    walk.request(endpoint, parameters)?;
    let Walk {
        mut tools,
        mut refers_to,
        ..
    } = walk;
    refers_to.extend(fields.string("previous_response_id")?.map(Reference::Response));
    input.unbounded |= reasons_beyond_the_body(fields)?;
    tools.web_search |= fields.raw("web_search_options").is_some();
    let most = fields.count("max_tool_calls")?;
    tools.max_calls = most.map(|most| u32::try_from(most).unwrap_or(u32::MAX));
    Ok(Read {
        input,
        prompts,
        tools,
        refers_to,
    })
}

/// `reasoning.mode: "pro"` makes a model read its own drafts: a prompt of 12 tokens was billed as 1,549.
fn reasons_beyond_the_body(fields: &Deciding<'_>) -> Result<bool, CallError> {
    let Some(object) = fields.expect_kind("reasoning", &['{'], "an object")? else {
        return Ok(false);
    };
    let members = members(object)?;
    let mut modes = members
        .iter()
        .filter(|member| member.name == "mode" && member.value != "null");
    Ok(modes.any(|mode| mode.value != "\"default\"" && mode.value != "\"standard\""))
}
