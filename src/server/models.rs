//! The model list, in the form OpenAI's clients read and in the form Codex reads, in one document.
//!
//! OpenAI's clients look at `data`, Codex at `models` (its catalogue: which tools a model is given, how much it reads,
//! what the picker shows). Each ignores the other's array. Observed with Codex 0.169: an entry that lacks one of its
//! required keys makes the whole catalogue unreadable, and `base_instructions` is the whole system prompt.

use std::cmp::Reverse;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::money::Usd;
use crate::usage::Tokens;

/// What Codex is told when its own instructions are not used: they belong to tools that other upstreams do not have.
const INSTRUCTIONS: &str = include_str!("instructions.txt");

/// The models Codex 0.169 shows in its picker, in the picker's order: the first one offered is its default.
const CODEX_ORDER: [&str; 9] = [
    "gpt-6.1-sol",
    "gpt-6-astra",
    "gpt-6-sol",
    "gpt-6-luna",
    "gpt-5.6-sol",
    "gpt-6.1-terra",
    "gpt-5.6-terra",
    "gpt-5.6-luna",
    "gpt-5.5",
];

/// Starts of the names of models that take `reasoning.effort`; others answer 400 to it.
const REASONING: [&str; 7] = ["gpt-5", "gpt-6", "gpt-oss", "o1", "o3", "o4", "codex"];

/// How much of a larger window Codex fills before it compacts: beyond 272,000 tokens OpenAI's long-context rates begin.
const WINDOW: u64 = 272_000;

/// The window assumed for a model of which none is known.
const UNKNOWN_WINDOW: u64 = 128_000;

/// What a model can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Writes answers: chat, responses, completions.
    Answers,
    /// Anything else, such as embeddings: not for Codex.
    Other,
}

/// What is in the names of models that write no answers, where nothing else says what they are for.
const NO_ANSWERS: [&str; 6] = ["embed", "rerank", "minilm", "bge-", "whisper", "tts"];

impl Purpose {
    /// What a model that no price tells of can be used for, by its name.
    pub fn by_name(name: &str) -> Purpose {
        let name = name.to_ascii_lowercase();
        match NO_ANSWERS.iter().any(|part| name.contains(part)) {
            true => Purpose::Other,
            false => Purpose::Answers,
        }
    }
}

/// Whose requests an upstream understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// OpenAI itself: everything Codex sends, also the shapes that only OpenAI knows.
    Codex,
    /// A compatible server: the public Responses API.
    Public,
}

impl Speaks {
    /// What the server at `base_url` understands.
    pub fn of(base_url: &str) -> Speaks {
        let host = base_url.split_once("://").map_or(base_url, |(_, rest)| rest);
        let host = host.split(['/', ':']).next().unwrap_or_default();
        let openai = host == "api.openai.com" || host.ends_with(".api.openai.com");
        if openai { Speaks::Codex } else { Speaks::Public }
    }
}

/// Dollars per million tokens, as decimal text: what the user pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Per million tokens read.
    pub input: String,
    /// Per million tokens read from the upstream's cache.
    pub cached_input: Option<String>,
    /// Per million tokens written.
    pub output: Option<String>,
}

/// A model that a key may use, an upstream serves, and a price exists for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// The name clients ask for.
    pub name: String,
    /// Since when, in seconds since 1970: when its price came into force.
    pub created: i64,
    /// The upstream's name.
    pub owned_by: String,
    /// What it can be used for.
    pub purpose: Purpose,
    /// Whose requests its upstream understands.
    pub speaks: Speaks,
    /// What it costs; `None`: nothing.
    pub rates: Option<Rates>,
    /// The largest input it takes.
    pub max_input: Option<Tokens>,
    /// The longest answer it gives.
    pub max_output: Option<Tokens>,
}

