//! Keys: shown once, found by their start, revoked and rotated.

use std::fs;

use serde_json::{Value, json};

use super::{Home, Ran, nowhere};

#[test]
fn a_key_is_shown_once_and_never_again() {
    let home = Home::with_alice();
    let issued =
        home.json("key issue alice --name laptop --expires 30d --model gpt-* --ip 10.0.0.0/8 --on-hangup cancel");
    let key = issued["key"].as_str().expect("a key");
    assert!(key.starts_with("sk-gw-") && key.starts_with(issued["prefix"].as_str().expect("a prefix")));
    assert_eq!((&issued["user"], &issued["name"]), (&json!("alice"), &json!("laptop")));
    let shown = home.json(&format!("key show {}", issued["id"].as_str().expect("an id")));
    assert_eq!(
        (&shown["models"], &shown["ips"], &shown["on_hangup"], &shown["state"]),
        (
            &json!(["gpt-*"]),
            &json!(["10.0.0.0/8"]),
            &json!("cancel"),
            &json!("valid")
        )
    );
    for line in ["key list", "key list --json", "key show laptop --json"] {
        let ran = home.run(line);
        assert!(!ran.out.contains(key) && !ran.err.contains(key), "{line}");
    }
    let stored = fs::read(home.database()).expect("the database");
    assert!(
        !stored.windows(key.len()).any(|part| part == key.as_bytes()),
        "only its hash is kept"
    );
}

#[test]
fn a_key_that_could_not_be_shown_is_nobodys() {
    let home = Home::with_alice();
    let ([closed, full], [_, full_too]) = (nowhere(), nowhere());
    for (line, stdout) in [
        ("key issue alice", full),
        ("key issue alice --json", closed),
        ("key rotate alice --grace 1h", full_too),
    ] {
        let line = match line.contains("rotate") {
            true => line.replace(
                "alice",
                home.json("key issue alice")["prefix"].as_str().expect("a prefix"),
            ),
            false => line.to_owned(),
        };
        let Ran { code, err: said, .. } = home.run_into(&line, stdout);
        assert_eq!(code, 1, "{line}: {said}");
        assert!(said.contains("could not be shown and is revoked"), "{line}: {said}");
        assert!(
            said.contains("--database") && said.contains("key issue alice"),
            "{line}: {said}"
        );
    }
    let keys = home.json("key list alice");
    let states = keys["items"]
        .as_array()
        .expect("keys")
        .iter()
        .map(|key| key["state"].as_str());
    let mut states: Vec<_> = states.map(|state| state.expect("a state")).collect();
    states.sort_unstable();
    assert_eq!(
        states,
        ["revoked", "revoked", "revoked", "valid"],
        "what was rotated has an hour"
    );
    let shown = home.ok(&format!(
        "key show {}",
        keys["items"][0]["prefix"].as_str().expect("a prefix")
    ));
    let used = shown.lines().find_map(|line| line.strip_prefix("last used"));
    assert_eq!(used.map(str::trim), Some("never"), "{shown}");
}

#[test]
fn a_key_alone_stands_on_stdout_and_what_to_do_with_it_on_stderr() {
    let home = Home::with_alice();
    let ran = home.run("key issue alice");
    let key = ran.out.strip_suffix('\n').expect("one line");
    assert!(key.starts_with("sk-gw-") && !key.contains(char::is_whitespace), "{key}");
    let program = env!("CARGO_BIN_EXE_gateway");
    let paste = format!("  {program} connect codex --url http://127.0.0.1:8080 --key-stdin\n");
    assert!(ran.err.contains(&paste), "as it was started: {}", ran.err);
    let quiet = home.run("key issue alice --quiet");
    assert_eq!(quiet.err, "");
    let names = home.json("key list alice");
    let names: Vec<&Value> = names["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|key| &key["name"])
        .collect();
    assert!(
        names.contains(&&json!("key 1")) && names.contains(&&json!("key 2")),
        "{names:?}"
    );
}

#[test]
fn a_key_is_revoked_by_prefix_and_a_wrong_one_names_the_nearest() {
    let home = Home::with_alice();
    let issued = home.json("key issue alice");
    let prefix = issued["prefix"].as_str().expect("a prefix");
    home.ok(&format!("key revoke {prefix}"));
    home.ok(&format!("key revoke {prefix}"));
    assert_eq!(home.json(&format!("key show {prefix}"))["state"], "revoked");
    let wrong = format!("{}!", &prefix[..prefix.len() - 1]);
    assert!(home.fails(&format!("key show {wrong}"), 5).contains(prefix));
    home.fails(&format!("key rotate {prefix}"), 4);
    let secret = issued["key"].as_str().expect("a key");
    let typo = format!("sk-gw-0{}", &secret["sk-gw-".len()..]);
    let error = home.fails(&format!("key show {typo}"), 5);
    assert!(
        !error.contains(&secret[20..]),
        "a key is not repeated in messages: {error}"
    );
}

#[test]
fn the_start_of_a_keys_prefix_will_do_as_long_as_it_is_one_keys() {
    let home = Home::with_alice();
    let first = home.json("key issue alice --name laptop");
    let shown = first["prefix"].as_str().expect("a prefix");
    let start = &shown[..shown.len() - 3];
    assert_eq!(home.json(&format!("key show {start}"))["id"], first["id"]);
    home.json("key issue alice --name desk");
    let error = home.fails("key show sk-gw-", 2);
    assert!(
        error.contains("alice/laptop") && error.contains("alice/desk"),
        "{error}"
    );
}

#[test]
fn a_rotated_key_keeps_its_permissions_and_its_grace() {
    let home = Home::with_alice();
    let old = home.json("key issue alice --name laptop --model gpt-4o");
    let old_id = old["id"].as_str().expect("an id");
    let new = home.json(&format!("key rotate {old_id} --grace 1h"));
    assert_ne!(old["key"], new["key"]);
    let shown = |id: &Value| home.json(&format!("key show {}", id.as_str().expect("an id")));
    assert_eq!(
        (&shown(&new["id"])["models"], &shown(&new["id"])["name"]),
        (&json!(["gpt-4o"]), &json!("laptop"))
    );
    assert_eq!(shown(&old["id"])["state"], "valid");
    assert!(shown(&old["id"])["expires_at"].is_string(), "the grace ends");
    let third = home.json(&format!("key rotate {}", new["id"].as_str().expect("an id")));
    assert_eq!(shown(&new["id"])["state"], "expired", "without a grace at once");
    assert_eq!(shown(&third["id"])["state"], "valid");
}

#[test]
fn a_key_is_rotated_once_and_its_heir_has_its_own_end() {
    let home = Home::with_alice();
    let old = home.json("key issue alice --expires 2099-01-01");
    let id = |of: &Value| of["id"].as_str().expect("an id").to_owned();
    let heir = home.json(&format!("key rotate {} --grace 1h", id(&old)));
    assert_eq!(heir["expires_at"], "2099-01-01T00:00:00Z");
    let error = home.fails(&format!("key rotate {} --grace 1h", id(&old)), 4);
    assert!(error.contains("has been rotated before"), "{error}");
    let ran = home.run(&format!("key rotate {}", id(&heir)));
    assert!(ran.err.contains("valid until 2099-01-01 00:00:00 UTC"), "{}", ran.err);
    assert!(home.run("key issue alice").err.contains("valid until it is revoked"));
}
