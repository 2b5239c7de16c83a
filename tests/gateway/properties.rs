//! What must hold of the parsers whatever bytes they are given, on arbitrary and on nearly valid bytes.
//!
//! The promises are those of the fuzz targets (`fuzz/src/lib.rs`); a fuzzer takes them further (`fuzz/run`).

use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

#[path = "../../fuzz/src/lib.rs"]
mod promises;

/// What holds of any bytes.
type Promise = fn(&[u8]);

/// A target's name and its promise.
const TARGETS: [(&str, Promise); 7] = [
    ("sse", promises::sse),
    ("usage", promises::usage),
    ("meter", promises::meter),
    ("call", promises::call),
    ("config", promises::config),
    ("key", promises::key),
    ("codec", promises::codec),
];

#[test]
fn every_seed_and_every_finding_holds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (target, promise) in TARGETS {
        let mut count = 0;
        for entry in fs::read_dir(seeds.join(target)).expect(target) {
            let path = entry.expect("an entry").path();
            let seed = fs::read(&path).expect("a seed");
            // Any beginning of it and any changed byte are nearly valid.
            for end in (0..=seed.len()).rev().step_by(7) {
                promise(&seed[..end]);
            }
            for at in (0..seed.len()).step_by(11) {
                let mut changed = seed.clone();
                changed[at] ^= 1 << (at % 8);
                promise(&changed);
            }
            count += 1;
        }
        assert!(count >= 3, "{target} has {count} seeds");
    }
}

/// Knobs, and then what they turn.
fn with_knobs(knobs: usize, rest: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (vec(any::<u8>(), knobs), rest).prop_map(|(knobs, rest)| [knobs, rest].concat())
}

/// Pieces in a row, each of them a text or any bytes.
fn row(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        12 => select(pieces).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..9),
        2 => "[0-9]{1,11}".prop_map(String::into_bytes),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// JSON of these members, some of them wrong.
fn members(names: &'static [&'static str], depth: u32) -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        4 => (0_u32..5_000).prop_map(|number| number.to_string()),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => select(vec!["null", "true", "false", "1e3", "-0", "1.5", "\"auto\"", "\"\\u00e9\\\"\"", "[]", "{}", "\"m\""])
            .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(depth, 24, 6, move |inner| {
        let member = (select(names), inner.clone()).prop_map(|(name, value)| format!("\"{name}\": {value}"));
        prop_oneof![
            3 => vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(" ,"))),
            1 => vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(","))),
        ]
    })
    .boxed()
}

const SSE: &[&str] = &[
    "data: ",
    "data:",
    "event: ",
    "event: response.completed",
    "id: 1",
    ":",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\r\n\r\n",
    "\u{feff}",
    "[DONE]",
    "é😀",
    "{\"a\":1}",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n",
    "{\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"usage\":{\"input_tokens\":5,\"output_tokens\":2}}}",
    "{\"type\":\"response.output_text.delta\",\"output_index\":0,\"delta\":\"Hi\"}",
    "{\"type\":\"response.output_item.done\",\"item\":{\"type\":\"web_search_call\",\"id\":\"ws\"}}",
    "{\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1}}",
    "{\"error\":{\"message\":\"x\"}}",
];

const USAGE: &[&str] = &[
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "input_tokens_details",
    "output_tokens_details",
    "cache_write_tokens",
    "cache_write_tokens_details",
    "ttl_30m_tokens",
    "ttl_12h_tokens",
    "audio_tokens",
    "reasoning_tokens",
    "prompt_cache_hit_tokens",
    "prompt_cache_miss_tokens",
    "web_search",
    "num_requests",
    "image_gen",
    "image_tokens",
    "text_tokens",
];

const CALL: &[&str] = &[
    "model",
    "messages",
    "input",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "include_usage",
    "service_tier",
    "tools",
    "type",
    "content",
    "text",
    "role",
    "echo",
    "previous_response_id",
    "id",
    "instructions",
    "other",
    "store",
    "reasoning",
    "web_search_options",
    "image_url",
];

const CONFIG: &[&str] = &[
    "[server]\n",
    "[database]\n",
    "[billing]\n",
    "[log]\n",
    "[[upstream]]\n",
    "listen = ",
    "max_body = ",
    "path = ",
    "markup = ",
    "hold_share = ",
    "name = ",
    "base_url = ",
    "api_key = ",
    "headers = ",
    "aliases = ",
    "models = ",
    "prices = ",
    "proxy = ",
    "trusted_proxies = ",
    "header_timeout = ",
    "level = ",
    "format = ",
    "\"127.0.0.1:0\"",
    "\"64MiB\"",
    "\"10s\"",
    "\"https://x/v1\"",
    "1.04",
    "0.25",
    "\"free\"",
    "[\"*\"]",
    "{ a = \"b\" }",
    "'x'",
    "\n",
    "# é\n",
    "\"",
    "=",
    "\u{0}",
    "\u{1}",
    "GATEWAY_SERVER__LISTEN=x\n",
    "GATEWAY_BILLING__MARKUP=2\n",
    "sk-x",
    "é",
];

