//! The meter's promises: what it reads from answers of every form, and what it leaves alone.

use super::*;
use crate::sse::{PASS_THROUGH_BYTES, Splitter};
use bytes::Bytes;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Shows a meter a stream in these chunks, as a relay would.
fn watch<'a>(mut meter: Meter, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Reading, Vec<Seen>) {
    let mut splitter = Splitter::new();
    let mut seen = Vec::new();
    for chunk in chunks {
        splitter.push(Bytes::copy_from_slice(chunk));
        let events = std::iter::from_fn(|| splitter.next_piece()).filter_map(|piece| piece.event);
        seen.extend(events.map(|event| meter.observe(&event)));
    }
    let rest = std::iter::from_fn(|| splitter.finish()).filter_map(|piece| piece.event);
    seen.extend(rest.map(|event| meter.observe(&event)));
    (meter.reading, seen)
}

fn own(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn watch_own(file: &str) -> (Reading, Vec<Seen>) {
    let endpoint = match file.split(['-', '.']).next() {
        Some("responses") => Endpoint::Responses,
        Some("completions") => Endpoint::Completions,
        _ => Endpoint::ChatCompletions,
    };
    watch(Meter::new(endpoint, Dialect::OpenAi), [own(file).as_slice()])
}

fn usage(value: Value) -> Option<Usage> {
    Usage::parse(&value, Dialect::OpenAi).expect("believed")
}

fn chat_usage() -> Option<Usage> {
    usage(json!({"prompt_tokens": 21, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 16}}))
}

fn responses_usage() -> Option<Usage> {
    usage(
        json!({"input_tokens": 120, "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 30},
        "output_tokens": 42, "output_tokens_details": {"reasoning_tokens": 20}}),
    )
}

fn terminals(seen: &[Seen]) -> Vec<End> {
    seen.iter().filter_map(|seen| seen.terminal).collect()
}

#[test]
fn a_chat_stream_is_read_however_its_lines_end() {
    for file in [
        "chat-usage.sse",
        "chat-crlf.sse",
        "chat-cr.sse",
        "chat-byte-order-mark.sse",
        "chat-no-final-blank-line.sse",
    ] {
        let (reading, seen) = watch_own(file);
        let expected = Reading {
            usage: chat_usage(),
            tier: Some(Tier::Standard),
            response_id: Some("chatcmpl-1".into()),
            model: Some("gpt-6.1-sol-2026-10-01".into()),
            end: Some(End::Completed),
            finished: true,
            visible: "Héllo 😀".into(),
            ..Reading::default()
        };
        assert_eq!(reading, expected, "{file}");
        let delivers: Vec<bool> = seen.iter().map(|seen| seen.delivers).collect();
        assert_eq!(delivers, [false, true, true, false, false, false], "{file}");
        assert_eq!(
            seen[4],
            Seen {
                usage_only: true,
                ..Seen::default()
            },
            "{file}"
        );
        assert_eq!(seen[5], Seen::end(End::Completed), "{file}");
    }
}

#[test]
fn usage_is_found_wherever_a_vendor_puts_it_and_never_summed() {
    for file in [
        "chat-usage-thrice.sse",
        "chat-usage-in-choice.sse",
        "chat-azure-first-chunk.sse",
        "chat-no-done.sse",
    ] {
        assert_eq!(watch_own(file).0.usage, chat_usage(), "{file}");
    }
    assert_eq!(watch_own("chat-no-usage.sse").0.usage, None);
    assert_eq!(
        watch_own("completions.sse").0.usage,
        usage(json!({"prompt_tokens": 21, "completion_tokens": 5}))
    );
    assert_eq!(watch_own("completions.sse").0.visible, "Héllo 😀");
}

#[test]
fn a_chunk_without_choices_and_usage_is_not_the_usage_chunk() {
    let (reading, seen) = watch_own("chat-azure-first-chunk.sse");
    assert!(!seen[0].usage_only);
    assert_eq!(seen.iter().filter(|seen| seen.usage_only).count(), 1);
    assert_eq!(reading.model.as_deref(), Some("gpt-5.2-2025-12-11"));
    let (_, seen) = watch_own("chat-no-done.sse");
    assert!(seen.iter().all(|seen| !seen.usage_only && seen.terminal.is_none()));
}

