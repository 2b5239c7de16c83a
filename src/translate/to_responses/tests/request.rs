//! Requests: each parameter, message and tool, and what is refused.

use serde_json::{Value, json};

use super::super::back::given;
use super::{asking, translation};
use crate::call::{Call, CallError, Endpoint, Problem};
use crate::translate::{Wire, translate};

/// The body made of a chat request of which only `more` matters.
fn made(more: Value) -> Value {
    let translation = translation(&asking(more)).expect("translatable");
    serde_json::from_slice(&translation.call.body).expect("JSON")
}

/// The input made of messages.
fn input(messages: Value) -> Value {
    made(json!({"messages": messages}))["input"].take()
}

/// A request that says no more than it has to.
fn plain(more: Value) -> Value {
    let message = json!({"type": "message", "role": "user", "content": "hi"});
    let mut body = json!({"model": "m", "input": [message], "store": false});
    let more = more.as_object().cloned().expect("an object");
    body.as_object_mut().expect("an object").extend(more);
    body
}

#[test]
fn parameters_keep_their_meaning_under_other_names() {
    assert_eq!(made(json!({})), plain(json!({})));
    let same = json!({
        "metadata": {"a": "b"}, "parallel_tool_calls": false, "prompt_cache_key": "k",
        "prompt_cache_retention": "24h", "safety_identifier": "s", "service_tier": "flex", "stream": true,
        "temperature": 0.7, "top_p": 0.25, "user": "u",
    });
    assert_eq!(made(same.clone()), plain(same));
    for (chat, responses) in [
        (json!({"max_completion_tokens": 100}), json!({"max_output_tokens": 100})),
        (json!({"max_tokens": 200}), json!({"max_output_tokens": 200})),
        (
            json!({"max_completion_tokens": 100, "max_tokens": 200}),
            json!({"max_output_tokens": 100}),
        ),
        (
            json!({"reasoning_effort": "high"}),
            json!({"reasoning": {"effort": "high"}}),
        ),
        (json!({"verbosity": "low"}), json!({"text": {"verbosity": "low"}})),
        (json!({"store": true}), json!({"store": true})),
        (json!({"store": null, "metadata": null}), json!({})),
        (
            json!({"logprobs": true, "top_logprobs": 3}),
            json!({"include": ["message.output_text.logprobs"], "top_logprobs": 3}),
        ),
        (json!({"logprobs": false, "top_logprobs": 0}), json!({})),
        (
            json!({"stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false}}),
            json!({"stream": true, "stream_options": {"include_obfuscation": false}}),
        ),
        (
            json!({"stream": true, "stream_options": {"include_usage": true}}),
            json!({"stream": true}),
        ),
    ] {
        assert_eq!(made(chat.clone()), plain(responses), "{chat}");
    }
}

#[test]
fn what_says_nothing_is_left_out() {
    let nothing = json!({
        "n": 1, "logit_bias": {}, "stop": [], "frequency_penalty": 0, "presence_penalty": 0.0, "functions": [],
        "modalities": ["text"], "seed": null, "audio": null, "prediction": null, "tools": [],
    });
    assert_eq!(made(nothing), plain(json!({})));
}

#[test]
fn formats_lose_the_object_around_them() {
    // Models follow the order of a schema's members.
    let schema = r#"{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"number","minimum":1e-7}}}"#;
    let body = format!(
        r#"{{"model":"m","messages":[],"tools":[{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}],
        "response_format":{{"type":"json_schema","json_schema":{{"name":"n","schema":{schema},"strict":true}}}}}}"#
    );
    let call = Call::parse(Endpoint::ChatCompletions, body.into()).expect("a call");
    let made = translate(&call, Wire::Responses, &given()).expect("translatable");
    let text = std::str::from_utf8(&made.call.body).expect("text");
    assert_eq!(text.matches(schema).count(), 2, "{text}");
    let body: Value = serde_json::from_str(text).expect("JSON");
    let format = &body["text"]["format"];
    assert_eq!(
        (&format["type"], &format["name"], &format["strict"]),
        (&json!("json_schema"), &json!("n"), &json!(true))
    );
    for kind in ["text", "json_object"] {
        let made = self::made(json!({"response_format": {"type": kind}, "verbosity": "high"}));
        assert_eq!(made["text"], json!({"format": {"type": kind}, "verbosity": "high"}));
    }
}

