//! Images and sound: what a simulated upstream draws, says and hears, with the usage that it reports.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::script::{Script, ServedUsage, Step};
use super::{Request, form};

/// Output tokens of every image.
const IMAGE: u64 = 272;

/// Tokens of every image that is read.
const IMAGE_READ: u64 = 388;

/// Seconds of every recording, and its tokens.
const SECONDS: u64 = 7;
const HEARD: u64 = 37;

/// What every recording says, and its tokens.
const SAID: [&str; 3] = ["Hello", " from", " afar."];
const WRITTEN: u64 = 12;

/// Tokens of all that is spoken.
const SPOKEN: u64 = 40;

/// One pixel, or a moment of silence.
const BYTES_BASE64: &str = "aGVsbG8=";

/// The answer, if the request is for an image or for sound.
pub(super) fn answer(request: &Request) -> Option<Script> {
    if request.method != Method::POST {
        return None;
    }
    match request.route() {
        "/images/generations" => Some(image(request, "image_generation")),
        "/images/edits" => Some(image(request, "image_edit")),
        "/audio/speech" => Some(speech(request)),
        "/audio/transcriptions" => Some(heard(request)),
        "/audio/translations" => Some(translated(request)),
        _ => None,
    }
}

/// A field of the form or of the document.
fn field(request: &Request, name: &str) -> Option<String> {
    if let Some(text) = request.json[name].as_str() {
        return Some(text.to_owned());
    }
    let parts = form::parts(request);
    let part = parts.iter().find(|part| part.name == name)?;
    Some(String::from_utf8_lossy(&part.content).into_owned())
}

fn streams(request: &Request) -> bool {
    request.streamed() || field(request, "stream").as_deref() == Some("true")
}

fn image(request: &Request, kind: &str) -> Script {
    let text = request.count(&field(request, "prompt").unwrap_or_default());
    let files = form::parts(request)
        .iter()
        .filter(|part| part.filename.is_some())
        .count();
    let read = IMAGE_READ * u64::try_from(files).unwrap_or(0);
    let count = field(request, "n")
        .and_then(|n| n.parse().ok())
        .unwrap_or(request.choices());
    let made = IMAGE * count;
    let usage = json!({
        "input_tokens": text + read,
        "input_tokens_details": {"text_tokens": text, "image_tokens": read},
        "output_tokens": made,
        "total_tokens": text + read + made,
    });
    let served = ServedUsage {
        input: text + read,
        output: made,
        ..ServedUsage::default()
    };
    if streams(request) {
        let partial =
            json!({"type": format!("{kind}.partial_image"), "partial_image_index": 0, "b64_json": BYTES_BASE64});
        let completed = json!({"type": format!("{kind}.completed"), "b64_json": BYTES_BASE64, "usage": usage});
        return Script::sse(vec![Step::event(&partial, 0), Step::event(&completed, 0)]).using(served);
    }
    let data: Vec<Value> = (0..count).map(|_| json!({"b64_json": BYTES_BASE64})).collect();
    let body = json!({"created": request.at.as_second(), "data": data, "output_format": "png", "quality": "low",
        "size": "1024x1024", "usage": usage});
    Script::json(StatusCode::OK, &body).using(served)
}

fn speech(request: &Request) -> Script {
    let input = request.count(&field(request, "input").unwrap_or_default());
    let served = ServedUsage {
        input,
        output: SPOKEN,
        ..ServedUsage::default()
    };
    if field(request, "stream_format").as_deref() == Some("sse") {
        let delta = json!({"type": "speech.audio.delta", "audio": BYTES_BASE64});
        let done = json!({"type": "speech.audio.done",
            "usage": {"input_tokens": input, "output_tokens": SPOKEN, "total_tokens": input + SPOKEN}});
        return Script::sse(vec![Step::event(&delta, 0), Step::event(&done, 0)]).using(served);
    }
    Script::body(StatusCode::OK, "audio/mpeg", Bytes::from_static(b"ID3\x04sound")).using(served)
}

fn heard(request: &Request) -> Script {
    let model = field(request, "model").unwrap_or_default();
    let by_second = model.starts_with("whisper") || model == "gpt-transcribe";
    let usage = match by_second {
        true => json!({"type": "duration", "seconds": SECONDS}),
        false => {
            json!({"type": "tokens", "input_tokens": HEARD, "output_tokens": WRITTEN, "total_tokens": HEARD + WRITTEN,
            "input_token_details": {"text_tokens": 0, "audio_tokens": HEARD}})
        }
    };
    let served = ServedUsage {
        input: if by_second { 0 } else { HEARD },
        output: if by_second { 0 } else { WRITTEN },
        ..ServedUsage::default()
    };
    let text = SAID.concat();
    if streams(request) {
        let deltas = SAID
            .iter()
            .map(|delta| Step::data(&json!({"type": "transcript.text.delta", "delta": delta}), 1));
        let done = Step::data(
            &json!({"type": "transcript.text.done", "text": text, "usage": usage}),
            0,
        );
        let steps = deltas.chain([done, Step::send("data: [DONE]\n\n")]);
        return Script::sse(steps.collect()).using(served);
    }
    match field(request, "response_format").as_deref() {
        Some("text" | "srt" | "vtt") => {
            Script::body(StatusCode::OK, "text/plain; charset=utf-8", Bytes::from(text)).using(served)
        }
        Some("verbose_json") => Script::json(
            StatusCode::OK,
            &json!({"task": "transcribe", "language": "english", "duration": 6.25, "text": text, "segments": [], "usage": usage}),
        )
        .using(served),
        _ => Script::json(StatusCode::OK, &json!({"text": text, "usage": usage})).using(served),
    }
}

/// As a transcription, but for its usage, which is not told: only how long it was, where it is verbose.
fn translated(request: &Request) -> Script {
    let text = SAID.concat();
    let served = ServedUsage::default();
    match field(request, "response_format").as_deref() {
        Some("text" | "srt" | "vtt") => {
            Script::body(StatusCode::OK, "text/plain; charset=utf-8", Bytes::from(text)).using(served)
        }
        Some("verbose_json") => Script::json(
            StatusCode::OK,
            &json!({"task": "translate", "language": "english", "duration": 6.25, "text": text, "segments": []}),
        )
        .using(served),
        _ => Script::json(StatusCode::OK, &json!({"text": text})).using(served),
    }
}
