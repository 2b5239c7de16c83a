//! Bills: what an answer costs is what its upstream counted, at the catalogue's rates, to the nano-dollar.

use std::io::Write;
use std::sync::Arc;

use assert_cmd::Command;
use bytes::Bytes;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Playwright, Request, Script, ServedUsage, Step, always};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL, chat, drain, exchange_of, response};
use crate::harness::{Builder, Harness};
use crate::price::{at_hour, catalogue, expected_charge, nanos, reported};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

/// The golden bills of these endpoints.
fn golden() -> Vec<Value> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/billing-golden.json"));
    let golden: Value = serde_json::from_str(text).expect("JSON");
    let mut cases = golden["cases"].as_array().expect("cases").clone();
    let here = ["/chat/completions", "/responses", "/completions", "/embeddings"];
    cases.retain(|case| {
        let endpoint = case["endpoint"].as_str().expect("an endpoint");
        here.iter().any(|path| endpoint.ends_with(path))
    });
    cases
}

/// The path of a case below `/v1`.
fn path_of(case: &Value) -> String {
    let endpoint = case["endpoint"].as_str().expect("an endpoint");
    format!("/v1{}", endpoint.strip_prefix("/v1").unwrap_or(endpoint))
}

/// The items of a case's answer that cost a fee.
fn fee_items(case: &Value) -> Vec<Value> {
    let count = |kind: &str| case["output_items"][kind].as_u64().unwrap_or(0);
    let mut items: Vec<Value> = Vec::new();
    for (kind, count) in [
        ("file_search_call", count("file_search_call")),
        ("code_interpreter_call", count("code_interpreter_call")),
    ] {
        let item = |number| json!({"type": kind, "id": format!("{kind}_{number}"), "status": "completed", "container_id": "cntr_1"});
        items.extend((0..count).map(item));
    }
    items
}

/// The response object of a case.
fn response_of(case: &Value) -> Value {
    let zero = case["usage"]["total_tokens"] == 0;
    let mut output = fee_items(case);
    output.push(json!({"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}));
    let mut response = json!({
        "id": format!("resp_{}", case["id"].as_str().expect("an id")), "object": "response", "error": null,
        "status": if zero { "incomplete" } else { "completed" }, "model": case["model"],
        "service_tier": case["response_service_tier"], "output": output, "usage": case["usage"],
    });
    if !case["tool_usage"].is_null() {
        response["tool_usage"] = case["tool_usage"].clone();
    }
    response
}

/// The whole answer of a case.
fn unary(case: &Value) -> Script {
    let path = path_of(case);
    let body = match path.as_str() {
        RESPONSES => response_of(case),
        "/v1/embeddings" => json!({"object": "list", "model": case["model"], "usage": case["usage"],
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}),
        _ => json!({"id": "chatcmpl-1", "object": "chat.completion", "model": case["model"], "usage": case["usage"],
            "service_tier": case["response_service_tier"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}),
    };
    Script::json(StatusCode::OK, &body)
}

/// The same as a stream.
fn streamed(case: &Value) -> Script {
    if path_of(case) == RESPONSES {
        let response = response_of(case);
        let kind = format!("response.{}", response["status"].as_str().expect("a status"));
        let items = response["output"].as_array().expect("items").iter().enumerate();
        let done = items.map(|(index, item)| {
            Step::event(
                &json!({"type": "response.output_item.done", "output_index": index, "item": item}),
                0,
            )
        });
        let end = Step::event(&json!({"type": kind, "response": response}), 0);
        return Script::sse(done.chain([end]).collect());
    }
    let chunk = |choices: Value, usage: &Value| {
        json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": case["model"],
               "service_tier": case["response_service_tier"], "choices": choices, "usage": usage})
    };
    Script::sse(vec![
        Step::data(
            &chunk(json!([{"index": 0, "delta": {"content": "Hi"}}]), &Value::Null),
            1,
        ),
        Step::data(
            &chunk(
                json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]),
                &Value::Null,
            ),
            0,
        ),
        Step::data(&chunk(json!([]), &case["usage"]), 0),
        Step::send("data: [DONE]\n\n"),
    ])
}

/// Answers as the case that a header names.
fn golden_playwright() -> Playwright {
    let cases = golden();
    Arc::new(move |request: &Request| {
        let id = request.headers["x-client-request-id"].to_str().expect("text");
        let case = cases.iter().find(|case| case["id"] == id).expect("a case");
        if request.streamed() {
            streamed(case)
        } else {
            unary(case)
        }
    })
}

