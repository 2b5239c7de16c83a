//! What a connection remembers: the input and output of its last response, so that the next create may send what is new.
//!
//! One response a connection, as OpenAI does it. Where there is no memory for it, the response is forgotten, and its client
//! is told so when it leans on it (`previous_response_not_found`): Codex then sends all of it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::memory::{Memory, Room};

/// A response that is remembered.
#[derive(Debug)]
pub(super) struct Thread {
    id: String,
    /// Its input and its output, separated by commas.
    items: String,
    /// Whether they say all of it.
    tells_all: bool,
    _room: Option<Room>,
}

impl Thread {
    /// Remembers a response, if there is memory for it.
    pub(super) fn remember(id: &str, items: String, memory: &Memory) -> Option<Thread> {
        let room = memory.room(id.len() + items.len())?;
        Some(Thread {
            id: id.to_owned(),
            items,
            tells_all: true,
            _room: Some(room),
        })
    }

    /// Without memory of its own.
    #[cfg(test)]
    pub(super) fn of(id: &str, items: &str) -> Thread {
        Thread {
            id: id.to_owned(),
            items: items.to_owned(),
            tells_all: true,
            _room: None,
        }
    }

    /// Which response it is.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is this response.
    pub(super) fn is(&self, id: &str) -> bool {
        self.id == id
    }

    /// Whether a create that follows on it, where it is kept, makes the model read no more than its items say.
    pub(super) fn tells_all(&self) -> bool {
        self.tells_all
    }

    /// Its items.
    pub(super) fn items(&self) -> &str {
        &self.items
    }
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By an answer, whole or not, that the next one may follow.
    Answered,
    /// Without one, as the response itself says.
    Failed,
    /// By an error of no response, which does not tell every client that nothing follows.
    Error,
}

/// A response while it comes.
#[derive(Debug)]
pub(super) struct Growing {
    id: Option<String>,
    /// Items of the output, with the place that their events give them.
    output: Vec<(u64, String)>,
    bytes: usize,
    most: usize,
    /// Nobody else keeps it: what says something only by its id says nothing.
    is_kept_here_only: bool,
    /// Whether its items say all that whoever keeps it knows.
    tells_all: bool,
    pub(super) ended: Option<Ended>,
}

/// What is looked at of an event.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default)]
    output_index: u64,
    #[serde(borrow)]
    item: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    output: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    encrypted_content: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

impl Growing {
    /// Nothing yet. With more bytes of output than `most` it is forgotten.
    pub(super) fn new(is_kept_here_only: bool, most: usize) -> Growing {
        Growing {
            id: None,
            output: Vec::new(),
            bytes: 0,
            most,
            is_kept_here_only,
            tells_all: true,
            ended: None,
        }
    }

    /// Looks at an event of the answer.
    pub(super) fn see(&mut self, event: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Event<'_>>(event) else {
            return;
        };
        self.ended = match &*event.kind {
            "response.output_item.done" => {
                let item = event.item.map(|item| (event.output_index, item));
                self.take(item);
                return;
            }
            "response.completed" | "response.incomplete" => Some(Ended::Answered),
            "response.failed" => Some(Ended::Failed),
            "error" => Some(Ended::Error),
            _ => return,
        };
        let response = event
            .response
            .map(RawValue::get)
            .map(serde_json::from_str::<Response<'_>>);
        let Some(Ok(response)) = response else { return };
        self.id = Some(response.id.into_owned());
        // Some upstreams tell the items at the end alone.
        if self.output.is_empty() {
            self.take((0..).zip(response.output.into_iter().flatten()));
        }
    }

    fn take<'a>(&mut self, items: impl IntoIterator<Item = (u64, &'a RawValue)>) {
        for (place, item) in items {
            let item = item.get();
            self.bytes += item.len() + 1;
            self.tells_all &= tells_all(item);
            if self.bytes <= self.most && !(self.is_kept_here_only && says_nothing(item)) {
                self.output.push((place, item.to_owned()));
            }
        }
    }

    /// Remembers it, behind the items of its input.
    pub(super) fn remember(mut self, input: &str, memory: &Memory) -> Option<Thread> {
        if self.ended != Some(Ended::Answered) || self.bytes > self.most {
            return None;
        }
        self.output.sort_by_key(|(place, _)| *place);
        let mut items = String::with_capacity(input.len() + self.bytes);
        items.push_str(input);
        for (_, item) in &self.output {
            if !items.is_empty() {
                items.push(',');
            }
            items.push_str(item);
        }
        let thread = Thread::remember(self.id.as_deref().filter(|id| !id.is_empty())?, items, memory)?;
        Some(Thread {
            tells_all: self.tells_all,
            ..thread
        })
    }
}

/// Reasoning that is neither in the clear nor encrypted is known by its id alone, to whoever keeps it.
fn says_nothing(item: &str) -> bool {
    let item = serde_json::from_str::<Item<'_>>(item);
    item.is_ok_and(|item| item.kind == "reasoning" && item.encrypted_content.is_none() && item.content.is_none())
}

