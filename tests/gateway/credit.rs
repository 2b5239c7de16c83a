//! A credit line lets a balance go below zero, that far and no further.

use serde_json::json;

use crate::client::chat;
use crate::harness::Harness;

/// Reading is free and a token written costs 1/16 dollar: 16 tokens are exactly a dollar.
const DOLLAR: &str = r#"{"kind":"text","rates":{"input":"0","output":"62500"},"max_input":100000,"max_output":1000}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_credit_line_is_spent_and_not_a_cent_more() {
    let builder = Harness::builder().balance("1").credit_line("2");
    let harness = builder.price("dollar", DOLLAR).start().await;
    let body = chat("sim:words-100", &json!({"model": "dollar", "max_tokens": 16}));
    for balance in ["0", "-1", "-2"] {
        let answer = harness.client.post("/v1/chat/completions", &body).await.expect(200);
        assert_eq!(
            (
                answer.header("x-gateway-cost"),
                harness.user().balance.to_string().as_str()
            ),
            ("1", balance)
        );
    }
    let refused = harness.client.post("/v1/chat/completions", &body).await.expect(429);
    assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
    assert_eq!(harness.served().len(), 3, "the fourth did not go upstream");
    let books = harness.finish().await;
    assert_eq!(books.users[0].balance.to_string(), "-2");
}