async fn call_golden(client: &Client, case: &Value, stream: bool) -> Answer {
    let path = path_of(case);
    let mut body = json!({"model": case["model"]});
    match path.as_str() {
        CHAT => body["messages"] = json!([{"role": "user", "content": "Hi"}]),
        _ => body["input"] = json!("Hi"),
    }
    if stream {
        body["stream"] = json!(true);
    }
    if !case["request_service_tier"].is_null() {
        body["service_tier"] = case["request_service_tier"].clone();
    }
    let request = client.request(reqwest::Method::POST, &path);
    let request = request.header("x-client-request-id", case["id"].as_str().expect("an id"));
    let answer = request
        .body(body.to_string())
        .send()
        .await
        .expect("the gateway answers");
    Answer::of(answer).await.expect(200)
}

/// What the receipt shows is what the golden bill shows, line by line.
fn check_golden(case: &Value, row: &ExchangeRow) {
    let id = &case["id"];
    let cost = nanos(case["cost_usd"].as_str().expect("a cost"));
    // An hour's price cannot be asked for: this bill is of another hour.
    let (cost, of_this_hour) = match case["time_utc"].is_null() {
        true => (cost, true),
        false => {
            let price = catalogue(case["provider"].as_str().expect("a list"), &row.priced_model);
            let now = at_hour(price.clone(), row.started_at);
            let then = at_hour(
                price,
                case["time_utc"].as_str().expect("a time").parse().expect("a time"),
            );
            let usage = reported(&case["usage"], None, false);
            assert_eq!(
                expected_charge(&usage, &then, "1"),
                cost,
                "{id}: the test's own reckoning"
            );
            (expected_charge(&usage, &now, "1"), now == then)
        }
    };
    assert_eq!((i128::from(row.charge.nanos()), row.cost), (cost, row.charge), "{id}");
    assert_eq!(row.basis, Basis::Reported, "{id}");
    let shown = row.lines.iter().map(|line| {
        (
            line.class.name().to_owned(),
            line.quantity.to_string(),
            line.amount.clone(),
        )
    });
    let name = |class: &str| match class {
        "input_text" => "input".to_owned(),
        "output_text" => "output".to_owned(),
        "audio_in" => "audio_input".to_owned(),
        "container_1g" => "container".to_owned(),
        class => class.to_owned(),
    };
    let text = |line: &Value, field: &str| line[field].as_str().expect("text").to_owned();
    let lines = case["lines"].as_array().expect("lines").iter();
    let expected = lines.map(|line| {
        (
            name(&text(line, "class")),
            text(line, "quantity"),
            text(line, "amount_usd"),
        )
    });
    if of_this_hour {
        assert_eq!(shown.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{id}");
    }
    for line in &row.lines {
        let (rate, amount) = (nanos(&line.rate), nanos_of(&line.amount));
        assert_eq!(rate * i128::from(line.quantity), amount, "{id}: {line:?}");
    }
}

/// A decimal text in millionths of a nano-dollar.
fn nanos_of(amount: &str) -> i128 {
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
    format!("{whole}{fraction:0<15}")
        .parse()
        .expect("at most fifteen decimals")
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_bills_are_charged_to_the_nano_dollar() {
    let builder = Harness::builder().balance("100000").playwright(golden_playwright());
    let builder = builder.vendor("xai", &["grok-*"]).vendor("deepseek", &["deepseek-*"]);
    let harness = builder.start().await;
    let (mut bills, cases) = (Vec::new(), golden());
    for case in &cases {
        let plain = call_golden(&harness.client, case, false).await;
        let row = harness.receipt(plain.exchange());
        assert_eq!(plain.header("x-gateway-cost"), row.charge.to_string());
        assert_eq!(plain.header("x-gateway-balance"), row.balance_after.to_string());
        bills.push((case, plain.exchange().to_owned()));
        if path_of(case) != "/v1/embeddings" {
            let stream = call_golden(&harness.client, case, true).await;
            assert!(
                !stream.headers.contains_key("x-gateway-cost"),
                "a stream's head knows no cost"
            );
            assert!(!stream.headers.contains_key("x-gateway-balance"));
            bills.push((case, stream.exchange().to_owned()));
        }
    }
    let books = harness.finish().await;
    for (case, exchange) in &bills {
        check_golden(case, books.exchange(exchange));
    }
    println!("{} golden bills, {} charged", cases.len(), bills.len());
    assert!(cases.len() >= 17);
}

/// A whole chat answer with this usage.
fn chat_answer(usage: Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion", "model": MODEL, "service_tier": "default", "usage": usage,
           "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]})
}

/// Reads as many tokens as the first word of the prompt says.
fn reads_as_told() -> Playwright {
    Arc::new(|request: &Request| {
        let tokens: u64 = request.json["messages"][0]["content"]
            .as_str()
            .expect("text")
            .parse()
            .expect("a number");
        let usage = json!({"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens});
        Script::json(StatusCode::OK, &chat_answer(usage))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charge_is_rounded_once_after_the_markup_and_ties_go_up() {
    // Dollars per million tokens, tokens, and nano-dollars to be charged.
    for (markup, cases) in [
        (
            "1",
            [
                ("0.0005", 1, 1),
                ("0.000499999", 1, 0),
                ("0.0015", 1, 2),
                ("0.0025", 1, 3),
                ("0.000000001", 499_999, 0),
                ("0.000000001", 500_000, 1),
            ],
        ),
        (
            "1.25",
            [
                ("0.0004", 1, 1),
                ("0.0004", 3, 2),
                ("0.0012", 1, 2),
                ("0.0003", 1, 0),
                ("0.0001", 4, 1),
                ("2", 1, 2_500),
            ],
        ),
        (
            "1.1",
            [
                ("0.0014", 1, 2),
                ("0.0005", 1, 1),
                ("0.0004", 1, 0),
                ("3", 7, 23_100),
                ("0.00045", 1, 0),
                ("0.000455", 1, 1),
            ],
        ),
        (
            "0",
            [
                ("2", 1_000, 0),
                ("0.0005", 1, 0),
                ("1", 1, 0),
                ("1", 2, 0),
                ("1", 3, 0),
                ("1", 4, 0),
            ],
        ),
    ] {
        let mut builder = Harness::builder()
            .settings(&format!("[billing]\nmarkup = \"{markup}\""))
            .playwright(reads_as_told());
        for (number, (rate, ..)) in cases.iter().enumerate() {
            let price = format!(r#"{{"kind":"text","rates":{{"input":"{rate}","output":"0"}}}}"#);
            builder = builder.price(&format!("tiny-{number}"), &price);
        }
        let harness = builder.start().await;
        for (number, (rate, tokens, charge)) in cases.iter().enumerate() {
            let body = chat(&tokens.to_string(), &json!({"model": format!("tiny-{number}")}));
            let answer = harness.client.post(CHAT, &body).await.expect(200);
            let row = harness.receipt(answer.exchange());
            assert_eq!(row.charge.nanos(), *charge, "{tokens} × {rate} × {markup}");
            assert_eq!(row.markup, markup);
        }
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_in_a_region_costs_its_uplift() {
    let usage = json!({"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100});
    let script = Script::json(StatusCode::OK, &chat_answer(usage.clone()));
    let harness = Harness::builder()
        .upstream("region = \"eu\"")
        .playwright(always(script))
        .start()
        .await;
    let answer = harness.client.chat("Hello").await.expect(200);
    let row = harness.receipt(answer.exchange());
    let price = catalogue("openai", MODEL);
    let uplift = price["regional_uplift"].as_str().expect("an uplift");
    assert_eq!(row.uplift.as_deref(), Some(uplift));
    let usage = reported(&usage, Some("default"), false);
    assert_eq!(i128::from(row.charge.nanos()), expected_charge(&usage, &price, uplift));
    harness.finish().await;
}

/// Usage as vendors write it, and the usage that it means.
fn vendors() -> Vec<(&'static str, &'static str, Script, ServedUsage)> {
    let used = |input, cached, output| ServedUsage {
        input,
        cached,
        output,
        ..ServedUsage::default()
    };
    let unary = |usage| Script::json(StatusCode::OK, &chat_answer(usage));
    let chunk = |more: Value| {
        let mut chunk = json!({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}]});
        for (name, value) in more.as_object().expect("fields") {
            chunk[name] = value.clone();
        }
        Step::data(&chunk, 1)
    };
    let done = Step::send("data: [DONE]\n\n");
    let plain = json!({"prompt_tokens": 765, "completion_tokens": 10, "total_tokens": 775, "queue_time": 0.17});
    let in_choice = json!([{"index": 0, "delta": {}, "finish_reason": "stop",
        "usage": {"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32, "cached_tokens": 20}}]);
    vec![
        (
            "deepseek",
            "deepseek-v4-flash",
            unary(
                json!({"prompt_cache_hit_tokens": 2560, "prompt_cache_miss_tokens": 440, "prompt_tokens": 3000, "completion_tokens": 200, "total_tokens": 3200}),
            ),
            used(3_000, 2_560, 200),
        ),
        (
            "xai",
            "grok-4.3",
            unary(json!({"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 303,
                "prompt_tokens_details": {"cached_tokens": 11}, "completion_tokens_details": {"reasoning_tokens": 290}})),
            used(12, 11, 291),
        ),
        (
            "moonshot",
            "kimi-k3",
            unary(json!({"prompt_tokens": 30, "completion_tokens": 2, "total_tokens": 32, "cached_tokens": 20})),
            used(30, 20, 2),
        ),
        (
            "moonshot",
            "kimi-k3",
            Script::sse(vec![
                chunk(json!({})),
                chunk(json!({"choices": in_choice})),
                done.clone(),
            ]),
            used(30, 20, 2),
        ),
        (
            "groq",
            "openai/gpt-oss-120b",
            Script::sse(vec![
                chunk(json!({"x_groq": {"id": "req_1"}})),
                chunk(json!({"x_groq": {"id": "req_1", "usage": plain}})),
                chunk(json!({"x_groq": {"id": "req_1", "usage": plain}, "usage": plain})),
                chunk(json!({"choices": [], "usage": plain, "service_tier": "on_demand"})),
                done,
            ]),
            used(765, 0, 10),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn vendors_usage_is_read_as_they_mean_it_and_priced_by_their_own_list() {
    for (list, model, script, usage) in vendors() {
        let stream = script
            .headers
            .iter()
            .any(|(_, value)| value.starts_with("text/event-stream"));
        let harness = Harness::builder()
            .vendor(list, &[model])
            .playwright(always(script))
            .start()
            .await;
        let body = chat("Hello", &json!({"model": model, "stream": stream}));
        let answer = harness.client.post(CHAT, &body).await.expect(200);
        let books = harness.finish().await;
        let row = books.exchange(answer.exchange());
        assert_eq!(
            (row.upstream.as_str(), row.list.as_ref().map(|list| list.as_str())),
            (list, Some(list))
        );
        let tokens = (
            row.usage.input_tokens.get(),
            row.usage.cached_tokens.get(),
            row.usage.output_tokens.get(),
        );
        assert_eq!(tokens, (usage.input, usage.cached, usage.output), "{list}");
        let price = at_hour(catalogue(list, model), row.started_at);
        assert_eq!(
            i128::from(row.charge.nanos()),
            expected_charge(&usage, &price, "1"),
            "{list}"
        );
    }
}

/// `gateway request show`, as a JSON document.
fn receipt_shown(harness: &Harness, id: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    let command = command
        .env_clear()
        .args(["request", "show", id, "--json", "--database"])
        .arg(harness.database());
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_shown_by_the_exchanges_id_and_by_the_responses() {
    let harness = Harness::builder()
        .balance("5")
        .playwright(golden_playwright())
        .start()
        .await;
    let cases = golden();
    let case = cases
        .iter()
        .find(|case| case["id"] == "g29-many-tools")
        .expect("a case");
    let answer = call_golden(&harness.client, case, false).await;
    let shown = receipt_shown(&harness, answer.exchange());
    assert_eq!(receipt_shown(&harness, "resp_g29-many-tools"), shown);
    for (field, value) in [
        ("id", json!(answer.exchange())),
        ("state", json!("completed")),
        ("estimated", json!(false)),
        ("user", json!("alice")),
        ("model", json!("gpt-6.1-terra")),
        ("upstream", json!("first")),
        ("price_list", json!("openai")),
        ("tier", json!("standard")),
        ("markup", json!("1")),
        ("cost", json!("0.0821")),
        ("charge", json!("0.0821")),
        ("uncollected", json!("0")),
        ("balance_after", json!("4.9179")),
        ("attempts", json!(1)),
        ("response_id", json!("resp_g29-many-tools")),
        ("upstream_status", json!(200)),
    ] {
        assert_eq!(shown[field], value, "{field}: {shown}");
    }
    assert!(nanos(shown["hold"].as_str().expect("an amount")) > 0);
    let lines = shown["lines"].as_array().expect("lines");
    let sum: i128 = lines
        .iter()
        .map(|line| nanos_of(line["amount"].as_str().expect("an amount")))
        .sum();
    assert_eq!(sum, nanos_of("0.0821"));
    assert_eq!(
        lines[0],
        json!({"class": "input", "quantity": 4000, "rate": "1", "amount": "0.004"})
    );
    harness.finish().await;
}

/// A body encoded in each coding that clients use.
fn encoded(body: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let level = flate2::Compression::default();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), level);
    let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), level);
    for writer in [&mut gzip as &mut dyn Write, &mut zlib, &mut bare] {
        writer.write_all(body).expect("memory");
    }
    let mut br = Vec::new();
    let mut brotli = brotli::CompressorWriter::new(&mut br, 4_096, 5, 22);
    brotli.write_all(body).expect("memory");
    drop(brotli);
    vec![
        ("identity", body.to_vec()),
        ("zstd", zstd::encode_all(body, 3).expect("memory")),
        ("gzip", gzip.finish().expect("memory")),
        ("deflate", zlib.finish().expect("memory")),
        ("deflate", bare.finish().expect("memory")),
        ("br", br),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_arrives_upstream_as_it_was_written_whatever_it_was_packed_in() {
    let harness = Harness::start().await;
    // A limit is stated, so that nothing has to be written into it. Odd spaces and escapes stay.
    let body = format!(
        "\n {{ \"model\" :\t\"{MODEL}\",\"input\":\"H\\u00e9llo \\/ é\" , \"max_output_tokens\":100,\"x\":1.0e+2 }} \n"
    );
    for (coding, packed) in encoded(body.as_bytes()) {
        let request = harness
            .client
            .request(reqwest::Method::POST, RESPONSES)
            .header("content-encoding", coding);
        Answer::of(request.body(packed).send().await.expect("an answer"))
            .await
            .expect(200);
        let served = harness.served().pop().expect("a call upstream");
        assert_eq!(served.body, body.as_bytes(), "{coding}");
        assert!(!served.headers.contains_key("content-encoding"), "{coding}");
        assert_eq!(served.headers["accept-encoding"], "identity");
    }
    assert_eq!(harness.finish().await.exchanges.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_spliced_in_and_touches_nothing_else() {
    let harness = Harness::builder()
        .upstream("aliases = { \"house\" = \"gpt-6.1-sol\" }")
        .start()
        .await;
    let written = async |path: &str, body: &str| {
        let request = harness
            .client
            .request(reqwest::Method::POST, path)
            .body(body.to_owned());
        Answer::of(request.send().await.expect("an answer")).await.expect(200);
        String::from_utf8(harness.served().pop().expect("a call upstream").body.to_vec()).expect("text")
    };
    let body = r#"{ "max_tokens" : 9,"model": "house" , "messages":[ {"role":"user","content":"the house"} ]}"#;
    assert_eq!(written(CHAT, body).await, body.replace("\"house\"", "\"gpt-6.1-sol\""));
    let body = r#"{ "model":"gpt-6.1-sol","stream" : true , "messages":[],"max_tokens":9 }"#;
    let asked = r#"{ "model":"gpt-6.1-sol","stream" : true , "messages":[],"max_tokens":9 ,"stream_options":{"include_usage":true}}"#;
    assert_eq!(written(CHAT, body).await, asked);
    let body = r#"{"model":"gpt-6.1-sol","stream":true,"stream_options":{"include_usage": false, "x":1},"prompt":"Hi","max_tokens":9}"#;
    assert_eq!(
        written("/v1/completions", body).await,
        body.replace(": false", ": true")
    );
    let body =
        r#"{"model":"gpt-6.1-sol","stream":true,"stream_options":{"include_usage":true},"messages":[],"max_tokens":9}"#;
    assert_eq!(written(CHAT, body).await, body);
    let row = harness.finish().await.exchanges.remove(0);
    assert_eq!(
        (row.model.as_str(), row.priced_model.as_str()),
        ("house", "gpt-6.1-sol")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_passes_byte_for_byte() {
    let odd = format!(
        "\n{{ \"model\":\"{MODEL}\" ,\"choices\" : [ ],\"x\":1.0e+2,\"y\":\"\\u00e9é\\/\", \"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":1}} }}\n\n"
    );
    let script = Script::body(StatusCode::CREATED, "application/json; charset=x", odd.clone().into())
        .header("openai-processing-ms", "12")
        .header("openai-organization", "org-secret")
        .header("set-cookie", "a=b")
        .header("x-request-id", "req_upstream");
    let harness = Harness::builder().playwright(always(script)).start().await;
    let answer = harness.client.chat("Hello").await;
    assert_eq!((answer.status, answer.text()), (StatusCode::CREATED, odd));
    for (name, value) in [
        ("content-type", "application/json; charset=x"),
        ("openai-processing-ms", "12"),
        ("x-upstream-request-id", "req_upstream"),
        ("openai-organization", ""),
        ("set-cookie", ""),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    let books = harness.finish().await;
    assert_eq!(books.only().upstream_request_id.as_deref(), Some("req_upstream"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_a_whole_answer_leaves_after_its_charge_is_durable() {
    let harness = Harness::start().await;
    for _ in 0..20 {
        // Only the head: the body is not read.
        let answer = harness.client.send(CHAT, &chat("Hello", &json!({}))).await;
        let row = harness.receipt(&exchange_of(&answer));
        assert_eq!(row.state, State::Completed);
        let user = harness.user();
        assert_eq!((user.held.nanos(), user.balance), (0, row.balance_after));
        assert_eq!(answer.headers()["x-gateway-balance"], user.balance.to_string());
    }
    let price = catalogue("openai", MODEL);
    let charged: i128 = harness
        .served()
        .iter()
        .map(|served| expected_charge(served.usage.as_ref().expect("a usage"), &price, "1"))
        .sum();
    assert_eq!(harness.finish().await.charged(), charged);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_usage_is_settled_by_counting_and_says_so() {
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(20);
    let count =
        |text: &str| u64::try_from(tiktoken_rs::o200k_base_singleton().encode_ordinary(text).len()).expect("small");
    let mut body = chat_answer(Value::Null);
    body["choices"][0]["message"]["content"] = json!(text);
    let mut bodies = vec![(CHAT, body.clone())];
    body.as_object_mut().expect("an object").remove("usage");
    bodies.push((CHAT, body));
    bodies.push((RESPONSES, json!({"id": "resp_1", "object": "response", "status": "completed", "model": MODEL, "error": null,
        "output": [{"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]})));
    for (path, body) in bodies {
        let harness = Harness::builder()
            .playwright(always(Script::json(StatusCode::OK, &body)))
            .start()
            .await;
        let prompt = "Tell me about the fox. ".repeat(30);
        let call = if path == CHAT {
            chat(&prompt, &json!({}))
        } else {
            response(&prompt, &json!({}))
        };
        let answer = harness.client.post(path, &call).await.expect(200);
        assert_eq!(receipt_shown(&harness, answer.exchange())["estimated"], true);
        let books = harness.finish().await;
        let row = books.only();
        assert_eq!((row.state, row.basis), (State::Completed, Basis::Estimated));
        let (input, output) = (row.usage.input_tokens.get(), row.usage.output_tokens.get());
        assert!(input >= count(&prompt) && input <= count(&prompt) + 32, "{input}");
        assert_eq!(output, count(&text));
        let usage = ServedUsage {
            input,
            output,
            ..ServedUsage::default()
        };
        assert_eq!(
            i128::from(row.charge.nanos()),
            expected_charge(&usage, &catalogue("openai", MODEL), "1")
        );
        assert!(row.charge <= row.held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_that_says_zero_is_believed() {
    let zero = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
    let harness = Harness::builder()
        .playwright(always(Script::json(StatusCode::OK, &chat_answer(zero))))
        .start()
        .await;
    harness.client.chat("Hello").await.expect(200);
    let books = harness.finish().await;
    assert_eq!((books.only().basis, books.only().charge.nanos()), (Basis::Reported, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_and_completions_are_billed_as_the_simulator_counts_them() {
    let harness = Harness::start().await;
    let several = json!(["Hello", "What is a ledger?"]);
    let mut bills = Vec::new();
    for (path, body) in [
        (
            "/v1/embeddings",
            json!({"model": "text-embedding-3-small", "input": "Hello there"}),
        ),
        (
            "/v1/embeddings",
            json!({"model": "text-embedding-3-large", "input": several}),
        ),
        (
            "/embeddings",
            json!({"model": "text-embedding-3-small", "input": [1, 2, 3]}),
        ),
        (
            "/v1/completions",
            json!({"model": "gpt-3.5-turbo-instruct", "prompt": "Once", "max_tokens": 20}),
        ),
        (
            "/completions",
            json!({"model": "gpt-3.5-turbo-instruct", "prompt": "Once", "stream": true}),
        ),
        ("/chat/completions", chat("Hello", &json!({"n": 2}))),
        ("/responses", response("Hello", &json!({}))),
    ] {
        let answer = harness.client.post(path, &body).await.expect(200);
        let price = catalogue("openai", body["model"].as_str().expect("a model"));
        let usage = harness.served().pop().and_then(|served| served.usage).expect("a usage");
        bills.push((answer.exchange().to_owned(), expected_charge(&usage, &price, "1")));
    }
    let books = harness.finish().await;
    for (id, expected) in bills {
        let row = books.exchange(&id);
        assert_eq!(i128::from(row.charge.nanos()), expected, "{row:?}");
        assert!(expected > 0 && row.charge <= row.held);
    }
}

/// The hold of a call, in nano-dollars.
async fn held(harness: &Harness, path: &str, body: &Value) -> i128 {
    let answer = harness.client.post(path, body).await.expect(200);
    i128::from(harness.receipt(answer.exchange()).held.nanos())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_choice_that_is_generated_is_held_for() {
    let harness = Harness::start().await;
    let output = |model: &str| {
        let rates = &catalogue("openai", model)["rates"];
        nanos(rates["output"].as_str().expect("a rate"))
    };
    let of_chat = |n: u64| chat("Hello", &json!({"max_tokens": 1_000, "n": n}));
    let (one, three) = (
        held(&harness, CHAT, &of_chat(1)).await,
        held(&harness, CHAT, &of_chat(3)).await,
    );
    assert_eq!(three - one, 2 * 1_000 * output(MODEL) / 1_000_000);
    let model = "gpt-3.5-turbo-instruct";
    let legacy = |more: Value| {
        let mut body = json!({"model": model, "prompt": "Once", "max_tokens": 1_000});
        for (name, value) in more.as_object().expect("fields") {
            body[name] = value.clone();
        }
        body
    };
    let path = "/v1/completions";
    let one = held(&harness, path, &legacy(json!({}))).await;
    let best_of = held(&harness, path, &legacy(json!({"n": 2, "best_of": 5}))).await;
    assert_eq!(
        best_of - one,
        4 * 1_000 * output(model) / 1_000_000,
        "the worse of best_of are paid for too"
    );
    let default = held(&harness, path, &json!({"model": model, "prompt": "Once"})).await;
    assert_eq!(
        one - default,
        (1_000 - 16) * output(model) / 1_000_000,
        "without a limit OpenAI stops at 16"
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_held_for_all_of_its_prompts_however_little_the_model_reads_at_once() {
    let harness = Harness::start().await;
    let prompts = vec!["word ".repeat(2_000); 9];
    let batches = [
        (
            "/v1/embeddings",
            json!({"model": "text-embedding-3-small", "input": prompts}),
        ),
        (
            "/v1/completions",
            json!({"model": "gpt-3.5-turbo-instruct", "prompt": prompts, "max_tokens": 1}),
        ),
    ];
    for (path, body) in &batches {
        let price = catalogue("openai", body["model"].as_str().expect("a model"));
        let answer = harness.client.post(path, body).await.expect(200);
        let row = harness.receipt(answer.exchange());
        let most = price["max_input"].as_u64().expect("a bound");
        assert!(row.usage.input_tokens.get() > most, "more than one prompt may have");
        assert!(row.charge <= row.held, "{path}: {} of {}", row.charge, row.held);
    }
    // Else calls at once would spend what is not there.
    let poor = harness.add_client("poor", "0.0002");
    let refused = poor.post(batches[0].0, &batches[0].1).await.expect(429);
    assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_on_an_answer_whose_usage_is_not_known_is_held_for_the_models_largest_input() {
    let answer = |request: &Request| {
        let follows = request.json["previous_response_id"].is_string();
        let usage = json!({"input_tokens": 400_000, "output_tokens": 5, "total_tokens": 400_005});
        let item = json!({"id": "msg_1", "type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello"}]});
        let mut whole = json!({"id": format!("resp_{}", request.id), "object": "response", "model": MODEL,
            "status": "completed", "output": [item]});
        if follows {
            whole["usage"] = usage;
        }
        Script::json(StatusCode::OK, &whole)
    };
    let builder = Harness::builder().balance("100").playwright(Arc::new(answer));
    let harness = builder.start().await;
    let first = harness
        .client
        .post("/v1/responses", &response("Hello", &json!({})))
        .await
        .expect(200);
    assert_eq!(harness.receipt(first.exchange()).basis, Basis::Estimated);
    let more = json!({"previous_response_id": first.json()["id"], "max_output_tokens": 16});
    let second = harness
        .client
        .post("/v1/responses", &response("And then?", &more))
        .await
        .expect(200);
    let row = harness.receipt(second.exchange());
    assert_eq!((row.basis, row.usage.input_tokens.get()), (Basis::Reported, 400_000));
    assert!(row.charge <= row.held, "{} of {}", row.charge, row.held);
    harness.finish().await;
}

/// Answers at a tier whatever was asked.
fn at_tier(tier: Option<&str>) -> Builder {
    let usage = json!({"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100});
    let mut body = chat_answer(usage);
    match tier {
        Some(tier) => body["service_tier"] = json!(tier),
        None => drop(body.as_object_mut().expect("an object").remove("service_tier")),
    }
    Harness::builder().playwright(always(Script::json(StatusCode::OK, &body)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tier_that_answered_is_the_one_that_is_paid() {
    let price = catalogue("openai", MODEL);
    let mut charges = Vec::new();
    for (asked, answered, shown) in [
        (None, Some("default"), "standard"),
        (Some("priority"), Some("priority"), "priority"),
        (Some("priority"), Some("default"), "standard"),
        (Some("fast"), Some("priority"), "priority"),
        (Some("flex"), Some("flex"), "flex"),
        (Some("flex"), Some("default"), "standard"),
        (Some("auto"), None, "standard"),
        (Some("priority"), None, "standard"),
    ] {
        let harness = at_tier(answered).start().await;
        let body = asked.map_or_else(
            || chat("Hello", &json!({})),
            |tier| chat("Hello", &json!({"service_tier": tier})),
        );
        let answer = harness.client.post(CHAT, &body).await.expect(200);
        assert_eq!(
            receipt_shown(&harness, answer.exchange())["tier"],
            shown,
            "{asked:?} → {answered:?}"
        );
        let usage = ServedUsage {
            input: 1_000,
            output: 100,
            tier: answered.map(str::to_owned),
            ..ServedUsage::default()
        };
        let books = harness.finish().await;
        let charge = i128::from(books.only().charge.nanos());
        assert_eq!(charge, expected_charge(&usage, &price, "1"), "{asked:?} → {answered:?}");
        charges.push(charge);
    }
    assert!(charges[1] > charges[0] && charges[4] < charges[0], "{charges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dearer_tier_is_held_for_when_it_is_asked_for() {
    let harness = Harness::start().await;
    let at = |tier: &str| chat("Hello", &json!({"max_tokens": 1_000, "service_tier": tier}));
    let (default, priority) = (
        held(&harness, CHAT, &at("default")).await,
        held(&harness, CHAT, &at("priority")).await,
    );
    let flex = held(&harness, CHAT, &at("flex")).await;
    assert_eq!(
        (priority, flex),
        (2 * default, default),
        "it may be served at the standard tier after all"
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_upstream_costs_nothing_and_is_recorded() {
    let inner = standard(Pace::default());
    let harness = Harness::builder()
        .vendor("free", &["local-*"])
        .playwright(inner)
        .start()
        .await;
    let body = chat("Hello", &json!({"model": "local-llama", "stream": true}));
    let (arrived, end) = drain(harness.client.send(CHAT, &body).await).await;
    end.expect("a clean end");
    assert!(Bytes::from(arrived).ends_with(b"data: [DONE]\n\n"));
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!(
        (row.list.as_ref(), row.charge.nanos(), row.basis),
        (None, 0, Basis::Reported)
    );
    assert!(row.usage.input_tokens.get() > 0 && row.usage.output_tokens.get() > 0);
}
