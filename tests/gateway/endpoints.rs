//! OpenAI's other endpoints: what is free costs nothing, what upstreams keep is seen by its user only, and what cannot be
//! metered is refused by name.

use bytes::Bytes;
use codex_gateway::endpoints::{Service, TABLE};
use codex_gateway::simulator::playwright::standard;
use codex_gateway::simulator::{Ended, Gate, Playwright, Request, Script, Served, Step, always};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL, drain, response};
use crate::hangups::hang_up;
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge, nanos};

/// A request without a body, or with a JSON document.
async fn ask(client: &Client, method: Method, path: &str, body: Option<Value>) -> Answer {
    let mut request = client.request(method, &format!("/v1{path}"));
    if let Some(body) = body {
        request = request
            .header("content-type", "application/json")
            .body(body.to_string());
    }
    Answer::of(request.send().await.expect("the gateway answers")).await
}

async fn get(client: &Client, path: &str) -> Answer {
    ask(client, Method::GET, path, None).await
}

/// A form with a file of these bytes.
fn form(content: &[u8]) -> (String, Bytes) {
    let head = "--mark\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--mark\r\n\
                content-disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\ncontent-type: text/plain\r\n\r\n";
    let body = [head.as_bytes(), content, b"\r\n--mark--\r\n"].concat();
    ("multipart/form-data; boundary=mark".to_owned(), body.into())
}

async fn upload(client: &Client, content: &[u8]) -> Answer {
    let (kind, body) = form(content);
    let request = client.request(Method::POST, "/v1/files").header("content-type", kind);
    Answer::of(request.body(body).send().await.expect("the gateway answers")).await
}

fn id(answer: &Answer) -> String {
    answer.json()["id"].as_str().expect("an id").to_owned()
}

fn ids(answer: &Answer) -> Vec<String> {
    let list = answer.json();
    let data = list["data"].as_array().expect("a list").iter();
    data.map(|item| item["id"].as_str().expect("an id").to_owned())
        .collect()
}

