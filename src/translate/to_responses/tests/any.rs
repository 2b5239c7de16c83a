//! Whatever the answer, and whatever the request.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::back::{Called, Told, events, given, told, told_at_once};
use super::super::stream::Chunks;
use super::{asking, completion, response, stream, translation, usage};
use crate::meter::Reading;
use crate::translate::{Answer, Wire, translate};
use crate::usage::{Dialect, Usage};

/// An item of an answer.
#[derive(Clone, Debug)]
enum Said {
    Reasoning(Vec<String>),
    Text(Vec<String>),
    Refusal(Vec<String>),
    Call(&'static str, Vec<String>),
}

/// How much of an item its events tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Its deltas, and it whole.
    All,
    /// Its deltas only.
    Deltas,
    /// It whole only.
    Whole,
    /// Nothing: it is in the response at the end.
    AtTheEnd,
}

fn pieces() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-zé😀\"\\\\\n ]{1,6}", 1..4)
}

fn answer() -> impl Strategy<Value = Vec<(Said, Style)>> {
    let said = prop_oneof![
        pieces().prop_map(Said::Reasoning),
        pieces().prop_map(Said::Text),
        pieces().prop_map(Said::Refusal),
        ("(function|custom_tool)", pieces()).prop_map(|(kind, pieces)| match &*kind {
            "function" => Said::Call("function", pieces),
            _ => Said::Call("custom_tool", pieces),
        }),
    ];
    let style = prop_oneof![
        Just(Style::All),
        Just(Style::Deltas),
        Just(Style::Whole),
        Just(Style::AtTheEnd)
    ];
    prop::collection::vec((said, style), 0..6)
}

/// The item whole, the type of its deltas, and their texts.
fn parts(index: usize, said: &Said) -> (Value, &'static str, &[String]) {
    let id = format!("item_{index}");
    match said {
        Said::Reasoning(pieces) => {
            let content = json!([{"type": "reasoning_text", "text": pieces.concat()}]);
            let item = json!({"type": "reasoning", "id": id, "summary": [], "content": content});
            (item, "response.reasoning_text.delta", pieces)
        }
        Said::Text(pieces) => {
            let content = json!([{"type": "output_text", "text": pieces.concat(), "annotations": []}]);
            let item = json!({"type": "message", "id": id, "role": "assistant", "content": content});
            (item, "response.output_text.delta", pieces)
        }
        Said::Refusal(pieces) => {
            let content = json!([{"type": "refusal", "refusal": pieces.concat()}]);
            let item = json!({"type": "message", "id": id, "role": "assistant", "content": content});
            (item, "response.refusal.delta", pieces)
        }
        Said::Call("function", pieces) => {
            let item = json!({"type": "function_call", "id": id, "call_id": format!("call_{index}"), "name": "f",
                "arguments": pieces.concat()});
            (item, "response.function_call_arguments.delta", pieces)
        }
        Said::Call(_, pieces) => {
            let item = json!({"type": "custom_tool_call", "id": id, "call_id": format!("call_{index}"), "name": "g",
                "input": pieces.concat()});
            (item, "response.custom_tool_call_input.delta", pieces)
        }
    }
}

/// The answer as a stream and whole.
fn written(answer: &[(Said, Style)]) -> (Vec<u8>, Value) {
    let mut events = vec![json!({"type": "response.created", "response": {"id": "resp_1", "model": "m-1"}})];
    let mut output = Vec::new();
    for (index, (said, style)) in answer.iter().enumerate() {
        let (item, kind, pieces) = parts(index, said);
        if matches!(style, Style::All | Style::Deltas) {
            let mut added = item.clone();
            for whole in ["content", "arguments", "input"] {
                added.as_object_mut().expect("an object").remove(whole);
            }
            events.push(json!({"type": "response.output_item.added", "output_index": index, "item": added}));
            events.extend(
                pieces
                    .iter()
                    .map(|piece| json!({"type": kind, "output_index": index, "item_id": item["id"], "delta": piece})),
            );
        }
        if matches!(style, Style::All | Style::Whole) {
            events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
        }
        output.push(item);
    }
    let response = response(json!(output), json!({}));
    events.push(json!({"type": "response.completed", "response": response}));
    (stream(&events), response)
}

