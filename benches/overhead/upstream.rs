//! An upstream that costs next to nothing: one thread, answers made beforehand but for their ids.
//!
//! `POST …/chat/completions` is answered at once, in one piece. `POST …/responses` is streamed: as many deltas as
//! `metadata.chunks` says, `metadata.pause_ms` apart.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::LocalSet;

use crate::MODEL;

/// Of every answer.
pub const INPUT_TOKENS: u64 = 212;
/// Of every answer.
pub const OUTPUT_TOKENS: u64 = 64;

thread_local! {
    static ANSWERS: Cell<u64> = const { Cell::new(0) };
}

/// Serves until the process is killed.
pub async fn serve(listen: SocketAddr) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    LocalSet::new()
        .run_until(async {
            loop {
                let (connection, _) = listener.accept().await?;
                connection.set_nodelay(true)?;
                tokio::task::spawn_local(async move {
                    let answering = http1::Builder::new()
                        .serve_connection(TokioIo::new(connection), service_fn(answer))
                        .await;
                    // A client that leaves ends its connection.
                    answering.unwrap_or(());
                });
            }
        })
        .await
}

type Body = Either<Full<Bytes>, Streamed>;

type Streamed = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>>>>>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let streamed = request.uri().path().ends_with("/responses");
    let body = request.into_body().collect().await?.to_bytes();
    let number = ANSWERS.replace(ANSWERS.get() + 1);
    let (kind, body) = if streamed {
        ("text/event-stream", Either::Right(stream_of(number, &body)))
    } else {
        ("application/json", Either::Left(Full::from(chat(number))))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert("content-type", kind.parse().expect("a header"));
    headers.insert("x-request-id", format!("req_{number:032x}").parse().expect("a header"));
    Ok(response)
}

fn chat(number: u64) -> Bytes {
    let content = "The quick brown fox jumps over the lazy dog. ".repeat(8);
    let total = INPUT_TOKENS + OUTPUT_TOKENS;
    format!(
        r#"{{"id":"chatcmpl-{number:024x}","object":"chat.completion","created":1764300000,"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":{INPUT_TOKENS},"completion_tokens":{OUTPUT_TOKENS},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":0,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}},"service_tier":"default","system_fingerprint":null}}"#
    )
    .into()
}

fn stream_of(number: u64, request: &[u8]) -> Streamed {
    let asked: Value = serde_json::from_slice(request).expect("a request in JSON");
    let figure = |name: &str| {
        let text = asked["metadata"][name].as_str();
        text.and_then(|text| text.parse::<u64>().ok())
            .expect("the request says how")
    };
    let (chunks, pause) = (figure("chunks"), Duration::from_millis(figure("pause_ms")));
    let frames = stream::unfold(0, move |at| async move {
        let text = match at {
            0 => [created(number), delta(number, at)].concat(),
            at if at < chunks => delta(number, at),
            at if at == chunks => completed(number),
            _ => return None,
        };
        if at > 0 && !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Some((Ok(Frame::data(Bytes::from(text))), at + 1))
    });
    StreamBody::new(Box::pin(frames))
}

fn created(number: u64) -> String {
    format!(
        "event: response.created\ndata: {{\"type\":\"response.created\",\"sequence_number\":0,\"response\":{{\"id\":\"resp_{number:048x}\",\"object\":\"response\",\"created_at\":1764300000,\"status\":\"in_progress\",\"model\":\"{MODEL}\",\"output\":[],\"usage\":null}}}}\n\n\
         event: response.output_item.added\ndata: {{\"type\":\"response.output_item.added\",\"sequence_number\":1,\"output_index\":0,\"item\":{{\"id\":\"msg_{number:048x}\",\"type\":\"message\",\"status\":\"in_progress\",\"role\":\"assistant\",\"content\":[]}}}}\n\n"
    )
}

fn delta(number: u64, at: u64) -> String {
    let sequence = at + 2;
    format!(
        "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"sequence_number\":{sequence},\"item_id\":\"msg_{number:048x}\",\"output_index\":0,\"content_index\":0,\"delta\":\" word\",\"logprobs\":[]}}\n\n"
    )
}

fn completed(number: u64) -> String {
    let total = INPUT_TOKENS + OUTPUT_TOKENS;
    format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"sequence_number\":1000000,\"response\":{{\"id\":\"resp_{number:048x}\",\"object\":\"response\",\"created_at\":1764300000,\"status\":\"completed\",\"model\":\"{MODEL}\",\"output\":[{{\"id\":\"msg_{number:048x}\",\"type\":\"message\",\"status\":\"completed\",\"role\":\"assistant\",\"content\":[{{\"type\":\"output_text\",\"text\":\"words\",\"annotations\":[]}}]}}],\"usage\":{{\"input_tokens\":{INPUT_TOKENS},\"input_tokens_details\":{{\"cached_tokens\":0}},\"output_tokens\":{OUTPUT_TOKENS},\"output_tokens_details\":{{\"reasoning_tokens\":0}},\"total_tokens\":{total}}}}}}}\n\n"
    )
}
