//! What must hold of the gateway's parsers whatever bytes they are given.
//!
//! A function per parser. The fuzz targets call them with bytes that a fuzzer makes up; `tests/gateway/properties.rs`
//! calls the same functions with arbitrary and nearly valid ones, and with everything in `seeds/`. Each panics when
//! what it promises does not hold. The first bytes are knobs (how the rest is cut, which endpoint, which edits); the
//! rest is what a stranger sends.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use codex_gateway::bilingual;
use codex_gateway::call::{Call, ChatLimitField, Edits, Endpoint};
use codex_gateway::codec::{self, Coding, DecodeError, Decoder};
use codex_gateway::config::{Config, ConfigError, ConfigErrors, Sources};
use codex_gateway::key::GatewayKey;
use codex_gateway::language::Language;
use codex_gateway::meter::{End, MAX_ITEMS, Meter, Reading, Seen};
use codex_gateway::sse::{Event, PASS_THROUGH_BYTES, Splitter};
use codex_gateway::usage::{CacheTtl, Dialect, Tokens, ToolTally, ToolUsage, Usage};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

const ENDPOINTS: [Endpoint; 4] = [
    Endpoint::ChatCompletions,
    Endpoint::Responses,
    Endpoint::Completions,
    Endpoint::Embeddings,
];

/// Takes the first byte off; 0 when there is none.
fn knob(data: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = data.split_first() else {
        return 0;
    };
    *data = rest;
    first
}

fn one_of<T: Copy>(choices: &[T], knob: u8) -> T {
    choices[usize::from(knob) % choices.len()]
}

/// A stream cut into pieces as long as the knobs say, again and again; a long one into a few hundred.
fn cut<'a>(stream: &'a [u8], lengths: &[u8]) -> Vec<&'a [u8]> {
    let (mut rest, mut pieces) = (stream, Vec::new());
    let unit = stream.len() / 8192 + 1;
    let mut lengths = lengths.iter().map(|length| usize::from(*length).max(1) * unit).cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(lengths.next().unwrap_or(1).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Up to fifteen lengths, and the stream behind them.
fn cuts<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let count = usize::from(knob(data) % 16).min(data.len());
    let (lengths, rest) = data.split_at(count);
    *data = rest;
    lengths
}

/// The stream with its first two bytes 0xFF (which UTF-8 has none of) made into runs that are longer than an event
/// that is held back.
fn with_long_runs(stream: &[u8]) -> Vec<u8> {
    let (mut long, mut runs) = (Vec::with_capacity(stream.len()), 0);
    for byte in stream {
        if *byte == 0xFF && runs < 2 {
            runs += 1;
            long.resize(long.len() + PASS_THROUGH_BYTES - 10, b'x');
        } else {
            long.push(*byte);
        }
    }
    long
}

/// The bytes that leave, and the events. Comments and blank lines are left out: whether a lone line feed is told of
/// depends on when it came.
fn split<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<Event>) {
    let (mut splitter, mut left, mut events) = (Splitter::new(), Vec::new(), Vec::new());
    for piece in pieces {
        splitter.push(Bytes::copy_from_slice(piece));
        while let Some(piece) = splitter.next_piece() {
            left.extend_from_slice(&piece.bytes);
            events.extend(piece.event);
        }
    }
    while let Some(piece) = splitter.finish() {
        left.extend_from_slice(&piece.bytes);
        events.extend(piece.event);
    }
    assert!(splitter.between_events(), "nothing is left behind");
    events.retain(|event| *event != Event::default());
    (left, events)
}

/// A stream leaves as it came, and its events are the same, whatever pieces it comes in.
pub fn sse(data: &[u8]) {
    let mut data = data;
    let lengths = cuts(&mut data);
    let stream = with_long_runs(data);
    let whole = split([stream.as_slice()]);
    assert!(whole.0 == stream, "bytes out are bytes in");
    assert!(split(cut(&stream, lengths)) == whole, "cut by {lengths:?}");
    if stream.len() < PASS_THROUGH_BYTES {
        assert!(split(stream.chunks(1)) == whole, "byte by byte");
    }
}

