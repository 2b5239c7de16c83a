//! A call goes to the first upstream that serves its model, under the upstream's name for it.

use serde_json::{Value, json};

use crate::client::{MODEL, chat};
use crate::harness::Harness;

use codex_gateway::simulator::playwright::{Pace, standard};

/// What an upstream was asked for, call by call.
fn models(served: &[codex_gateway::simulator::Served]) -> Vec<&str> {
    served.iter().map(|served| served.model.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_goes_to_the_first_upstream_that_serves_it() {
    let builder = Harness::builder().upstream(r#"models = ["gpt-6*"]"#);
    let harness = builder.second(standard(Pace::default())).start().await;
    for model in [MODEL, "gpt-5.5", MODEL] {
        let answer = harness
            .client
            .post("/v1/chat/completions", &chat("Hello", &json!({"model": model})))
            .await;
        let answer = answer.expect(200);
        let receipt = harness.receipt(answer.exchange());
        let upstream = if model == MODEL { "first" } else { "second" };
        assert_eq!(
            (receipt.upstream.as_str(), receipt.priced_model.as_str()),
            (upstream, model)
        );
    }
    let second = harness.second.as_ref().expect("a second upstream");
    assert_eq!(models(&harness.served()), [MODEL, MODEL]);
    assert_eq!(models(&second.served()), ["gpt-5.5"]);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_the_upstreams_name_on_the_way_there_and_back() {
    let harness = Harness::builder()
        .upstream(r#"aliases = { quick = "gpt-5.5" }"#)
        .start()
        .await;
    let body = chat("Hello", &json!({"model": "quick"}));
    let answer = harness.client.post("/v1/chat/completions", &body).await.expect(200);
    assert_eq!(
        answer.json()["model"],
        "gpt-5.5",
        "the answer keeps the upstream's name"
    );
    let served = harness.served().pop().expect("a call upstream");
    let sent: Value = serde_json::from_slice(&served.body).expect("JSON");
    assert_eq!(
        (&sent["model"], &sent["messages"]),
        (&json!("gpt-5.5"), &body["messages"])
    );
    let receipt = harness.receipt(answer.exchange());
    assert_eq!(
        (receipt.model.as_str(), receipt.priced_model.as_str()),
        ("quick", "gpt-5.5")
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_gets_the_exchanges_id() {
    let harness = Harness::start().await;
    let client = &harness.client;
    let plain = client.chat("Hello").await.expect(200);
    let request = client.request(reqwest::Method::POST, "/v1/chat/completions");
    let request = request
        .header("x-request-id", "theirs")
        .header("x-client-request-id", "thread");
    let named = request
        .body(chat("Hello", &json!({})).to_string())
        .send()
        .await
        .expect("an answer");
    let served = harness.served();
    assert_eq!(served[0].headers["x-request-id"], plain.exchange());
    assert_eq!(served[1].headers["x-request-id"], named.headers()["x-request-id"]);
    assert_ne!(served[1].headers["x-request-id"], "theirs");
    assert_eq!(served[1].headers["x-client-request-id"], "thread");
    assert!(
        !served[0].headers.contains_key("x-client-request-id"),
        "a name of OpenAI's own"
    );
    harness.finish().await;
}
