//! Settings, and what is typed wrong.

use std::fs;

use serde_json::{Value, json};

use super::Home;

#[test]
fn what_is_typed_wrong_is_told_in_our_words() {
    let home = Home::with_alice();
    home.settings("[[upstream]]\nname = \"u\"\nbase_url = \"http://127.0.0.1:9\"\n");
    let negative = home.fails("price set m --input -1 --output 1", 2);
    assert!(
        negative.contains("'--input <USD>'") && !negative.contains("use '--"),
        "{negative}"
    );
    let address = home.fails("serve --listen foo", 2);
    assert!(
        address.contains("'--listen <ADDR>'") && address.contains("write IP:PORT"),
        "{address}"
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address");
    for command in ["serve", "upstream simulate"] {
        let error = home.fails(&format!("{command} --listen {addr}"), 1);
        let again = format!("{} {command} --listen 127.0.0.1:0", env!("CARGO_BIN_EXE_gateway"));
        assert!(
            error.contains(&format!("cannot listen on {addr}")) && error.contains(&again),
            "{error}"
        );
    }
}

#[test]
fn settings_that_are_not_valid_are_a_document_too_and_their_place_is_still_shown() {
    let home = Home::new();
    home.settings("[billing]\nmark_up = 1.04\n");
    let ran = home.run("config check --json");
    let checked: Value = serde_json::from_str(&ran.out).expect("one document");
    assert_eq!((ran.code, &checked["valid"]), (3, &json!(false)));
    let error = checked["error"].as_str().expect("an error");
    assert!(
        error.contains("gateway.toml:2:1") && error.contains("did you mean `markup`?"),
        "{error}"
    );
    assert!(home.ok("config path").contains("gateway.toml"));
    let paths = home.json("config path");
    assert_eq!(
        (&paths["config"], &paths["database"]),
        (&json!("gateway.toml"), &Value::Null)
    );
    home.settings("[billing]\nmark_up = 1.04\nhold_share = 2\n[[upstream]]\nname = \"u\"\n");
    let all = home.run("config check");
    assert_eq!(all.code, 3);
    for place in [":2:1: ", ":3:14: ", ":4:1: "] {
        assert!(all.err.contains(&format!("gateway.toml{place}")), "{place} {}", all.err);
    }
    home.settings("");
    assert_eq!(home.json("config check")["error"], Value::Null);
}

#[test]
fn a_relative_path_of_the_database_is_shown_as_a_whole() {
    let home = Home::new();
    let here = fs::canonicalize(home.path()).expect("a folder");
    let whole = |name: &str| json!(here.join(name));
    let of = |line: &str, env: &[(&str, &str)]| {
        let ran = home.run_with(line, env, "");
        serde_json::from_str::<Value>(&ran.out).expect("JSON")
    };
    let variable: &[(&str, &str)] = &[("GATEWAY_DATABASE__PATH", "a.db")];
    assert_eq!(of("config path --json", variable)["database"], whole("a.db"));
    assert_eq!(
        of("config path --json --database b.db", variable)["database"],
        whole("b.db")
    );
    let shown = of("config show --json", variable);
    let mut items = shown["items"].as_array().expect("a list").iter();
    assert_eq!(
        items.find(|item| item["key"] == "database.path").expect("there")["value"],
        whole("a.db")
    );
    fs::create_dir(home.path().join("sub")).expect("a folder");
    fs::write(home.path().join("sub/own.toml"), "[database]\npath = \"c.db\"\n").expect("written");
    assert_eq!(
        of("config path --json --config sub/own.toml", &[])["database"],
        whole("sub/c.db")
    );
}

#[test]
fn what_cannot_be_done_says_what_can() {
    let home = Home::with_alice();
    fs::write(
        home.path().join("text"),
        "not a database, and longer than a header of one".repeat(9),
    )
    .expect("written");
    fs::create_dir(home.path().join("folder")).expect("a folder");
    for (line, code, fix) in [
        ("user list --database folder", 1, "--database FILE"),
        ("user list --database text", 1, "--database FILE"),
        ("user add bob --database /proc/x/y.db", 1, "a folder you may write to"),
        ("price import nowhere.json", 5, "price export"),
    ] {
        let error = home.fails(line, code);
        assert!(error.contains("\n  fix   ") && error.contains(fix), "{line}: {error}");
    }
    let far = home.run("user add bob --xyz 5");
    assert!(far.code == 2 && !far.err.contains("--quiet"), "{}", far.err);
    let near = home.run("user add bob --balence 5");
    assert!(near.code == 2 && near.err.contains("'--balance'"), "{}", near.err);
}

#[test]
fn a_setting_that_is_not_valid_is_told_with_position_and_nearest_name() {
    let home = Home::with_alice();
    home.settings("# mine\n[billing]\nmark_up = 1.04\n");
    for line in ["config check", "user list"] {
        assert_eq!(
            home.fails(line, 3),
            "error: the settings are not valid: gateway.toml:3:1: unknown key `mark_up` in [billing]\n  3 │ mark_up = 1.04\n    │ ^^^^^^^\n  fix   did you mean `markup`?\n"
        );
    }
    home.settings("[server]\nlisten = \"here\"\n");
    assert!(home.fails("config show", 3).contains("gateway.toml:2:10"));
    home.settings("[server\n");
    assert!(home.fails("config check", 3).contains("gateway.toml:1:"));
    home.settings("");
    let ran = home.run_with("config check", &[("GATEWAY_SERVER__LISTEM", "x")], "");
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("did you mean GATEWAY_SERVER__LISTEN?"), "{}", ran.err);
    assert!(
        home.fails("config check --config nowhere.toml", 3)
            .contains("nowhere.toml")
    );
}

#[test]
fn settings_are_shown_with_their_origin_and_without_their_secrets() {
    let home = Home::new();
    home.settings(
        "[[upstream]]\nname = \"own\"\nbase_url = \"https://x.example/v1\"\napi_key = \"sk-topsecret\"\nproxy = \"http://me:sk-topsecret@p\"\nheaders = { x-team = \"sk-topsecret\" }\n",
    );
    let env: &[(&str, &str)] = &[("GATEWAY_LOG__LEVEL", "warn"), ("OPENAI_API_KEY", "sk-topsecret")];
    for line in [
        "config show",
        "config show --json",
        "config check",
        "config check --json",
        "config show -vv",
    ] {
        let ran = home.run_with(line, env, "");
        assert_eq!(ran.code, 0, "{line}: {}", ran.err);
        assert!(
            !ran.out.contains("topsecret") && !ran.err.contains("topsecret"),
            "{line}"
        );
    }
    let ran = home.run_with("config show --json", env, "");
    let shown: Value = serde_json::from_str(&ran.out).expect("JSON");
    let origin = |key: &str| {
        let items = shown["items"].as_array().expect("a list");
        items.iter().find(|item| item["key"] == key).expect(key)["origin"].clone()
    };
    assert_eq!(origin("log.level"), "GATEWAY_LOG__LEVEL");
    assert_eq!(origin("upstream.own.api_key"), "gateway.toml:4");
    assert_eq!(origin("server.listen"), "default");
}

#[test]
fn a_missing_secret_stops_the_check_but_no_other_command() {
    let home = Home::with_alice();
    home.settings("[[upstream]]\nname = \"own\"\nbase_url = \"https://x.example/v1\"\napi_key = \"env:NOPE\"\n");
    assert!(home.fails("config check", 3).contains("the variable NOPE is not set"));
    home.ok("user list");
}