/// Every part lies within what it is a part of, and no count is beyond belief.
fn assert_adds_up(usage: &Usage) {
    let input = [
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.cache_write_12h_tokens,
        usage.audio_input_tokens,
    ];
    let sum = |parts: &[Tokens]| parts.iter().map(|part| part.get()).sum::<u64>();
    assert!(sum(&input) <= usage.input_tokens.get(), "{usage:?}");
    let output = [usage.reasoning_tokens, usage.audio_output_tokens];
    assert!(sum(&output) <= usage.output_tokens.get(), "{usage:?}");
    assert!(
        usage.input_tokens <= Tokens::MAX && usage.output_tokens <= Tokens::MAX,
        "{usage:?}"
    );
}

/// The first of two members that is a number.
fn told(usage: &Value, names: [&str; 2]) -> Option<u64> {
    names.iter().find_map(|name| usage[*name].as_u64())
}

/// A usage is read or refused; what is read is what was told, and adds up.
pub fn usage(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    for (dialect, ttl) in [
        (Dialect::OpenAi, CacheTtl::Minutes30),
        (Dialect::OpenAi, CacheTtl::Hours12),
        (Dialect::TotalCoversReasoning, CacheTtl::Minutes30),
    ] {
        let Ok(Some(usage)) = Usage::parse_for(&value, dialect, ttl) else {
            continue;
        };
        assert_adds_up(&usage);
        if let Some(input) = told(&value, ["prompt_tokens", "input_tokens"]) {
            assert_eq!(usage.input_tokens.get(), input);
        }
        if let Some(output) = told(&value, ["completion_tokens", "output_tokens"]) {
            let exact = dialect == Dialect::OpenAi;
            assert!(usage.output_tokens.get() == output || (!exact && usage.output_tokens.get() > output));
        }
    }
    if let Ok(tools) = ToolUsage::from_responses(Some(&value), &ToolTally::default()) {
        assert_eq!((tools.file_searches, tools.containers), (0, 0), "of no items");
    }
}

/// What a meter reads of a stream in these pieces, and what it said of its events.
fn watch<'a>(mut meter: Meter, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Reading, Vec<Seen>) {
    let (_, events) = split(pieces);
    let mut seen: Vec<Seen> = events.iter().map(|event| meter.observe(event)).collect();
    seen.retain(|seen| *seen != Seen::default());
    (meter.reading().clone(), seen)
}

/// A meter reads any answer at any endpoint, alike in any pieces; and what it reads can be billed.
pub fn meter(data: &[u8]) {
    let mut data = data;
    let choice = knob(&mut data);
    let lengths = cuts(&mut data);
    let new = || {
        let dialect = one_of(&[Dialect::OpenAi, Dialect::TotalCoversReasoning], choice / 4);
        let ttl = one_of(&[CacheTtl::Minutes30, CacheTtl::Hours12], choice / 8);
        Meter::new(one_of(&ENDPOINTS, choice), dialect).with_cache_ttl(ttl)
    };
    let stream = with_long_runs(data);
    let (reading, seen) = watch(new(), [stream.as_slice()]);
    assert!(
        watch(new(), cut(&stream, lengths)) == (reading.clone(), seen.clone()),
        "cut by {lengths:?}"
    );
    let ends: Vec<End> = seen.iter().filter_map(|seen| seen.terminal).collect();
    assert_eq!(reading.end.is_some(), !ends.is_empty());
    assert_can_be_billed(&reading, stream.len());
    let mut unary = new();
    unary.observe_body(data);
    assert_can_be_billed(unary.reading(), data.len());
}

fn assert_can_be_billed(reading: &Reading, length: usize) {
    if let Some(usage) = &reading.usage {
        assert_adds_up(usage);
    }
    assert!(reading.item_ids.len() <= MAX_ITEMS);
    // No escape of JSON is shorter than what it stands for.
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    assert!(
        reading.visible_bytes() <= 3 * length,
        "{} of {length}",
        reading.visible_bytes()
    );
}

