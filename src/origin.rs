//! Who asked: session, turn, kind and client of a call, as far as the client says.
//!
//! ```text
//! x-codex-turn-metadata   Codex's own words: session, thread, turn, kind    of a header, or of the body's client_metadata
//! session-id, …           where that is missing, and of other clients       else the body's prompt_cache_key
//! user-agent, originator  the client's name and version
//! ```
//!
//! These are labels for reports. No right and no money depends on them, and what a client makes up changes nothing else:
//! each has a bound and a closed set of characters, and what does not fit is left out, never cut. Nothing else of the
//! metadata is kept: there are paths and the addresses of repositories in it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::call::{Call, Endpoint};

/// In which Codex says what a call is for: a header, and a member of the body's `client_metadata`.
pub const TURN_METADATA: &str = "x-codex-turn-metadata";

/// More than this is not read of it, in bytes.
const MOST_METADATA: usize = 64 << 10;

/// Headers that name a session, the first one that does.
const SESSION: [&str; 5] = [
    "session-id",
    "session_id",
    "x-session-id",
    "x-session-affinity",
    "thread-id",
];

/// Who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The conversation, by the client's id for it. What its sub-agents ask is of the same session; what their sub-agents
    /// ask too, once an exchange of them has begun.
    pub session: Option<Label>,
    /// The user's turn in it.
    pub turn: Option<Label>,
    /// The sub-agent that asked, by the id of its own thread; `None`: the session itself.
    pub agent: Option<Label>,
    /// What it was for.
    pub kind: Option<Kind>,
    /// Which program, and which version of it.
    pub client: Option<Client>,
}

impl Origin {
    /// Who makes a call that came with these headers, or in a frame in whose place they stand.
    pub fn of_request(headers: &HeaderMap, call: &Call) -> Origin {
        let header = headers.get(TURN_METADATA).map(HeaderValue::as_bytes);
        if let Some(turn) = header.and_then(TurnMetadata::read) {
            return Origin::of(&turn, headers, call);
        }
        let said = said_in(call);
        let turn = said.as_ref().and_then(|said| TurnMetadata::read(said.as_bytes()));
        Origin::of(&turn.unwrap_or_default(), headers, call)
    }

    fn of(turn: &TurnMetadata<'_>, headers: &HeaderMap, call: &Call) -> Origin {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let agent_of_header = || match turn.request_kind {
            Some(_) => None,
            None => header("x-openai-subagent"),
        };
        let named = || SESSION.iter().find_map(|name| Label::new(header(name)?));
        let keyed = || Label::new(std::str::from_utf8(call.cache_key()?).ok()?);
        let session = label(&turn.session_id).or_else(named).or_else(keyed);
        let parent = label(&turn.parent_thread_id).or_else(|| Label::new(header("x-codex-parent-thread-id")?));
        let of_thread = || parent.as_ref().and_then(|_| Label::new(header("thread-id")?));
        let thread = label(&turn.thread_id).or_else(of_thread);
        // Sub-agents of some versions call themselves a session of their own.
        let session = match parent {
            Some(parent) if session == thread => Some(parent),
            _ => session,
        };
        let turns = [&turn.root_turn_id, &turn.parent_turn_id, &turn.turn_id];
        Origin {
            turn: turns.into_iter().find_map(label),
            agent: thread.filter(|thread| session.as_ref().is_some_and(|session| session != thread)),
            kind: match call.endpoint {
                Endpoint::Compact => Some(Kind::Compaction),
                _ => turn.kind(agent_of_header()),
            },
            client: Client::of(header("user-agent"), || header("originator")),
            session,
        }
    }
}

/// The turn that a call with these headers says it is of; a sub-agent's has one of its own.
pub fn turn(headers: &HeaderMap) -> Option<Label> {
    label(&TurnMetadata::read(headers.get(TURN_METADATA)?.as_bytes())?.turn_id)
}

/// What Codex says of itself in the body.
fn said_in(call: &Call) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct ClientMetadata<'a> {
        #[serde(borrow, rename = "x-codex-turn-metadata")]
        turn: Option<Text<'a>>,
    }
    let said = call.client_metadata().filter(|said| said.len() <= 2 * MOST_METADATA)?;
    let metadata: ClientMetadata<'_> = serde_json::from_slice(said).ok()?;
    metadata.turn.map(|turn| turn.0)
}

