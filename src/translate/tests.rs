//! There and back again: what a chat upstream says reaches a Responses client, and is the same in chat once more.

use std::path::{Path, PathBuf};

use super::to_responses::back::{Told, chat_of, events, given, told};
use super::{Wire, translate};
use crate::call::{Call, Endpoint};
use crate::meter::Meter;
use crate::translate::Close;
use crate::usage::Dialect;

/// A chat stream as a Responses client gets it.
fn responses_of(stream: &[u8], dialect: Dialect) -> Vec<u8> {
    let asked = Call::parse(
        Endpoint::Responses,
        r#"{"model": "m", "input": "Go", "stream": true}"#.into(),
    );
    let translation = translate(&asked.expect("a call"), Wire::Chat, &given()).expect("a translation");
    let (mut answer, mut meter) = (translation.answer, Meter::new(Endpoint::ChatCompletions, dialect));
    let mut out = Vec::new();
    for event in events([stream]) {
        meter.observe(&event);
        out.extend(answer.event(&event, meter.reading()));
    }
    out.extend(answer.close(Close::Whole, meter.reading()));
    out
}

/// What both tell. A failure tells no more than what it says; an end that names no reason is as good as one that does.
fn comparable(mut told: Told) -> Told {
    let reason = if told.calls.is_empty() { "stop" } else { "tool_calls" };
    told.finish.get_or_insert_with(|| reason.to_owned());
    told.done = true;
    if told.error.is_some() {
        (told.usage, told.finish) = (None, None);
    }
    told
}

#[test]
fn recorded_chat_streams_are_the_same_there_and_back_again() {
    let fixtures = std::env::var_os("GATEWAY_FIXTURES").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
    let folder = fixtures.unwrap_or_else(default).join("wire");
    let mut count = 0;
    for file in std::fs::read_dir(&folder).into_iter().flatten() {
        let path = file.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        let other = ["completions", "images", "responses", "transcription", "xai-responses"];
        // Perplexity repeats the whole message at its end.
        if !name.ends_with(".sse")
            || other.iter().any(|start| name.starts_with(start))
            || name.starts_with("perplexity")
        {
            continue;
        }
        let dialect = match name.starts_with("xai") {
            true => Dialect::TotalCoversReasoning,
            false => Dialect::OpenAi,
        };
        let stream = std::fs::read(&path).expect("a listed file");
        let back = chat_of(&responses_of(&stream, dialect));
        assert_eq!(
            comparable(told(&back, Dialect::OpenAi)),
            comparable(told(&stream, dialect)),
            "{name}"
        );
        count += 1;
    }
    match count {
        0 => println!("fixtures absent: {}", folder.display()),
        count => println!("{count} recorded chat streams there and back"),
    }
}