#[test]
fn tools_lose_the_object_around_them() {
    let tools = json!([
        {"type": "function", "function": {"name": "a", "description": "A", "parameters": {"type": "object"}, "strict": true}},
        {"type": "function", "function": {"name": "b", "strict": null}},
        {"type": "custom", "custom": {"name": "c", "description": "C"}},
        {"type": "custom", "custom": {"name": "d", "format": {"type": "text"}}},
        {"type": "custom", "custom": {"name": "e", "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "x"}}}},
    ]);
    let expected = json!([
        {"type": "function", "name": "a", "description": "A", "parameters": {"type": "object"}, "strict": true},
        {"type": "function", "name": "b", "parameters": {"type": "object", "properties": {}}, "strict": false},
        {"type": "custom", "name": "c", "description": "C"},
        {"type": "custom", "name": "d", "format": {"type": "text"}},
        {"type": "custom", "name": "e", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    ]);
    assert_eq!(made(json!({"tools": tools}))["tools"], expected);
    for (chat, responses) in [
        (json!("required"), json!("required")),
        (
            json!({"type": "function", "function": {"name": "a"}}),
            json!({"type": "function", "name": "a"}),
        ),
        (
            json!({"type": "custom", "custom": {"name": "c"}}),
            json!({"type": "custom", "name": "c"}),
        ),
        (
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
                {"type": "function", "function": {"name": "a"}}, {"type": "custom", "custom": {"name": "c"}},
            ]}}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": [
                {"type": "function", "name": "a"}, {"type": "custom", "name": "c"},
            ]}),
        ),
    ] {
        assert_eq!(made(json!({"tool_choice": chat}))["tool_choice"], responses);
    }
}

#[test]
fn messages_become_items() {
    let messages = json!([
        {"role": "system", "content": "S"},
        {"role": "developer", "content": [{"type": "text", "text": "D"}]},
        {"role": "user", "content": [
            {"type": "text", "text": "U", "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
            {"type": "image_url", "image_url": {"url": "https://example.com/i.png", "detail": "low"}},
            {"type": "file", "file": {"filename": "f.pdf", "file_data": "data:application/pdf;base64,AA"}},
        ]},
        {"role": "assistant", "content": "A", "refusal": null, "audio": null, "function_call": null, "annotations": []},
        {"role": "assistant", "content": null, "refusal": "R"},
        {"role": "assistant", "content": [{"type": "text", "text": "P"}, {"type": "refusal", "refusal": "Q"}]},
    ]);
    let expected = json!([
        {"type": "message", "role": "system", "content": "S"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "D"}]},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "U", "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"},
            {"type": "input_image", "image_url": "https://example.com/i.png", "detail": "low"},
            {"type": "input_file", "filename": "f.pdf", "file_data": "data:application/pdf;base64,AA"},
        ]},
        {"type": "message", "role": "assistant", "content": "A"},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "R"}]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "P", "annotations": []}, {"type": "refusal", "refusal": "Q"},
        ]},
    ]);
    assert_eq!(input(messages), expected);
}

#[test]
fn calls_outputs_and_reasoning_become_items_of_their_own() {
    let messages = json!([
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [
            {"id": "1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
            {"id": "2", "type": "custom", "custom": {"name": "g", "input": "raw"}},
        ]},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "3", "function": {"name": "f", "arguments": ""}}]},
        {"role": "assistant", "content": ""},
    ]);
    let expected = json!([
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"a\": 1}"},
        {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "raw"},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "function_call", "call_id": "3", "name": "f", "arguments": ""},
        {"type": "message", "role": "assistant", "content": ""},
    ]);
    assert_eq!(input(messages), expected);
}

