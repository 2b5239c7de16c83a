//! Which requests, and who made them: what usage, requests and sessions are asked by.

use std::collections::BTreeMap;

use super::failure::{Exit, Failure};
use super::values::When;
use super::{language, output};
use crate::admin;
use crate::said;
use crate::store::Store;
use crate::store::usage_log::ExchangeFilter;
use crate::time::now;

/// Which requests.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FilterArgs {
    /// Of this user: a name, an e-mail address or an id
    #[arg(long)]
    pub user: Option<String>,
    /// With this key: an id or a prefix
    #[arg(long)]
    pub key: Option<String>,
    /// For this model, as the client asked
    #[arg(long)]
    pub model: Option<String>,
    /// Of this session, by its whole id
    #[arg(long)]
    pub session: Option<String>,
    /// Started at this time or later: a date (midnight UTC), a time, or a span back such as 7d
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub since: Option<When>,
    /// Started before this time
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub until: Option<When>,
}

/// Which exchanges, with users and keys looked up.
///
/// # Errors
/// There is no such user or key, or the end is before the beginning.
pub fn filter(store: &Store, which: &FilterArgs, limit: u32) -> anyhow::Result<ExchangeFilter> {
    let at = now();
    let (since, until) = (
        which.since.map(|when| when.ago(at)),
        which.until.map(|when| when.ago(at)),
    );
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        let (since, until) = (output::time(since), output::time(until));
        let what = said!(
            language(),
            en: "nothing starts at {since} or later and before {until}",
            zh: "没有什么能既不早于 {since} 又早于 {until} 开始",
        );
        return Err(Failure::new(Exit::Usage, what)
            .fix(said!(
                language(),
                en: "give --since the earlier time and --until the later one",
                zh: "--since 写较早的时间，--until 写较晚的时间",
            ))
            .into());
    }
    let user = which.user.as_deref().map(|who| admin::user(store, who)).transpose();
    let key = which.key.as_deref().map(|key| admin::key(store, key)).transpose();
    Ok(ExchangeFilter {
        user: user.map_err(Failure::from)?.map(|user| user.id),
        key: key.map_err(Failure::from)?.map(|key| key.id),
        model: which.model.clone(),
        session: which.session.clone(),
        since,
        until,
        before: None,
        after: None,
        limit,
    })
}

/// Who calls with a key.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user's name.
    pub user: String,
    /// What is shown of the key.
    pub prefix: String,
    /// The key's name.
    pub key: String,
}

impl Caller {
    /// `alice/laptop`.
    pub fn text(&self) -> String {
        format!("{}/{}", self.user, output::plain(&self.key))
    }
}

/// The callers with keys, each looked up once.
pub struct Callers<'a> {
    pub(super) store: &'a Store,
    known: BTreeMap<String, Caller>,
}

impl<'a> Callers<'a> {
    /// Of a database; none is known yet.
    pub fn new(store: &'a Store) -> Callers<'a> {
        Callers {
            store,
            known: BTreeMap::new(),
        }
    }

    /// Who calls with the key of this id.
    ///
    /// # Errors
    /// The database failed.
    pub fn of(&mut self, key: &str) -> anyhow::Result<Caller> {
        if let Some(caller) = self.known.get(key) {
            return Ok(caller.clone());
        }
        let found = self.store.find_keys(key).map_err(Failure::from)?.pop();
        let caller = match found {
            Some(key) => Caller {
                user: key.user_name,
                prefix: key.prefix,
                key: key.name,
            },
            None => Caller {
                user: String::new(),
                prefix: key.to_owned(),
                key: String::new(),
            },
        };
        self.known.insert(key.to_owned(), caller.clone());
        Ok(caller)
    }
}