/// Nothing of the client's goes upstream but what is on a list, and our own credential.
fn is_ours(served: &Served) {
    assert_eq!(
        served.headers["authorization"], "Bearer sk-upstream-secret",
        "{}",
        served.path
    );
    assert!(!served.headers.contains_key("idempotency-key"), "{}", served.path);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_refused_by_name_and_reaches_no_upstream() {
    let harness = Harness::start().await;
    let refused = TABLE.iter().filter(|row| row.service == Service::Refused);
    let mut count = 0;
    for row in refused {
        let start = row.path.strip_suffix('…').expect("a beginning");
        for (method, path) in [
            (Method::POST, format!("{start}/some/thing/else/here")),
            (Method::GET, format!("{start}/some/thing/else/here")),
            (Method::PATCH, format!("{start}/x/y/z/w")),
        ] {
            let answer = ask(&harness.client, method.clone(), &path, None).await;
            let error = answer.json()["error"].clone();
            assert_eq!(
                error["gateway"]["code"], "endpoint_not_supported",
                "{method} {path}: {error}"
            );
            let status = if start == "/responses" { 400 } else { 403 };
            assert_eq!(answer.status, status, "{method} {path}");
            assert!(
                error["message"].as_str().is_some_and(|text| text.contains(&path)),
                "{error}"
            );
        }
        count += 1;
    }
    assert!(count > 20, "{count}");
    assert_eq!(harness.served().len(), 0);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_makes_upstream_is_seen_by_that_user_only() {
    let harness = Harness::builder().balance("100").start().await;
    let (alice, bob) = (&harness.client, harness.add_client("bob", "100"));
    let file = id(&upload(alice, b"secret").await.expect(200));
    let bobs_file = id(&upload(&bob, b"other").await.expect(200));
    let made = ask(alice, Method::POST, "/conversations", Some(json!({}))).await;
    let conversation = id(&made.expect(200));
    let answered = id(&alice.respond("Hello").await.expect(200));
    let objects = [
        format!("/files/{file}"),
        format!("/files/{file}/content"),
        format!("/conversations/{conversation}"),
        format!("/conversations/{conversation}/items"),
        format!("/responses/{answered}"),
        format!("/responses/{answered}/input_items"),
    ];
    for path in &objects {
        get(alice, path).await.expect(200);
        let before = harness.served().len();
        let others = get(&bob, path).await;
        let unknown = path
            .replace("file-", "file-x")
            .replace("conv_", "conv_x")
            .replace("resp_", "resp_x");
        for refused in [others, get(&bob, &unknown).await] {
            assert_eq!(
                (refused.status, &refused.json()["error"]["code"]),
                (StatusCode::NOT_FOUND, &json!("not_found"))
            );
        }
        assert_eq!(harness.served().len(), before, "{path}: the upstream is not asked");
    }
    assert_eq!(get(alice, &objects[1]).await.body, "secret");
    // What changes and what deletes is no other way in.
    let item = json!({"items": [{"type": "message", "role": "user", "content": "Hi"}]});
    for (method, path, body) in [
        (Method::DELETE, format!("/files/{file}"), None),
        (Method::DELETE, format!("/conversations/{conversation}"), None),
        (Method::DELETE, format!("/responses/{answered}"), None),
        (Method::POST, format!("/responses/{answered}/cancel"), Some(json!({}))),
        (
            Method::POST,
            format!("/conversations/{conversation}"),
            Some(json!({"metadata": {}})),
        ),
        (
            Method::POST,
            format!("/conversations/{conversation}/items"),
            Some(item.clone()),
        ),
    ] {
        assert_eq!(ask(&bob, method, &path, body).await.status, 404, "{path}");
    }
    assert_eq!(
        ids(&get(alice, "/files").await.expect(200)),
        std::slice::from_ref(&file)
    );
    assert_eq!(ids(&get(&bob, "/files").await.expect(200)), [bobs_file]);
    // Nor is a part of a call, or of a conversation.
    let with_file = json!([{"role": "user", "content": [{"type": "input_file", "file_id": file}]}]);
    for body in [json!({"conversation": conversation}), json!({"input": with_file})] {
        alice.post("/v1/responses", &response("Hi", &body)).await.expect(200);
        let count = alice.post("/v1/responses/input_tokens", &response("Hi", &body)).await;
        assert!(count.expect(200).json()["input_tokens"].is_number());
        for path in ["/v1/responses", "/v1/responses/input_tokens"] {
            let refused = bob.post(path, &response("Hi", &body)).await;
            assert_eq!(
                refused.json()["error"]["code"],
                "unsupported_parameter",
                "{path}: {body}"
            );
        }
    }
    let bobs = ask(&bob, Method::POST, "/conversations", Some(json!({}))).await;
    let bobs = format!("/conversations/{}/items", id(&bobs.expect(200)));
    for path in ["/conversations", &bobs] {
        let refused = ask(&bob, Method::POST, path, Some(json!({"items": with_file}))).await;
        assert_eq!(refused.json()["error"]["code"], "unsupported_parameter", "{path}");
    }
    let own = format!("/conversations/{conversation}/items");
    ask(alice, Method::POST, &own, Some(item)).await.expect(200);
    // What is deleted is gone.
    for path in [
        format!("/files/{file}"),
        format!("/conversations/{conversation}"),
        format!("/responses/{answered}"),
    ] {
        ask(alice, Method::DELETE, &path, None).await.expect(200);
        assert_eq!(get(alice, &path).await.status, 404, "{path}");
    }
    assert_eq!(ids(&get(alice, "/files").await.expect(200)), Vec::<String>::new());
    let gone = json!({"input": with_file});
    assert_eq!(alice.post("/v1/responses", &response("Hi", &gone)).await.status, 400);
    harness.served().iter().for_each(is_ours);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_free_costs_nothing_and_has_no_receipt() {
    let harness = Harness::builder().balance("0").start().await;
    let client = &harness.client;
    upload(client, b"text").await.expect(200);
    let moderation = client
        .post("/v1/moderations", &json!({"input": "Hello"}))
        .await
        .expect(200);
    assert_eq!(moderation.json()["results"][0]["flagged"], false);
    let count = client
        .post("/v1/responses/input_tokens", &response("Hello", &json!({})))
        .await;
    assert_eq!(count.expect(200).json()["object"], "response.input_tokens");
    ask(client, Method::POST, "/conversations", Some(json!({})))
        .await
        .expect(200);
    get(client, "/files").await.expect(200);
    let books = harness.finish().await;
    assert_eq!(books.exchanges, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_stays_at_the_upstream_that_made_it() {
    let builder = Harness::builder().vendor_with("free", &["own-*"], "aliases = {\"counts\" = \"own-1\"}");
    let harness = builder
        .second(codex_gateway::simulator::playwright::standard(Default::default()))
        .start()
        .await;
    let client = &harness.client;
    let file = id(&upload(client, b"text").await.expect(200));
    let second = harness.second.as_ref().expect("a second upstream");
    assert_eq!(
        (harness.served().len(), second.served().len()),
        (1, 0),
        "the first that sells OpenAI's models"
    );
    get(client, &format!("/files/{file}")).await.expect(200);
    assert_eq!(second.served().len(), 0);
    // The object is of an upstream that is there no more.
    harness.alter("UPDATE stored_objects SET upstream = 'gone'");
    assert_eq!(get(client, &format!("/files/{file}")).await.status, 404);
    let counted = client
        .post("/v1/responses/input_tokens", &json!({"model": "counts", "input": "Hi"}))
        .await;
    counted.expect(200);
    let served = harness.served();
    assert_eq!(
        served.last().map(|served| served.model.clone()).as_deref(),
        Some("own-1")
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_through_as_it_is_and_a_list_is_the_users_own() {
    let harness = Harness::start().await;
    let client = &harness.client;
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(3_000_000).collect();
    let made: Vec<String> = {
        let mut made = Vec::new();
        for part in [&content[..], b"b", b"c"] {
            made.push(id(&upload(client, part).await.expect(200)));
        }
        made
    };
    assert_eq!(
        get(client, &format!("/files/{}/content", made[0]))
            .await
            .expect(200)
            .body,
        content
    );
    let (kind, body) = form(&content);
    let sent = harness.served();
    assert_eq!(sent[0].body, body);
    assert_eq!(sent[0].headers["content-type"], kind);
    assert_eq!(sent[0].headers["content-length"], body.len().to_string());
    let newest_first: Vec<String> = made.iter().rev().cloned().collect();
    assert_eq!(ids(&get(client, "/files").await.expect(200)), newest_first);
    let first = get(client, "/files?limit=2").await.expect(200);
    assert_eq!(
        (ids(&first), &first.json()["has_more"]),
        (newest_first[..2].to_vec(), &json!(true))
    );
    let after = format!("/files?limit=2&after={}", newest_first[1]);
    let rest = get(client, &after).await.expect(200);
    assert_eq!(
        (ids(&rest), &rest.json()["has_more"]),
        (newest_first[2..].to_vec(), &json!(false))
    );
    let too_long = client
        .request(Method::POST, "/v1/files")
        .header("content-length", (513_u64 << 20).to_string())
        .header("content-type", "multipart/form-data; boundary=mark");
    let told = too_long.body("x").send().await;
    if let Ok(answer) = told {
        assert_eq!(answer.status(), 413);
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_comes_in_parts_is_the_users_own_from_its_first_to_its_last() {
    let harness = Harness::start().await;
    let (alice, bob) = (&harness.client, harness.add_client("bob", "5"));
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let announced = json!({"filename": "a.bin", "bytes": content.len(), "mime_type": "application/octet-stream", "purpose": "user_data"});
    let upload = id(&ask(alice, Method::POST, "/uploads", Some(announced.clone()))
        .await
        .expect(200));
    let (part, complete) = (
        format!("/v1/uploads/{upload}/parts"),
        format!("/uploads/{upload}/complete"),
    );
    let mut parts = Vec::new();
    for piece in content.chunks(500_000) {
        parts.push(id(&send_form(alice, &part, &[], ("data", piece)).await.expect(200)));
    }
    let sent = harness.served().pop().expect("the last part");
    assert_eq!(
        sent.body,
        form_of(&[], ("data", content.chunks(500_000).last().expect("a part"))).1
    );
    send_form(&bob, &part, &[], ("data", b"bob's")).await.expect(404);
    let wanted = json!({"part_ids": parts});
    ask(&bob, Method::POST, &complete, Some(wanted.clone()))
        .await
        .expect(404);
    ask(&bob, Method::POST, &format!("/uploads/{upload}/cancel"), None)
        .await
        .expect(404);
    let done = ask(alice, Method::POST, &complete, Some(wanted.clone()))
        .await
        .expect(200);
    let file = done.json()["file"]["id"].as_str().expect("an id").to_owned();
    let there = format!("/files/{file}/content");
    assert_eq!(get(alice, &there).await.expect(200).body, content);
    get(&bob, &there).await.expect(404);
    assert_eq!(ids(&get(alice, "/files").await.expect(200)), [file]);
    ask(alice, Method::POST, &complete, Some(wanted)).await.expect(404);

    let given_up = id(&ask(alice, Method::POST, "/uploads", Some(announced)).await.expect(200));
    let cancel = format!("/uploads/{given_up}/cancel");
    assert_eq!(
        ask(alice, Method::POST, &cancel, None).await.expect(200).json()["status"],
        "cancelled"
    );
    ask(alice, Method::POST, &cancel, None).await.expect(404);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn free_requests_count_against_the_limits_of_their_key() {
    let harness = Harness::start().await;
    let limited = harness.issue("--name limited --rpm 2");
    get(&limited, "/files").await.expect(200);
    get(&limited, "/files").await.expect(200);
    let refused = get(&limited, "/files").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["gateway"]["limit"], "key_rpm");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_is_billed_by_its_usage() {
    let harness = Harness::start().await;
    let body = json!({"model": MODEL, "input": [{"role": "user", "content": "Hello"}]});
    let answer = harness.client.post("/v1/responses/compact", &body).await.expect(200);
    assert_eq!(answer.json()["object"], "response.compaction");
    let row = harness.receipt(answer.exchange());
    let served = harness.served();
    let usage = served[0].usage.as_ref().expect("a usage");
    let expected = expected_charge(usage, &catalogue("openai", MODEL), "1");
    assert_eq!(i128::from(row.charge.nanos()), expected);
    assert!(row.charge <= row.held, "{:?}", row.held);
    assert_eq!(row.endpoint.path(), "/responses/compact");
    assert_eq!(served[0].body, body.to_string(), "no limit is written into it");
    // Its items may be leaned on.
    let items = json!({"input": [{"type": "item_reference", "id": answer.json()["output"][1]["id"]}]});
    let more = harness.client.post("/v1/responses", &response("Hi", &items)).await;
    assert_eq!(more.status, 200, "{}", more.text());
    harness.finish().await;
}

/// A form of these fields, and a file.
fn form_of(fields: &[(&str, &str)], file: (&str, &[u8])) -> (String, Bytes) {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend(
            format!("--mark\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").into_bytes(),
        );
    }
    let (name, content) = file;
    let head = format!(
        "--mark\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"a\"\r\ncontent-type: application/octet-stream\r\n\r\n"
    );
    body.extend([head.as_bytes(), content, b"\r\n--mark--\r\n"].concat());
    ("multipart/form-data; boundary=mark".to_owned(), body.into())
}

async fn send_form(client: &Client, path: &str, fields: &[(&str, &str)], file: (&str, &[u8])) -> Answer {
    let (kind, body) = form_of(fields, file);
    let request = client.request(Method::POST, path).header("content-type", kind);
    Answer::of(request.body(body).send().await.expect("the gateway answers")).await
}

/// The golden bills of image and audio endpoints.
fn golden() -> Vec<Value> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/billing-golden.json"));
    let golden: Value = serde_json::from_str(text).expect("JSON");
    let mut cases = golden["cases"].as_array().expect("cases").clone();
    cases.retain(|case| {
        let endpoint = case["endpoint"].as_str().expect("an endpoint");
        endpoint.starts_with("/v1/images") || endpoint.starts_with("/v1/audio")
    });
    cases
}

fn golden_playwright() -> Playwright {
    let cases = golden();
    std::sync::Arc::new(move |request: &Request| {
        let id = request.headers["x-client-request-id"].to_str().expect("text");
        let case = cases.iter().find(|case| case["id"] == id).expect("a case");
        match case["endpoint"].as_str() {
            Some("/v1/audio/speech") => Script::body(StatusCode::OK, "audio/mpeg", Bytes::from_static(b"sound")),
            Some("/v1/audio/transcriptions") => {
                Script::json(StatusCode::OK, &json!({"text": "Hi", "usage": case["usage"]}))
            }
            _ => Script::json(
                StatusCode::OK,
                &json!({"created": 0, "data": [{"b64_json": "aGVsbG8="}], "usage": case["usage"]}),
            ),
        }
    })
}

/// The lines of a receipt, and of a golden bill in our words.
fn lines(row: &ExchangeRow, case: &Value) -> [Vec<(String, String, String)>; 2] {
    let image = case["endpoint"]
        .as_str()
        .is_some_and(|endpoint| endpoint.contains("images"));
    let name = |class: &str| {
        match (class, image) {
            ("input_text", true) => "image_text_input",
            ("output_text", true) => "image_text_output",
            ("image_in", _) => "image_input",
            ("image_out", _) => "image_output",
            ("audio_in", _) => "audio_input",
            (class, _) => class,
        }
        .to_owned()
    };
    let text = |line: &Value, field: &str| line[field].as_str().expect("text").to_owned();
    let expected = case["lines"].as_array().expect("lines").iter();
    let expected = expected.map(|line| {
        (
            name(&text(line, "class")),
            text(line, "quantity"),
            text(line, "amount_usd"),
        )
    });
    let shown = row.lines.iter();
    let shown = shown.map(|line| {
        (
            line.class.name().to_owned(),
            line.quantity.to_string(),
            line.amount.clone(),
        )
    });
    let (mut shown, mut expected): (Vec<_>, Vec<_>) = (shown.collect(), expected.collect());
    shown.sort();
    expected.sort();
    [shown, expected]
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_bills_of_images_and_sound_are_charged_to_the_nano_dollar() {
    let harness = Harness::builder()
        .balance("100")
        .playwright(golden_playwright())
        .start()
        .await;
    let client = &harness.client;
    let mut count = 0;
    for case in golden() {
        let (path, model) = (
            case["endpoint"].as_str().expect("a path"),
            case["model"].as_str().expect("a model"),
        );
        let request = client
            .request(Method::POST, path)
            .header("x-client-request-id", case["id"].as_str().expect("an id"));
        let request = if path.ends_with("edits") || path.ends_with("transcriptions") {
            let (kind, body) = form_of(&[("model", model), ("prompt", "A cat")], ("file", &[0; 4_000]));
            request.header("content-type", kind).body(body)
        } else {
            let body = json!({"model": model, "prompt": "A cat", "voice": "alloy", "input": "é".repeat(1_234)});
            request
                .header("content-type", "application/json")
                .body(body.to_string())
        };
        let answer = Answer::of(request.send().await.expect("the gateway answers"))
            .await
            .expect(200);
        let row = harness.receipt(answer.exchange());
        let cost = nanos(case["cost_usd"].as_str().expect("a cost"));
        assert_eq!(i128::from(row.charge.nanos()), cost, "{}", case["id"]);
        assert_eq!(
            answer.header("x-gateway-cost"),
            row.charge.to_string(),
            "the head leaves after the charge"
        );
        assert_eq!(row.basis, Basis::Reported, "{}", case["id"]);
        assert!(row.charge <= row.held, "{}: {:?}", case["id"], row.held);
        let [shown, expected] = lines(&row, &case);
        assert_eq!(shown, expected, "{}", case["id"]);
        count += 1;
    }
    assert_eq!(count, 5);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_images_and_sound_end_after_their_charge() {
    let harness = Harness::builder().balance("100").start().await;
    let client = &harness.client;
    let image =
        json!({"model": "gpt-image-2", "prompt": "A cat", "stream": true, "quality": "low", "size": "1024x1024"});
    let drawn = client.post("/v1/images/generations", &image).await.expect(200);
    assert!(drawn.text().contains("image_generation.completed"), "{}", drawn.text());
    let fields = [("stream", "true"), ("model", "gpt-4o-transcribe")];
    let heard = send_form(client, "/v1/audio/transcriptions", &fields, ("file", &[1; 9_000]))
        .await
        .expect(200);
    assert!(heard.text().ends_with("data: [DONE]\n\n"), "{}", heard.text());
    let speech = json!({"model": "gpt-4o-mini-tts", "input": "Hello", "voice": "alloy", "stream_format": "sse"});
    let spoken = client.post("/v1/audio/speech", &speech).await.expect(200);
    assert!(spoken.text().contains("speech.audio.done"), "{}", spoken.text());
    let served = harness.served();
    let usage = |number: usize| served[number].usage.clone().expect("a usage");
    let rate = |model: &str, class: &str| nanos(catalogue("openai", model)["rates"][class].as_str().expect("a rate"));
    // Nano-dollars a million tokens, to the nano-dollar, ties up.
    let charge = |parts: [(u64, i128); 2]| {
        let sum: i128 = parts.iter().map(|(tokens, rate)| i128::from(*tokens) * rate).sum();
        (sum + 500_000) / 1_000_000
    };
    for (answer, expected) in [
        (
            &drawn,
            charge([
                (usage(0).input, rate("gpt-image-2", "image_text_input")),
                (usage(0).output, rate("gpt-image-2", "image_output")),
            ]),
        ),
        (
            &heard,
            charge([
                (usage(1).input, rate("gpt-4o-transcribe", "audio_input")),
                (usage(1).output, rate("gpt-4o-transcribe", "output")),
            ]),
        ),
        (
            &spoken,
            charge([
                (usage(2).input, rate("gpt-4o-mini-tts", "input")),
                (usage(2).output, rate("gpt-4o-mini-tts", "audio_output")),
            ]),
        ),
    ] {
        let row = harness.receipt(answer.exchange());
        assert_eq!(i128::from(row.charge.nanos()), expected, "{:?}", row.lines);
        assert_eq!(row.basis, Basis::Reported);
    }
    // A form goes on as it is.
    assert_eq!(served[1].body, form_of(&fields, ("file", &[1; 9_000])).1);
    assert_eq!(served[1].headers["content-type"], "multipart/form-data; boundary=mark");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_tell_its_usage_or_has_no_rates_reaches_no_upstream() {
    let harness = Harness::builder().balance("100").start().await;
    let client = &harness.client;
    let sound = ("file", &[1_u8; 900][..]);
    let error = |answer: &Answer| answer.json()["error"].clone();
    for format in ["text", "srt", "vtt"] {
        let fields = [("model", "whisper-1"), ("response_format", format)];
        let refused = send_form(client, "/v1/audio/transcriptions", &fields, sound).await;
        assert_eq!(
            (refused.status.as_u16(), &error(&refused)["param"]),
            (400, &json!("response_format")),
            "{format}"
        );
    }
    let translated = send_form(client, "/v1/audio/translations", &[("model", "whisper-1")], sound).await;
    assert_eq!(
        (translated.status.as_u16(), &error(&translated)["param"]),
        (400, &json!("response_format"))
    );
    let spoken = client
        .post(
            "/v1/audio/speech",
            &json!({"model": "gpt-4o-mini-tts", "input": "Hi", "voice": "a"}),
        )
        .await;
    assert_eq!(
        (spoken.status.as_u16(), &error(&spoken)["param"]),
        (400, &json!("stream_format"))
    );
    for (path, model) in [
        ("/v1/images/generations", "dall-e-3"),
        ("/v1/images/generations", MODEL),
        ("/v1/audio/speech", "gpt-image-2"),
        ("/v1/audio/speech", "gpt-live-1"),
        ("/v1/chat/completions", "tts-1"),
        ("/v1/chat/completions", "gpt-image-2"),
    ] {
        let body = json!({"model": model, "prompt": "A cat", "input": "Hi", "messages": [], "voice": "a"});
        let refused = client.post(path, &body).await;
        assert_eq!(
            (refused.status.as_u16(), &error(&refused)["code"]),
            (404, &json!("model_not_found")),
            "{path} {model}"
        );
    }
    for model in ["gpt-live-transcribe", MODEL] {
        let refused = send_form(client, "/v1/audio/transcriptions", &[("model", model)], sound).await;
        assert_eq!(refused.status, 404, "{model}");
    }
    let poor = harness.add_client("poor", "0.001");
    let long = send_form(
        &poor,
        "/v1/audio/transcriptions",
        &[("model", "whisper-1")],
        ("file", &[1; 60_000]),
    )
    .await;
    assert_eq!(long.status, 429, "{}", long.text());
    assert_eq!(harness.served().len(), 0);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_upstream_speaks_and_hears_in_any_form() {
    let harness = Harness::builder().vendor("free", &["own-*"]).start().await;
    let client = &harness.client;
    let spoken = client
        .post(
            "/v1/audio/speech",
            &json!({"model": "own-tts", "input": "Hi", "voice": "a"}),
        )
        .await;
    assert_eq!(spoken.expect(200).body, &b"ID3\x04sound"[..]);
    let fields = [("model", "own-whisper"), ("response_format", "srt")];
    let heard = send_form(client, "/v1/audio/translations", &fields, ("file", &[1; 900])).await;
    assert_eq!(heard.expect(200).text(), "Hello from afar.");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_is_told_in_units_without_a_rate_is_estimated() {
    let told = |request: &Request| {
        let usage = match String::from_utf8_lossy(&request.body).contains("whisper-1") {
            true => json!({"type": "tokens", "input_tokens": 37, "output_tokens": 12, "total_tokens": 49}),
            false => json!({"type": "duration", "seconds": 7}),
        };
        Script::json(StatusCode::OK, &json!({"text": "Hello", "usage": usage}))
    };
    let builder = Harness::builder().balance("100").playwright(std::sync::Arc::new(told));
    let harness = builder.start().await;
    for (model, class) in [("whisper-1", "seconds"), ("gpt-4o-transcribe", "audio_input")] {
        let sound = ("file", &[1_u8; 90_000][..]);
        let heard = send_form(&harness.client, "/v1/audio/transcriptions", &[("model", model)], sound).await;
        let row = harness.receipt(heard.expect(200).exchange());
        assert_eq!(row.basis, Basis::Estimated, "{model}");
        assert!(
            row.lines.iter().any(|line| line.class.name() == class),
            "{:?}",
            row.lines
        );
        assert!(row.charge.nanos() > 0 && row.charge <= row.held, "{model}");
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tells_no_cost_goes_only_where_everything_is_free() {
    let found = |_: &Request| Script::json(StatusCode::OK, &json!({"results": ["found"]}));
    let ask = async |harness: &Harness, path: &str, body: &Value| harness.client.post(path, body).await;
    let paths = ["/v1/alpha/search", "/v1/memories/trace_summarize"];
    let asked = |harness: &Harness| {
        let served = harness.served().into_iter().map(|served| served.path);
        served.filter(|path| paths.contains(&path.as_str())).count()
    };

    let priced = Harness::builder().playwright(std::sync::Arc::new(found)).start().await;
    for path in paths {
        for body in [json!({"query": "x"}), json!({"query": "x", "model": MODEL})] {
            let refused = ask(&priced, path, &body).await.expect(403).json();
            assert_eq!(refused["error"]["code"], "endpoint_not_supported");
        }
        ask(&priced, path, &json!([])).await.expect(400);
        let got = priced.client.get(path).await.expect(405);
        assert_eq!(got.header("allow"), "POST");
    }
    assert_eq!(asked(&priced), 0);
    priced.finish().await;

    let builder = Harness::builder().playwright(std::sync::Arc::new(found));
    let free = builder.vendor("free", &["own-*"]).start().await;
    for path in paths {
        for body in [json!({"query": "x"}), json!({"query": "x", "model": "own-small"})] {
            let answer = ask(&free, path, &body).await.expect(200);
            assert_eq!(answer.json()["results"], json!(["found"]));
            let served = free.served().pop().expect("a request");
            assert_eq!(serde_json::from_slice::<Value>(&served.body).expect("JSON"), body);
        }
        // Of a model that is not free nothing is known of the cost.
        ask(&free, path, &json!({"query": "x", "model": MODEL}))
            .await
            .expect(403);
    }
    assert_eq!(asked(&free), 4);
    let books = free.finish().await;
    assert!(books.exchanges.is_empty(), "{:?}", books.exchanges);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_where_it_is_free_is_moderated() {
    let builder = Harness::builder().upstream("models = [\"omni-*\"]");
    let builder = builder.vendor("free", &["own-*"]);
    let harness = builder.vendor("mistral", &["mistral-*"]).start().await;
    let moderate = async |body: &str| {
        let request = harness.client.request(Method::POST, "/v1/moderations");
        let request = request.header("content-type", "application/json").body(body.to_owned());
        Answer::of(request.send().await.expect("the gateway answers")).await
    };
    for named in ["", r#","model":"omni-moderation-latest""#, r#","model":"own-guard""#] {
        moderate(&format!(r#"{{"input":"Hi"{named}}}"#)).await.expect(200);
    }
    // Which models a free upstream has, for the refusal to name the nearest, is no call.
    let moderated = || {
        harness
            .served()
            .iter()
            .filter(|served| served.path.ends_with("/moderations"))
            .count()
    };
    let before = moderated();
    let billed = moderate(r#"{"input":"Hi","model":"mistral-moderation-latest"}"#).await;
    assert_eq!(billed.expect(404).json()["error"]["code"], "model_not_found");
    for unclear in [
        r#"{"input":"Hi","model":7}"#,
        r#"{"input":"Hi","model":null}"#,
        r#"{"model":"own-guard","input":"Hi","model":"mistral-moderation-latest"}"#,
        r#"{"input":"Hi","Model":"mistral-moderation-latest"}"#,
        r#"{"input":"Hi","model":"mistral-moderation-latest""#,
    ] {
        moderate(unclear).await.expect(400);
    }
    assert_eq!((before, moderated()), (3, 3), "no upstream is asked");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_upstream_is_forgotten_when_it_is_deleted() {
    let harness = Harness::start().await;
    let client = &harness.client;
    upload(client, b"text").await.expect(200);
    // As if it had expired there.
    harness.alter("UPDATE stored_objects SET id = 'file-expired'");
    for asked in [3, 3] {
        get(client, "/files/file-expired").await.expect(404);
        let deleted = ask(client, Method::DELETE, "/files/file-expired", None).await;
        deleted.expect(404);
        assert_eq!(
            harness.served().len(),
            asked,
            "once it is forgotten, the upstream is not asked"
        );
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_medium_that_is_too_long_to_pass_is_charged_all_the_same() {
    let long = |request: &Request| match request.route() {
        "/audio/speech" => Script::body(StatusCode::OK, "audio/wav", Bytes::from(vec![0; 9_000])),
        _ => Script::json(StatusCode::OK, &json!({"data": [{"b64_json": "a".repeat(9_000)}]})),
    };
    let builder = Harness::builder().balance("100").playwright(std::sync::Arc::new(long));
    let harness = builder.settings("[server]\nmax_response = \"4KiB\"").start().await;
    let body = json!({"model": "tts-1", "input": "Hello", "voice": "alloy"});
    let spoken = harness.client.post("/v1/audio/speech", &body).await.expect(502);
    let row = harness.receipt(spoken.exchange());
    assert_eq!((row.basis, row.usage.characters), (Basis::Reported, 5));
    assert!(row.charge.nanos() > 0, "{row:?}");
    let body = json!({"model": "gpt-image-2", "prompt": "A cat", "n": 2});
    let drawn = harness.client.post("/v1/images/generations", &body).await.expect(502);
    assert!(drawn.text().contains("receipt"), "{}", drawn.text());
    let row = harness.receipt(drawn.exchange());
    assert_eq!(row.basis, Basis::Estimated);
    assert!(row.charge.nanos() > 0 && row.charge <= row.held, "{row:?}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn speech_that_fails_before_any_of_it_came_costs_nothing() {
    let error = json!({"message": "It broke.", "type": "server_error", "code": "server_error"});
    let delta = json!({"type": "speech.audio.delta", "audio": "aGVsbG8="});
    let failure = json!({"type": "error", "error": error});
    let plays = [
        (
            Script::json(StatusCode::OK, &json!({"error": error})),
            false,
            State::Failed,
        ),
        (Script::sse(vec![Step::event(&failure, 0)]), false, State::Failed),
        (
            Script::sse(vec![Step::send(": hi\n\n"), Step::Break]),
            false,
            State::Broken,
        ),
        (
            Script::sse(vec![Step::event(&delta, 0), Step::event(&failure, 0)]),
            true,
            State::Failed,
        ),
        (
            Script::sse(vec![Step::event(&delta, 0), Step::Break]),
            true,
            State::Broken,
        ),
    ];
    for (number, (script, delivers, state)) in plays.into_iter().enumerate() {
        let harness = Harness::builder()
            .balance("100")
            .playwright(always(script))
            .start()
            .await;
        let body = json!({"model": "tts-1", "input": "Hello", "voice": "alloy"});
        let spoken = harness.client.send("/v1/audio/speech", &body).await;
        let exchange = spoken.headers()["x-request-id"].to_str().expect("text").to_owned();
        drop(drain(spoken).await);
        harness.server_is_idle().await;
        let row = harness.receipt(&exchange);
        assert_eq!(row.state, state, "{number}");
        assert_eq!(row.usage.characters, if delivers { 5 } else { 0 }, "{number}");
        assert_eq!(row.charge.nanos() > 0, delivers, "{number}: {row:?}");
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_medium_that_breaks_off_on_its_way_costs_nothing() {
    let image = json!({"data": [{"b64_json": "a".repeat(9_000)}]});
    let broken = Script::json(StatusCode::OK, &image)
        .cut(0, Step::send("{\"data\":["))
        .at(1, Step::Break);
    let harness = Harness::builder()
        .balance("100")
        .playwright(always(broken))
        .start()
        .await;
    for (path, model) in [("/v1/images/generations", "gpt-image-2"), ("/v1/audio/speech", "tts-1")] {
        let body = json!({"model": model, "prompt": "A cat", "input": "Hello", "voice": "alloy"});
        let made = harness.client.post(path, &body).await.expect(502);
        assert!(made.text().contains("othing was charged"), "{}", made.text());
        let row = harness.receipt(made.exchange());
        assert_eq!((row.state, row.charge.nanos()), (State::Broken, 0), "{path}");
    }
    harness.finish().await;
}

/// A body in gzip.
fn zipped(body: &[u8]) -> Bytes {
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut zip, body).expect("it is taken");
    zip.finish().expect("it ends").into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_medium_that_is_compressed_and_cannot_be_read_is_charged_all_the_same() {
    let made = |request: &Request| {
        let image = json!({"data": [{"b64_json": "a".repeat(9_000)}], "usage": {"input_tokens": 1}}).to_string();
        let (coding, body) = match request.json["prompt"].as_str() {
            Some("too long") => ("gzip", zipped(image.as_bytes())),
            Some("broken") => ("gzip", zipped(image.as_bytes()).slice(..40)),
            _ => ("unheard-of", zipped(image.as_bytes())),
        };
        Script::body(StatusCode::OK, "application/json", body).header("content-encoding", coding)
    };
    let builder = Harness::builder().balance("100").playwright(std::sync::Arc::new(made));
    let harness = builder.settings("[server]\nmax_response = \"4KiB\"").start().await;
    for prompt in ["too long", "broken", "unknown"] {
        let body = json!({"model": "gpt-image-2", "prompt": prompt});
        let drawn = harness.client.post("/v1/images/generations", &body).await.expect(502);
        assert!(drawn.text().contains("receipt"), "{}", drawn.text());
        let row = harness.receipt(drawn.exchange());
        assert_eq!(row.basis, Basis::Estimated, "{prompt}");
        assert!(row.charge.nanos() > 0 && row.charge <= row.held, "{prompt}: {row:?}");
    }
    harness.finish().await;
}

/// What stands before each answer to a request of this method.
fn gated(method: Method, gate: &Gate) -> Playwright {
    let (gate, inner) = (gate.clone(), standard(Default::default()));
    std::sync::Arc::new(move |request: &Request| {
        let script = inner(request);
        match request.method == method {
            true => script.first(Step::Wait(gate.clone())),
            false => script,
        }
    })
}

/// The client leaves while the upstream works, and the upstream then does what it was asked for.
async fn leave_meanwhile(harness: &Harness, socket: tokio::net::TcpStream, gate: &Gate, number: u64) {
    harness
        .simulator
        .arrived(usize::try_from(number).expect("a number") + 1)
        .await;
    hang_up(socket).await;
    gate.open();
    let served = harness.simulator.ended(number).await;
    assert_eq!(
        served.ended,
        Some(Ended::Completed),
        "its answer is read without a client"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_for_a_client_that_leaves_is_its_users_all_the_same() {
    let gate = Gate::closed();
    let builder = Harness::builder().playwright(gated(Method::POST, &gate));
    let mut harness = builder.start().await;
    let socket = harness.client.raw("/v1/conversations", &json!({})).await;
    leave_meanwhile(&harness, socket, &gate, 0).await;
    // A stop waits for what is being noted.
    harness.stop().await;
    harness.start_again().await;
    get(&harness.client, "/conversations/conv_00000001").await.expect(200);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_for_a_client_that_leaves_is_forgotten() {
    let gate = Gate::closed();
    let builder = Harness::builder().playwright(gated(Method::DELETE, &gate));
    let mut harness = builder.start().await;
    let made = ask(&harness.client, Method::POST, "/conversations", Some(json!({}))).await;
    let path = format!("/conversations/{}", id(&made.expect(200)));
    let socket = harness.client.raw_as(Method::DELETE, &format!("/v1{path}"), "").await;
    leave_meanwhile(&harness, socket, &gate, 1).await;
    harness.stop().await;
    harness.start_again().await;
    get(&harness.client, &path).await.expect(404);
    assert_eq!(harness.served().len(), 2, "the upstream is not asked");
    harness.finish().await;
}

/// Lists come in pages of so many files, whatever is asked for.
fn in_pages_of(limit: usize) -> Playwright {
    let inner = standard(Default::default());
    std::sync::Arc::new(move |request: &Request| {
        let mut request = request.clone();
        request.path = request.path.replace("limit=10000", &format!("limit={limit}"));
        inner(&request)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_whole_however_many_files_others_have() {
    let harness = Harness::builder().playwright(in_pages_of(2)).start().await;
    let (alice, bob) = (&harness.client, harness.add_client("bob", "5"));
    let oldest = id(&upload(alice, b"one").await.expect(200));
    for _ in 0..50 {
        upload(&bob, b"other").await.expect(200);
    }
    let newest = id(&upload(alice, b"two").await.expect(200));
    let all = get(alice, "/files").await.expect(200);
    assert_eq!(ids(&all), [newest.clone(), oldest.clone()]);
    assert_eq!(all.json()["has_more"], false);
    let first = get(alice, "/files?limit=1").await.expect(200);
    assert_eq!(ids(&first), std::slice::from_ref(&newest));
    assert_eq!(
        (&first.json()["has_more"], &first.json()["last_id"]),
        (&json!(true), &json!(newest))
    );
    let before = harness.served().len();
    let rest = get(alice, &format!("/files?limit=1&after={newest}")).await.expect(200);
    assert_eq!(
        (ids(&rest), &rest.json()["has_more"]),
        (vec![oldest.clone()], &json!(false))
    );
    let asked = harness.served()[before].path.clone();
    assert!(
        asked.ends_with(&format!("after={newest}")),
        "it goes on from there: {asked}"
    );
    let end = get(alice, &format!("/files?after={oldest}")).await.expect(200);
    assert_eq!((ids(&end), &end.json()["has_more"]), (Vec::new(), &json!(false)));
    // Another user's file is no place in a list.
    let bobs = ids(&get(&bob, "/files?limit=1").await.expect(200)).remove(0);
    get(alice, &format!("/files?after={bobs}")).await.expect(404);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_not_reached_is_not_told_as_empty() {
    let harness = Harness::builder().playwright(in_pages_of(1)).start().await;
    let (alice, bob) = (&harness.client, harness.add_client("bob", "5"));
    let oldest = id(&upload(alice, b"one").await.expect(200));
    for _ in 0..100 {
        upload(&bob, b"other").await.expect(200);
    }
    get(alice, "/files").await.expect(502);
    // What is found is told, and that there is more.
    let newest = id(&upload(alice, b"two").await.expect(200));
    let found = get(alice, "/files").await.expect(200);
    assert_eq!(
        (ids(&found), &found.json()["has_more"]),
        (vec![newest.clone()], &json!(true))
    );
    ask(&bob, Method::DELETE, "/files/file-00000002", None)
        .await
        .expect(200);
    let rest = get(alice, &format!("/files?after={newest}")).await.expect(200);
    assert_eq!((ids(&rest), &rest.json()["has_more"]), (vec![oldest], &json!(false)));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_what_could_not_be_noted_is_not_told_and_nothing_of_it_stays() {
    let harness = Harness::start().await;
    harness.alter(
        "CREATE TRIGGER nothing_is_noted BEFORE INSERT ON stored_objects
         BEGIN SELECT RAISE(ABORT, 'as if there were no space'); END",
    );
    let made = ask(&harness.client, Method::POST, "/conversations", Some(json!({}))).await;
    assert_eq!(made.expect(503).json()["error"]["code"], "storage_unavailable");
    let served = harness.served();
    let asked: Vec<_> = served
        .iter()
        .map(|served| (&served.method, served.path.as_str()))
        .collect();
    let deleted = "/v1/conversations/conv_00000001";
    assert_eq!(
        asked,
        [(&Method::POST, "/v1/conversations"), (&Method::DELETE, deleted)]
    );
    assert_eq!(served[1].status, Some(StatusCode::OK), "it was there");
    let upload = ask(&harness.client, Method::POST, "/uploads", Some(json!({"bytes": 1}))).await;
    assert_eq!(upload.expect(503).json()["error"]["code"], "storage_unavailable");
    let last = harness.served().pop().expect("it was given up");
    assert_eq!(last.path, "/v1/uploads/upload_00000002/cancel");
    assert_eq!(last.status, Some(StatusCode::OK));
    harness.alter("DROP TRIGGER nothing_is_noted");
    harness.finish().await;
}
