//! What an upstream wants to be told again in later calls of the same turn: `x-codex-turn-state`. Over HTTP the client takes
//! it from an answer's head and sends it; over a WebSocket, where answers have no heads, the connection does. Pure.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::origin::Label;

const NAME: HeaderName = HeaderName::from_static("x-codex-turn-state");

/// The state of the turn at hand.
#[derive(Debug, Default)]
pub(super) struct TurnState {
    /// Which turn; `None`: whichever comes first.
    turn: Option<Label>,
    state: Option<HeaderValue>,
}

impl TurnState {
    /// What the handshake brings of it, for a turn that began over another connection; it is taken out there.
    pub(super) fn of_handshake(headers: &mut HeaderMap) -> TurnState {
        TurnState {
            turn: None,
            state: headers.remove(&NAME),
        }
    }

    /// Puts it among the headers of a call of this turn, unless the client did.
    pub(super) fn put(&mut self, turn: Option<&Label>, headers: &mut HeaderMap) {
        if self.turn.is_some() && self.turn.as_ref() != turn {
            self.state = None;
        }
        self.turn = turn.cloned();
        if let (Some(state), false) = (&self.state, headers.contains_key(&NAME)) {
            headers.insert(NAME, state.clone());
        }
    }

    /// Keeps what an answer to that call brings. In a turn the first one counts; of a turn without a name none does.
    pub(super) fn keep(&mut self, answer: &HeaderMap) {
        if self.turn.is_some() && self.state.is_none() {
            self.state = answer.get(&NAME).cloned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(state: Option<&'static str>) -> HeaderMap {
        let state = state.map(|state| (NAME, HeaderValue::from_static(state)));
        state.into_iter().collect()
    }

    /// What a call of this turn is sent with, and what its answer brings.
    fn call(state: &mut TurnState, turn: Option<&str>, answer: Option<&'static str>) -> String {
        let mut sent = HeaderMap::new();
        state.put(turn.and_then(Label::new).as_ref(), &mut sent);
        state.keep(&headers(answer));
        sent.get(&NAME)
            .map_or("", |state| state.to_str().expect("text"))
            .to_owned()
    }

    #[test]
    fn a_state_is_of_one_turn_and_the_first_of_it_counts() {
        let state = &mut TurnState::default();
        assert_eq!(call(state, Some("a"), Some("1")), "");
        assert_eq!(call(state, Some("a"), Some("2")), "1");
        assert_eq!(call(state, Some("a"), None), "1");
        assert_eq!(call(state, Some("b"), None), "");
        assert_eq!(call(state, Some("b"), Some("3")), "");
        assert_eq!(call(state, None, Some("4")), "");
        assert_eq!(call(state, None, None), "", "nothing says that it is the same turn");
        assert_eq!(call(state, Some("b"), None), "");
    }

    #[test]
    fn that_of_the_handshake_is_of_the_first_turn_and_the_clients_own_goes_first() {
        let mut of_handshake = headers(Some("0"));
        let state = &mut TurnState::of_handshake(&mut of_handshake);
        assert!(of_handshake.is_empty());
        assert_eq!(call(state, Some("a"), None), "0");
        let mut own = headers(Some("own"));
        state.put(Label::new("a").as_ref(), &mut own);
        assert_eq!(own[NAME], "own");
        assert_eq!(call(state, Some("b"), None), "");
    }
}
