//! State that only an upstream holds is refused, but for what this user is known to have made there.

use std::sync::Arc;

use codex_gateway::simulator::{Playwright, Request, Script};
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL};
use crate::harness::Harness;
use crate::price::{catalogue, nanos};

/// What each answer says that it read and wrote, in tokens.
const READ: u64 = 10_000;
const WROTE: u64 = 500;

/// Answers as `resp_N`, with an item `msg_N`.
fn numbered() -> Playwright {
    Arc::new(|request: &Request| {
        let number = request.id;
        let body = json!({
            "id": format!("resp_{number}"), "object": "response", "status": "completed", "model": MODEL, "error": null,
            "output": [{"type": "message", "id": format!("msg_{number}"), "role": "assistant",
                        "content": [{"type": "output_text", "text": "Hi"}]}],
            "usage": {"input_tokens": READ, "output_tokens": WROTE, "total_tokens": READ + WROTE},
        });
        Script::json(StatusCode::OK, &body)
    })
}

async fn ask(client: &Client, more: Value) -> Answer {
    let mut body = json!({"model": MODEL, "input": "Hello", "max_output_tokens": 16});
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    client.post("/v1/responses", &body).await
}

fn refused(answer: Answer, param: &str) {
    let error = answer.expect(400).json()["error"].clone();
    assert_eq!(
        (&error["type"], &error["code"], &error["param"]),
        (
            &json!("invalid_request_error"),
            &json!("unsupported_parameter"),
            &json!(param)
        ),
        "{error}"
    );
    let message = error["message"].as_str().expect("a message");
    let name = param.rsplit('.').next().expect("a name");
    assert!(
        message.contains(name) && message.contains("Send") || message.contains("Leave"),
        "{message}"
    );
    assert_eq!(error["gateway"]["code"], "unsupported_parameter");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_upstream_holds_is_refused_by_the_name_of_its_field() {
    let harness = Harness::start().await;
    let file = json!([{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]);
    let image = json!([{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]);
    for (more, param) in [
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"conversation": {"id": "conv_1"}}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"input": file}), "input"),
        (json!({"input": image}), "input"),
        (
            json!({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
            "tools[0].vector_store_ids[0]",
        ),
        (
            json!({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}),
            "tools[0].container",
        ),
        (
            json!({"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]}),
            "tools[0].container.file_ids[0]",
        ),
    ] {
        refused(ask(&harness.client, more).await, param);
    }
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]});
    let chat = harness.client.post("/v1/chat/completions", &body).await;
    refused(chat, "input");
    assert_eq!(harness.served().len(), 0, "nothing reached the upstream");
    assert_eq!(harness.finish().await.exchanges, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_answer_may_be_leaned_on_only_by_the_user_who_made_it_here() {
    let harness = Harness::builder().balance("100").playwright(numbered()).start().await;
    let (alice, bob) = (&harness.client, harness.add_client("bob", "5"));
    let made = ask(alice, json!({})).await.expect(200).json();
    let (id, item) = (made["id"].clone(), made["output"][0]["id"].clone());
    let items = |id: &Value| json!({"input": [{"type": "item_reference", "id": id}]});
    for client in [alice, &bob] {
        refused(
            ask(client, json!({"previous_response_id": "resp_unknown"})).await,
            "previous_response_id",
        );
        refused(ask(client, items(&json!("msg_unknown"))).await, "input");
    }
    refused(
        ask(&bob, json!({"previous_response_id": id})).await,
        "previous_response_id",
    );
    refused(ask(&bob, items(&item)).await, "input");
    let both = json!({"previous_response_id": id, "input": [{"type": "item_reference", "id": "msg_unknown"}]});
    refused(ask(alice, both).await, "input");
    assert_eq!(harness.served().len(), 1, "none of these reached the upstream");

    ask(alice, json!({"previous_response_id": id})).await.expect(200);
    ask(alice, items(&item)).await.expect(200);
    assert_eq!(harness.served().len(), 3);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_leans_on_an_answer_is_held_for_the_tokens_of_that_answer_too() {
    let harness = Harness::builder().balance("100").playwright(numbered()).start().await;
    let held = |answer: &Answer| i128::from(harness.receipt(answer.exchange()).held.nanos());
    let alice = &harness.client;
    let first = ask(alice, json!({})).await.expect(200);
    let id = first.json()["id"].clone();
    let second = ask(alice, json!({"previous_response_id": id})).await.expect(200);
    let price = catalogue("openai", MODEL);
    let rates = price["rates"].as_object().expect("rates");
    let reads = rates
        .iter()
        // Nobody asked for twelve hours.
        .filter(|(class, _)| ["input", "cached_input", "cache_write"].contains(&class.as_str()));
    let dearest = reads
        .map(|(_, rate)| nanos(rate.as_str().expect("a rate")))
        .max()
        .expect("a rate");
    assert_eq!(
        held(&second) - held(&first),
        i128::from(READ + WROTE) * dearest / 1_000_000
    );

    // An item is part of an answer of unknown length: as much as the model reads. An answer beside it changes nothing.
    let item = json!([{"type": "item_reference", "id": first.json()["output"][0]["id"]}]);
    let by_item = ask(alice, json!({"input": item})).await.expect(200);
    let by_both = ask(alice, json!({"input": item, "previous_response_id": id}))
        .await
        .expect(200);
    let largest = i128::from(price["max_input"].as_i64().expect("a bound"));
    assert!(held(&by_item) > largest * dearest / 1_000_000);
    assert_eq!(held(&by_both), held(&by_item));
    harness.finish().await;
}