/// A usage object in the words of chat or of responses, whose parts may be more than the whole.
fn usage() -> impl Strategy<Value = String> {
    let count = || prop_oneof![5 => (0_u32..100).prop_map(|count| count.to_string()), 1 => Just("null".to_owned())];
    let details = |names: &'static [&'static str]| {
        vec((select(names), count()), 0..5).prop_map(|told| {
            let told: Vec<String> = told.iter().map(|(name, count)| format!("\"{name}\":{count}")).collect();
            told.join(",")
        })
    };
    let input = details(&["cached_tokens", "cache_write_tokens", "audio_tokens"]);
    let written = details(&["ttl_30m_tokens", "ttl_12h_tokens"]);
    let output = details(&["reasoning_tokens", "audio_tokens"]);
    let names = select(vec![["prompt", "completion"], ["input", "output"]]);
    let counts = (count(), count(), count());
    (names, counts, input, written, output).prop_map(|([read, made], (input, output, total), of_input, written, of_output)| {
        let comma = if of_input.is_empty() { "" } else { "," };
        format!(
            "{{\"{read}_tokens\":{input},\"{made}_tokens\":{output},\"total_tokens\":{total},\"{read}_tokens_details\":{{\
             {of_input}{comma}\"cache_write_tokens_details\":{{{written}}}}},\"{made}_tokens_details\":{{{of_output}}}}}"
        )
    })
}

/// A whole call, now and then with a member too many.
fn call() -> impl Strategy<Value = Vec<u8>> {
    let more = vec((select(CALL), members(CALL, 3)), 0..5);
    let space = select(vec!["", " ", "\n\t"]);
    (more, space, any::<bool>()).prop_map(|(more, space, last)| {
        let model = (String::from("model"), "\"m\"".to_owned());
        let mut all: Vec<_> = more.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        all.insert(if last { all.len() } else { 0 }, model);
        let all: Vec<_> = all
            .into_iter()
            .map(|(name, value)| format!("{space}\"{name}\"{space}:{space}{value}"))
            .collect();
        format!("{space}{{{}{space}}}{space}", all.join(",")).into_bytes()
    })
}

/// A body in one of the codings, whole or cut off.
fn encoded() -> impl Strategy<Value = Vec<u8>> {
    let plain = prop_oneof![
        vec(any::<u8>(), 0..3_000),
        (any::<u8>(), 0_usize..70_000).prop_map(|(byte, count)| vec![byte; count])
    ];
    (0_u8..6, any::<u8>(), plain, any::<u16>()).prop_map(|(coding, limit, plain, cut)| {
        let mut bytes = vec![coding.min(4), limit, 3, 1, 7, 200];
        bytes.extend(encode(coding, &plain));
        let cut = usize::from(cut);
        if cut % 3 == 0 {
            bytes.truncate(bytes.len() - cut % (bytes.len() - 5));
        }
        bytes
    })
}

fn encode(coding: u8, plain: &[u8]) -> Vec<u8> {
    let level = Compression::fast();
    let written = match coding {
        0 => return plain.to_vec(),
        1 => {
            let mut encoder = GzEncoder::new(Vec::new(), level);
            encoder.write_all(plain).and_then(|()| encoder.finish())
        }
        2 => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(plain).and_then(|()| encoder.finish())
        }
        3 => {
            let mut encoded = Vec::new();
            let quick = brotli::enc::BrotliEncoderParams {
                quality: 2,
                ..Default::default()
            };
            brotli::BrotliCompress(&mut &plain[..], &mut encoded, &quick).map(|_| encoded)
        }
        4 => zstd::encode_all(plain, 1),
        // Bare deflate under the name of zstd.
        _ => {
            let mut encoder = DeflateEncoder::new(Vec::new(), level);
            encoder.write_all(plain).and_then(|()| encoder.finish())
        }
    };
    written.expect("memory")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_hold_everywhere(bytes in vec(any::<u8>(), 0..600)) {
        for (_, promise) in TARGETS {
            promise(&bytes);
        }
    }

    #[test]
    fn a_stream_leaves_as_it_came_in_any_pieces(bytes in with_knobs(6, row(SSE))) {
        promises::sse(&bytes);
    }

    #[test]
    fn a_meter_reads_anything_alike_in_any_pieces(bytes in with_knobs(7, row(SSE)), body in with_knobs(2, members(USAGE, 4).prop_map(String::into_bytes))) {
        promises::meter(&bytes);
        promises::meter(&body);
    }

    #[test]
    fn a_usage_is_what_was_told_and_adds_up(json in members(USAGE, 4), usage in usage()) {
        promises::usage(json.as_bytes());
        promises::usage(usage.as_bytes());
    }

    #[test]
    fn edits_are_made_where_they_belong_and_nowhere_else(bytes in with_knobs(2, call())) {
        promises::call(&bytes);
    }

    #[test]
    fn wrong_settings_have_a_place_and_show_no_secret(bytes in row(CONFIG)) {
        promises::config(&bytes);
    }

    #[test]
    fn nothing_is_nearly_a_key(bytes in vec(any::<u8>(), 0..80), text in "sk-gw-[0-9A-Za-z]{40,60}") {
        promises::key(&bytes);
        promises::key(text.as_bytes());
    }

    #[test]
    fn nothing_unfolds_beyond_its_bound(bytes in encoded()) {
        promises::codec(&bytes);
    }
}
