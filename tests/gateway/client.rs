//! Clients with an identity: a user's key, and the ways to call with it.

use bytes::Bytes;
use codex_gateway::store::{KeyId, UserId};
use futures_util::StreamExt;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// The model most tests call: it is in the catalogue's list `openai`.
pub const MODEL: &str = "gpt-6.1-sol";

/// Somebody who calls the gateway.
#[derive(Clone)]
pub struct Client {
    /// The user who pays.
    pub user: UserId,
    /// The key's id.
    pub key_id: KeyId,
    /// The key itself.
    pub key: String,
    /// The gateway's address: `http://127.0.0.1:40123`.
    pub base_url: String,
    /// For requests that have no helper here.
    pub http: reqwest::Client,
}

/// An answer that came whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An HTTP client for loopback; it has no TLS roots and needs none.
pub fn http() -> reqwest::Client {
    // Another test may have been first.
    rustls::crypto::ring::default_provider().install_default().unwrap_or(());
    let builder = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .pool_max_idle_per_host(0);
    builder.build().expect("a client")
}

/// Settings with which each of a test's requests may come from an address of its own, by `X-Forwarded-For`.
pub const FROM_ANYWHERE: &str = "[server]\ntrusted_proxies = [\"127.0.0.1\"]";

/// The nth address somewhere.
pub fn nth_address(nth: u32) -> String {
    std::net::Ipv4Addr::from(0xC612_0000 + nth).to_string()
}

impl Client {
    /// The same one from another address of this machine: 127.0.0.`last`.
    pub fn at(&self, last: u8) -> Client {
        let local = std::net::Ipv4Addr::new(127, 0, 0, last);
        let http = reqwest::Client::builder().local_address(Some(local.into())).no_proxy();
        Client {
            http: http.tls_certs_only([]).build().expect("a client"),
            ..self.clone()
        }
    }

    /// A request with the key, not sent yet.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base_url));
        request.bearer_auth(&self.key)
    }

    /// Posts JSON and gives the answer as soon as its head is there.
    pub async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        self.try_send(path, body).await.expect("the gateway answers")
    }

    /// Posts JSON; the connection may break.
    pub async fn try_send(&self, path: &str, body: &Value) -> reqwest::Result<reqwest::Response> {
        let request = self.request(reqwest::Method::POST, path);
        request
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
    }

    /// Posts JSON and reads the whole answer.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.send(path, body).await).await
    }

    /// Gets a page.
    pub async fn get(&self, path: &str) -> Answer {
        let answer = self.request(reqwest::Method::GET, path).send().await;
        Answer::of(answer.expect("the gateway answers")).await
    }

    /// A plain chat call with one message.
    pub async fn chat(&self, prompt: &str) -> Answer {
        self.post("/v1/chat/completions", &chat(prompt, &json!({}))).await
    }

    /// A plain response call with one input text.
    pub async fn respond(&self, prompt: &str) -> Answer {
        self.post("/v1/responses", &response(prompt, &json!({}))).await
    }

    /// A connection of its own with the request already written: for clients that hang up or read slowly.
    pub async fn raw(&self, path: &str, body: &Value) -> TcpStream {
        self.raw_as(Method::POST, path, &body.to_string()).await
    }

    /// The same with another method, and any body.
    pub async fn raw_as(&self, method: Method, path: &str, body: &str) -> TcpStream {
        let address = self.base_url.trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        let key = &self.key;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await.expect("the head is written");
        socket.write_all(body.as_bytes()).await.expect("the body is written");
        socket
    }
}

/// The body of a chat call, with more fields.
pub fn chat(prompt: &str, more: &Value) -> Value {
    with(
        json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}]}),
        more,
    )
}

/// The body of a response call, with more fields.
pub fn response(prompt: &str, more: &Value) -> Value {
    with(json!({"model": MODEL, "input": prompt}), more)
}

fn with(mut body: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

impl Answer {
    /// Reads an answer to its end, which has to be a clean one.
    pub async fn of(answer: reqwest::Response) -> Answer {
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.expect("a whole body");
        Answer { status, headers, body }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The id of the exchange.
    pub fn exchange(&self) -> &str {
        self.header("x-request-id")
    }

    /// Insists on a status; shows the body otherwise.
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }
}

/// The id of the exchange that an answer is of.
pub fn exchange_of(answer: &reqwest::Response) -> String {
    answer.headers()["x-request-id"].to_str().expect("text").to_owned()
}

/// What arrives of a stream, and whether it ended cleanly.
pub async fn drain(answer: reqwest::Response) -> (Vec<u8>, Result<(), reqwest::Error>) {
    let mut pieces = answer.bytes_stream();
    let mut arrived = Vec::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(bytes) => arrived.extend_from_slice(&bytes),
            Err(error) => return (arrived, Err(error)),
        }
    }
    (arrived, Ok(()))
}

/// The JSON of each event of a stream.
pub fn events(stream: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(stream);
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}