/// A member's name and where its value lies.
type Place = (String, Range<usize>);

/// The members of an object with the raw text of their values.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

fn places(body: &str) -> Vec<Place> {
    let Members(members) = serde_json::from_str(body).expect("what is a call is an object");
    let place = |raw: &RawValue| {
        let start = raw.get().as_ptr().addr() - body.as_ptr().addr();
        start..start + raw.get().len()
    };
    members.into_iter().map(|(name, raw)| (name, place(raw))).collect()
}

fn place_of<'a>(places: &'a [Place], name: &str) -> Option<&'a Range<usize>> {
    places.iter().find(|(found, _)| found == name).map(|(_, place)| place)
}

/// The body with the text at each place replaced.
fn replaced(body: &str, mut with: Vec<(Range<usize>, String)>) -> String {
    with.sort_by_key(|(place, _)| place.start);
    let (mut text, mut copied) = (String::new(), 0);
    for (place, new) in with {
        text.push_str(&body[copied..place.start]);
        text.push_str(&new);
        copied = place.end;
    }
    text.push_str(&body[copied..]);
    text
}

/// The names of the limits that bind at an endpoint; the first is written where none is stated.
fn limit_names(endpoint: Endpoint, chat: ChatLimitField) -> &'static [&'static str] {
    match (endpoint, chat) {
        (Endpoint::ChatCompletions, ChatLimitField::MaxCompletionTokens) => &["max_completion_tokens", "max_tokens"],
        (Endpoint::ChatCompletions, ChatLimitField::MaxTokens) => &["max_tokens", "max_completion_tokens"],
        (Endpoint::Responses, _) => &["max_output_tokens"],
        (Endpoint::Completions, _) => &["max_tokens"],
        _ => &[],
    }
}

/// The body with a limit, worked out on the places of its members alone.
fn limited(body: &str, endpoint: Endpoint, chat: ChatLimitField, limit: u32) -> String {
    let places = places(body);
    let stated: Vec<_> = limit_names(endpoint, chat)
        .iter()
        .filter_map(|name| Some((*name, place_of(&places, name)?.clone())))
        .collect();
    let value = |place: &Range<usize>| body[place.clone()].parse::<u128>().ok();
    let is_null = |place: &Range<usize>| &body[place.clone()] == "null";
    let new = limit.to_string();
    if !stated.iter().all(|(_, place)| is_null(place)) {
        // What is too long for any number is larger, too.
        let larger =
            |place: &Range<usize>| !is_null(place) && value(place).is_none_or(|value| value > u128::from(limit));
        let larger = stated.into_iter().filter(|(_, place)| larger(place));
        return replaced(body, larger.map(|(_, place)| (place, new.clone())).collect());
    }
    let Some(name) = limit_names(endpoint, chat).first() else {
        return body.to_owned();
    };
    if let Some((_, null)) = stated.into_iter().find(|(stated, _)| stated == name) {
        return replaced(body, vec![(null, new)]);
    }
    let end = body.rfind('}').expect("an object");
    replaced(body, vec![(end..end, format!(",\"{name}\":{new}"))])
}

