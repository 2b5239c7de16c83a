//! The shelf: files, uploads, conversations and answers that a simulated upstream keeps, for all its callers alike; and the background
//! responses that it makes while they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Request, Script, Step, form};

/// Objects kept at once; the oldest go first.
const MOST: usize = 10_000;

/// What is kept.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<Things>);

#[derive(Debug, Default)]
struct Things {
    made: u64,
    objects: BTreeMap<String, Thing>,
    /// Answers that were deleted.
    gone: BTreeSet<String>,
    /// Background responses.
    runs: BTreeMap<String, Run>,
}

/// A background response.
#[derive(Debug)]
struct Run {
    /// As it will be in the end.
    whole: Value,
    /// The events of its stream, if it was made with one.
    events: Vec<Value>,
    /// How it ends.
    end: RunEnd,
    /// How often it was asked for.
    asked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunEnd {
    /// When it was asked for so often.
    After(u64),
    Failed,
    Forgotten,
    Never,
    Cancelled,
}

impl RunEnd {
    fn of(play: &str) -> RunEnd {
        match play {
            "fails" => RunEnd::Failed,
            "forgets" => RunEnd::Forgotten,
            "endless" => RunEnd::Never,
            _ => RunEnd::After(play.strip_prefix("polls-").and_then(|n| n.parse().ok()).unwrap_or(2)),
        }
    }
}

impl Run {
    /// As it is before its end.
    fn before(&self, status: &str) -> Value {
        let mut now = self.whole.clone();
        for member in ["usage", "incomplete_details"] {
            now[member] = Value::Null;
        }
        now["status"] = status.into();
        now["output"] = json!([]);
        now["service_tier"] = "auto".into();
        now
    }

    fn is_over(&self) -> bool {
        match self.end {
            RunEnd::After(polls) => self.asked >= polls,
            RunEnd::Failed => self.asked > 1,
            RunEnd::Cancelled => true,
            RunEnd::Forgotten | RunEnd::Never => false,
        }
    }

    /// As it is when it is asked for once more.
    fn ask(&mut self) -> Option<Value> {
        self.asked += 1;
        Some(match self.end {
            RunEnd::Forgotten => return None,
            RunEnd::Cancelled => self.before("cancelled"),
            RunEnd::Failed if self.is_over() => {
                let mut failed = self.before("failed");
                failed["error"] = json!({"code": "server_error", "message": "Simulated: it failed."});
                failed
            }
            RunEnd::After(_) if self.is_over() => self.whole.clone(),
            RunEnd::After(_) | RunEnd::Failed | RunEnd::Never => self.before("in_progress"),
        })
    }

    /// Its events behind the one of this number, to its end.
    fn resume(&mut self, after: u64) -> Script {
        self.asked = u64::MAX - 1;
        let later = self
            .events
            .iter()
            .filter(|event| event["sequence_number"].as_u64() > Some(after));
        Script::sse(later.map(|event| Step::event(event, 0)).collect())
    }
}

#[derive(Debug)]
struct Thing {
    object: Value,
    content: Bytes,
    items: Vec<Value>,
}

impl Shelf {
    /// The answer, if the request is for something that is kept, or that needs no model.
    pub(super) fn answer(&self, request: &Request) -> Option<Script> {
        let mut things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let parts: Vec<&str> = request.route().split('/').skip(1).collect();
        let (get, post) = (request.method == Method::GET, request.method == Method::POST);
        let answer = match parts[..] {
            ["moderations"] if post => Script::json(StatusCode::OK, &moderation(request)),
            ["responses", "input_tokens"] if post => Script::json(
                StatusCode::OK,
                &json!({"object": "response.input_tokens", "input_tokens": request.input_tokens()}),
            ),
            ["responses", id, ref rest @ ..] if id.starts_with("resp_") => things.response(request, id, rest),
            ["files"] if post => things.add_file(request),
            ["files"] if get => things.list(request),
            ["conversations"] if post => things.add_conversation(request),
            ["uploads"] if post => things.begin_upload(request),
            ["uploads", id, "parts"] if post => things.add_part(id, request),
            ["uploads", id, "complete"] if post => things.complete_upload(id, request),
            ["uploads", id, "cancel"] if post => things.end_upload(id, "cancelled"),
            ["files" | "conversations", id] if get => things.show(id),
            ["files" | "conversations", id] if request.method == Method::DELETE => things.remove(id),
            ["files", id, "content"] if get => things.content(id),
            ["conversations", id, "items"] if get => things.items(id),
            ["conversations", id, "items"] if post => things.add_items(id, request),
            _ => return None,
        };
        Some(answer)
    }
}

impl Shelf {
    /// Begins a background response whose answer this would be.
    pub(super) fn run(&self, request: &Request, script: Script, play: &str) -> Script {
        let events: Vec<Value> = script.steps.iter().filter_map(event).collect();
        let whole = match events.last() {
            Some(last) => last["response"].clone(),
            None => script.steps.iter().find_map(document).unwrap_or_default(),
        };
        let Some(id) = whole["id"].as_str().map(str::to_owned) else {
            return script;
        };
        let streams = request.streamed();
        let run = Run {
            whole,
            events,
            end: RunEnd::of(play),
            asked: 0,
        };
        let queued = Script::json(StatusCode::OK, &run.before("queued"));
        let mut things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        things.runs.insert(id, run);
        match streams {
            true => script,
            false => Script {
                usage: script.usage,
                response_id: script.response_id,
                ..queued
            },
        }
    }
}

/// What an event of a stream says.
fn event(step: &Step) -> Option<Value> {
    let Step::Send { bytes, .. } = step else { return None };
    let text = std::str::from_utf8(bytes).ok()?;
    let data = text.lines().find_map(|line| line.strip_prefix("data: "))?;
    serde_json::from_str(data).ok()
}

fn document(step: &Step) -> Option<Value> {
    let Step::Send { bytes, .. } = step else { return None };
    serde_json::from_slice(bytes).ok()
}

fn moderation(request: &Request) -> Value {
    json!({"id": format!("modr-{}", request.id), "model": "omni-moderation-latest",
        "results": [{"flagged": false, "categories": {"violence": false}, "category_scores": {"violence": 0.01},
                     "category_applied_input_types": {"violence": ["text"]}}]})
}

fn missing(id: &str) -> Script {
    let message = format!("No such object: {id}");
    Script::error(StatusCode::NOT_FOUND, "invalid_request_error", "not_found", &message)
}

impl Things {
    fn add(&mut self, prefix: &str, thing: impl FnOnce(&str) -> Thing) -> Script {
        self.made += 1;
        // In the order they are made.
        let id = format!("{prefix}{:08}", self.made);
        let thing = thing(&id);
        let answer = Script::json(StatusCode::OK, &thing.object);
        self.objects.insert(id, thing);
        while self.objects.len() > MOST {
            self.objects.pop_first();
        }
        answer
    }

