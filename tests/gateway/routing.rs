//! A call goes to the first upstream that serves its model, under the upstream's name for it.

use serde_json::{Value, json};

use crate::client::{Answer, MODEL, chat};
use crate::harness::Harness;

use codex_gateway::config::Pricing;
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

/// The names in a list of models.
fn names(list: &Answer) -> Vec<String> {
    let list = list.json();
    let data = list["data"].as_array().expect("a list").iter();
    data.map(|model| model["id"].as_str().expect("a name").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_upstream_offers_what_it_lists_itself_and_no_model_of_a_price_list() {
    let free = |models: &'static [&str]| {
        Harness::builder().tweak(move |config| {
            config.upstreams[0].prices = Pricing::Free;
            config.upstreams[0].models = models.iter().map(ToString::to_string).collect();
        })
    };
    let harness = free(&["sim-50*", "by-name"]).start().await;
    for _ in 0..2 {
        let listed = names(&harness.client.get("/v1/models").await.expect(200));
        assert_eq!(listed, ["by-name", "sim-500", "sim-502", "sim-503"]);
    }
    let catalogue = harness.client.get("/v1/models").await.expect(200).json();
    let entry = &catalogue["models"][0];
    assert_eq!(
        (&entry["slug"], &entry["visibility"]),
        (&json!("by-name"), &json!("list"))
    );
    assert_eq!(entry["description"], "Balance $5.00 · free, by first");
    let me = harness.client.get("/v1/gateway/me").await.expect(200).json();
    assert_eq!(me["models"], json!(["by-name", "sim-500", "sim-502", "sim-503"]));
    let asked = harness
        .served()
        .iter()
        .filter(|served| served.path == "/v1/models")
        .count();
    assert_eq!(asked, 1, "it is asked once");
    harness.finish().await;

    let harness = free(&["*"]).start().await;
    let listed = names(&harness.client.get("/v1/models").await.expect(200));
    assert!(listed.iter().any(|name| name == MODEL) && listed.iter().any(|name| name == "sim-500"));
    assert!(
        !listed.iter().any(|name| name == "gpt-4o" || name == "qwen3-max"),
        "{listed:?}"
    );
    harness.finish().await;

    let silent = Harness::builder().tweak(|config| {
        config.upstreams[0].prices = Pricing::Free;
        config.upstreams[0].models = vec!["*".to_owned(), "by-name".to_owned()];
        config.upstreams[0].base_url = "http://127.0.0.1:1/v1".to_owned();
    });
    let harness = silent.start().await;
    assert_eq!(names(&harness.client.get("/v1/models").await.expect(200)), ["by-name"]);
    harness.finish().await;
}