#[test]
fn a_stream_without_a_terminal_event_tells_whether_it_finished() {
    for (file, finished) in [("chat-no-done.sse", true), ("chat-error-midstream.sse", false)] {
        assert_eq!(watch_own(file).0.finished, finished, "{file}");
    }
    assert_eq!(watch_own("chat-no-done.sse").0.end, None);
}

#[test]
fn a_length_that_cannot_be_believed_is_as_if_absent_and_told() {
    let heard = |body: &str| {
        let mut meter = Meter::new(Endpoint::Transcriptions, Dialect::OpenAi);
        meter.observe_body(body.as_bytes());
        meter.into_reading()
    };
    let told = heard(r#"{"text": "hello", "duration": 2.5}"#);
    assert_eq!(
        (told.usage.map(|usage| usage.seconds), told.usage_problem),
        (Some(3), None)
    );
    let odd = heard(r#"{"text": "hello", "duration": -2.5}"#);
    assert_eq!((odd.usage, odd.end), (None, Some(End::Completed)));
    assert_eq!(odd.usage_problem.map(|problem| problem.field), Some("seconds"));
}

#[test]
fn a_usage_that_cannot_be_believed_is_as_if_absent_and_told() {
    let (reading, _) = watch_own("chat-usage-not-to-be-believed.sse");
    assert_eq!(reading.usage, None);
    assert_eq!(
        reading.usage_problem,
        Some(UsageError {
            field: "prompt_tokens",
            problem: "negative"
        })
    );
    assert_eq!(reading.end, Some(End::Completed));
}

#[test]
fn text_calls_refusals_and_reasoning_are_visible() {
    let (reading, _) = watch_own("chat-tools.sse");
    assert_eq!(reading.visible, r#"weather{"city":"Rome"}clock{}"#);
    assert_eq!(watch_own("chat-two-choices.sse").0.visible, "yesno");
    assert_eq!(
        watch_own("chat-refusal-and-reasoning.sse").0.visible,
        "Hm. Well. I will not."
    );
    let parts = br#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"so"}]},
        {"type":"text","text":" be it"}]}}]}"#;
    let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
    assert!(meter.chunk("", parts).delivers);
    assert_eq!(meter.reading().visible, "so be it");
}

#[test]
fn an_error_inside_a_chat_stream_fails_it_even_when_done_follows() {
    let (reading, seen) = watch_own("chat-error-midstream.sse");
    assert_eq!((reading.end, terminals(&seen)), (Some(End::Failed), vec![End::Failed]));
    let (reading, seen) = watch_own("chat-error-event.sse");
    assert_eq!((reading.end, terminals(&seen)), (Some(End::Failed), vec![End::Failed]));
    let (reading, seen) = watch_own("chat-error-with-usage-then-done.sse");
    assert_eq!(
        (reading.end, terminals(&seen)),
        (Some(End::Failed), vec![End::Failed, End::Completed])
    );
    assert_eq!(
        reading.usage,
        usage(json!({"prompt_tokens": 43, "completion_tokens": 10}))
    );
}

#[test]
fn a_response_is_read_from_its_terminal_event() {
    let (reading, seen) = watch_own("responses-completed.sse");
    let expected = Reading {
        usage: responses_usage(),
        tier: Some(Tier::Priority),
        response_id: Some("resp_1".into()),
        model: Some("gpt-6.1-sol-2026-10-01".into()),
        end: Some(End::Completed),
        visible: r#"Hello Romeweather{"city":"Rome"}"#.into(),
        item_ids: vec!["rs_1".into(), "msg_1".into(), "fc_1".into()],
        encrypted: Encrypted::of("gAAAAAB"),
        ..Reading::default()
    };
    assert_eq!(reading, expected);
    assert_eq!(terminals(&seen), [End::Completed]);
    let delivering: Vec<usize> = (0..)
        .zip(&seen)
        .filter(|(_, seen)| seen.delivers)
        .map(|(at, _)| at)
        .collect();
    assert_eq!(
        delivering,
        [3, 4, 7, 8, 11, 12],
        "summary, text, the call's name and arguments"
    );
}