/// A call is what its body says; its edits are exactly these and nothing beside them, and the edited body is the same
/// call but for them.
pub fn call(data: &[u8]) {
    let mut data = data;
    let (choice, limit) = (knob(&mut data), u32::from(knob(&mut data)) * 40 + 1);
    let endpoint = one_of(&ENDPOINTS, choice);
    let chat = one_of(
        &[ChatLimitField::MaxCompletionTokens, ChatLimitField::MaxTokens],
        choice / 4,
    );
    let body = Bytes::copy_from_slice(data);
    let Ok(call) = Call::parse(endpoint, body.clone()) else {
        return;
    };
    let text = std::str::from_utf8(data).expect("what is a call is UTF-8");
    assert_eq!(
        call.upstream_body(&Edits::default()).as_ptr(),
        call.body.as_ptr(),
        "no edit, no copy"
    );
    let mut told = 0;
    call.for_each_text(&mut |text| told += u64::try_from(text.len()).unwrap_or(u64::MAX));
    assert_eq!(told, call.input.text_bytes, "what is told is what was counted");

    let places = places(text);
    let model = "an \"other\" model \\ é".to_owned();
    let json = Value::from(model.as_str()).to_string();
    let place = place_of(&places, "model").expect("a model").clone();
    let renamed = replaced(text, vec![(place, json)]);
    let rename = Edits {
        model: Some(model.clone()),
        ..Edits::default()
    };
    assert_eq!(call.upstream_body(&rename), renamed.as_bytes());

    let limit_tokens = Tokens::new(u64::from(limit));
    let lower = Edits {
        output_limit: limit_tokens,
        chat_limit_field: chat,
        ..Edits::default()
    };
    assert_eq!(
        call.upstream_body(&lower),
        limited(text, endpoint, chat, limit).as_bytes()
    );

    let all = Edits {
        model: Some(model),
        output_limit: limit_tokens,
        include_usage: true,
        chat_limit_field: chat,
    };
    // A parameter more may be one more than is taken.
    if places.len() <= 500 {
        assert_same_but_for(&call, &all, limit);
    }
}

fn assert_same_but_for(call: &Call, edits: &Edits, limit: u32) {
    let again = Call::parse(call.endpoint, call.upstream_body(edits)).expect("an edited call is a call");
    assert_eq!(Some(&again.model), edits.model.as_ref());
    let told = |call: &Call| (call.stream, call.choices, call.tier, call.cache_ttl, call.echo);
    assert_eq!(told(&again), told(call));
    assert_eq!((&again.input, &again.refers_to), (&call.input, &call.refers_to));
    let searches = call.tools.web_search || again.tools.web_search;
    assert!(searches || again.tools == call.tools);
    let limited = call.endpoint != Endpoint::Embeddings;
    let stated = call
        .output_limit
        .map_or(u64::from(limit), |stated| stated.get().min(u64::from(limit)));
    assert_eq!(again.output_limit.map(Tokens::get), limited.then_some(stated));
    let has_usage_chunk = matches!(call.endpoint, Endpoint::ChatCompletions | Endpoint::Completions);
    assert_eq!(
        again.include_usage,
        call.include_usage || (call.stream && has_usage_chunk)
    );
}

/// A secret that no error may show.
const CANARY: &str = "sk-canary-9f27c1";

const FILE: &str = "/etc/gateway.toml";

fn load(text: &str, env: &BTreeMap<String, String>) -> Result<(), ConfigErrors> {
    let loaded = Config::load(Sources {
        file: Some((PathBuf::from(FILE), text.to_owned())),
        env,
        flags: Vec::new(),
        read: &|path: &Path| {
            let path = path.display();
            Err(bilingual!(en: "{path} is not there", zh: "没有 {path}"))
        },
    })?;
    loaded.complete().map(|_| ())
}

/// Settings are read or refused, at a place that there is, without a word of a secret.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (file, variables) = text.split_once('\u{0}').unwrap_or((&text, ""));
    let env = variables.lines().filter_map(|line| line.split_once('='));
    let env: BTreeMap<String, String> = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for (text, env) in [(file, &env), (file, &BTreeMap::new()), ("", &env)] {
        if let Err(errors) = load(text, env) {
            errors.iter().for_each(|error| assert_has_a_place(error, text));
        }
    }
    let (before, after) = file.split_once('\u{1}').unwrap_or((file, ""));
    if file.contains("\"\"\"") || file.contains("'''") {
        return;
    }
    let upstream = "[[upstream]]\nname = \"u\"\nbase_url = \"https://x\"";
    for line in [
        format!("api_key = \"{CANARY}\""),
        format!("api_key = {CANARY}"),
        format!("api_key = \"{CANARY}"),
        format!("api_key = [\"{CANARY}\"]"),
        format!("headers = {{ x = \"{CANARY}\", y = '{CANARY}' }}"),
        format!("proxy = \"{CANARY}@x\""),
    ] {
        if let Err(error) = load(&format!("{before}\n{upstream}\n{line}\n{after}"), &BTreeMap::new()) {
            assert!(!error.to_string().contains(CANARY), "{error}");
        }
    }
}