/// What a client has to be told of it.
fn expected(answer: &[(Said, Style)]) -> Told {
    let of = |pick: fn(&Said) -> Option<&Vec<String>>| {
        let texts = answer
            .iter()
            .filter_map(|(said, _)| pick(said))
            .map(|pieces| pieces.concat());
        texts.collect::<Vec<_>>().join("\n\n")
    };
    let calls = answer.iter().enumerate().filter_map(|(index, (said, _))| match said {
        Said::Call(kind, pieces) => Some(Called {
            id: format!("call_{index}"),
            name: if *kind == "function" { "f" } else { "g" }.into(),
            input: pieces.concat(),
        }),
        _ => None,
    });
    let calls: Vec<Called> = calls.collect();
    Told {
        text: of(|said| {
            if let Said::Text(pieces) = said {
                Some(pieces)
            } else {
                None
            }
        }),
        refusal: of(|said| {
            if let Said::Refusal(pieces) = said {
                Some(pieces)
            } else {
                None
            }
        }),
        reasoning: of(|said| {
            if let Said::Reasoning(pieces) = said {
                Some(pieces)
            } else {
                None
            }
        }),
        finish: Some(if calls.is_empty() { "stop" } else { "tool_calls" }.into()),
        calls,
        usage: Usage::parse(&usage(), Dialect::OpenAi).expect("believed"),
        error: None,
        done: true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What comes at the end comes last, so that it is in its order only behind what came before.
    #[test]
    fn an_answer_says_the_same_in_chat(answer in answer(), cuts in prop::collection::vec(1usize..200, 1..8)) {
        let mut answer = answer;
        answer.sort_by_key(|(_, style)| *style == Style::AtTheEnd);
        let (stream, response) = written(&answer);
        let expected = expected(&answer);
        let mut chunks = Chunks::new(true, &given());
        let mut cut = Vec::new();
        let mut rest = &stream[..];
        for length in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (chunk, after) = rest.split_at(rest.len().min(*length));
            cut.push(chunk);
            rest = after;
        }
        let events = events(cut);
        let out: Vec<u8> = events.iter().flat_map(|event| chunks.event(event, &Reading::default())).collect();
        prop_assert_eq!(&told(&out, Dialect::OpenAi), &expected);
        prop_assert_eq!(&told_at_once(&completion(&response).expect("an answer")), &expected);
    }

    /// Nothing that an upstream sends makes it fail, and its events stay whole.
    #[test]
    fn any_events_become_whole_events(data in prop::collection::vec(any_event(), 0..12)) {
        let mut chunks = Chunks::new(true, &given());
        for data in data {
            let event = crate::sse::Event { name: None, data: Some(Bytes::from(data)), oversized: false };
            let out = chunks.event(&event, &Reading::default());
            prop_assert!(out.is_empty() || out.ends_with(b"\n\n"));
            for event in events([&out[..]]) {
                let data = event.data.unwrap_or(Bytes::from_static(b"{}"));
                prop_assert!(&data[..] == b"[DONE]" || serde_json::from_slice::<Value>(&data).is_ok());
            }
        }
    }
}

fn any_event() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just(json!(null)),
        Just(json!(1)),
        Just(json!("x")),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, {"text": 2}])),
        Just(json!({"type": "message", "content": [{"type": "output_text", "text": "y"}]})),
        Just(json!({"type": "function_call", "name": "f", "arguments": {"a": 1}})),
        Just(json!({"output": [{"type": "message", "content": "z"}, null], "usage": 3})),
    ];
    let kind = prop::sample::select(vec![
        "response.created",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "response.reasoning_summary_part.added",
        "response.refusal.delta",
        "response.output_text.annotation.added",
        "response.completed",
        "response.failed",
        "error",
        "keepalive",
        "other",
    ]);
    let member = prop::sample::select(vec![
        "item",
        "delta",
        "response",
        "output_index",
        "item_id",
        "annotation",
        "error",
    ]);
    (kind, prop::collection::vec((member, value), 0..4)).prop_map(|(kind, members)| {
        let mut event = json!({"type": kind});
        for (name, value) in members {
            event[name] = value;
        }
        event.to_string()
    })
}