#[test]
fn a_response_may_end_in_four_ways() {
    for (file, ends, used) in [
        ("responses-incomplete.sse", vec![End::Incomplete], responses_usage()),
        ("responses-failed.sse", vec![End::Failed], None),
        ("responses-error-nested.sse", vec![End::Failed, End::Failed], None),
        ("responses-error-flat.sse", vec![End::Failed], None),
    ] {
        let (reading, seen) = watch_own(file);
        assert_eq!(terminals(&seen), ends, "{file}");
        assert_eq!((reading.end, reading.usage), (ends.last().copied(), used), "{file}");
    }
}

#[test]
fn auto_is_no_tier() {
    assert_eq!(watch_own("responses-error-nested.sse").0.tier, None);
}

#[test]
fn a_stream_of_whole_items_delivers_and_counts_them_once() {
    let (reading, seen) = watch_own("responses-minimal.sse");
    assert_eq!(reading.visible, r#"Hello Romeweather{"city":"Rome"}"#);
    assert_eq!(reading.item_ids, ["rs_1", "msg_1", "fc_1"]);
    assert_eq!(reading.usage, responses_usage());
    assert!(seen[1..4].iter().all(|seen| seen.delivers) && !seen[4].delivers);
    let deltas_without_marks = concat!(
        "data: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n",
        "data: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"message\",\"id\":\"m\",",
        "\"content\":[{\"type\":\"output_text\",\"text\":\"Hi\"}]}}\n\n",
    );
    let meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
    assert_eq!(watch(meter, [deltas_without_marks.as_bytes()]).0.visible, "Hi");
}

#[test]
fn hosted_tools_are_counted_as_they_are_billed() {
    let (reading, _) = watch_own("responses-tools.sse");
    let image = json!({"image_gen": {"input_tokens": 40, "output_tokens": 272}});
    let image = ToolUsage::from_responses(Some(&image), &ToolTally::default())
        .expect("believed")
        .image_gen;
    let expected = ToolUsage {
        web_searches: 3,
        file_searches: 1,
        containers: 2,
        image_gen: image,
    };
    assert_eq!(reading.tools, expected);
    assert_eq!(reading.usage.map(|usage| usage.tools), Some(expected));
    let cut_before_the_end = own("responses-tools.sse");
    let end = cut_before_the_end
        .windows(25)
        .rposition(|at| at == b"event: response.completed")
        .expect("the end");
    let (reading, _) = watch(
        Meter::new(Endpoint::Responses, Dialect::OpenAi),
        [&cut_before_the_end[..end]],
    );
    assert_eq!(
        reading.tools,
        ToolUsage {
            web_searches: 1,
            file_searches: 1,
            containers: 2,
            image_gen: None
        }
    );
}

#[test]
fn unary_bodies_are_read_at_every_endpoint() {
    let body = |endpoint, body: Value| {
        let mut meter = Meter::new(endpoint, Dialect::OpenAi);
        meter.observe_body(body.to_string().as_bytes());
        meter.reading
    };
    let told = json!({"prompt_tokens": 21, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 16}});
    let chat = body(
        Endpoint::ChatCompletions,
        json!({"id": "chatcmpl-1", "model": "m", "service_tier": "flex", "usage": told, "choices": [{"index": 0,
            "message": {"role": "assistant", "content": "Hi", "refusal": null}, "finish_reason": "stop"}]}),
    );
    let expected = Reading {
        usage: chat_usage(),
        tier: Some(Tier::Flex),
        response_id: Some("chatcmpl-1".into()),
        model: Some("m".into()),
        end: Some(End::Completed),
        finished: true,
        visible: "Hi".into(),
        ..Reading::default()
    };
    assert_eq!(chat, expected);
    let completion = body(
        Endpoint::Completions,
        json!({"choices": [{"text": "Hi"}], "usage": told}),
    );
    assert_eq!((completion.visible.as_str(), completion.usage), ("Hi", chat_usage()));
    let embedding =
        json!({"data": [{"embedding": [0.1]}], "model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}});
    let embedding = body(Endpoint::Embeddings, embedding);
    assert_eq!(embedding.usage, usage(json!({"prompt_tokens": 8})));
    let response = |status: &str, error: Value| {
        body(
            Endpoint::Responses,
            json!({"id": "resp_1", "status": status, "error": error, "output": [{"type": "message", "id": "msg_1",
                "content": [{"type": "output_text", "text": "Hi"}]}], "usage": {"input_tokens": 1, "output_tokens": 2}}),
        )
    };
    let completed = response("completed", json!(null));
    assert_eq!(
        (completed.visible.as_str(), completed.end),
        ("Hi", Some(End::Completed))
    );
    assert_eq!(
        (completed.item_ids, completed.response_id),
        (vec!["msg_1".to_owned()], Some("resp_1".to_owned()))
    );
    assert_eq!(response("incomplete", json!(null)).end, Some(End::Incomplete));
    assert_eq!(
        response("failed", json!({"code": "server_error"})).end,
        Some(End::Failed)
    );
    assert_eq!(
        body(Endpoint::ChatCompletions, json!({"error": {"code": 1}})).end,
        Some(End::Failed)
    );
}

#[test]
fn what_is_malformed_changes_nothing() {
    let deep = "[".repeat(100_000);
    for text in [
        "",
        " ",
        "{",
        "[]",
        "null",
        "3",
        "\"x\"",
        "{\"choices\":[[[",
        "{\"usage\":{\"prompt_tokens\":1}",
        "\u{0}",
        "[\"id\",\"model\"]",
        &deep,
    ] {
        for endpoint in [Endpoint::ChatCompletions, Endpoint::Responses] {
            let mut meter = Meter::new(endpoint, Dialect::OpenAi);
            let data = Some(Bytes::copy_from_slice(text.as_bytes()));
            assert_eq!(
                meter.observe(&Event {
                    data,
                    ..Event::default()
                }),
                Seen::default(),
                "{text:.40}"
            );
            meter.observe_body(text.as_bytes());
            assert_eq!(meter.reading, Reading::default(), "{text:.40}");
        }
    }
}

#[test]
fn one_odd_member_does_not_hide_the_usage() {
    let chunk = br#"{"id":7,"model":{"a":[1]},"service_tier":[],"choices":"none","x_groq":3,"error":null,
        "usage":{"prompt_tokens":21,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":16}}}"#;
    let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
    assert_eq!(meter.chunk("", chunk), Seen::default());
    assert_eq!(
        meter.reading(),
        &Reading {
            usage: chat_usage(),
            ..Reading::default()
        }
    );
    let lone_surrogate = br#"{"choices":[{"delta":{"content":"\ud83d"}}],"usage":{"prompt_tokens":1}}"#;
    meter.chunk("", lone_surrogate);
    assert_eq!(meter.reading().usage, usage(json!({"prompt_tokens": 1})));
    let beside_text = br#"{"choices":[{"delta":{"reasoning":"\ud83d","refusal":"no"}}]}"#;
    assert!(meter.chunk("", beside_text).delivers);
    assert_eq!(meter.reading().visible, "no");
}

#[test]
fn an_oversized_event_ends_a_stream_by_its_name() {
    let mut meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
    let event = Event {
        name: Some("response.completed".into()),
        data: None,
        oversized: true,
    };
    assert_eq!(
        meter.observe(&event),
        Seen {
            terminal: Some(End::Completed),
            usage_only: false,
            delivers: true
        }
    );
    assert_eq!(meter.reading.end, Some(End::Completed));
}

#[test]
fn visible_output_beyond_the_bound_is_counted_and_not_kept() {
    let mut reading = Reading::default();
    let text = "é".repeat(MAX_VISIBLE_BYTES / 4);
    for _ in 0..3 {
        reading.show(&text);
    }
    assert_eq!(reading.visible.len(), MAX_VISIBLE_BYTES);
    assert_eq!(reading.visible_bytes(), u64::try_from(3 * text.len()).expect("small"));
}

#[test]
fn what_is_kept_of_the_visible_output_is_its_beginning() {
    let mut reading = Reading::default();
    reading.show(&"x".repeat((8 << 20) - 1));
    assert!(reading.show("é"), "it is shown, though it does not fit");
    assert!(reading.show("y"), "nor does what follows, lest there be a gap");
    assert_eq!(reading.visible.len(), (8 << 20) - 1);
    assert_eq!(reading.visible_bytes(), (8 << 20) + 2);
}

#[test]
fn cache_writes_live_as_long_as_was_asked_for() {
    let meter = Meter::new(Endpoint::Responses, Dialect::OpenAi).with_cache_ttl(CacheTtl::Hours12);
    let event = json!({"type": "response.completed", "response": {"usage": {"input_tokens": 9, "output_tokens": 1,
        "input_tokens_details": {"cache_write_tokens": 7}}}});
    let (reading, _) = watch(meter, [format!("data: {event}\n\n").as_bytes()]);
    let usage = reading.usage.expect("it is told");
    assert_eq!(
        (usage.cache_write_tokens.get(), usage.cache_write_12h_tokens.get()),
        (0, 7)
    );
}

#[test]
fn an_end_is_known_by_its_name_and_an_error_without_a_name_is_one() {
    let seen = |name: &str, data: &str| {
        let mut meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
        meter.response_event(name, data.as_bytes()).terminal
    };
    assert_eq!(seen("response.completed", "no JSON"), Some(End::Completed));
    assert_eq!(seen("", r#"{"error":{"message":"m"}}"#), Some(End::Failed));
    assert_eq!(seen("", r#"{"id":"resp_1"}"#), None);
    assert_eq!(seen("response.created", r#"{"error":{"message":"m"}}"#), None);
}

/// Shows a meter of responses these events; what it has read then, and what each delivers.
fn respond(events: &[Value]) -> (Reading, Vec<bool>) {
    let mut meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
    let show = |event: &Value| meter.response_event("", event.to_string().as_bytes()).delivers;
    let delivers = events.iter().map(show).collect();
    (meter.reading, delivers)
}

#[test]
fn a_stream_says_whose_it_is_before_its_end() {
    let (reading, delivers) =
        respond(&[json!({"type": "response.created", "response": {"id": "resp_1", "model": "m"}})]);
    assert_eq!(reading.response_id.as_deref(), Some("resp_1"));
    assert_eq!((reading.model.as_deref(), delivers), (Some("m"), vec![false]));
}

#[test]
fn what_a_client_sees_is_delivered_though_it_is_no_text() {
    let image = json!({"type": "response.image_generation_call.partial_image", "partial_image_b64": "AAAA"});
    let thought = json!({"type": "response.output_item.done", "item": {"type": "reasoning",
        "content": [{"text": "so"}], "summary": [{"text": "thus"}]}});
    let (reading, delivers) = respond(&[image, thought]);
    assert_eq!((reading.visible.as_str(), delivers), ("so", vec![true, true]));
}

#[test]
fn the_name_of_a_call_is_output_once_and_that_of_another_item_is_none() {
    let added = |item: Value| json!({"type": "response.output_item.added", "output_index": 0, "item": item});
    let call = json!({"type": "function_call", "name": "weather"});
    let done = json!({"type": "response.output_item.done", "output_index": 0, "item": call});
    let (reading, delivers) = respond(&[added(json!({"type": "mcp_list_tools", "name": "tools"}))]);
    assert_eq!((reading.visible.as_str(), delivers), ("", vec![false]));
    let (reading, delivers) = respond(&[added(json!({"type": "function_call"})), done.clone()]);
    assert_eq!((reading.visible.as_str(), delivers), ("weather", vec![false, true]));
    let (reading, delivers) = respond(&[added(call), done]);
    assert_eq!((reading.visible.as_str(), delivers), ("weather", vec![true, false]));
}

#[test]
fn the_items_of_the_end_count_where_it_has_some() {
    let search = json!({"type": "web_search_call", "status": "completed", "action": {"type": "search"}});
    let done = json!({"type": "response.output_item.done", "item": search});
    for (items, searches) in [(json!([]), 1), (json!([search, search]), 2)] {
        let end = json!({"type": "response.completed", "response": {"output": items}});
        assert_eq!(respond(&[done.clone(), end]).0.tools.web_searches, searches);
    }
}

#[test]
fn a_response_ends_as_its_status_says_unless_it_has_an_error() {
    let end = |response: Value| {
        let mut meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
        meter.observe_body(response.to_string().as_bytes());
        meter.reading.end
    };
    for (status, expected) in [
        ("completed", End::Completed),
        ("incomplete", End::Incomplete),
        ("failed", End::Failed),
        ("cancelled", End::Failed),
    ] {
        assert_eq!(end(json!({"status": status})), Some(expected), "{status}");
        let error = json!({"status": status, "error": {"code": "server_error"}});
        assert_eq!(end(error), Some(End::Failed), "{status}");
    }
}

#[test]
fn places_are_told_apart_by_either_mark_up_to_their_bounds() {
    let by_index = |index| Position {
        index: Some(index),
        id: None,
    };
    let by_id = |id: String| Position {
        index: None,
        id: Some(id.into()),
    };
    let most = u64::try_from(MAX_ITEMS).expect("small");
    let mut places = Positions::default();
    for number in 0..most {
        assert!(places.note(&by_index(number)) && places.note(&by_id(number.to_string())));
        assert!(!places.note(&by_index(number)) && !places.note(&by_id(number.to_string())));
    }
    for _ in 0..2 {
        assert!(
            places.note(&by_index(most)) && places.note(&by_id(most.to_string())),
            "not kept"
        );
    }
    let mut places = Positions::default();
    for (length, known) in [(MAX_ID_BYTES, true), (MAX_ID_BYTES + 1, false)] {
        assert!(places.note(&by_id("i".repeat(length))));
        assert_eq!(places.note(&by_id("i".repeat(length))), !known, "{length}");
    }
}

#[test]
fn whatever_a_choice_shows_is_shown_alone_and_together() {
    for (choice, visible) in [
        (json!({"delta": {"reasoning": "a", "refusal": "b"}}), "ab"),
        (json!({"delta": {"reasoning": "a", "content": "b"}}), "ab"),
        (json!({"delta": {"content": "a"}, "text": "b"}), "ab"),
        (json!({"delta": {"tool_calls": [{"function": {"name": "a"}}]}}), "a"),
        (json!({"delta": {"content": "a", "audio": {"transcript": "b"}}}), "ab"),
        (json!({"delta": {"audio": {"transcript": "a", "data": "AAAA"}}}), "a"),
        (json!({"delta": {"audio": {"transcript": "a"}}}), "a"),
        (json!({"delta": {"audio": {"data": "AAAA"}}}), ""),
    ] {
        let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
        let chunk = json!({"choices": [choice]}).to_string();
        assert!(meter.chunk("", chunk.as_bytes()).delivers, "{chunk}");
        let shown = (meter.reading.visible.as_str(), meter.visible_bytes());
        assert_eq!(
            shown,
            (visible, u64::try_from(visible.len()).expect("small")),
            "{chunk}"
        );
    }
    let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
    let nothing = br#"{"choices":[{"delta":{"audio":{"id":"audio_1","data":""}}}]}"#;
    assert!(!meter.chunk("", nothing).delivers);
}

#[test]
fn whatever_an_item_brings_is_delivered_alone_and_together() {
    for (item, visible) in [
        (json!({"type": "function_call", "arguments": "a"}), "a"),
        (
            json!({"type": "shell_call", "arguments": "a", "action": {"commands": ["b"]}}),
            "ab",
        ),
        (
            json!({"type": "shell_call", "action": {"commands": ["a"]}, "content": [{"text": "b"}]}),
            "ab",
        ),
        (json!({"type": "image_generation_call", "name": "a"}), "a"),
        (json!({"type": "reasoning", "summary": [{"text": "not counted"}]}), ""),
    ] {
        let (reading, delivers) = respond(&[json!({"type": "response.output_item.done", "item": item})]);
        assert_eq!((reading.visible.as_str(), delivers), (visible, vec![true]), "{item}");
    }
}

#[test]
fn an_empty_name_or_one_too_long_to_be_one_does_not_replace_the_one_before() {
    let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
    let too_long = "m".repeat(MAX_ID_BYTES + 1);
    for model in ["first", "second", "", &too_long] {
        meter.chunk("", json!({"model": model, "choices": []}).to_string().as_bytes());
    }
    assert_eq!(meter.reading.model.as_deref(), Some("second"));
}

#[test]
fn ids_are_kept_up_to_their_bounds() {
    let mut reading = Reading::default();
    let longest = "i".repeat(MAX_ID_BYTES);
    reading.name_item(Some(&longest));
    reading.name_item(Some(&format!("{longest}i")));
    reading.name_item(Some(""));
    (0..MAX_ITEMS).for_each(|number| reading.name_item(Some(&number.to_string())));
    assert_eq!((reading.item_ids.len(), &reading.item_ids[0]), (MAX_ITEMS, &longest));
    assert_eq!(reading.item_ids[1..3], ["0", "1"]);
}

#[test]
fn a_long_answer_is_read_from_an_event_that_passes_in_parts() {
    let text = "x".repeat(3 * PASS_THROUGH_BYTES);
    let event = json!({"type": "response.completed", "response": {"id": "resp_1", "output": [{"type": "message",
        "content": [{"text": text}]}], "usage": {"input_tokens": 1, "output_tokens": 2}}});
    let stream = format!("event: response.completed\ndata: {event}\n\n");
    let meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
    let (reading, seen) = watch(meter, stream.as_bytes().chunks(1_000));
    assert_eq!(
        seen,
        [Seen {
            terminal: Some(End::Completed),
            usage_only: false,
            delivers: true
        }]
    );
    assert_eq!((reading.visible.len(), reading.usage.is_some()), (text.len(), true));
}

/// Numbers that look random and are the same in every run.
fn numbers(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits") % below
    }
}

fn random_cut<'a>(stream: &'a [u8], next: &mut impl FnMut(usize) -> usize) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = (0..next(40))
        .map(|_| next(stream.len() + 1))
        .chain([0, stream.len()])
        .collect();
    places.sort_unstable();
    places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
}

#[test]
fn any_cut_of_our_streams_reads_alike() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut next = numbers(7);
    for entry in std::fs::read_dir(folder).expect("tests/data") {
        let path = entry.expect("an entry").path();
        let file = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name")
            .to_owned();
        if !file.ends_with(".sse") {
            continue;
        }
        let endpoint = if file.starts_with("responses") {
            Endpoint::Responses
        } else {
            Endpoint::ChatCompletions
        };
        let (stream, meter) = (own(&file), || Meter::new(endpoint, Dialect::OpenAi));
        let (whole, seen) = watch(meter(), [stream.as_slice()]);
        let real =
            |seen: Vec<Seen>| -> Vec<Seen> { seen.into_iter().filter(|seen| *seen != Seen::default()).collect() };
        let seen = real(seen);
        for _ in 0..50 {
            let (reading, cut_seen) = watch(meter(), random_cut(&stream, &mut next));
            assert_eq!((reading, real(cut_seen)), (whole.clone(), seen.clone()), "{file}");
        }
    }
}

/// A recorded answer of one of our endpoints.
struct Recorded {
    file: String,
    body: Vec<u8>,
    endpoint: Endpoint,
    dialect: Dialect,
    usage: Value,
    tier: Option<String>,
    done: bool,
    last: Option<String>,
}

fn fixtures() -> PathBuf {
    let folder = std::env::var_os("GATEWAY_FIXTURES").map(PathBuf::from);
    folder
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures"))
        .join("wire")
}

fn recorded() -> Vec<Recorded> {
    let Ok(index) = std::fs::read(fixtures().join("index.json")) else {
        return Vec::new();
    };
    let index: Value = serde_json::from_slice(&index).expect("index.json");
    let list = index
        .as_array()
        .or_else(|| index["files"].as_array())
        .expect("a list of files")
        .clone();
    let text = |entry: &Value, member: &str| entry[member].as_str().map(str::to_owned);
    let one = |entry: Value| {
        let path = text(&entry, "endpoint")?;
        let path = path.split('?').next()?;
        let endpoint = match path {
            _ if path.ends_with("/chat/completions") => Endpoint::ChatCompletions,
            _ if path.ends_with("/completions") => Endpoint::Completions,
            _ if path.contains("/responses") && !path.ends_with("/input_tokens") => Endpoint::Responses,
            _ => return None,
        };
        let file = text(&entry, "file")?;
        let dialect = if file == "xai-chat.sse" {
            Dialect::TotalCoversReasoning
        } else {
            Dialect::OpenAi
        };
        (entry["status"] == 200).then(|| Recorded {
            body: std::fs::read(fixtures().join(&file)).expect("a listed file"),
            usage: entry["final_usage"].clone(),
            tier: text(&entry, "service_tier_final"),
            done: entry["done_sentinel"] == true,
            last: text(&entry, "last_event"),
            file,
            endpoint,
            dialect,
        })
    };
    list.into_iter().filter_map(one).collect()
}

impl Recorded {
    fn meter(&self) -> Meter {
        Meter::new(self.endpoint, self.dialect)
    }

    fn check(&self, reading: &Reading) {
        let usage = Usage::parse(&self.usage, self.dialect).expect("believed");
        let read = reading.usage.clone().map(|usage| Usage {
            tools: ToolUsage::default(),
            ..usage
        });
        assert_eq!(read, usage, "{}", self.file);
        let tier = self.tier.as_deref().filter(|tier| *tier != "auto");
        assert_eq!(
            reading.tier,
            tier.map(|tier| Tier::from_wire(Some(tier))),
            "{}",
            self.file
        );
    }

    /// How the answer ended, by the names of its events alone.
    fn end(&self) -> Option<End> {
        let errors = self.file.contains("error-midstream");
        match self.last.as_deref() {
            _ if errors => Some(End::Failed),
            Some("response.completed") => Some(End::Completed),
            Some("response.incomplete") => Some(End::Incomplete),
            _ if self.done => Some(End::Completed),
            _ => None,
        }
    }
}

#[test]
fn recorded_answers_are_read_as_their_index_says() {
    let (mut streams, mut bodies, mut next) = (0, 0, numbers(11));
    for recorded in recorded() {
        if recorded.file.ends_with(".json") {
            let mut meter = recorded.meter();
            meter.observe_body(&recorded.body);
            recorded.check(meter.reading());
            bodies += 1;
            continue;
        }
        let (whole, seen) = watch(recorded.meter(), [recorded.body.as_slice()]);
        recorded.check(&whole);
        assert_eq!(whole.end, recorded.end(), "{}", recorded.file);
        assert_eq!(terminals(&seen).is_empty(), whole.end.is_none(), "{}", recorded.file);
        for _ in 0..50 {
            let (reading, _) = watch(recorded.meter(), random_cut(&recorded.body, &mut next));
            assert_eq!(reading, whole, "{}", recorded.file);
        }
        streams += 1;
    }
    match streams + bodies {
        0 => println!("fixtures absent: {}", fixtures().display()),
        _ => println!("replayed {streams} recorded streams, each in 50 cuts, and {bodies} bodies"),
    }
}

/// The last usage in a stream, found without the code under test.
fn last_usage(stream: &str) -> Value {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let mut usages = events.map(|event| event["response"]["usage"].clone());
    usages.rfind(|usage| !usage.is_null()).unwrap_or_default()
}

#[test]
fn recorded_answers_to_codex_are_read_chunk_by_chunk() {
    let folder = fixtures().join("../codex");
    let mut streams = 0;
    for entry in std::fs::read_dir(&folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a listed file");
        let Ok(exchange) = serde_json::from_str::<Value>(&text) else {
            continue;
        };
        let Some(chunks) = exchange["response"]["sse"].as_array() else {
            continue;
        };
        let chunks: Vec<&str> = chunks.iter().filter_map(Value::as_str).collect();
        let meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
        let (reading, _) = watch(meter, chunks.iter().map(|chunk| chunk.as_bytes()));
        assert_eq!(reading.usage, usage(last_usage(&chunks.concat())), "{}", path.display());
        streams += 1;
    }
    match streams {
        0 => println!("fixtures absent: {}", folder.display()),
        _ => println!("replayed {streams} recorded answers to Codex"),
    }
}
