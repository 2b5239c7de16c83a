//! What a free upstream has: the models that it lists itself, because no price list names them.
//!
//! It is asked when somebody wants to know, and not again for a while. One that does not answer is taken to have what it
//! said last; whoever knows a model's name may call it all the same.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// For how long an answer holds.
const HOLDS: Duration = Duration::from_secs(60);

/// How long after one that was none it is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// How long it may take for its answer: somebody waits for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How much of it is read, in bytes.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// How many models are known of it.
const MOST: usize = 1_000;

/// The longest name, in bytes.
const LONGEST: usize = 256;

/// The models that an upstream has.
#[derive(Debug, Default)]
pub(super) struct Stock(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    names: Arc<[String]>,
    ask_at: Option<Instant>,
}

impl Stock {
    /// Their names. `ask` is not run while they are known; `None` of it: there was no answer.
    pub(super) async fn names(&self, now: Instant, ask: impl Future<Output = Option<Vec<String>>>) -> Arc<[String]> {
        let mut known = self.0.lock().await;
        if known.ask_at.is_none_or(|at| at <= now) {
            let answer = ask.await;
            let holds = if answer.is_some() { HOLDS } else { AGAIN };
            known.names = answer.map_or_else(|| Arc::clone(&known.names), Arc::from);
            known.ask_at = Some(now + holds);
        }
        Arc::clone(&known.names)
    }
}

/// The names in a list of OpenAI's form; `None`: it is none.
pub(super) fn read(list: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let List { data } = serde_json::from_slice(list).ok()?;
    let names = data.into_iter().map(|model| model.id);
    let usable = |name: &String| (1..=LONGEST).contains(&name.len()) && !name.chars().any(char::is_control);
    Some(names.filter(usable).take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn an_upstream_is_asked_once_in_a_while_and_one_that_is_silent_has_what_it_said() {
        let (stock, asked, start) = (Stock::default(), AtomicUsize::new(0), Instant::now());
        let names = async |after: Duration, answer: Option<&str>| {
            let ask = async {
                asked.fetch_add(1, Ordering::Relaxed);
                answer.map(|name| vec![name.to_owned()])
            };
            let names = stock.names(start + after, ask).await;
            (names.join(","), asked.load(Ordering::Relaxed))
        };
        let says = |names: &str, asked| (names.to_owned(), asked);
        let a_little = Duration::from_millis(1);
        assert_eq!(names(Duration::ZERO, None).await, says("", 1));
        assert_eq!(names(AGAIN - a_little, Some("a")).await, says("", 1));
        assert_eq!(names(AGAIN, Some("a")).await, says("a", 2));
        let stale = AGAIN + HOLDS;
        assert_eq!(names(stale - a_little, Some("b")).await, says("a", 2));
        assert_eq!(names(stale, None).await, says("a", 3));
        assert_eq!(names(stale + AGAIN, Some("b")).await, says("b", 4));
    }

    #[test]
    fn names_are_read_from_a_list_and_what_is_none_is_left_out() {
        let long = "x".repeat(LONGEST + 1);
        let list = format!(
            r#"{{"object":"list","data":[{{"id":"qwen3:8b","owned_by":"library"}},{{"id":""}},{{"id":"a\u0007"}},{{"id":"{long}"}}]}}"#
        );
        assert_eq!(read(list.as_bytes()), Some(vec!["qwen3:8b".to_owned()]));
        assert_eq!(read(br#"{"data":[]}"#), Some(Vec::new()));
        for none in ["", "[]", "{}", r#"{"data":[{"name":"a"}]}"#, "<html>"] {
            assert_eq!(read(none.as_bytes()), None, "{none}");
        }
    }
}