#[test]
fn what_has_no_counterpart_is_refused_by_its_name() {
    let message = |message: Value| json!({"messages": [{"role": "user", "content": "hi"}, message]});
    let part = |part: Value| message(json!({"role": "user", "content": [part]}));
    let call = |call: Value| message(json!({"role": "assistant", "tool_calls": [call]}));
    for (more, param, item) in [
        (json!({"n": 2}), "n", "n"),
        (json!({"logit_bias": {"50256": -100}}), "logit_bias", "logit_bias"),
        (json!({"stop": "END"}), "stop", "stop"),
        (json!({"stop": ["END"]}), "stop", "stop"),
        (json!({"seed": 7}), "seed", "seed"),
        (
            json!({"frequency_penalty": 0.5}),
            "frequency_penalty",
            "frequency_penalty",
        ),
        (json!({"presence_penalty": -1}), "presence_penalty", "presence_penalty"),
        (json!({"modalities": ["text", "audio"]}), "modalities", "modalities"),
        (json!({"audio": {"voice": "alloy", "format": "wav"}}), "audio", "audio"),
        (
            json!({"prediction": {"type": "content", "content": "x"}}),
            "prediction",
            "prediction",
        ),
        (
            json!({"web_search_options": {}}),
            "web_search_options",
            "web_search_options",
        ),
        (json!({"functions": [{"name": "f"}]}), "functions", "functions"),
        (json!({"function_call": "auto"}), "function_call", "function_call"),
        (json!({"moderation": {"model": "omni"}}), "moderation", "moderation"),
        (json!({"top_k": 40}), "top_k", "top_k"),
        (json!({"top_logprobs": 2}), "top_logprobs", "top_logprobs"),
        (
            json!({"stream_options": {"continuous_usage_stats": true}}),
            "stream_options.continuous_usage_stats",
            "continuous_usage_stats",
        ),
        (
            json!({"response_format": {"type": "grammar"}}),
            "response_format",
            "grammar",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]", "web_search"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "cache_control": {}}}]}),
            "tools[0].function.cache_control",
            "cache_control",
        ),
        (json!({"tool_choice": {"type": "mcp"}}), "tool_choice", "mcp"),
        (
            message(json!({"role": "function", "name": "f", "content": "x"})),
            "messages[1]",
            "function",
        ),
        (
            message(json!({"role": "user", "name": "Ann", "content": "x"})),
            "messages[1].name",
            "name",
        ),
        (
            message(json!({"role": "assistant", "content": "x", "audio": {"id": "a"}})),
            "messages[1].audio",
            "audio",
        ),
        (
            message(json!({"role": "assistant", "function_call": {"name": "f", "arguments": ""}})),
            "messages[1].function_call",
            "function_call",
        ),
        (
            part(json!({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}})),
            "messages[1].content[0]",
            "input_audio",
        ),
        (
            part(json!({"type": "video_url", "video_url": {"url": "https://example.com"}})),
            "messages[1].content[0]",
            "video_url",
        ),
        (
            part(json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}})),
            "messages[1].content[0].cache_control",
            "cache_control",
        ),
        (
            call(json!({"id": "1", "type": "retrieval"})),
            "messages[1].tool_calls[0]",
            "retrieval",
        ),
        (
            call(json!({"id": "1", "function": {"name": "f", "arguments": ""}, "extra_content": {}})),
            "messages[1].tool_calls[0].extra_content",
            "extra_content",
        ),
    ] {
        let refused = translation(&asking(more.clone())).err();
        let expected = CallError::Param {
            name: param.to_owned(),
            problem: Problem::Untranslatable {
                item: item.to_owned(),
                to: Endpoint::Responses,
            },
        };
        assert_eq!(refused, Some(expected), "{more}");
    }
}

#[test]
fn a_member_of_another_type_is_named() {
    for (more, param) in [
        (
            json!({"messages": [{"role": "user", "content": 1}]}),
            "messages[0].content",
        ),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": ["x"]}), "messages[0]"),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": {}}]}),
            "messages[0].tool_calls",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "messages[0].tool_call_id",
        ),
        (
            json!({"tools": [{"type": "function", "function": {}}]}),
            "tools[0].function.name",
        ),
        (json!({"logprobs": 5}), "logprobs"),
    ] {
        let refused = translation(&asking(more.clone())).expect_err("refused");
        assert_eq!(refused.param(), Some(param), "{more}");
        let CallError::Param {
            problem: Problem::Type(_),
            ..
        } = refused
        else {
            panic!("{more}: {refused:?}");
        };
    }
}
