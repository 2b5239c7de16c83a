//! Kin: of which session a sub-agent's sub-agents are.
//!
//! Codex says in each call which thread asks and which one started that (`origin`). Versions that do not name the session
//! besides leave those that a sub-agent starts to be of the sub-agent's: it is no session, and whose it is has been seen
//! before, because it asked for them. That is remembered, and looked up where it is not, after a restart.

use super::Gateway;
use super::recent::Recent;
use crate::origin::{Label, Origin};
use crate::store::UserId;

/// How many sub-agents are remembered at least: some 2 MB, and 10 MB if all have names as long as they may be.
const SO_MANY: usize = 10_000;

/// Sub-agents of a user, and their sessions.
#[derive(Debug, Default)]
pub(crate) struct Kin(Recent<(UserId, Label), Label, SO_MANY>);

/// The same call as one of the session in which the user types, whichever sub-agent started the one that makes it.
pub(super) async fn of_one_session(gateway: &Gateway, user: UserId, origin: Origin) -> Origin {
    let (Some(agent), Some(named)) = (&origin.agent, &origin.session) else {
        return origin;
    };
    let known = |thread: &Label| gateway.kin.0.get(&(user, thread.clone()));
    let session = match known(agent).or_else(|| known(named)) {
        Some(session) => session,
        None => looked_up(gateway, user, named).await,
    };
    gateway.kin.0.note((user, agent.clone()), session.clone());
    Origin {
        session: Some(session),
        ..origin
    }
}

/// The session of which this one was a sub-agent, else itself. What cannot be read changes a label, and no more.
async fn looked_up(gateway: &Gateway, user: UserId, named: &Label) -> Label {
    let thread = named.clone();
    let found = gateway
        .store
        .blocking(move |store| store.session_of_agent(user, &thread))
        .await;
    match found {
        Ok(found) => found.unwrap_or_else(|| named.clone()),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "of which session a sub-agent is cannot be read"
            );
            named.clone()
        }
    }
}