fn label(text: &Option<Text<'_>>) -> Option<Label> {
    Label::new(&text.as_ref()?.0)
}

/// A text of a JSON document, borrowed where it has no escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What is read of Codex's metadata. The rest is skipped.
#[derive(Debug, Default, Deserialize)]
struct TurnMetadata<'a> {
    #[serde(borrow)]
    session_id: Option<Text<'a>>,
    #[serde(borrow)]
    thread_id: Option<Text<'a>>,
    #[serde(borrow)]
    parent_thread_id: Option<Text<'a>>,
    #[serde(borrow)]
    turn_id: Option<Text<'a>>,
    #[serde(borrow)]
    parent_turn_id: Option<Text<'a>>,
    #[serde(borrow)]
    root_turn_id: Option<Text<'a>>,
    #[serde(borrow)]
    request_kind: Option<Text<'a>>,
    #[serde(borrow)]
    thread_source: Option<Text<'a>>,
    #[serde(borrow)]
    subagent_kind: Option<Text<'a>>,
}

impl<'a> TurnMetadata<'a> {
    fn read(json: &'a [u8]) -> Option<TurnMetadata<'a>> {
        let read = (json.len() <= MOST_METADATA).then(|| serde_json::from_slice(json));
        read?.ok()
    }

    /// What the call is for; `agent` is what the headers call a sub-agent, where they alone do.
    fn kind(&self, agent: Option<&str>) -> Option<Kind> {
        fn text<'t>(text: &'t Option<Text<'_>>) -> Option<&'t str> {
            text.as_ref().map(|text| &*text.0)
        }
        let agent = text(&self.subagent_kind).or(agent);
        match (text(&self.request_kind), text(&self.thread_source), agent) {
            (Some("compaction"), ..) | (.., Some("compact")) => Some(Kind::Compaction),
            (Some("prewarm"), ..) => Some(Kind::Prewarm),
            (_, Some("thread_title"), _) => Some(Kind::Title),
            (_, Some("guardian_review"), _) | (.., Some("guardian" | "review")) => Some(Kind::Review),
            (.., Some(_)) => Some(Kind::SubAgent),
            _ if self.parent_thread_id.is_some() => Some(Kind::SubAgent),
            (Some("turn"), ..) => Some(Kind::Turn),
            _ => None,
        }
    }
}

/// What a call was for. All but the first are not typed by the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A step of a turn.
    Turn,
    /// Finding a title for the session.
    Title,
    /// Making a long conversation short.
    Compaction,
    /// Looking at what was done, or is about to be done.
    Review,
    /// Putting the start of a conversation into the upstream's cache.
    Prewarm,
    /// A step of an agent that the session started.
    SubAgent,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] = [
        Kind::Turn,
        Kind::Title,
        Kind::Compaction,
        Kind::Review,
        Kind::Prewarm,
        Kind::SubAgent,
    ];

    /// The name in the database and in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Turn => "turn",
            Kind::Title => "title",
            Kind::Compaction => "compaction",
            Kind::Review => "review",
            Kind::Prewarm => "prewarm",
            Kind::SubAgent => "sub-agent",
        }
    }
}

/// An id that a client made up: letters, digits and `-._:`, a letter or digit first, at most [`Label::LONGEST`] of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Arc<str>);

impl Label {
    /// How many characters it may have.
    pub const LONGEST: usize = 128;

