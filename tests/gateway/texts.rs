//! Refusals and explanations speak the reader's language: the client's `Accept-Language`, the terminal's locale.

use clap::CommandFactory;
use codex_gateway::cli::Cli;
use codex_gateway::code::Code;
use codex_gateway::simulator::{Script, Step, always};
use http::StatusCode;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::{Home, Ran};
use crate::client::{Answer, Client, chat, drain, events, response};
use crate::harness::Harness;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

fn is_chinese(text: &str) -> bool {
    text.contains(|c: char| ('\u{4e00}'..='\u{9fff}').contains(&c))
}

/// Asks in a language; `None` sends no `Accept-Language`.
async fn ask(client: &Client, method: Method, path: &str, language: Option<&str>, body: &Value) -> Answer {
    let request = client.request(method, path).body(body.to_string());
    let request = match language {
        Some(language) => request.header("accept-language", language),
        None => request,
    };
    Answer::of(request.send().await.expect("the gateway answers")).await
}

/// The error of an answer, told in the language that its head names.
fn told(answer: &Answer, language: &str) -> Value {
    let error = answer.json()["error"].clone();
    assert_eq!(answer.header("content-language"), language, "{error}");
    let message = error["message"].as_str().expect("a message");
    assert_eq!(is_chinese(message), language == "zh", "{message}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_own_language_comes_before_what_the_client_likes() {
    let harness = Harness::start().await;
    let body = json!({"model": "claude-9", "messages": []});
    let shown = harness.operate("user set alice --language zh");
    assert_eq!(shown["language"], "zh");
    // A running server knows within a second.
    let mut tries = 0;
    loop {
        let answer = ask(&harness.client, Method::POST, CHAT, Some("en"), &body).await;
        if answer.header("content-language") == "zh" {
            told(&answer, "zh");
            break;
        }
        tries += 1;
        assert!(tries < 50, "it does not know");
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
    }
    assert_eq!(
        harness.operate("user set alice --language auto")["language"],
        Value::Null
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_in_the_language_that_the_client_likes_best() {
    let harness = Harness::start().await;
    let body = json!({"model": "claude-9", "messages": []});
    for (accepted, language) in [
        (None, "en"),
        (Some("zh-CN,zh;q=0.9,en;q=0.8"), "zh"),
        (Some("en-US,en;q=0.9,zh;q=0.8"), "en"),
        (Some("en;q=0.2, zh;q=0.3"), "zh"),
        (Some("fr, de;q=0.5"), "en"),
        (Some("zh;q=0"), "en"),
        (Some("q=,;;=zh,,"), "en"),
    ] {
        let error = told(
            &ask(&harness.client, Method::POST, CHAT, accepted, &body).await,
            language,
        );
        assert_eq!(error["code"], "model_not_found", "{accepted:?}");
        let message = error["message"].as_str().expect("a message");
        assert!(
            message.contains("gateway price set claude-9 --list openai --input USD"),
            "{message}"
        );
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_route_tells_its_refusals_in_chinese() {
    let harness = Harness::start().await;
    let stranger = Client {
        key: "sk-gw-x".into(),
        ..harness.client.clone()
    };
    let zh = Some("zh");
    for (client, method, path, code) in [
        (&stranger, Method::POST, CHAT, "invalid_api_key"),
        (&stranger, Method::GET, "/v1/models", "invalid_api_key"),
        (&harness.client, Method::GET, "/v1/models/none", "model_not_found"),
        (&harness.client, Method::GET, RESPONSES, "upgrade_required"),
        (&harness.client, Method::GET, CHAT, "method_not_allowed"),
        (
            &harness.client,
            Method::POST,
            "/v1/images/variations",
            "endpoint_not_supported",
        ),
        (&harness.client, Method::GET, "/v1/none", "not_found"),
        (&harness.client, Method::GET, "/v1//models", "malformed_request"),
        (
            &harness.client,
            Method::GET,
            "/v1/gateway/requests/1",
            "request_not_found",
        ),
        (
            &harness.client,
            Method::GET,
            "/v1/gateway/usage?by=hour",
            "invalid_value",
        ),
        (&harness.client, Method::POST, CHAT, "missing_required_parameter"),
    ] {
        let error = told(&ask(client, method, path, zh, &json!({})).await, "zh");
        assert_eq!(error["gateway"]["code"], code, "{path}: {error}");
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_named_the_same_in_every_language_and_codex_reads_ascii() {
    let harness = Harness::builder().balance("0.01").start().await;
    let body = response("Hello", &json!({"max_output_tokens": 100_000}));
    let mut told = [("en", "en"), ("zh", "zh")].map(|(accepted, language)| (accepted, language, Value::Null));
    for (accepted, language, error) in &mut told {
        let answer = ask(&harness.client, Method::POST, RESPONSES, Some(accepted), &body).await;
        *error = self::told(&answer, language);
        let promo = answer.header("x-codex-promo-message");
        assert!(
            promo.is_ascii() && promo.contains("alice") && !promo.ends_with('.'),
            "{promo}"
        );
        assert_eq!(answer.header("x-should-retry"), "false");
    }
    let [(.., english), (.., chinese)] = &told;
    for field in ["code", "limit", "available", "held", "needed", "largest_limit"] {
        assert_eq!(english["gateway"][field], chinese["gateway"][field]);
    }
    for error in [english, chinese] {
        let message = error["message"].as_str().expect("a message");
        let largest = &error["gateway"]["largest_limit"].to_string();
        for word in ["alice", "$0.01", "gateway user credit alice AMOUNT", largest] {
            assert!(message.contains(word), "{message} does not say {word}");
        }
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_ends_in_the_clients_language() {
    let first = json!({"choices": [{"index": 0, "delta": {"content": "Hello"}}]});
    let script = Script::sse(vec![Step::data(&first, 1), Step::Break]);
    let harness = Harness::builder().playwright(always(script)).start().await;
    for (accepted, chinese) in [("en", false), ("zh", true)] {
        let body = chat("Hello", &json!({"stream": true}));
        let request = harness.client.request(Method::POST, CHAT).body(body.to_string());
        let answer = request
            .header("accept-language", accepted)
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let (bytes, _) = drain(answer).await;
        let error = events(&bytes).pop().expect("an end")["error"].clone();
        assert_eq!(error["code"], "server_error", "{error}");
        assert_eq!(error["message"].as_str().map(is_chinese), Some(chinese), "{error}");
    }
    harness.finish().await;
}

#[test]
fn every_code_is_explained_on_the_terminal_in_its_language() {
    let home = Home::with_alice();
    for code in Code::ALL {
        for (locale, language) in [("C", "en"), ("zh_CN.UTF-8", "zh")] {
            let ran = home.run_with(&format!("explain {code} --json"), &[("LC_ALL", locale)], "");
            assert_eq!(ran.code, 0, "{}", ran.err);
            let told: Value = serde_json::from_str(&ran.out).expect("one document");
            assert_eq!(
                (&told["code"], &told["language"]),
                (&json!(code.name()), &json!(language))
            );
            for part in ["means", "why", "client", "operator"] {
                assert_eq!(told[part].as_str().map(is_chinese), Some(language == "zh"), "{told}");
            }
            let shown = home.run_with(&format!("explain {code}"), &[("LANG", locale)], "").out;
            for part in ["means", "why", "client", "operator"] {
                assert!(shown.contains(told[part].as_str().expect("text")), "{shown}");
            }
        }
    }
    let list = home.json("explain");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(Code::ALL.len()));
    assert!(home.ok("explain").contains("insufficient_quota"));
}

#[test]
fn a_code_that_is_not_one_is_not_found_and_the_nearest_is_named() {
    let home = Home::with_alice();
    let error = home.fails("explain insuficient_quota", 5);
    assert!(
        error.contains("insufficient_quota") && error.contains("gateway explain"),
        "{error}"
    );
    let error = home.run_with("explain x", &[("LC_MESSAGES", "zh_CN")], "").err;
    assert!(is_chinese(&error), "{error}");
}

#[test]
fn exit_codes_are_explained_too() {
    let home = Home::with_alice();
    for exit in 1..=8 {
        for (locale, language) in [("C", "en"), ("zh_CN", "zh")] {
            let ran = home.run_with(&format!("explain {exit} --json"), &[("LC_ALL", locale)], "");
            let told: Value = serde_json::from_str(&ran.out).expect("one document");
            assert_eq!((&told["exit"], &told["language"]), (&json!(exit), &json!(language)));
            assert_eq!(told["means"].as_str().map(is_chinese), Some(language == "zh"), "{told}");
        }
    }
    home.fails("explain 9", 5);
}

const CHINESE: (&str, &str) = ("LANG", "zh_CN.UTF-8");

/// A command in English and in Chinese, each on a home of its own; both end alike.
fn both(prepare: &[&str], line: &str, stdin: &str) -> [Ran; 2] {
    let ran = [None, Some(CHINESE)].map(|locale| {
        let home = Home::with_alice();
        for line in prepare {
            home.ok(line);
        }
        home.run_with(line, locale.as_slice(), stdin)
    });
    assert_eq!(ran[0].code, ran[1].code, "{line}: {} / {}", ran[0].err, ran[1].err);
    let told = |ran: &Ran| ran.out.clone() + &ran.err;
    assert!(!is_chinese(&told(&ran[0])), "{line}: {}", told(&ran[0]));
    assert!(is_chinese(&told(&ran[1])), "{line}: {}", told(&ran[1]));
    ran
}

#[test]
fn what_a_command_fails_for_is_told_in_the_language_of_the_terminal() {
    let price = "price import - --list openai --yes";
    for (prepare, line, stdin, code, english, chinese) in [
        (
            &[][..],
            "user credit alice -1",
            "",
            4,
            "a credit is not negative",
            "充值不能是负数",
        ),
        (&[], "user add a@b", "", 2, "holds no @", "用户名不能含有 @"),
        (
            &[],
            "key issue alice --expires 2020-01-01",
            "",
            2,
            "already be expired",
            "一开始就已过期",
        ),
        (
            &[],
            "user add alice",
            "",
            6,
            "already a user 'alice'",
            "已有用户 'alice'",
        ),
        (&[], "key show sk-gw-none", "", 5, "there is no key", "没有密钥"),
        (
            &[],
            "user list --jsn",
            "",
            2,
            "unexpected argument '--jsn'",
            "没有参数 '--jsn'",
        ),
        (
            &[],
            "user credit alice five",
            "",
            2,
            "not an amount in US dollars",
            "不是美元金额",
        ),
        (
            &[],
            "price set gpt-9 --list openai --input 1",
            "",
            2,
            "has no rate for output",
            "缺少 output 的费率",
        ),
        (&[], price, "list,modle\n", 2, "did you mean model?", "是否想写 model？"),
        (
            &[],
            price,
            "model,input\nx,1e9\n",
            2,
            "line 2, column 2",
            "第 2 行第 2 列",
        ),
        (
            &[],
            "price list --list opnai",
            "",
            5,
            "no price list 'opnai'",
            "没有价目表 'opnai'",
        ),
        (&[], "backup -", "", 2, "not a pipe", "不是管道"),
        (
            &[],
            "refund none",
            "",
            5,
            "there is no request 'none'",
            "没有请求 'none'",
        ),
    ] {
        let [en, zh] = both(prepare, line, stdin);
        assert_eq!(en.code, code, "{line}: {}", en.err);
        assert!(en.err.starts_with("error: ") && en.err.contains(english), "{}", en.err);
        assert!(zh.err.starts_with("错误：") && zh.err.contains(chinese), "{}", zh.err);
        assert!(!zh.err.contains("error") && !zh.err.contains("fix "), "{}", zh.err);
    }
}

#[test]
fn what_is_wrong_with_settings_is_told_in_the_language_of_the_terminal() {
    let home = Home::with_alice();
    let settings = "[server]\nlisten = \"nowhere\"\nmax_bdy = 1\n[[upstream]]\nname = \"a b\"\n";
    std::fs::write(home.path().join("wrong.toml"), settings).expect("written");
    let line = "config check --config wrong.toml";
    let [en, zh] = [None, Some(CHINESE)].map(|locale| home.run_with(line, locale.as_slice(), ""));
    assert_eq!((en.code, zh.code), (3, 3));
    for (english, chinese) in [
        ("`nowhere` is not an address to listen on", "`nowhere` 不是可监听的地址"),
        ("did you mean `max_body`?", "是否想写 `max_body`？"),
        ("this upstream has no `base_url`", "此上游没有 `base_url`"),
    ] {
        assert!(en.err.contains(english) && !en.err.contains(chinese), "{}", en.err);
        assert!(zh.err.contains(chinese) && !zh.err.contains(english), "{}", zh.err);
    }
    let carets = |ran: &Ran| ran.err.matches('^').count();
    assert!(carets(&en) > 0 && carets(&en) == carets(&zh), "{}", zh.err);
}

#[test]
fn what_a_command_did_is_told_in_the_language_of_the_terminal() {
    for (prepare, line, english, chinese) in [
        (
            &[][..],
            "user suspend alice",
            "user alice is suspended",
            "用户 alice 已停用",
        ),
        (&[], "user add bob", "next: /", "下一步：/"),
        (&[], "key issue alice", "shown this once", "只显示这一次"),
        (&[], "ledger verify", "the books balance (users 1", "账目平衡（用户 1"),
        (&[], "config check", "the settings are valid", "设置有效"),
        (
            &[],
            "price list gpt-5.5",
            "dollars per million tokens",
            "美元/百万 token",
        ),
        (
            &["user credit alice 1 --reference r"],
            "user credit alice 1 --reference r",
            "nothing changed",
            "没有任何改动",
        ),
        (
            &["code create --amount 1 --count 1"],
            "code create --amount 1 --count 1",
            "shown this once",
            "只显示这一次",
        ),
        (&[], "demo", "A gateway on a temporary database", "使用临时数据库的网关"),
    ] {
        let [en, zh] = both(prepare, line, "");
        assert_eq!(en.code, 0, "{line}: {}", en.err);
        let told = |ran: &Ran| ran.out.clone() + &ran.err;
        assert!(told(&en).contains(english), "{line}: {}", told(&en));
        assert!(told(&zh).contains(chinese), "{line}: {}", told(&zh));
    }
}

#[test]
fn documents_and_tables_are_the_same_in_every_language() {
    let home = Home::with_alice();
    for line in [
        "user list",
        "user show alice --json",
        "price list --json",
        "audit list --json",
    ] {
        let chinese = home.run_with(line, &[CHINESE], "");
        assert_eq!((chinese.code, chinese.out), (0, home.ok(line)), "{line}");
    }
}

/// Each flag of each command that reads a value, with one that no parser takes.
fn flags(command: &clap::Command, path: &str, found: &mut Vec<String>) {
    for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
        if let Some(name) = arg.get_long().filter(|_| !arg.is_global_set()) {
            found.push(format!("{path} --{name} ☃"));
        }
    }
    for sub in command.get_subcommands() {
        flags(sub, format!("{path} {}", sub.get_name()).trim_start(), found);
    }
}

#[test]
fn every_value_that_cannot_be_used_is_told_in_chinese() {
    let mut lines = Vec::new();
    flags(&Cli::command(), "", &mut lines);
    let home = Home::with_alice();
    let mut invalid = 0;
    for line in lines {
        let Err(error) = <Cli as clap::Parser>::try_parse_from(format!("gateway {line}").split(' ')) else {
            continue;
        };
        if !matches!(
            error.kind(),
            clap::error::ErrorKind::ValueValidation | clap::error::ErrorKind::InvalidValue
        ) {
            continue;
        }
        invalid += 1;
        let ran = home.run_with(&line, &[CHINESE], "");
        assert_eq!(ran.code, 2, "{line}: {}", ran.err);
        let (_, why) = ran
            .err
            .split_once("无效")
            .unwrap_or_else(|| panic!("{line}: {}", ran.err));
        let why = why.lines().take(2).collect::<String>();
        assert!(is_chinese(&why), "{line}: {}", ran.err);
    }
    assert!(invalid > 40, "only {invalid} values are read");
}