fn word() -> impl Strategy<Value = String> {
    "[a-zé😀\"\\\\\n]{1,8}"
}

/// Turns after which the user may speak: a question and what came of it.
fn turn() -> impl Strategy<Value = Vec<Value>> {
    let user = (word(), any::<bool>()).prop_map(|(text, image)| match image {
        false => json!({"role": "user", "content": text}),
        true => json!({"role": "user", "content": [
            {"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "https://example.com/i", "detail": "low"}},
        ]}),
    });
    let calls = prop::collection::vec((0..1000u32, word(), word()), 0..3);
    (user, prop::option::of(word()), calls, word()).prop_map(|(user, said, calls, last)| {
        let mut turn = vec![user];
        if !calls.is_empty() {
            let of = |(at, (id, input, _)): (usize, &(u32, String, String))| {
                json!({"id": format!("call_{at}_{id}"),
                "type": "function", "function": {"name": "lookup", "arguments": json!({"q": input}).to_string()}})
            };
            let tool_calls: Vec<Value> = calls.iter().enumerate().map(of).collect();
            let answers = tool_calls
                .iter()
                .zip(&calls)
                .map(|(call, (_, _, output))| json!({"role": "tool", "tool_call_id": call["id"], "content": output}));
            let answers: Vec<Value> = answers.collect();
            turn.push(json!({"role": "assistant", "content": said, "tool_calls": tool_calls}));
            turn.extend(answers);
        }
        turn.push(json!({"role": "assistant", "content": last}));
        turn
    })
}

fn parameters() -> impl Strategy<Value = Value> {
    let schema = json!({"type": "object", "properties": {"q": {"type": "string"}}});
    let tools = json!({"tools": [
        {"type": "function", "function": {"name": "lookup", "description": "Looks up.", "parameters": schema}},
        {"type": "function", "function": {"name": "other", "parameters": schema, "strict": true}},
    ]});
    let mut chosen = tools.clone();
    chosen["tool_choice"] = json!({"type": "function", "function": {"name": "other"}});
    chosen["parallel_tool_calls"] = json!(false);
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}});
    prop::sample::subsequence(
        vec![
            tools,
            chosen,
            json!({"response_format": format}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"temperature": 0.3, "top_p": 0.9}),
            json!({"max_completion_tokens": 77}),
            json!({"reasoning_effort": "low", "verbosity": "high"}),
            json!({"user": "u", "safety_identifier": "s", "service_tier": "flex"}),
        ],
        0..=8,
    )
    .prop_map(|chosen| {
        let members = chosen.into_iter().filter_map(|some| some.as_object().cloned());
        Value::Object(members.flatten().collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What both can say comes back as it was.
    #[test]
    fn a_request_translated_there_and_back_is_the_same(
        system in prop::option::of(word()),
        turns in prop::collection::vec(turn(), 0..3),
        question in word(),
        parameters in parameters(),
        stream in any::<bool>(),
    ) {
        let system = system.map(|text| json!({"role": "system", "content": text}));
        let question = json!({"role": "user", "content": question});
        let messages: Vec<Value> = system.into_iter().chain(turns.into_iter().flatten()).chain([question]).collect();
        let mut chat = asking(parameters);
        chat["messages"] = json!(messages);
        chat["stream"] = json!(stream);
        let there = translation(&chat).expect("translatable").call;
        let back = translate(&there, Wire::Chat, &given()).expect("translatable").call;
        let back: Value = serde_json::from_slice(&back.body).expect("JSON");
        prop_assert_eq!(back, chat);
    }
}
