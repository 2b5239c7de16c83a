//! Promises of the request parser and its edits.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ALL: [Endpoint; 4] = [
    Endpoint::ChatCompletions,
    Endpoint::Responses,
    Endpoint::Completions,
    Endpoint::Embeddings,
];

fn parse(endpoint: Endpoint, body: impl AsRef<str>) -> Result<Call, CallError> {
    Call::parse(endpoint, Bytes::copy_from_slice(body.as_ref().as_bytes()))
}

fn chat(body: impl AsRef<str>) -> Call {
    parse(Endpoint::ChatCompletions, body).expect("a call")
}

fn responses(body: impl AsRef<str>) -> Call {
    parse(Endpoint::Responses, body).expect("a call")
}

/// A request with one more parameter.
fn with(parameter: &str) -> String {
    format!("{{\"model\":\"m\",{parameter}}}")
}

fn tokens(count: u64) -> Option<Tokens> {
    Some(Tokens::saturating(count))
}

#[test]
fn a_plain_call_is_read() {
    let call = chat(
        r#"{"model":"gpt-5","messages":[{"role":"user","content":"Hello"}],"stream":true,"n":3,
        "stream_options":{"include_usage":true},"max_completion_tokens":50,"prompt_cache_key":"k","service_tier":"auto"}"#,
    );
    assert_eq!(
        (call.model.as_str(), call.stream, call.include_usage),
        ("gpt-5", true, true)
    );
    assert_eq!(
        (call.output_limit, call.choices, call.tier),
        (tokens(50), 3, Tier::Standard)
    );
    assert_eq!(
        call.input,
        InputShape {
            text_bytes: 5,
            messages: 1,
            ..InputShape::default()
        }
    );
    assert!(!call.reads_more_than_the_body());
}

#[test]
fn null_means_absent() {
    let nulls = [
        "stream",
        "n",
        "best_of",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "tools",
        "prompt",
    ]
    .iter()
    .chain(&[
        "background",
        "conversation",
        "previous_response_id",
        "service_tier",
        "stream_options",
        "reasoning",
    ])
    .map(|name| format!(",\"{name}\":null"))
    .collect::<String>();
    for endpoint in ALL {
        let call = parse(endpoint, format!("{{\"model\":\"m\"{nulls}}}")).expect("a call");
        assert_eq!((call.stream, call.output_limit, call.choices), (false, None, 1));
        assert_eq!(call.input, InputShape::default());
    }
}

