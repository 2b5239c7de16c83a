//! The members of a JSON object as the client wrote them, and the rules for those that decide cost.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{BodyProblem, CallError, Instead, Problem, Wanted};

/// More members than any request has; each costs memory before anything else is known about the call.
const MAX_MEMBERS: usize = 512;

/// Members that decide what a call costs or whether it may pass. Upstreams differ in which of two equal names they
/// take and whether case counts, so each may appear once, spelled like this, with its own type.
const DECIDING: [&str; 33] = [
    "background",
    "best_of",
    "conversation",
    "echo",
    "enable_search",
    "functions",
    "include_usage",
    "input",
    "instructions",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "max_tool_calls",
    "messages",
    "model",
    "models",
    "n",
    "n_predict",
    "plugins",
    "prediction",
    "preset",
    "previous_response_id",
    "prompt",
    "prompt_cache_options",
    "reasoning",
    "search_parameters",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "tools",
    "ttl",
    "web_search_options",
];

/// One member of an object.
pub struct Member<'a> {
    /// Its name, JSON escapes undone.
    pub name: Cow<'a, str>,
    /// Its value's JSON, a part of the text it was read from.
    pub value: &'a str,
}

/// A member's name, JSON escapes undone.
#[derive(Deserialize)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

struct Members<'a>(Vec<Member<'a>>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    if members.len() < MAX_MEMBERS + 1 {
                        members.push(Member {
                            name,
                            value: value.get(),
                        });
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The members of the object that `text` is.
///
/// # Errors
/// It is none, or has too many.
pub fn members(text: &str) -> Result<Vec<Member<'_>>, CallError> {
    match serde_json::from_str::<Members<'_>>(text) {
        Ok(Members(members)) if members.len() > MAX_MEMBERS => {
            Err(CallError::Body(BodyProblem::TooManyParameters { most: MAX_MEMBERS }))
        }
        Ok(Members(members)) => Ok(members),
        Err(error) => Err(not_an_object(text, &error)),
    }
}

fn not_an_object(text: &str, error: &serde_json::Error) -> CallError {
    CallError::Body(if serde_json::from_str::<IgnoredAny>(text).is_ok() {
        BodyProblem::NotAnObject
    } else {
        BodyProblem::NotJson {
            line: error.line(),
            column: error.column(),
        }
    })
}

/// Where `part`, a slice of `text`, lies in it.
pub(super) fn span(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    start..start + part.len()
}

/// The deciding members of an object, each at most once.
pub(super) struct Deciding<'a>(BTreeMap<&'static str, &'a str>);

impl<'a> Deciding<'a> {
    /// Picks them out of `members`; `within` is put before their names in errors (`stream_options.`).
    pub(super) fn pick(members: &[Member<'a>], within: &str) -> Result<Deciding<'a>, CallError> {
        let mut picked = BTreeMap::new();
        for member in members {
            let Some(name) = DECIDING.into_iter().find(|name| same_name(&member.name, name)) else {
                continue;
            };
            if member.name != name {
                return Err(CallError::of(&format!("{within}{name}"), Problem::Miswritten));
            }
            if picked.insert(name, member.value).is_some() {
                return Err(CallError::of(&format!("{within}{name}"), Problem::Repeated));
            }
        }
        Ok(Deciding(picked))
    }

    /// The JSON of a member, also when it is `null`.
    pub(super) fn written(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    /// The JSON of a member; `null` is none.
    pub(super) fn raw(&self, name: &str) -> Option<&'a str> {
        self.written(name).filter(|value| *value != "null")
    }

    /// The member as a string.
    pub(super) fn string(&self, name: &str) -> Result<Option<String>, CallError> {
        let read = |raw| serde_json::from_str(raw).map_err(|_| wrong_type(name, Wanted::Text));
        self.raw(name).map(read).transpose()
    }

    /// The member as `true` or `false`.
    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, CallError> {
        match self.raw(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(wrong_type(name, Wanted::Bool)),
        }
    }

    /// The member as a whole number from 1; what is larger than `u64` becomes its maximum.
    pub(super) fn count(&self, name: &str) -> Result<Option<u64>, CallError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        if !raw.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong_type(name, Wanted::Count));
        }
        match raw.parse().unwrap_or(u64::MAX) {
            0 => Err(CallError::of(name, Problem::Zero)),
            count => Ok(Some(count)),
        }
    }

    /// Checks that the member's JSON, when there is one, begins with one of `first`, as what is wanted does.
    pub(super) fn expect_kind(&self, name: &str, first: &[char], wanted: Wanted) -> Result<Option<&'a str>, CallError> {
        match self.raw(name) {
            Some(raw) if !raw.starts_with(first) => Err(wrong_type(name, wanted)),
            raw => Ok(raw),
        }
    }
}

/// Whether an upstream that ignores case would take `written` for `name`. Go's JSON decoder also takes the long s and
/// the Kelvin sign for letters.
fn same_name(written: &str, name: &str) -> bool {
    let folded = written.chars().map(|letter| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars())
}

impl CallError {
    /// A refusal of a parameter.
    pub(super) fn of(param: &str, problem: Problem) -> CallError {
        CallError::Param {
            name: param.to_owned(),
            problem,
        }
    }
}

/// `name` is not of its type.
pub(super) fn wrong_type(name: &str, wanted: Wanted) -> CallError {
    CallError::of(name, Problem::Type(wanted))
}

/// `name` is understood, and not served here.
pub(super) fn unsupported(name: &str, instead: Instead) -> CallError {
    CallError::of(name, Problem::Unsupported(instead))
}
