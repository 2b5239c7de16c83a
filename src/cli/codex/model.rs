//! Which models the gateway offers, and which of them this run of Codex takes.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::process::Command;

use super::PATIENCE;
use super::{failure, not_started};
use crate::cli::failure::{Exit, Failure};
use crate::cli::{language, runtime};
use crate::language::Said;
use crate::said;

/// What Codex 0.169 starts with when nothing else is said, for a Codex that cannot be asked.
pub const CODEX_DEFAULT: &str = "gpt-6.1-sol";

/// The catalogue entries of a model list.
pub fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list["models"].as_array().into_iter().flatten()
}

/// Whether any model on the list is served by OpenAI itself.
pub fn any_from_openai(list: &Value) -> bool {
    entries(list).any(from_openai)
}

fn from_openai(entry: &Value) -> bool {
    entry["gateway"]["speaks"] == "codex"
}

fn slug(entry: &Value) -> &str {
    entry["slug"].as_str().unwrap_or_default()
}

/// The model list inside the installed Codex; empty when it cannot be asked.
pub async fn bundled(program: &Path) -> Vec<Value> {
    let mut command = Command::new(program);
    command
        .args(["debug", "models", "--bundled"])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let stdout = output
        .ok()
        .and_then(Result::ok)
        .map(|output| output.stdout)
        .unwrap_or_default();
    let list: Value = serde_json::from_slice(&stdout).unwrap_or_default();
    entries(&list).cloned().collect()
}

/// What Codex itself would start with.
pub fn codex_default(bundle: &[Value]) -> String {
    let listed = bundle.iter().filter(|entry| entry["visibility"] == "list");
    let first = listed.min_by_key(|entry| entry["priority"].as_i64().unwrap_or(i64::MAX));
    first.map_or(CODEX_DEFAULT, slug).to_owned()
}

/// A catalogue for this run: where OpenAI itself answers, Codex keeps its own entry of a model (instructions, tools,
/// request shape), with the gateway's price beside the name; elsewhere the gateway's entry holds.
pub(super) struct CatalogueFile(pub(super) PathBuf);

impl CatalogueFile {
    /// `None` when Codex's entries play no part: it then asks the gateway itself.
    pub(super) fn compose(list: &Value, bundle: &[Value]) -> Option<CatalogueFile> {
        let catalogue = compose(list, bundle)?;
        let dir = runtime::directory();
        runtime::private_directory(&dir).ok()?;
        let path = dir.join(format!("models-{}.json", std::process::id()));
        runtime::write_private(&path, catalogue.to_string().as_bytes()).ok()?;
        Some(CatalogueFile(path))
    }
}

impl Drop for CatalogueFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn compose(list: &Value, bundle: &[Value]) -> Option<Value> {
    let own = |entry: &Value| {
        bundle
            .iter()
            .find(|known| from_openai(entry) && slug(known) == slug(entry))
    };
    entries(list).any(|entry| own(entry).is_some()).then(|| {
        let merged: Vec<Value> = entries(list)
            .map(|entry| own(entry).map_or_else(|| entry.clone(), |own| merge(own, entry)))
            .collect();
        serde_json::json!({ "models": merged })
    })
}

/// Codex's entry with our price and place; without the advice to move to a model that may not be offered, and without
/// a faster tier as the default, which would cost twice as much unasked.
fn merge(own: &Value, ours: &Value) -> Value {
    let mut entry = own.clone();
    for key in ["description", "visibility", "priority"] {
        entry[key] = ours[key].clone();
    }
    if let Some(entry) = entry.as_object_mut() {
        for key in ["upgrade", "availability_nux", "default_service_tier"] {
            entry.remove(key);
        }
    }
    entry
}

/// The model of this run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Model {
    /// To be passed to Codex, unless it takes it by itself.
    pub(super) pass: Option<String>,
    /// What to say about it.
    pub(super) note: Option<Said>,
}

/// A model that was typed has to be offered. One that Codex would take by itself is replaced when it is not.
pub(super) fn choose_model(asked: Option<&str>, set: Option<&str>, own: &str, list: &Value) -> Result<Model, Failure> {
    let offered = |name: &str| entries(list).any(|entry| slug(entry) == name);
    if let Some(name) = asked {
        return if offered(name) {
            Ok(Model { pass: None, note: None })
        } else {
            Err(not_offered(name, list))
        };
    }
    let wanted = set.unwrap_or(own);
    if offered(wanted) {
        return Ok(Model {
            pass: set.is_none().then(|| wanted.to_owned()),
            note: None,
        });
    }
    let first = entries(list).next().map(slug).unwrap_or_default().to_owned();
    let note = said!(
        language(),
        en: "The model {wanted} is not offered here; using {first} (another: gateway codex -m MODEL …)",
        zh: "这里没有提供模型 {wanted}；使用 {first}（换一个：gateway codex -m MODEL …）",
    );
    Ok(Model {
        pass: Some(first),
        note: Some(note),
    })
}

fn not_offered(name: &str, list: &Value) -> Failure {
    let names: Vec<&str> = entries(list).map(slug).collect();
    let shown = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    let near = crate::route::nearest(name, names.iter().copied())
        .or(names.first().copied())
        .unwrap_or("MODEL");
    let why = said!(
        language(),
        en: "the model '{name}' is not offered to this key; these are: {shown}",
        zh: "没有向此密钥提供模型 '{name}'；提供的有：{shown}",
    );
    failure(Exit::NotFound, not_started(), why, format!("gateway codex -m {near} …"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(slugs: &[&str], speaks: &str) -> Value {
        let models: Vec<Value> = slugs.iter().map(|slug| json!({"slug": slug, "description": "$1 in", "visibility": "list", "priority": 1, "gateway": {"speaks": speaks}})).collect();
        json!({ "models": models })
    }

    #[test]
    fn codex_keeps_its_own_model_where_it_is_offered() {
        let list = list(&["b", "a"], "public");
        let own = choose_model(None, None, "a", &list).expect("offered");
        assert_eq!(
            own,
            Model {
                pass: Some("a".into()),
                note: None
            }
        );
        let set = choose_model(None, Some("b"), "a", &list).expect("offered");
        assert_eq!(set, Model { pass: None, note: None });
    }

    #[test]
    fn a_model_that_is_not_offered_is_replaced_aloud_unless_it_was_typed() {
        let list = list(&["b"], "public");
        let other = choose_model(None, Some("z"), "a", &list).expect("replaced");
        assert_eq!(other.pass.as_deref(), Some("b"));
        assert!(other.note.expect("said").contains("z is not offered"));
        assert_eq!(
            choose_model(Some("z"), None, "a", &list).expect_err("typed").exit,
            Exit::NotFound
        );
    }

    #[test]
    fn where_openai_answers_codex_keeps_its_own_entry_with_our_price() {
        let own = json!({"slug": "a", "base_instructions": "theirs", "description": "old", "priority": 7, "upgrade": {"model": "x"}, "visibility": "list"});
        let merged = compose(&list(&["a", "b"], "codex"), std::slice::from_ref(&own)).expect("a catalogue");
        assert_eq!(merged["models"][0]["base_instructions"], "theirs");
        assert_eq!(merged["models"][0]["description"], "$1 in");
        assert!(merged["models"][0]["upgrade"].is_null());
        assert_eq!(merged["models"][1]["slug"], "b");
        assert_eq!(compose(&list(&["a"], "public"), &[own]), None);
    }
}