/// Whether an item is all that its keeper knows of it. What tools of the upstream found is not in theirs.
fn tells_all(item: &str) -> bool {
    let Ok(item) = serde_json::from_str::<Item<'_>>(item) else {
        return false;
    };
    match &*item.kind {
        "message" | "function_call" | "custom_tool_call" | "local_shell_call" => true,
        "reasoning" => {
            let mut said = [item.encrypted_content, item.content].into_iter().flatten();
            said.any(|said| !matches!(said.get(), "[]" | "\"\""))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::create::Create;
    use super::*;
    use crate::exchange::BodyMemory;

    fn memory() -> Memory {
        Memory::of(&BodyMemory::default())
    }

    fn grown(is_kept_here_only: bool, events: &[Value]) -> Growing {
        let mut growing = Growing::new(is_kept_here_only, 1_000);
        events
            .iter()
            .for_each(|event| growing.see(event.to_string().as_bytes()));
        growing
    }

    fn item(place: u64, item: &Value) -> Value {
        json!({"type": "response.output_item.done", "output_index": place, "item": item})
    }

    fn end(kind: &str, more: &Value) -> Value {
        json!({"type": kind, "response": {"id": "resp_1", "output": more}})
    }

    #[test]
    fn a_response_is_its_input_and_its_items_in_their_order() {
        let items = [item(1, &json!({"n": 2})), item(0, &json!({"n": 1}))];
        let ends = ["response.completed", "response.incomplete"].map(|kind| end(kind, &json!([{"n": 9}])));
        for end in ends {
            let growing = grown(true, &[items[0].clone(), items[1].clone(), end]);
            let thread = growing.remember(r#"{"n":0}"#, &memory()).expect("room");
            assert!(thread.is("resp_1") && !thread.is("resp_2"));
            assert_eq!(thread.items(), r#"{"n":0},{"n":1},{"n":2}"#);
        }
        let told_at_the_end = grown(true, &[end("response.completed", &json!([{"n": 1}, {"n": 2}]))]);
        let thread = told_at_the_end.remember("", &memory()).expect("room");
        assert_eq!(thread.items(), r#"{"n":1},{"n":2}"#);
    }

    #[test]
    fn what_failed_or_broke_off_or_is_too_long_is_not_remembered() {
        let failed = grown(true, &[end("response.failed", &Value::Null)]);
        assert_eq!(failed.ended, Some(Ended::Failed));
        assert!(failed.remember("", &memory()).is_none());
        let broken = grown(true, &[item(0, &json!({"n": 1}))]);
        assert!(broken.ended.is_none() && broken.remember("", &memory()).is_none());
        let long = item(0, &json!({"text": "x".repeat(1_000)}));
        let long = grown(true, &[long, end("response.completed", &Value::Null)]);
        assert!(long.remember("", &memory()).is_none());
    }

    #[test]
    fn reasoning_that_only_its_keeper_can_read_is_left_out_where_nobody_keeps_it() {
        let reasoning = |more: Value| {
            let mut item = json!({"type": "reasoning", "id": "rs_1", "summary": []});
            item.as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            item
        };
        let events = [
            item(0, &reasoning(json!({"encrypted_content": null}))),
            item(1, &reasoning(json!({"encrypted_content": "blob"}))),
            item(
                2,
                &reasoning(json!({"content": [{"type": "reasoning_text", "text": "hm"}]})),
            ),
            end("response.completed", &Value::Null),
        ];
        for (kept_here_only, count) in [(true, 2), (false, 3)] {
            let thread = grown(kept_here_only, &events).remember("", &memory()).expect("room");
            let items: Vec<Value> = serde_json::from_str(&format!("[{}]", thread.items())).expect("items");
            assert_eq!(items.len(), count);
        }
    }

    #[test]
    fn what_holds_more_than_it_says_is_followed_by_nothing_new_alone() {
        for (told, tells_all) in [
            (json!({"type": "message", "content": []}), true),
            (json!({"type": "function_call", "arguments": "{}"}), true),
            (json!({"type": "reasoning", "encrypted_content": "blob"}), true),
            (json!({"type": "reasoning", "summary": []}), false),
            (
                json!({"type": "reasoning", "content": [], "encrypted_content": ""}),
                false,
            ),
            (json!({"type": "web_search_call"}), false),
        ] {
            for kept_here_only in [true, false] {
                let events = [item(0, &told), end("response.completed", &Value::Null)];
                let thread = grown(kept_here_only, &events).remember("", &memory()).expect("room");
                assert_eq!(thread.tells_all(), tells_all, "{told}");
                let next = r#"{"type":"response.create","previous_response_id":"resp_1","input":[]}"#;
                let create = Create::read(next, Some(&thread)).expect("a create");
                assert_eq!(create.follows.is_some(), tells_all, "{told}");
            }
        }
    }
}