/// The document of `GET /v1/models`, and its `ETag`, which Codex keeps beside its copy. What the picker shows as the balance
/// plays no part in the tag, hence the `W/`: Codex asks anew when another model or price is offered, not after every call.
pub fn document(models: &[Offered], available: Usd) -> (Value, String) {
    let mut document = catalogue(models);
    let tag = format!("W/{}", etag(document.to_string().as_bytes()));
    for entry in document["models"].as_array_mut().into_iter().flatten() {
        let priced = entry["description"].as_str().unwrap_or_default();
        entry["description"] = json!(format!("Balance {} · {priced}", cents(available)));
    }
    (document, tag)
}

/// Whole cents, rounded down: nobody is shown more than there is.
fn cents(amount: Usd) -> String {
    let cents = amount.nanos().div_euclid(10_000_000);
    let sign = if cents < 0 { "-" } else { "" };
    format!(
        "{sign}${}.{:02}",
        cents.unsigned_abs() / 100,
        cents.unsigned_abs() % 100
    )
}

fn catalogue(models: &[Offered]) -> Value {
    let mut ordered: Vec<&Offered> = models.iter().collect();
    ordered.sort_by(|a, b| order(a).cmp(&order(b)));
    let data: Vec<Value> = ordered.iter().map(|model| one(model)).collect();
    let known = ordered.iter().any(|model| rank(&model.name).is_some());
    let entries = ordered.iter().filter(|model| model.purpose == Purpose::Answers);
    let catalogue: Vec<Value> = (1_u32..)
        .zip(entries)
        .map(|(priority, model)| entry(model, priority, visibility(model, known)))
        .collect();
    json!({"object": "list", "data": data, "models": catalogue})
}

/// The document of `GET /v1/models/{id}`.
pub fn one(model: &Offered) -> Value {
    let mut object = Map::new();
    object.insert("id".into(), json!(model.name));
    object.insert("object".into(), json!("model"));
    object.insert("created".into(), json!(model.created));
    object.insert("owned_by".into(), json!(model.owned_by));
    if let Some(max) = model.max_input {
        object.insert("context_window".into(), json!(max.get()));
    }
    if let Some(max) = model.max_output {
        object.insert("max_output_tokens".into(), json!(max.get()));
    }
    Value::Object(object)
}

/// The `ETag` of a body.
pub fn etag(body: &[u8]) -> String {
    let digest = Sha256::digest(body);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// Codex's own order first; then the newest, so that the default of a gateway without these is a current model.
fn order(model: &Offered) -> (usize, Reverse<i64>, &str) {
    let rank = rank(&model.name).unwrap_or(CODEX_ORDER.len());
    (rank, Reverse(model.created), &model.name)
}

/// The place of a model in Codex's picker.
fn rank(name: &str) -> Option<usize> {
    CODEX_ORDER.iter().position(|known| *known == name)
}

/// Where Codex knows models, the picker shows these, and those that are free: somebody runs them for it. The others, a whole
/// list of prices, work by name. Else it shows all.
fn visibility(model: &Offered, known: bool) -> &'static str {
    if known && rank(&model.name).is_none() && model.rates.is_some() {
        "hide"
    } else {
        "list"
    }
}

/// A catalogue entry that declares ordinary function tools, `apply_patch` and nothing that only OpenAI understands.
fn entry(model: &Offered, priority: u32, visibility: &str) -> Value {
    let window = model.max_input.map_or(UNKNOWN_WINDOW, Tokens::get);
    let mut entry = json!({
        "slug": model.name,
        "display_name": model.name,
        "description": description(model),
        "supported_reasoning_levels": [],
        "shell_type": "unified_exec",
        "visibility": visibility,
        "supported_in_api": true,
        "priority": priority,
        "support_verbosity": false,
        "default_reasoning_summary": "none",
        "apply_patch_tool_type": "freeform",
        "multi_agent_version": "disabled",
        "truncation_policy": {"mode": "tokens", "limit": 10_000},
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"],
        "context_window": window.min(WINDOW),
        "max_context_window": window,
        "use_responses_lite": false,
        "service_tiers": [],
        "base_instructions": INSTRUCTIONS,
        "gateway": {"speaks": match model.speaks { Speaks::Codex => "codex", Speaks::Public => "public" }},
    });
    if REASONING.iter().any(|start| model.name.starts_with(start)) {
        entry["supported_reasoning_levels"] = json!([
            {"effort": "low", "description": "Quick answers"},
            {"effort": "medium", "description": "For most work"},
            {"effort": "high", "description": "For hard problems"},
        ]);
        entry["default_reasoning_level"] = json!("medium");
    }
    entry
}

