//! Scripts: what the simulator does with one request, step by step.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// One answer: what happens before the head, the head, and what happens after it.
#[derive(Clone, Debug)]
pub struct Script {
    /// Before the head: pauses, gates, or [`Step::Reset`] to hang up without an answer. What it sends is ignored.
    pub before: Vec<Step>,
    /// The status of the answer.
    pub status: StatusCode,
    /// Header names and values; a `content-length` given here is kept, otherwise the body goes out in chunks.
    pub headers: Vec<(String, String)>,
    /// The body. It ends cleanly after the last step.
    pub steps: Vec<Step>,
    /// What the answer reports, or would have reported: for the log.
    pub usage: Option<ServedUsage>,
    /// The id the answer carries: for the log.
    pub response_id: Option<String>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes these bytes and waits until the socket has taken them; `output_tokens` of them can be seen.
    Send {
        /// One event, or any piece of a body.
        bytes: Bytes,
        /// Tokens of visible output in it, for [`super::Served::output_sent`].
        output_tokens: u64,
    },
    /// Writes the same bytes many times, without building the whole: for bodies that do not end.
    Repeat {
        /// What is written.
        bytes: Bytes,
        /// How often.
        times: u64,
    },
    /// Stays silent.
    Pause(Duration),
    /// Waits until the gate lets one more through.
    Wait(Gate),
    /// Resets the TCP connection.
    Reset,
    /// Closes the connection in the middle of the body: the last chunk, or the rest of `content-length`, is missing.
    Break,
}

/// What an answer used, as its upstream counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServedUsage {
    /// Tokens read.
    pub input: u64,
    /// Of them from the cache.
    pub cached: u64,
    /// Of them written to the cache.
    pub cache_write: u64,
    /// Tokens generated.
    pub output: u64,
    /// Of them hidden reasoning.
    pub reasoning: u64,
    /// The tier that worked, as the answer names it.
    pub tier: Option<String>,
}

/// A gate that lets one [`Step::Wait`] through for each permit; it may be cloned and opened from anywhere.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// A closed gate.
    pub fn closed() -> Gate {
        Gate(Arc::new(Semaphore::new(0)))
    }

    /// Lets `count` more through.
    pub fn let_through(&self, count: usize) {
        self.0.add_permits(count);
    }

    /// Lets everybody through from now on.
    pub fn open(&self) {
        self.0.close();
    }

    /// Waits for a permit and uses it up.
    pub(super) async fn pass(&self) {
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

impl Script {
    /// A unary answer with its length.
    pub fn json(status: StatusCode, body: &Value) -> Script {
        Script::body(status, "application/json", Bytes::from(body.to_string()))
    }

    /// A unary answer of any content type, with its length.
    pub fn body(status: StatusCode, content_type: &str, body: Bytes) -> Script {
        Script {
            before: Vec::new(),
            status,
            headers: vec![
                ("content-type".into(), content_type.into()),
                ("content-length".into(), body.len().to_string()),
            ],
            steps: vec![Step::send(body)],
            usage: None,
            response_id: None,
        }
    }

    /// A stream of server-sent events; each step is written on its own.
    pub fn sse(steps: Vec<Step>) -> Script {
        Script {
            before: Vec::new(),
            status: StatusCode::OK,
            headers: vec![
                ("content-type".into(), "text/event-stream; charset=utf-8".into()),
                ("cache-control".into(), "no-cache".into()),
            ],
            steps,
            usage: None,
            response_id: None,
        }
    }

    /// An error in OpenAI's shape.
    pub fn error(status: StatusCode, kind: &str, code: &str, message: &str) -> Script {
        Script::json(
            status,
            &json!({"error": {"message": message, "type": kind, "param": null, "code": code}}),
        )
    }

    /// Hangs up without a word.
    pub fn refuse() -> Script {
        let nothing = Script::body(StatusCode::OK, "text/plain", Bytes::new());
        nothing.first(Step::Reset)
    }

    /// The same, with a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Script {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same, with what it used.
    #[must_use]
    pub fn using(mut self, usage: ServedUsage) -> Script {
        self.usage = Some(usage);
        self
    }

    /// The same, with something done before the head.
    #[must_use]
    pub fn first(mut self, step: Step) -> Script {
        self.before.insert(0, step);
        self
    }

    /// The same, with something done before the step of this number; at the end when there are fewer.
    #[must_use]
    pub fn at(mut self, number: usize, step: Step) -> Script {
        self.steps.insert(number.min(self.steps.len()), step);
        self
    }

    /// The first `count` steps, then `last`.
    #[must_use]
    pub fn cut(mut self, count: usize, last: Step) -> Script {
        self.steps.truncate(count);
        self.steps.push(last);
        self
    }

    /// The same, with `step` before every step but the first.
    #[must_use]
    pub fn between(mut self, step: &Step) -> Script {
        let steps = std::mem::take(&mut self.steps);
        for (number, next) in steps.into_iter().enumerate() {
            if number > 0 {
                self.steps.push(step.clone());
            }
            self.steps.push(next);
        }
        self
    }
}

impl Step {
    /// Writes bytes that show no output.
    pub fn send(bytes: impl Into<Bytes>) -> Step {
        Step::Send {
            bytes: bytes.into(),
            output_tokens: 0,
        }
    }

    /// One event with data only, as chat completions have them.
    pub fn data(data: &Value, output_tokens: u64) -> Step {
        Step::Send {
            bytes: Bytes::from(format!("data: {data}\n\n")),
            output_tokens,
        }
    }

    /// One named event, as responses have them; the name is the data's `type`.
    pub fn event(data: &Value, output_tokens: u64) -> Step {
        let name = data["type"].as_str().unwrap_or("error");
        Step::Send {
            bytes: Bytes::from(format!("event: {name}\ndata: {data}\n\n")),
            output_tokens,
        }
    }
}
