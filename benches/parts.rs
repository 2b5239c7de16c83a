//! What the pure parts of a call cost: `cargo bench --bench parts`.

use bytes::Bytes;
use codex_gateway::call::{Call, Edits, Endpoint};
use codex_gateway::key::GatewayKey;
use codex_gateway::meter::Meter;
use codex_gateway::pricing::{self, Factor, Price, SearchTool, Terms};
use codex_gateway::sse::Splitter;
use codex_gateway::tokens::Encoding;
use codex_gateway::usage::{CacheTtl, Dialect, Tier, Usage};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

fn words(bytes: usize) -> String {
    "Tell me what the weather will be like. ".repeat(bytes / 39 + 1)
}

fn request(bytes: usize) -> Bytes {
    let text = words(bytes);
    format!(r#"{{"model":"gpt-5.2","instructions":"Be brief.","input":[{{"role":"user","content":"{text}"}}],"stream":true,"max_output_tokens":4096}}"#).into()
}

const SIZES: [usize; 3] = [1_000, 100_000, 10_000_000];

#[divan::bench(args = SIZES)]
fn call_parsed(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = request(bytes);
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| Call::parse(Endpoint::Responses, black_box(body.clone())));
}

#[divan::bench(args = SIZES)]
fn call_edited(bencher: Bencher<'_, '_>, bytes: usize) {
    let call = Call::parse(Endpoint::Responses, request(bytes)).expect("a call");
    let edits = Edits {
        model: Some("another".to_owned()),
        output_limit: Some(codex_gateway::usage::Tokens::saturating(1_000)),
        ..Edits::default()
    };
    bencher.bench(|| black_box(&call).upstream_body(&edits));
}

#[divan::bench(args = [1_000, 100_000])]
fn text_counted(bencher: Bencher<'_, '_>, bytes: usize) {
    let text = words(bytes);
    Encoding::O200k.warm();
    bencher
        .counter(BytesCount::new(text.len()))
        .bench(|| Encoding::O200k.count(black_box(&text)));
}

/// A delta as OpenAI sends it.
const DELTA: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":7,\"item_id\":\"msg_0\",\"output_index\":0,\"content_index\":0,\"delta\":\" word\",\"logprobs\":[]}\n\n";

#[divan::bench]
fn chunk_passed(bencher: Bencher<'_, '_>) {
    let chunk = Bytes::from_static(DELTA.as_bytes());
    let mut splitter = Splitter::new();
    let mut meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
    bencher.counter(BytesCount::new(chunk.len())).bench_local(|| {
        splitter.push(black_box(chunk.clone()));
        while let Some(piece) = splitter.next_piece() {
            if let Some(event) = &piece.event {
                black_box(meter.observe(event));
            }
        }
    });
}

#[divan::bench]
fn answer_read(bencher: Bencher<'_, '_>) {
    let text = words(300);
    let answer = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-5.2","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":212,"completion_tokens":64,"total_tokens":276,"prompt_tokens_details":{{"cached_tokens":0}}}}}}"#
    );
    bencher.bench(|| {
        let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
        meter.observe_body(black_box(answer.as_bytes()));
        meter
    });
}

#[divan::bench]
fn usage_priced(bencher: Bencher<'_, '_>) {
    let price = Price::from_json(r#"{"kind":"text","rates":{"input":"1.75","cached_input":"0.175","output":"14"}}"#)
        .expect("a price");
    let terms = Terms {
        price: &price,
        image_price: None,
        search: SearchTool::Current,
        tier: Tier::Standard,
        region: None,
        markup: Factor::parse("1.2").expect("a factor"),
        at: codex_gateway::time::now(),
    };
    let told = serde_json::json!({"input_tokens": 5000, "input_tokens_details": {"cached_tokens": 4096}, "output_tokens": 700, "total_tokens": 5700});
    let usage = Usage::parse_for(&told, Dialect::OpenAi, CacheTtl::default())
        .expect("a usage")
        .expect("there is one");
    bencher.bench(|| pricing::bill(black_box(&usage), &terms));
}

#[divan::bench]
fn key_checked(bencher: Bencher<'_, '_>) {
    let key = GatewayKey::from_entropy([7; 32]);
    bencher.bench(|| GatewayKey::parse(black_box(key.reveal())).map(|key| key.hash()));
}