/// What the picker shows beside the name.
fn description(model: &Offered) -> String {
    let Some(rates) = &model.rates else {
        return format!("free, by {}", model.owned_by);
    };
    let mut parts = vec![format!("${} in", rates.input)];
    parts.extend(rates.cached_input.iter().map(|rate| format!("${rate} cached")));
    parts.extend(rates.output.iter().map(|rate| format!("${rate} out")));
    format!("{} per 1M tokens, by {}", parts.join(" · "), model.owned_by)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(name: &str) -> Offered {
        Offered {
            name: name.into(),
            created: 1_700_000_000,
            owned_by: "openai".into(),
            purpose: Purpose::Answers,
            speaks: Speaks::Public,
            rates: Some(Rates {
                input: "1.25".into(),
                cached_input: Some("0.125".into()),
                output: Some("10".into()),
            }),
            max_input: Some(Tokens::saturating(872_000)),
            max_output: Some(Tokens::saturating(128_000)),
        }
    }

    fn slugs(document: &Value) -> Vec<&str> {
        let models = document["models"].as_array().expect("models");
        models.iter().filter_map(|model| model["slug"].as_str()).collect()
    }

    /// The keys without which Codex 0.169 refuses the whole catalogue, found by taking each away.
    const REQUIRED: [&str; 12] = [
        "slug",
        "display_name",
        "supported_reasoning_levels",
        "shell_type",
        "visibility",
        "supported_in_api",
        "priority",
        "support_verbosity",
        "truncation_policy",
        "experimental_supported_tools",
        "base_instructions",
        "description",
    ];

    #[test]
    fn an_entry_has_every_key_that_codex_requires() {
        let document = catalogue(&[offered("gpt-6.1-sol"), offered("deepseek-chat")]);
        for model in document["models"].as_array().expect("models") {
            for key in REQUIRED {
                assert!(!model[key].is_null(), "{key}");
            }
        }
    }

    #[test]
    fn an_agent_always_has_instructions() {
        let document = catalogue(&[offered("gpt-6.1-sol")]);
        let text = document["models"][0]["base_instructions"].as_str().expect("text");
        assert!(text.contains("apply_patch") && text.len() > 1_000);
    }

    #[test]
    fn openai_clients_find_their_form_in_the_same_document() {
        let document = catalogue(&[offered("gpt-6.1-sol")]);
        assert_eq!(document["object"], "list");
        assert_eq!(
            document["data"][0],
            json!({"id": "gpt-6.1-sol", "object": "model", "created": 1_700_000_000, "owned_by": "openai",
                   "context_window": 872_000, "max_output_tokens": 128_000})
        );
    }

    #[test]
    fn codex_s_default_comes_first_and_embeddings_are_not_for_codex() {
        let embeds = Offered {
            purpose: Purpose::Other,
            ..offered("text-embedding-3-small")
        };
        let document = catalogue(&[offered("a-model"), embeds, offered("gpt-5.5"), offered("gpt-6.1-sol")]);
        assert_eq!(slugs(&document), ["gpt-6.1-sol", "gpt-5.5", "a-model"]);
        assert_eq!(document["data"].as_array().map(Vec::len), Some(4));
        assert_eq!(document["models"][0]["priority"], 1);
        assert_eq!(document["models"][2]["visibility"], "hide");
    }

    #[test]
    fn a_gateway_without_codex_s_models_shows_all_it_has_newest_first() {
        let newer = Offered {
            created: 1_800_000_000,
            ..offered("new")
        };
        let document = catalogue(&[offered("old"), newer]);
        assert_eq!(slugs(&document), ["new", "old"]);
        assert_eq!(document["models"][1]["visibility"], "list");
    }

    #[test]
    fn what_embeds_or_hears_is_known_by_its_name() {
        for (name, purpose) in [
            ("qwen3:8b", Purpose::Answers),
            ("gpt-oss:20b", Purpose::Answers),
            ("nomic-embed-text", Purpose::Other),
            ("Qwen3-Embedding-8B", Purpose::Other),
            ("all-minilm", Purpose::Other),
        ] {
            assert_eq!(Purpose::by_name(name), purpose, "{name}");
        }
    }

    #[test]
    fn what_is_free_is_shown_beside_codex_s_models() {
        let free = Offered {
            rates: None,
            ..offered("qwen3:8b")
        };
        let document = catalogue(&[free, offered("gpt-6.1-sol"), offered("gpt-4o")]);
        assert_eq!(slugs(&document), ["gpt-6.1-sol", "gpt-4o", "qwen3:8b"]);
        let shown = document["models"].as_array().expect("models").iter();
        let shown: Vec<&Value> = shown.map(|model| &model["visibility"]).collect();
        assert_eq!(shown, ["list", "hide", "list"]);
    }

    #[test]
    fn only_models_that_reason_are_asked_to() {
        let document = catalogue(&[offered("gpt-6.1-sol"), offered("deepseek-chat")]);
        assert_eq!(document["models"][0]["default_reasoning_level"], "medium");
        assert_eq!(document["models"][1]["supported_reasoning_levels"], json!([]));
        assert!(document["models"][1]["default_reasoning_level"].is_null());
    }

    #[test]
    fn the_picker_shows_the_price() {
        assert_eq!(
            description(&offered("x")),
            "$1.25 in · $0.125 cached · $10 out per 1M tokens, by openai"
        );
        let free = Offered {
            rates: None,
            ..offered("x")
        };
        assert_eq!(description(&free), "free, by openai");
    }

    #[test]
    fn the_picker_shows_the_balance_and_the_tag_does_not_follow_it() {
        let models = [offered("gpt-6.1-sol")];
        let of = |nanos| document(&models, Usd::from_nanos(nanos));
        let (shown, tag) = of(4_879_999_999);
        let text = shown["models"][0]["description"].as_str().expect("text");
        assert_eq!(
            text,
            "Balance $4.87 · $1.25 in · $0.125 cached · $10 out per 1M tokens, by openai"
        );
        assert!(tag.starts_with("W/\"") && tag == of(1).1);
        let dearer = Offered {
            rates: None,
            ..offered("gpt-6.1-sol")
        };
        assert_ne!(document(&[dearer], Usd::ZERO).1, tag);
        assert_eq!(
            (cents(Usd::from_nanos(-1)), cents(Usd::ZERO)),
            ("-$0.01".into(), "$0.00".into())
        );
    }

    #[test]
    fn only_openai_itself_speaks_codex_s_own_shapes() {
        assert_eq!(Speaks::of("https://api.openai.com/v1"), Speaks::Codex);
        assert_eq!(Speaks::of("https://eu.api.openai.com/v1"), Speaks::Codex);
        assert_eq!(Speaks::of("http://127.0.0.1:9/v1"), Speaks::Public);
        assert_eq!(Speaks::of("https://api.openai.com.example.org/v1"), Speaks::Public);
    }

    #[test]
    fn the_etag_follows_the_body() {
        assert_eq!(etag(b"a"), etag(b"a"));
        assert_ne!(etag(b"a"), etag(b"b"));
        assert_eq!(etag(b"a").len(), 34);
    }
}