#[test]
fn debug_shows_no_prompt() {
    let call = chat(with(r#""messages":[{"role":"user","content":"secret words"}]"#));
    assert!(!format!("{call:?}").contains("secret"));
}

#[test]
fn what_is_no_request_is_refused() {
    for (body, param, code) in [
        ("", None, "invalid_json"),
        ("{", None, "invalid_json"),
        ("[1]", None, "invalid_json"),
        ("\"model\"", None, "invalid_json"),
        ("{\"model\":\"m\"} x", None, "invalid_json"),
        ("{\"model\":\"m\",}", None, "invalid_json"),
        ("{\"model\":\"m\",\"x\":[1,}", None, "invalid_json"),
        ("{}", Some("model"), "missing_required_parameter"),
        ("{\"model\":null}", Some("model"), "missing_required_parameter"),
        ("{\"model\":\"\"}", Some("model"), "invalid_value"),
        ("{\"model\":\"a\\nb\"}", Some("model"), "invalid_value"),
        ("{\"model\":5}", Some("model"), "invalid_type"),
        ("{\"model\":[\"m\"]}", Some("model"), "invalid_type"),
    ] {
        let error = parse(Endpoint::Responses, body).expect_err(body);
        assert_eq!((error.param(), error.code().name()), (param, code), "{body}");
    }
    let not_utf8 = Call::parse(Endpoint::Responses, Bytes::from_static(b"{\"model\":\"\xff\"}"));
    assert_eq!(not_utf8.expect_err("not UTF-8").code().name(), "invalid_json");
}

#[test]
fn a_field_that_decides_cost_is_refused_with_another_type() {
    for (parameter, name) in [
        (r#""max_tokens":"5""#, "max_tokens"),
        (r#""max_tokens":1e3"#, "max_tokens"),
        (r#""max_tokens":0"#, "max_tokens"),
        (r#""max_completion_tokens":-1"#, "max_completion_tokens"),
        (r#""max_output_tokens":5.0"#, "max_output_tokens"),
        (r#""n":1.5"#, "n"),
        (r#""n":0"#, "n"),
        (r#""n":129"#, "n"),
        (r#""best_of":[1]"#, "best_of"),
        (r#""stream":"true""#, "stream"),
        (r#""stream":1"#, "stream"),
        (r#""stream_options":true"#, "stream_options"),
        (
            r#""stream_options":{"include_usage":1}"#,
            "stream_options.include_usage",
        ),
        (
            r#""stream_options":{"include_usage":false,"include_usage":true}"#,
            "stream_options.include_usage",
        ),
        (
            r#""stream_options":{"Include_Usage":true}"#,
            "stream_options.include_usage",
        ),
        (r#""service_tier":"Priority""#, "service_tier"),
        (r#""service_tier":"batch""#, "service_tier"),
        (r#""service_tier":1"#, "service_tier"),
        (r#""tools":{}"#, "tools"),
        (r#""messages":"hi""#, "messages"),
        (r#""input":{"a":1}"#, "input"),
        (r#""instructions":1"#, "instructions"),
        (r#""background":"true""#, "background"),
        (r#""previous_response_id":1"#, "previous_response_id"),
        (r#""max_tool_calls":"1""#, "max_tool_calls"),
        (r#""prediction":"x""#, "prediction"),
        (r#""reasoning":"high""#, "reasoning"),
    ] {
        for endpoint in ALL {
            let error = parse(endpoint, with(parameter)).expect_err(parameter);
            assert_eq!(error.param(), Some(name), "{parameter}");
        }
    }
}

#[test]
fn a_field_that_decides_cost_is_refused_twice_or_in_another_case() {
    for name in [
        "model",
        "n",
        "max_tokens",
        "stream",
        "service_tier",
        "tools",
        "input",
        "messages",
        "prompt",
    ] {
        for again in [
            name.to_owned(),
            name.to_uppercase(),
            format!(
                "{}\\u{:04x}",
                &name[..name.len() - 1],
                u32::from(name.chars().last().expect("a letter"),)
            ),
        ] {
            let body = format!("{{\"model\":\"m\",\"{name}\":null,\"{again}\":null}}");
            let error = parse(Endpoint::ChatCompletions, &body).expect_err(&body);
            assert!(
                matches!(error.code(), Code::DuplicateParameter | Code::UnknownParameter),
                "{body}: {error:?}"
            );
            assert!(
                error.param().is_some_and(|param| param == name || param == "model"),
                "{body}"
            );
        }
    }
    for name in ["Model", "MAX_TOKENS", "\u{17f}tream", "max_to\u{212a}ens", "Stream"] {
        let error = parse(Endpoint::ChatCompletions, with(&format!("\"{name}\":null"))).expect_err(name);
        assert_eq!(error.code(), Code::UnknownParameter, "{name}");
    }
}

#[test]
fn escapes_in_names_count_as_the_name() {
    let call = parse(Endpoint::Responses, r#"{"mod\u0065l":"g\u0070t","\u0073tream":true}"#).expect("a call");
    assert_eq!((call.model.as_str(), call.stream), ("gpt", true));
}

#[test]
fn the_limit_is_the_largest_that_an_upstream_might_obey() {
    let both = with(r#""max_tokens":7,"max_completion_tokens":9"#);
    assert_eq!(chat(&both).output_limit, tokens(9));
    assert_eq!(
        parse(Endpoint::Completions, &both).expect("a call").output_limit,
        tokens(7)
    );
    assert_eq!(responses(&both).output_limit, None);
    assert_eq!(responses(with(r#""max_output_tokens":5"#)).output_limit, tokens(5));
    let huge = with(r#""max_tokens":123456789012345678901234567890"#);
    assert_eq!(chat(huge).output_limit, Some(Tokens::MAX));
}

#[test]
fn every_answer_that_is_paid_for_is_a_choice() {
    for (parameters, choices) in [
        (r#""n":2,"best_of":5,"prompt":"a""#, 5),
        (r#""n":2,"prompt":["a","b","c"]"#, 6),
        (r#""prompt":[1,2,3]"#, 1),
        (r#""prompt":[[1,2],[3]]"#, 2),
        (r#""prompt":[]"#, 1),
        (r#""best_of":128,"prompt":["a","b"]"#, 256),
    ] {
        let call = parse(Endpoint::Completions, with(parameters)).expect("a call");
        assert_eq!(call.choices, choices, "{parameters}");
    }
    assert_eq!(responses(with(r#""n":5,"input":"a""#)).choices, 1);
}

#[test]
fn tiers_are_known_ones() {
    for (name, tier) in [
        ("auto", Tier::Standard),
        ("default", Tier::Standard),
        ("scale", Tier::Standard),
    ] {
        assert_eq!(responses(with(&format!("\"service_tier\":\"{name}\""))).tier, tier);
    }
    for (name, tier) in [
        ("priority", Tier::Priority),
        ("fast", Tier::Priority),
        ("flex", Tier::Flex),
    ] {
        assert_eq!(responses(with(&format!("\"service_tier\":\"{name}\""))).tier, tier);
    }
}

#[test]
fn state_of_the_upstream_is_refused_by_name() {
    for (parameter, name) in [
        (r#""prompt":{"id":"pmpt_1"}"#, "prompt"),
        (r#""models":["dear"]"#, "models"),
        (r#""n_predict":5"#, "n_predict"),
        (
            r#""input":[{"type":"code_interpreter_call","container_id":"cntr_1"}]"#,
            "input[0].container_id",
        ),
        (
            r#""tools":[{"type":"code_interpreter","container":"cntr_1"}]"#,
            "tools[0].container",
        ),
        (
            r#""tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["f"]}}]"#,
            "tools[0].container.file_ids[0]",
        ),
        (
            r#""tools":[{"type":"shell","environment":{"type":"container_reference","container_id":"c"}}]"#,
            "tools[0].environment.container_id",
        ),
        (
            r#""tools":[{"type":"file_search","vector_store_ids":["vs_1"]}]"#,
            "tools[0].vector_store_ids[0]",
        ),
        (
            r#""tools":[{"type":"image_generation","input_image_mask":{"file_id":"f"}}]"#,
            "tools[0].input_image_mask.file_id",
        ),
        (
            r#""tools":[{"type":"namespace","tools":[{"type":"code_interpreter","container":"c"}]}]"#,
            "tools[0].tools[0].container",
        ),
        (
            r#""input":[{"type":"additional_tools","tools":[{"type":"code_interpreter","container":"c"}]}]"#,
            "input[0].tools[0].container",
        ),
    ] {
        let error = parse(Endpoint::Responses, with(parameter)).expect_err(parameter);
        assert_eq!(
            (error.param(), error.code().name()),
            (Some(name), "unsupported_parameter"),
            "{parameter}"
        );
    }
}

#[test]
fn a_conversation_and_files_are_leaned_on_and_read_whole() {
    let file = |id: &str| vec![Reference::File(id.to_owned())];
    let conversation = || vec![Reference::Conversation("conv_1".to_owned())];
    for (parameter, refers_to) in [
        (r#""conversation":"conv_1""#, conversation()),
        (r#""conversation":{"id":"conv_1"}"#, conversation()),
        (
            r#""input":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]}]"#,
            file("file-1"),
        ),
        (
            r#""input":[{"type":"message"},{"content":[{"file_id":"f","type":"input_image"}]}]"#,
            file("f"),
        ),
        (
            r#""input":[{"type":"function_call_output","output":[{"file_id":"f"}]}]"#,
            file("f"),
        ),
        (
            r#""messages":[{"content":[{"type":"file","file":{"file_id":"f"}}]}]"#,
            file("f"),
        ),
    ] {
        let call = parse(Endpoint::Responses, with(parameter)).expect(parameter);
        assert_eq!(call.refers_to, refers_to, "{parameter}");
        assert!(call.reads_more_than_the_body(), "{parameter}");
    }
    for parameter in [
        r#""conversation":{"id":"a","ID":"b"}"#,
        r#""conversation":{}"#,
        r#""conversation":7"#,
        r#""conversation":{"id":7}"#,
    ] {
        let error = parse(Endpoint::Responses, with(parameter)).expect_err(parameter);
        assert_eq!(error.param(), Some("conversation"), "{parameter}");
    }
}

#[test]
fn what_the_items_of_a_conversation_lean_on_is_found_by_any_name() {
    let found = |document: &str| Call::references(document.as_bytes());
    let items =
        r#"[{"type":"item_reference","id":"msg_1"},{"role":"user","content":[{"type":"input_file","file_id":"f"}]}]"#;
    let expected = vec![Reference::Item("msg_1".into()), Reference::File("f".into())];
    for name in ["items", "Items"] {
        assert_eq!(
            found(&format!("{{\"{name}\":{items}}}")),
            Ok(expected.clone()),
            "{name}"
        );
    }
    assert_eq!(found(r#"{"metadata":{"file_id":"f"}}"#), Ok(Vec::new()));
    assert_eq!(found("{}"), Ok(Vec::new()));
    assert!(found("[]").is_err() && found("{").is_err());
}

#[test]
fn only_a_response_is_made_in_the_background() {
    for endpoint in ALL {
        let parsed = parse(endpoint, with(r#""background":true"#));
        match endpoint {
            Endpoint::Responses => assert!(parsed.expect("a call").background),
            _ => assert_eq!(parsed.expect_err("another endpoint").param(), Some("background")),
        }
        assert!(
            !parse(endpoint, with(r#""background":false"#))
                .expect("a call")
                .background
        );
    }
}

#[test]
fn what_only_looks_like_state_passes() {
    for parameter in [
        r#""background":false"#,
        r#""tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":[],"memory_limit":"1g"}}]"#,
        r#""tools":[{"type":"function","name":"f","parameters":{"properties":{"file_id":{"type":"string"},"container":"x"}}}]"#,
        r#""input":[{"type":"tool_search_call","arguments":{"file_id":"x"}}]"#,
        r#""input":[{"content":[{"type":"output_text","text":"a","annotations":[{"container_id":"c","file_id":"f"}]}]}]"#,
        r#""input":[{"content":[{"type":"input_file","file_id":null,"file_data":"data:x"}]}]"#,
        r#""metadata":{"file_id":"x"}"#,
    ] {
        parse(Endpoint::Responses, with(parameter)).expect(parameter);
    }
}

#[test]
fn a_document_that_is_no_call_names_one_model_or_none() {
    let named = |document: &str| Call::named_model(document.as_bytes());
    assert_eq!(named(r#"{"input":"Hi"}"#), Ok(None));
    assert_eq!(named(r#"{"input":"Hi","model":"a"}"#), Ok(Some("a".to_owned())));
    for wrong in [
        r#"{"model":"a","model":"b"}"#,
        r#"{"Model":"a"}"#,
        r#"{"model":7}"#,
        r#"{"model":null}"#,
        r#"{"model":""}"#,
        r#"{"model":"a""#,
        "[]",
        "",
    ] {
        named(wrong).expect_err(wrong);
    }
}

#[test]
fn earlier_answers_are_noted() {
    let call = responses(with(
        r#""previous_response_id":"resp_1","input":[{"id":"msg_1","type":"item_reference"},{"id":"msg_2"},
           {"type":null,"id":"msg_3"},{"id":"msg_4","role":"user","content":"x"},{"type":"compaction_trigger"},
           {"type":"message","id":"msg_5","status":"completed"},{"id":"ig_1","type":"image_generation_call","size":"auto"},
           {"type":"image_generation_call","result":null,"id":"ig_2"},
           {"type":"image_generation_call","id":"ig_3","result":"iVBOR"}]"#,
    ));
    let items = ["msg_1", "msg_2", "msg_3", "msg_5", "ig_1", "ig_2"].map(|id| Reference::Item(id.to_owned()));
    let expected: Vec<Reference> = items
        .into_iter()
        .chain([Reference::Response("resp_1".to_owned())])
        .collect();
    assert_eq!(call.refers_to, expected);
    assert!(!call.reads_more_than_the_body());
}

#[test]
fn hosted_tools_are_found_wherever_they_are_declared() {
    let hosted = |tool: &str| responses(with(&format!("\"tools\":[{tool}]"))).tools;
    let none = HostedTools::default;
    for (tool, expected) in [
        (r#"{"type":"function","name":"web_search"}"#, none()),
        (r#"{"type":"custom","name":"x"}"#, none()),
        (
            r#"{"type":"web_search"}"#,
            HostedTools {
                web_search: true,
                ..none()
            },
        ),
        (
            r#"{"type":"web_search_2025_08_26"}"#,
            HostedTools {
                web_search: true,
                ..none()
            },
        ),
        (
            r#"{"type":"web_search_preview_2025_03_11"}"#,
            HostedTools {
                web_search: true,
                web_search_preview: true,
                ..none()
            },
        ),
        (
            r#"{"type":"function","type":"web_search"}"#,
            HostedTools {
                web_search: true,
                ..none()
            },
        ),
        (
            r#"{"type":"file_search"}"#,
            HostedTools {
                file_search: true,
                ..none()
            },
        ),
        (
            r#"{"type":"code_interpreter","container":{"type":"auto"}}"#,
            HostedTools {
                container: true,
                ..none()
            },
        ),
        (
            r#"{"type":"shell"}"#,
            HostedTools {
                container: true,
                ..none()
            },
        ),
        (
            r#"{"environment":{"type":"container_auto"},"type":"shell"}"#,
            HostedTools {
                container: true,
                ..none()
            },
        ),
        (r#"{"type":"shell","environment":{"type":"local"}}"#, none()),
        (
            r#"{"type":"shell","environment":{"type":"local","type":"container_auto"}}"#,
            HostedTools {
                container: true,
                ..none()
            },
        ),
        (
            r#"{"type":"mcp","server_url":"http://x"}"#,
            HostedTools { mcp: true, ..none() },
        ),
        (
            r#"{"type":"image_generation"}"#,
            HostedTools {
                image_generation: Some("gpt-image-2".into()),
                ..none()
            },
        ),
        (
            r#"{"model":"gpt-image-1","type":"image_generation"}"#,
            HostedTools {
                image_generation: Some("gpt-image-1".into()),
                ..none()
            },
        ),
        (
            r#"{"type":"namespace","tools":[{"type":"function"},{"type":"web_search"}]}"#,
            HostedTools {
                web_search: true,
                ..none()
            },
        ),
    ] {
        assert_eq!(hosted(tool), expected, "{tool}");
        let item = with(&format!(
            "\"input\":[{{\"type\":\"additional_tools\",\"tools\":[{tool}]}}]"
        ));
        assert_eq!(responses(item).tools, expected, "{tool}");
    }
    let two = r#"{"type":"image_generation","model":"a"},{"type":"image_generation"}"#;
    assert!(parse(Endpoint::Responses, with(&format!("\"tools\":[{two}]"))).is_err());
    for (parameter, searches) in [
        (r#""web_search_options":{}"#, true),
        (r#""search_parameters":{}"#, true),
        (r#""search_parameters":{"mode":"auto"}"#, true),
        (r#""search_parameters":{"mode":"off"}"#, false),
        (r#""search_parameters":{"mode":"off","mode":"on"}"#, true),
        (r#""search_parameters":null"#, false),
        (r#""enable_search":true"#, true),
        (r#""enable_search":false"#, false),
        (
            r#""tools":[{"type":"builtin_function","function":{"name":"$web_search"}}]"#,
            true,
        ),
    ] {
        assert_eq!(chat(with(parameter)).tools.web_search, searches, "{parameter}");
    }
    for odd in [
        r#""enable_search":"yes""#,
        r#""Enable_Search":true"#,
        r#""search_parameters":1"#,
    ] {
        assert!(parse(Endpoint::ChatCompletions, with(odd)).is_err(), "{odd}");
    }
    assert!(chat(r#"{"model":"gpt-4o-search-preview"}"#).tools.web_search);
    assert_eq!(responses(with(r#""max_tool_calls":3"#)).tools.max_calls, Some(3));
}

#[test]
fn what_the_model_reads_is_summed_by_kind() {
    let call = responses(with(
        r#""instructions":"abc","input":[
            {"type":"message","role":"user","id":"msg_1","content":[
                {"type":"input_text","text":"d\u00e9\n"},
                {"type":"input_image","image_url":"data:image/png;base64,AAAA","detail":"high"},
                {"type":"input_file","filename":"x.pdf","file_data":"data:abcd"},
                {"type":"input_audio","input_audio":{"data":"123","format":"wav"}}]},
            {"type":"reasoning","encrypted_content":"zzzzz","summary":[{"text":"s"}]},
            {"type":"function_call_output","call_id":"c1","output":"out"},
            {"type":"image_generation_call","result":"iVBOR"},
            {"result":"text","type":"mcp_call"}],
          "tools":[{"type":"function"}],"text":{"verbosity":"low","format":{"type":"json_schema","schema":{}}},
          "metadata":{"a":"not read"},"client_metadata":{"b":"not read"},"vendor":{"c":"read?"}"#,
    ));
    let tool_bytes = r#"[{"type":"function"}]"#.len() + r#"{"type":"json_schema","schema":{}}"#.len();
    let text = "abc".len() + "dé\n".len() + "x.pdf".len() + "s".len() + "c1out".len() + "text".len() + "read?".len();
    let expected = InputShape {
        text_bytes: u64::try_from(text + tool_bytes).expect("small"),
        tool_bytes: u64::try_from(tool_bytes).expect("small"),
        messages: 6,
        images: 2,
        blob_bytes: 9 + 3 + 3 + 5,
        tools: true,
        ..InputShape::default()
    };
    assert_eq!(call.input, expected);
}

#[test]
fn what_is_encrypted_for_an_account_is_noted_wherever_it_lies() {
    for (body, expected) in [
        (
            r#""input":[{"type":"reasoning","encrypted_content":"gAAAA","summary":[]}]"#,
            true,
        ),
        (r#""input":[{"type":"compaction","encrypted_content":"gAAAA"}]"#, true),
        (
            r#""input":[{"type":"reasoning","encrypted_content":null,"summary":[]}]"#,
            false,
        ),
        (
            r#""input":[{"type":"reasoning","encrypted_content":"","summary":[]}]"#,
            false,
        ),
        (
            r#""input":"encrypted_content","include":["reasoning.encrypted_content"]"#,
            false,
        ),
    ] {
        assert_eq!(responses(with(body)).encrypted.is_empty(), !expected, "{body}");
    }
}

#[test]
fn chat_parts_are_summed_by_kind() {
    let call = chat(with(
        r#""messages":[{"role":"user","content":[{"type":"text","text":"ab"},
             {"type":"image_url","image_url":{"url":"https://x/y.png","detail":"low"}},
             {"type":"file","file":{"filename":"f","file_data":"data:12"}}]},
           {"role":"assistant","tool_calls":[{"id":"call_1","type":"function","function":{"name":"g","arguments":"{}"}}]},
           {"role":"tool","tool_call_id":"call_1","content":"ok"}],
           "prediction":{"type":"content","content":"pred"},"response_format":{"type":"json_object"}"#,
    ));
    let expected = InputShape {
        text_bytes: 2 + 1 + 1 + 2 + 6 + 2 + 4,
        prediction_bytes: 4,
        messages: 3,
        images: 1,
        blob_bytes: 7,
        ..InputShape::default()
    };
    assert_eq!(call.input, expected);
}

#[test]
fn input_of_unknown_size_is_told() {
    for parameter in [
        r#""input":[{"content":[{"type":"input_file","file_url":"https://x"}]}]"#,
        r#""input":[{"content":[{"type":"video_url","video_url":{"url":"x"}}]}]"#,
        r#""messages":[{"role":"assistant","audio":{"id":"audio_1"}}]"#,
        r#""reasoning":{"mode":"pro"}"#,
        r#""reasoning":{"mode":"standard","mode":"pro"}"#,
    ] {
        assert!(responses(with(parameter)).reads_more_than_the_body(), "{parameter}");
    }
    for parameter in [
        r#""input":[{"content":[{"file_url":null}]}]"#,
        r#""messages":[{"audio":null}]"#,
        r#""reasoning":{"effort":"high"}"#,
    ] {
        assert!(!responses(with(parameter)).reads_more_than_the_body(), "{parameter}");
    }
}

#[test]
fn tokens_given_by_number_are_counted_as_such() {
    for (input, token_ids, text_bytes) in [
        ("\"abc\"", 0, 3),
        (r#"["ab","c"]"#, 0, 3),
        ("[1,2,3]", 3, 0),
        ("[[1,2],[3],[4]]", 4, 0),
    ] {
        let call = parse(Endpoint::Embeddings, with(&format!("\"input\":{input}"))).expect("a call");
        assert_eq!(
            (call.input.token_ids, call.input.text_bytes),
            (token_ids, text_bytes),
            "{input}"
        );
        assert_eq!((call.choices, call.input.messages), (1, 0));
    }
}

#[test]
fn a_long_label_is_text() {
    let call = responses(with(&format!(
        "\"input\":[{{\"role\":\"{}\",\"type\":\"message\"}}]",
        "x".repeat(65)
    )));
    assert_eq!(call.input.text_bytes, 65);
}

#[test]
fn every_counted_text_is_told_decoded() {
    let call = responses(with(
        r#""instructions":"a\nb","input":[{"role":"user","content":"\u00e9"}],"tools":[{"type":"x"}]"#,
    ));
    let mut told = Vec::new();
    call.for_each_text(&mut |text| told.push(text.to_owned()));
    assert_eq!(told, ["a\nb", "é", "[{\"type\":\"x\"}]"]);
}

#[test]
fn hostile_shapes_are_refused_and_cost_little() {
    for open in ["[", "{\"a\":"] {
        let deep = open.repeat(200_000);
        assert_eq!(
            parse(Endpoint::Responses, with(&format!("\"input\":{deep}")))
                .expect_err("deep")
                .code()
                .name(),
            "invalid_json"
        );
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let error = parse(Endpoint::Responses, with(&format!("\"input\":{deep}"))).expect_err("deep");
    assert_eq!(error.param(), Some("input"));
    let CallError::Param { problem, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(problem, Problem::TooDeep);
    let nested = format!("{}{}", "[{\"tools\":".repeat(200), "[]".to_owned() + &"}]".repeat(200));
    assert!(parse(Endpoint::Responses, with(&format!("\"tools\":{nested}"))).is_err());
    let many = (0..1000).map(|n| format!("\"p{n}\":1")).collect::<Vec<_>>().join(",");
    assert_eq!(
        parse(Endpoint::Responses, with(&many)).expect_err("many").code().name(),
        "invalid_value"
    );
    let half = with(r#""input":[{"role":"user","content":"\ud83d"}]"#);
    assert_eq!(
        parse(Endpoint::Responses, half).expect_err("half").param(),
        Some("input")
    );
}

#[test]
fn without_edits_the_very_same_bytes_go_on() {
    let body = Bytes::from_static(b"{\"model\":\"m\",\"stream\":true,\"max_tokens\":5}");
    let call = Call::parse(Endpoint::ChatCompletions, body.clone()).expect("a call");
    for edits in [
        Edits::default(),
        Edits {
            model: Some("m".to_owned()),
            output_limit: tokens(9),
            ..Edits::default()
        },
    ] {
        assert_eq!(call.upstream_body(&edits).as_ptr(), body.as_ptr());
    }
}

#[test]
fn edits_are_spliced_into_the_clients_bytes() {
    let edits = Edits {
        model: Some("n\"x".to_owned()),
        output_limit: tokens(9),
        include_usage: true,
        ..Edits::default()
    };
    for (endpoint, body, expected) in [
        (
            Endpoint::ChatCompletions,
            " {\"model\" : \"m\", \"stream\":true } \n",
            " {\"model\" : \"n\\\"x\", \"stream\":true ,\"stream_options\":{\"include_usage\":true},\"max_completion_tokens\":9} \n",
        ),
        (
            Endpoint::Completions,
            r#"{"stream":true,"stream_options":null,"max_tokens":null,"model":"m"}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true},"max_tokens":9,"model":"n\"x"}"#,
        ),
        (
            Endpoint::ChatCompletions,
            r#"{"model":"m","stream":true,"stream_options":{ },"max_tokens":10,"max_completion_tokens":8}"#,
            r#"{"model":"n\"x","stream":true,"stream_options":{"include_usage":true },"max_tokens":9,"max_completion_tokens":8}"#,
        ),
        (
            Endpoint::ChatCompletions,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":false},"max_tokens":8}"#,
            r#"{"model":"n\"x","stream":true,"stream_options":{"include_usage":true},"max_tokens":8}"#,
        ),
        (
            Endpoint::ChatCompletions,
            r#"{"model":"m","stream":true,"stream_options":{"include_obfuscation":false},"max_tokens":8}"#,
            r#"{"model":"n\"x","stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false},"max_tokens":8}"#,
        ),
        (
            Endpoint::Responses,
            r#"{"model":"m","stream":true}"#,
            r#"{"model":"n\"x","stream":true,"max_output_tokens":9}"#,
        ),
        (Endpoint::Embeddings, r#"{"model":"m"}"#, r#"{"model":"n\"x"}"#),
    ] {
        let call = parse(endpoint, body).expect(body);
        assert_eq!(call.upstream_body(&edits), expected, "{body}");
    }
    let other_name = Edits {
        output_limit: tokens(9),
        chat_limit_field: ChatLimitField::MaxTokens,
        ..Edits::default()
    };
    assert_eq!(
        chat(r#"{"model":"m"}"#).upstream_body(&other_name),
        r#"{"model":"m","max_tokens":9}"#
    );
}

#[test]
fn recorded_requests_of_codex_are_calls() {
    let fixtures = std::env::var_os("GATEWAY_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures"),
        PathBuf::from,
    );
    let Ok(files) = std::fs::read_dir(fixtures.join("codex")) else {
        println!("fixtures absent");
        return;
    };
    let mut replayed = 0;
    for path in files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
    {
        let text = std::fs::read_to_string(&path).expect("a text");
        let exchange: Value = serde_json::from_str(&text).expect("JSON");
        let body = &exchange["request"]["body"];
        if exchange["request"]["path"] != "/v1/responses" || !body.is_object() {
            continue;
        }
        let call = responses(body.to_string());
        assert_eq!(
            (Some(call.model.as_str()), call.stream),
            (body["model"].as_str(), true),
            "{}",
            path.display()
        );
        assert!(call.input.text_bytes > 0 && call.input.messages > 0);
        assert!(call.refers_to.is_empty() && !call.input.unbounded);
        let declares_search = body.to_string().contains("{\"external_web_access\"");
        assert_eq!(
            call.tools,
            HostedTools {
                web_search: declares_search,
                ..HostedTools::default()
            },
            "{}",
            path.display()
        );
        replayed += 1;
    }
    println!("replayed {replayed} codex requests");
    assert!(replayed > 0);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z\"\\\\é😀\n]{0,8}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        "[a-z]{1,4}",
        prop::sample::select(vec![
            "type",
            "id",
            "tools",
            "content",
            "file_id",
            "image_url",
            "result",
            "output",
            "text"
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Parameters that edits touch, and others around them, in any order.
fn any_request() -> impl Strategy<Value = Vec<(String, Value)>> {
    let limits = prop_oneof![Just(Value::Null), (1..2000_u32).prop_map(Value::from)];
    let options = prop_oneof![
        Just(Value::Null),
        Just(json!({})),
        Just(json!({"include_usage": false})),
        Just(json!({"include_usage": true, "x": 1})),
        Just(json!({"include_obfuscation": false})),
    ];
    let parameters = (
        prop::option::of(limits.clone()),
        prop::option::of(limits),
        prop::option::of(options),
        prop::option::of(any::<bool>()),
        prop::option::of(any_json()),
        prop::option::of(prop::collection::vec(any_json(), 0..3)),
    );
    let named = parameters.prop_map(|(completion, tokens, options, stream, other, messages)| {
        [
            Some(("model", json!("m"))),
            completion.map(|value| ("max_completion_tokens", value)),
            tokens.map(|value| ("max_tokens", value)),
            options.map(|value| ("stream_options", value)),
            stream.map(|value| ("stream", json!(value))),
            other.map(|value| ("other", value)),
            messages.map(|value| ("messages", json!(value))),
        ]
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.to_owned(), value))
        .collect::<Vec<_>>()
    });
    named.prop_shuffle()
}

fn as_text(parameters: &[(String, Value)], space: &str) -> String {
    let members: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{space}\"{name}\"{space}:{space}{value}{space}"))
        .collect();
    format!("{space}{{{}}}{space}", members.join(","))
}

/// What the edits should make of a chat request, worked out on the parsed JSON.
fn edited(mut request: Value, limit: u32) -> Value {
    request["model"] = json!("other");
    let stated = ["max_tokens", "max_completion_tokens"].map(|name| request[name].as_u64());
    if stated == [None, None] {
        request["max_completion_tokens"] = json!(limit);
    }
    for name in ["max_tokens", "max_completion_tokens"] {
        if request[name].as_u64().is_some_and(|value| value > u64::from(limit)) {
            request[name] = json!(limit);
        }
    }
    if request["stream"] == true {
        if !request["stream_options"].is_object() {
            request["stream_options"] = json!({});
        }
        request["stream_options"]["include_usage"] = json!(true);
    }
    without_indexing_nulls(request)
}

/// Indexing a `Value` mutably leaves no trace, but a limit stated as `null` equals one that is absent.
fn without_indexing_nulls(mut request: Value) -> Value {
    let members = request.as_object_mut().expect("an object");
    for name in ["max_tokens", "max_completion_tokens", "stream_options"] {
        if members.get(name) == Some(&Value::Null) {
            members.remove(name);
        }
    }
    request
}

proptest! {
    #[test]
    fn an_edited_body_differs_in_the_edited_fields_only(
        parameters in any_request(), limit in 1..2000_u32, space in "[ \n\t]{0,2}",
    ) {
        let body = as_text(&parameters, &space);
        let Ok(call) = parse(Endpoint::ChatCompletions, &body) else { return Ok(()) };
        let edits = Edits {
            model: Some("other".to_owned()),
            output_limit: tokens(u64::from(limit)),
            include_usage: true,
            chat_limit_field: ChatLimitField::MaxCompletionTokens,
        };
        let sent = call.upstream_body(&edits);
        let sent_json: Value = serde_json::from_slice(&sent).expect("valid JSON");
        let expected = edited(serde_json::from_str(&body).expect("JSON"), limit);
        prop_assert_eq!(without_indexing_nulls(sent_json), expected);
        let again = Call::parse(Endpoint::ChatCompletions, sent).expect("a call");
        prop_assert_eq!(again.input, call.input);
    }

    #[test]
    fn bytes_outside_of_a_splice_stay(parameters in any_request(), space in "[ \n\t]{0,2}") {
        let body = as_text(&parameters, &space);
        let Ok(call) = parse(Endpoint::ChatCompletions, &body) else { return Ok(()) };
        let edits = Edits { model: Some("a longer name".to_owned()), ..Edits::default() };
        let sent = call.upstream_body(&edits);
        let place = call.places.model.clone();
        prop_assert_eq!(&body[place.clone()], "\"m\"");
        prop_assert_eq!(&sent[..place.start], &body.as_bytes()[..place.start]);
        prop_assert!(sent.ends_with(&body.as_bytes()[place.end..]));
        prop_assert_eq!(sent.len(), body.len() - 3 + "\"a longer name\"".len());
    }

    #[test]
    fn what_is_told_is_what_was_counted(items in prop::collection::vec(any_json(), 0..5), tools in any_json()) {
        let body = json!({"model": "m", "input": items, "tools": [tools], "instructions": "i"}).to_string();
        for endpoint in ALL {
            let Ok(call) = parse(endpoint, &body) else { continue };
            let mut told = 0;
            call.for_each_text(&mut |text| told += u64::try_from(text.len()).expect("small"));
            prop_assert_eq!(told, call.input.text_bytes);
        }
    }

    #[test]
    fn no_body_makes_the_parser_panic(text in ".{0,60}", at in 0_usize..200, parameters in any_request()) {
        let mut body = as_text(&parameters, "");
        let at = at.min(body.len());
        if body.is_char_boundary(at) {
            body.insert_str(at, &text);
        }
        for endpoint in ALL {
            for body in [&text, &body] {
                if let Ok(call) = parse(endpoint, body) {
                    prop_assert!(!call.model.is_empty());
                }
            }
        }
    }
}