fn assert_has_a_place(error: &ConfigError, text: &str) {
    assert!(
        !error.place.is_empty()
            && Language::ALL
                .iter()
                .all(|language| { !error.what.of(*language).is_empty() && !error.fix.of(*language).is_empty() }),
        "{error}"
    );
    let Some(place) = error.place.strip_prefix(FILE) else {
        return;
    };
    let numbers: Vec<usize> = place
        .split(':')
        .skip(1)
        .map(|number| number.parse().expect("a number"))
        .collect();
    let lines = text.split('\n').count();
    assert!(
        numbers.len() == 2 && (1..=lines).contains(&numbers[0]) && numbers[1] >= 1,
        "{error}"
    );
    let excerpt = error.excerpt.as_ref().expect("a line of the file");
    assert_eq!(excerpt.number, numbers[0]);
    assert!(excerpt.column <= excerpt.line.chars().count(), "{error}");
}

/// A token is a key or junk; a key is its own text, and no other text with one letter changed is.
pub fn key(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(key) = GatewayKey::parse(&text) {
        assert_eq!(key.reveal(), text);
    }
    let mut entropy = [0; 32];
    for (to, from) in entropy.iter_mut().zip(data) {
        *to = *from;
    }
    let key = GatewayKey::from_entropy(entropy);
    let again = GatewayKey::parse(key.reveal()).expect("a key parses back");
    assert!(again.reveal() == key.reveal() && again.hash() == key.hash() && key.reveal().starts_with(key.prefix()));
    let shown = format!("{key:?} {:?}", key.hash());
    assert!(!shown.contains(key.prefix()), "{shown}");
    let mut changed = key.reveal().as_bytes().to_vec();
    let at = usize::from(entropy[0]) % changed.len();
    changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
    let changed = String::from_utf8(changed).expect("ASCII");
    assert!(GatewayKey::parse(&changed).is_err(), "{changed}");
}

/// An encoded body unfolds to no more than the bound, alike in any pieces.
pub fn codec(data: &[u8]) {
    let mut data = data;
    let choice = knob(&mut data);
    let limit = usize::from(knob(&mut data)) * 257;
    let lengths = cuts(&mut data);
    let codings = [
        Coding::Identity,
        Coding::Gzip,
        Coding::Deflate,
        Coding::Brotli,
        Coding::Zstd,
    ];
    let coding = one_of(&codings, choice);
    let whole = codec::decode(coding, Bytes::copy_from_slice(data), limit);
    let pieces = in_pieces(Decoder::new(coding, limit), cut(data, lengths), limit);
    match &whole {
        Ok(plain) => {
            assert!(plain.len() <= limit);
            assert_eq!(pieces.as_deref(), Ok(&plain[..]), "{coding:?}");
        }
        // What is broken behind the bound may show itself first.
        Err(DecodeError::Broken) => assert!(pieces.is_err(), "{coding:?}"),
        // The bound of pieces is each piece's.
        Err(DecodeError::TooLarge) => {}
    }
    if let Ok(header) = std::str::from_utf8(data) {
        assert!(Coding::parse(header).is_ok() || !header.trim().is_empty());
    }
}

fn in_pieces(mut decoder: Decoder, pieces: Vec<&[u8]>, limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut plain = Vec::new();
    for piece in pieces {
        let decoded = decoder.push(piece)?;
        assert!(decoded.len() <= limit);
        plain.extend_from_slice(&decoded);
    }
    plain.extend_from_slice(&decoder.finish()?);
    Ok(plain)
}