    /// A label, if it is one.
    pub fn new(text: &str) -> Option<Label> {
        let fits = (1..=Label::LONGEST).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b));
        fits.then(|| Label(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A program: `name/version`, or its name alone, at most [`Client::LONGEST`] characters. Both are of letters, digits and
/// `-._+`; a name begins with a letter, a version with a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client(Arc<str>);

impl Client {
    /// How many characters it may have.
    pub const LONGEST: usize = 64;

    /// A client as [`Client::as_str`] gives it.
    pub fn parse(text: &str) -> Option<Client> {
        let is_one = text.len() <= Client::LONGEST
            && match text.split_once('/') {
                Some((name, version)) => is_name(name) && is_version(version),
                None => is_name(text),
            };
        is_one.then(|| Client(text.into()))
    }

    /// The client of the first product in a `user-agent`, else what `originator` calls it. A version may stand apart, and a
    /// name have parts: `OpenAI/Python 2.8.0` is `OpenAI-Python/2.8.0`. What lies behind it tells of systems and terminals.
    fn of<'a>(user_agent: Option<&str>, originator: impl FnOnce() -> Option<&'a str>) -> Option<Client> {
        let of_agent = user_agent.and_then(|agent| {
            let mut words = agent.split(' ');
            let product = words.next()?;
            Client::parse(product).or_else(|| {
                let (name, version) = match product.rsplit_once('/') {
                    Some((name, version)) if is_version(version) => (name, Some(version)),
                    _ => (product, words.next().filter(|word| is_version(word))),
                };
                let name = name.replace('/', "-");
                let whole = version.and_then(|version| Client::parse(&format!("{name}/{version}")));
                whole.or_else(|| Client::parse(&name))
            })
        });
        of_agent.or_else(|| Client::parse(originator()?))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.bytes().all(is_of_a_program)
}

fn is_version(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit()) && text.bytes().all(is_of_a_program)
}

fn is_of_a_program(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._+".contains(&byte)
}

macro_rules! shown_as_text {
    ($type:ident, $parse:path) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                $parse(&text).ok_or_else(|| D::Error::custom(concat!("no ", stringify!($type))))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

shown_as_text!(Label, Label::new);
shown_as_text!(Client, Client::parse);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;

    fn call(body: &Value) -> Call {
        let mut whole = json!({"model": "m", "input": "hi"});
        for (name, value) in body.as_object().expect("an object") {
            whole[name] = value.clone();
        }
        Call::parse(Endpoint::Responses, Bytes::from(whole.to_string())).expect("a call")
    }

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, &str)| {
            (
                http::HeaderName::from_static(name),
                value.parse::<HeaderValue>().expect("a value"),
            )
        };
        of.iter().map(header).collect()
    }

    /// Session, turn, agent, kind and client, `-` for what is not said.
    fn shown(origin: &Origin) -> String {
        let label = |label: &Option<Label>| label.as_ref().map_or("-".to_owned(), Label::to_string);
        let client = origin.client.as_ref().map_or("-", Client::as_str);
        let kind = origin.kind.map_or("-", Kind::name);
        [
            &label(&origin.session),
            &label(&origin.turn),
            &label(&origin.agent),
            kind,
            client,
        ]
        .join(" ")
    }

    fn of(of: &[(&'static str, &str)], body: &Value) -> String {
        shown(&Origin::of_request(&headers(of), &call(body)))
    }

    fn codex(metadata: &Value) -> String {
        let metadata = metadata.to_string();
        of(
            &[
                ("x-codex-turn-metadata", &metadata),
                ("user-agent", "codex_exec/0.169.0 (Ubuntu 24.4.0; x86_64) dumb"),
            ],
            &json!({}),
        )
    }

    #[test]
    fn codex_says_session_turn_kind_and_client() {
        let own = json!({"session_id": "s", "thread_id": "s", "turn_id": "t", "root_turn_id": "t", "request_kind": "turn",
                         "thread_source": "user", "workspaces": {"/home/ada": {"associated_remote_urls": {"origin": "git@h:x"}}}});
        assert_eq!(codex(&own), "s t - turn codex_exec/0.169.0");
        for (more, wanted) in [
            (json!({"request_kind": "compaction"}), "s t - compaction"),
            (
                json!({"request_kind": "prewarm", "turn_id": "", "root_turn_id": null}),
                "s - - prewarm",
            ),
            (json!({"thread_source": "thread_title"}), "s t - title"),
            (json!({"request_kind": "memory"}), "s t - -"),
            (
                json!({"thread_id": "a", "parent_thread_id": "s", "turn_id": "u", "parent_turn_id": "t",
                       "subagent_kind": "guardian", "thread_source": "guardian_review"}),
                "s t a review",
            ),
            (
                json!({"thread_id": "a", "parent_thread_id": "s", "subagent_kind": "thread_spawn", "turn_id": "u"}),
                "s t a sub-agent",
            ),
            // Of a version whose sub-agents are sessions of their own.
            (
                json!({"session_id": "a", "thread_id": "a", "parent_thread_id": "s", "root_turn_id": null, "turn_id": "u"}),
                "s u a sub-agent",
            ),
        ] {
            let mut metadata = own.clone();
            for (name, value) in more.as_object().expect("an object") {
                metadata[name] = value.clone();
            }
            assert_eq!(codex(&metadata), format!("{wanted} codex_exec/0.169.0"), "{more}");
        }
        let old = [
            ("x-codex-turn-metadata", r#"{"sandbox":"none"}"#),
            ("session_id", "s"),
            ("x-openai-subagent", "review"),
        ];
        assert_eq!(of(&old, &json!({"prompt_cache_key": "k"})), "s - - review -");
        let older = [
            ("session-id", "a"),
            ("thread-id", "a"),
            ("x-codex-parent-thread-id", "s"),
            ("x-openai-subagent", "collab_spawn"),
        ];
        assert_eq!(of(&older, &json!({})), "s - a sub-agent -");
    }

    #[test]
    fn an_endpoint_that_compacts_is_for_nothing_else() {
        let body = Bytes::from_static(br#"{"model": "m", "input": "hi"}"#);
        let call = Call::parse(Endpoint::Compact, body).expect("a call");
        let turn = headers(&[(
            "x-codex-turn-metadata",
            r#"{"session_id": "s", "request_kind": "turn"}"#,
        )]);
        assert_eq!(shown(&Origin::of_request(&turn, &call)), "s - - compaction -");
    }

    #[test]
    fn what_no_header_says_is_told_by_the_body() {
        let metadata = json!({"session_id": "s", "thread_id": "s", "turn_id": "t", "request_kind": "turn"}).to_string();
        let body = json!({"client_metadata": {"turn_id": "t", "x-codex-turn-metadata": metadata}});
        assert_eq!(of(&[("session-id", "x")], &body), "s t - turn -");
        let header = r#"{"session_id": "h", "request_kind": "compaction"}"#;
        assert_eq!(of(&[("x-codex-turn-metadata", header)], &body), "h - - compaction -");
        assert_eq!(of(&[("x-codex-turn-metadata", "{")], &body), "s t - turn -");
    }

    #[test]
    fn other_clients_are_known_by_their_headers_or_their_cache_key() {
        for (agent, client) in [
            ("OpenAI/Python 2.8.0", "OpenAI-Python/2.8.0"),
            ("AsyncOpenAI/Python 1.68.2", "AsyncOpenAI-Python/1.68.2"),
            ("OpenAI/JS 6.1.0", "OpenAI-JS/6.1.0"),
            ("ai-sdk/openai/2.0.1 runtime/node", "ai-sdk-openai/2.0.1"),
            ("curl/8.5.0", "curl/8.5.0"),
            ("node", "node"),
            ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "Mozilla/5.0"),
            ("", "-"),
            ("/home/ada/bin/agent", "-"),
            ("ada@example.org", "-"),
            ("=cmd|x/1", "-"),
        ] {
            assert_eq!(
                of(&[("user-agent", agent)], &json!({})),
                format!("- - - - {client}"),
                "{agent}"
            );
        }
        assert_eq!(of(&[("originator", "codex-tui")], &json!({})), "- - - - codex-tui");
        for name in SESSION {
            assert_eq!(
                of(&[(name, "ses_1")], &json!({"prompt_cache_key": "k"})),
                "ses_1 - - - -",
                "{name}"
            );
        }
        assert_eq!(of(&[], &json!({"prompt_cache_key": "k"})), "k - - - -");
        for private in ["/home/ada/project", "ada@example.org", "a b", "k\u{e9}", "-k"] {
            assert_eq!(of(&[], &json!({"prompt_cache_key": private})), "- - - - -", "{private}");
        }
    }

    #[test]
    fn what_a_client_makes_up_is_left_out_and_never_cut() {
        let long = "x".repeat(Label::LONGEST + 1);
        for hostile in [
            "",
            "null",
            "7",
            "[]",
            "{",
            r#"{"session_id":7}"#,
            r#"{"session_id":"a","session_id":"b"}"#,
            r#"{"session_id":{"a":[]}}"#,
            &format!(r#"{{"session_id":"{long}"}}"#),
            &format!(
                r#"{{"session_id":"a","x":{}1{}}}"#,
                "[".repeat(9_000),
                "]".repeat(8_999)
            ),
            &format!(r#"{{"session_id":"a","x":"{}"}}"#, "y".repeat(MOST_METADATA)),
        ] {
            assert_eq!(
                of(&[("x-codex-turn-metadata", hostile)], &json!({})),
                "- - - - -",
                "{:.60}",
                hostile
            );
            let body = json!({"client_metadata": {"x-codex-turn-metadata": hostile}});
            assert_eq!(of(&[], &body), "- - - - -", "{:.60}", hostile);
            let body = json!({"client_metadata": hostile});
            assert_eq!(of(&[], &body), "- - - - -", "{:.60}", hostile);
        }
        let agent = format!("codex/{}", "1".repeat(Client::LONGEST));
        assert_eq!(of(&[("user-agent", &agent)], &json!({})), "- - - - codex");
    }

    /// What Codex was seen to send, where it is there to be read.
    #[test]
    fn recorded_requests_of_codex_are_told_apart() {
        let Some(folder) = std::env::var_os("GATEWAY_FIXTURES") else {
            eprintln!("GATEWAY_FIXTURES is not set: nothing recorded was read");
            return;
        };
        let read = |name: &str| {
            let path = std::path::Path::new(&folder).join("codex").join(name);
            let text = std::fs::read_to_string(&path).expect("a recorded exchange");
            let recorded: Value = serde_json::from_str(&text).expect("JSON");
            let request = &recorded["request"];
            let mut headers = HeaderMap::new();
            for header in request["headers"].as_array().expect("headers") {
                let part = |at: usize| header[at].as_str().expect("text").to_owned();
                let name: http::HeaderName = part(0).parse().expect("a name");
                headers.append(name, part(1).parse().expect("a value"));
            }
            let known = ["prompt_cache_key", "client_metadata"];
            let body: Value = known
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), request["body"].get(name)?.clone())))
                .collect::<serde_json::Map<_, _>>()
                .into();
            shown(&Origin::of_request(&headers, &call(&body)))
        };
        let id = |end: &str| format!("00000000-0000-7000-8000-0000000000{end}");
        let told = |session: &str, turn: &str, rest: &str| format!("{} {} {rest}", id(session), id(turn));
        for (name, wanted) in [
            ("plain-text.json", told("01", "03", "- turn codex_exec/0.169.0")),
            ("resume-1.json", told("15", "1e", "- turn codex_exec/0.169.0")),
            ("tui-first-turn.json", told("97", "99", "- turn codex-tui/0.169.0")),
            ("tui-thread-title.json", told("a2", "a3", "- title codex-tui/0.169.0")),
            (
                "compaction-local-2.json",
                told("41", "43", "- compaction codex_exec/0.169.0"),
            ),
            (
                "compaction-remote-v2-2.json",
                told("4e", "50", "- compaction codex_exec/0.169.0"),
            ),
            (
                "guardian-auto-review.json",
                told("b9", "bc", &format!("{} review codex_exec/0.169.0", id("b7"))),
            ),
            (
                "old-cli-0.144.3-plain.json",
                told("cc", "ce", "- turn codex_exec/0.144.3"),
            ),
            (
                "old-cli-0.101.0-plain.json",
                format!("{} - - - codex_exec/0.101.0", id("cf")),
            ),
            (
                "websocket-plain.json",
                format!("{} - - prewarm codex_exec/0.169.0", id("73")),
            ),
        ] {
            assert_eq!(read(name), wanted, "{name}");
        }
    }

    #[test]
    fn names_of_kinds_are_those_of_the_documents() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("JSON"), Value::from(kind.name()));
        }
    }

    #[test]
    fn a_label_is_bounded_and_has_no_characters_but_those_of_ids() {
        for good in ["1", "019a-7c", "guardian:019a.b_c", &"x".repeat(Label::LONGEST)] {
            assert_eq!(Label::new(good).as_ref().map(Label::as_str), Some(good));
        }
        let long = "x".repeat(Label::LONGEST + 1);
        for bad in ["", "a b", "/home/ada", "a\n", "é", "a@b", "-a", &long] {
            assert_eq!(Label::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_client_is_a_name_and_a_version_and_nothing_else() {
        for good in ["codex_exec/0.169.0", "curl/8.5.0", "opencode", "x/1.0.0-rc.1+b2"] {
            assert_eq!(Client::parse(good).as_ref().map(Client::as_str), Some(good));
        }
        let long = "x".repeat(Client::LONGEST + 1);
        for bad in ["", "/1", "a/", "a/b", "a/1/2", "a b/1", "a/1 (Ubuntu)", "1/1", &long] {
            assert_eq!(Client::parse(bad), None, "{bad:?}");
        }
    }
}