    fn add_file(&mut self, request: &Request) -> Script {
        let parts = form::parts(request);
        let part = |name: &str| parts.iter().find(|part| part.name == name);
        let (Some(file), Some(purpose)) = (part("file"), part("purpose")) else {
            let message = "A form with 'file' and 'purpose' is wanted.";
            return Script::error(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "invalid_form",
                message,
            );
        };
        self.add("file-", |id| Thing {
            object: json!({"id": id, "object": "file", "bytes": file.content.len(), "created_at": request.at.as_second(),
                "filename": file.filename, "purpose": String::from_utf8_lossy(&purpose.content), "status": "processed"}),
            content: file.content.clone(),
            items: Vec::new(),
        })
    }

    fn begin_upload(&mut self, request: &Request) -> Script {
        let told = |name: &str| request.json[name].clone();
        self.add("upload_", |id| Thing {
            object: json!({"id": id, "object": "upload", "bytes": told("bytes"), "created_at": request.at.as_second(),
                "filename": told("filename"), "purpose": told("purpose"), "status": "pending", "file": null,
                "expires_at": request.at.as_second() + 3600}),
            content: Bytes::new(),
            items: Vec::new(),
        })
    }

    /// A part is an object of its own.
    fn add_part(&mut self, id: &str, request: &Request) -> Script {
        let parts = form::parts(request);
        let Some(data) = parts.iter().find(|part| part.name == "data") else {
            let message = "A form with 'data' is wanted.";
            return Script::error(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "invalid_form",
                message,
            );
        };
        if self
            .objects
            .get(id)
            .is_none_or(|upload| upload.object["status"] != "pending")
        {
            return missing(id);
        }
        self.add("part_", |part| Thing {
            object: json!({"id": part, "object": "upload.part", "created_at": request.at.as_second(), "upload_id": id}),
            content: data.content.clone(),
            items: Vec::new(),
        })
    }

    fn complete_upload(&mut self, id: &str, request: &Request) -> Script {
        let named = request.json["part_ids"].as_array().cloned().unwrap_or_default();
        let part = |part: &Value| {
            let found = self.objects.get(part.as_str()?)?;
            (found.object["upload_id"] == id).then(|| found.content.to_vec())
        };
        let Some(parts) = named.iter().map(part).collect::<Option<Vec<_>>>() else {
            return missing("a part");
        };
        let content = parts.concat();
        let Some(upload) = self.objects.get(id).map(|upload| upload.object.clone()) else {
            return missing(id);
        };
        if upload["status"] != "pending" || upload["bytes"] != content.len() {
            let message = "The parts are not what was announced.";
            return Script::error(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "invalid_value",
                message,
            );
        }
        let mut made = Value::Null;
        self.add("file-", |file| {
            made = json!({"id": file, "object": "file", "bytes": content.len(), "created_at": request.at.as_second(),
                "filename": upload["filename"], "purpose": upload["purpose"], "status": "processed"});
            Thing {
                object: made.clone(),
                content: content.into(),
                items: Vec::new(),
            }
        });
        if let Some(upload) = self.objects.get_mut(id) {
            upload.object["file"] = made;
        }
        self.end_upload(id, "completed")
    }

    fn end_upload(&mut self, id: &str, status: &str) -> Script {
        match self.objects.get_mut(id) {
            Some(upload) if upload.object["status"] == "pending" => {
                upload.object["status"] = status.into();
                Script::json(StatusCode::OK, &upload.object)
            }
            _ => missing(id),
        }
    }

    fn add_conversation(&mut self, request: &Request) -> Script {
        let items = request.json["items"].as_array().cloned().unwrap_or_default();
        self.add("conv_", |id| Thing {
            object: json!({"id": id, "object": "conversation", "created_at": request.at.as_second(), "metadata": {}}),
            content: Bytes::new(),
            items,
        })
    }

    fn add_items(&mut self, id: &str, request: &Request) -> Script {
        let Some(thing) = self.objects.get_mut(id) else {
            return missing(id);
        };
        let items = request.json["items"].as_array().cloned().unwrap_or_default();
        let list = list_of(&items);
        thing.items.extend(items);
        Script::json(StatusCode::OK, &list)
    }

    fn items(&self, id: &str) -> Script {
        self.with(id, |thing| Script::json(StatusCode::OK, &list_of(&thing.items)))
    }

    fn show(&self, id: &str) -> Script {
        self.with(id, |thing| Script::json(StatusCode::OK, &thing.object))
    }

    fn content(&self, id: &str) -> Script {
        self.with(id, |thing| {
            Script::body(StatusCode::OK, "application/octet-stream", thing.content.clone())
        })
    }

    fn with(&self, id: &str, answer: impl FnOnce(&Thing) -> Script) -> Script {
        self.objects.get(id).map_or_else(|| missing(id), answer)
    }

    fn remove(&mut self, id: &str) -> Script {
        match self.objects.remove(id) {
            None => missing(id),
            Some(thing) => Script::json(
                StatusCode::OK,
                &json!({"id": id, "object": format!("{}.deleted", thing.object["object"].as_str().unwrap_or("object")),
                        "deleted": true}),
            ),
        }
    }

    /// Newest first, in pages.
    fn list(&self, request: &Request) -> Script {
        let asked = |name: &str| request.query(name);
        let files = self.objects.values().filter(|thing| thing.object["object"] == "file");
        let files = files.filter(|thing| asked("purpose").is_none_or(|purpose| thing.object["purpose"] == *purpose));
        let mut files: Vec<Value> = files.map(|thing| thing.object.clone()).collect();
        if asked("order").as_deref() != Some("asc") {
            files.reverse();
        }
        if let Some(after) = asked("after") {
            let Some(at) = files.iter().position(|file| file["id"] == *after) else {
                return missing(&after);
            };
            files.drain(..=at);
        }
        let limit = asked("limit").and_then(|limit| limit.parse().ok()).unwrap_or(MOST);
        let has_more = files.len() > limit;
        files.truncate(limit);
        let mut list = list_of(&files);
        list["has_more"] = has_more.into();
        Script::json(StatusCode::OK, &list)
    }

    /// Every answer is kept until it is deleted; what was in it is not.
    fn response(&mut self, request: &Request, id: &str, rest: &[&str]) -> Script {
        if self.gone.contains(id) {
            return missing(id);
        }
        if let Some(run) = self.runs.get_mut(id) {
            let answer = match (&request.method, rest) {
                (&Method::GET, []) => match request.resumes_after() {
                    Some(after) => return run.resume(after),
                    None => run.ask(),
                },
                (&Method::POST, ["cancel"]) => {
                    if !run.is_over() {
                        run.end = RunEnd::Cancelled;
                    }
                    run.ask()
                }
                _ => Some(Value::Null),
            };
            match answer {
                None => return missing(id),
                Some(Value::Null) => {}
                Some(now) => return Script::json(StatusCode::OK, &now),
            }
        }
        match (&request.method, rest) {
            (&Method::GET, []) => Script::json(
                StatusCode::OK,
                &json!({"id": id, "object": "response", "created_at": request.at.as_second(), "status": "completed",
                        "error": null, "incomplete_details": null, "instructions": null, "metadata": {}, "model": "gpt-6.1-sol",
                        "output": [], "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "auto", "tools": [],
                        "top_p": 1.0, "usage": null}),
            ),
            (&Method::DELETE, []) => {
                self.gone.insert(id.to_owned());
                Script::json(
                    StatusCode::OK,
                    &json!({"id": id, "object": "response", "deleted": true}),
                )
            }
            (&Method::GET, ["input_items"]) => Script::json(StatusCode::OK, &list_of(&[])),
            (&Method::POST, ["cancel"]) => Script::error(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "invalid_value",
                "Only background responses can be cancelled.",
            ),
            _ => missing(id),
        }
    }
}

fn list_of(data: &[Value]) -> Value {
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    json!({"object": "list", "data": data, "first_id": id(data.first()), "last_id": id(data.last()), "has_more": false})
}
