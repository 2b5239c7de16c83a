//! A user's own files, of all that the upstream's account has: its users share it, so that a list is read through for them.
//!
//! ```text
//! turn   ─ one list of a user's at a time, a few in all      Turn
//!    where ─ the upstreams at which the user has files       from that of `after` on
//!    pages ─ one after the other, the largest there are      until one more than `limit` is found, or all there is
//! ```
//!
//! The client's `after` is asked of the upstream, so that its next page begins where the last one ended. Nothing is cut
//! off in silence: what is not reached within the bound is told by `has_more`, and read from there, or is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::admission::storage;
use super::passing::{Carried, Coming, Identified, Passed, Passing, whole};
use super::upstream::{Free as Request, NotPassed};
use super::{Gateway, Upstream};
use crate::endpoints::Kind;
use crate::refusal::{Refusal, UpstreamFault};
use crate::store::{StoreError, UserId};

/// Files that one page of an upstream's list has at most.
const PAGE: usize = 10_000;

/// Pages of an upstream's list that are read for one of ours: a million files.
const MOST_PAGES: usize = 100;

/// Lists that are read at once: each holds a page, and asks the upstream for all that its account has.
const AT_ONCE: usize = 4;

/// Queues of users; a user has one of them.
const QUEUES: usize = 64;

/// How long a list waits for its turn.
const WAIT: Duration = Duration::from_secs(30);

/// The lists that are read: one of a user's at a time, however many are asked for, and a few of all users.
#[derive(Debug)]
pub(crate) struct Listings {
    queues: [Semaphore; QUEUES],
    hasher: RandomState,
    of_all: Semaphore,
}

impl Default for Listings {
    fn default() -> Listings {
        Listings {
            queues: std::array::from_fn(|_| Semaphore::new(1)),
            hasher: RandomState::new(),
            of_all: Semaphore::new(AT_ONCE),
        }
    }
}

/// A list that is read.
#[derive(Debug)]
struct Turn<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_user: SemaphorePermit<'a>,
}

impl Listings {
    /// Waits for a turn; not for ever.
    async fn turn(&self, user: UserId) -> Result<Turn<'_>, Refusal> {
        let waiting = async {
            let of_user = self.queue(user).acquire().await?;
            let of_all = self.of_all.acquire().await?;
            Ok(Turn {
                _of_all: of_all,
                _of_user: of_user,
            })
        };
        let turn: Result<_, tokio::sync::AcquireError> = timeout(WAIT, waiting).await.map_err(|_| Refusal::Busy)?;
        turn.map_err(|_| Refusal::Internal)
    }

    fn queue(&self, user: UserId) -> &Semaphore {
        let hash = self.hasher.hash_one(user);
        &self.queues[usize::try_from(hash % QUEUES as u64).unwrap_or(0)]
    }
}

/// A page of an upstream's list.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
    #[serde(default)]
    has_more: bool,
}

/// A list as it is told.
#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: &'a [Box<RawValue>],
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
    has_more: bool,
}

/// What is asked of a list.
struct Asked {
    after: Option<String>,
    limit: usize,
    /// Of the query: what the upstream is asked, too.
    passed: Vec<(String, String)>,
}

impl Asked {
    fn of(query: Option<&str>) -> Asked {
        let mut asked = Asked {
            after: None,
            limit: PAGE,
            passed: Vec::new(),
        };
        let url = Url::parse(&format!("http://list/?{}", query.unwrap_or_default()));
        for (name, value) in url.iter().flat_map(Url::query_pairs) {
            match &*name {
                "after" => asked.after = Some(value.into_owned()),
                "limit" => asked.limit = value.parse().map_or(PAGE, |limit: usize| limit.clamp(1, PAGE)),
                "order" | "purpose" => asked.passed.push((name.into_owned(), value.into_owned())),
                _ => {}
            }
        }
        asked
    }

    fn query(&self, after: Option<&str>) -> Option<String> {
        let mut url = Url::parse("http://list/").ok()?;
        let limit = ("limit".to_owned(), PAGE.to_string());
        let after = after.map(|after| ("after".to_owned(), after.to_owned()));
        url.query_pairs_mut()
            .extend_pairs(self.passed.iter().cloned().chain([limit]).chain(after));
        url.query().map(str::to_owned)
    }
}

/// Files of a user's, with their ids, in the upstream's order.
type Own = Vec<(String, Box<RawValue>)>;

/// The user's own files.
///
/// # Errors
/// `after` is none of theirs, too many lists are being read, or an upstream did not do its part.
pub(super) async fn list(gateway: &Gateway, passing: &Passing) -> Result<Passed, Refusal> {
    let user = passing.key.user_id;
    let asked = Asked::of(passing.query.as_deref());
    let _turn = gateway.listings.turn(user).await?;
    let objects = gateway.store.blocking(move |store| store.objects_of(user, Kind::File));
    let objects = objects.await.map_err(|error: StoreError| storage(&error))?;
    let mut at: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (upstream, id) in &objects {
        at.entry(upstream).or_default().insert(id);
    }
    let first = match &asked.after {
        None => 0,
        Some(after) => upstream_of(passing, &at, after)?,
    };
    let (mut own, mut after, mut is_all) = (Own::new(), asked.after.as_deref(), true);
    for upstream in &passing.live.upstreams[first..] {
        let Some(ids) = at.get(upstream.name()) else {
            continue;
        };
        let wanted = asked.limit + 1 - own.len();
        let found = found(passing, upstream, &asked, ids, after.take(), wanted).await?;
        is_all = found.is_all;
        own.extend(found.own);
        if own.len() > asked.limit || !is_all {
            break;
        }
    }
    if own.is_empty() && !is_all {
        tracing::warn!("a user's files are beyond {MOST_PAGES} pages of the upstream's list");
        return Err(Refusal::Upstream(UpstreamFault::TooLong));
    }
    let has_more = own.len() > asked.limit || !is_all;
    own.truncate(asked.limit);
    told(own, has_more)
}

/// The upstream that keeps the file after which a list begins.
fn upstream_of(passing: &Passing, at: &BTreeMap<&str, BTreeSet<&str>>, after: &str) -> Result<usize, Refusal> {
    let mut upstreams = passing.live.upstreams.iter();
    let keeps = |upstream: &std::sync::Arc<Upstream>| at.get(upstream.name()).is_some_and(|ids| ids.contains(after));
    upstreams
        .position(keeps)
        .ok_or_else(|| Refusal::NoObject { id: after.to_owned() })
}

fn told(own: Own, has_more: bool) -> Result<Passed, Refusal> {
    let (ids, data): (Vec<String>, Vec<Box<RawValue>>) = own.into_iter().unzip();
    let list = List {
        object: "list",
        data: &data,
        first_id: ids.first().map(String::as_str),
        last_id: ids.last().map(String::as_str),
        has_more,
    };
    let body = serde_json::to_vec(&list).map_err(|_| Refusal::Internal)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(Passed {
        status: StatusCode::OK,
        headers,
        body: Coming::Whole(body.into()),
    })
}

/// What was found of an upstream's files.
struct Found {
    own: Own,
    /// Whether nothing more of the user's is there, or as much as is wanted was found.
    is_all: bool,
}

/// The first of an upstream's files that are in `ids`, behind `after`.
async fn found(
    passing: &Passing,
    upstream: &Upstream,
    asked: &Asked,
    ids: &BTreeSet<&str>,
    after: Option<&str>,
    wanted: usize,
) -> Result<Found, Refusal> {
    let mut own = Own::new();
    let mut last = after.map(str::to_owned);
    for _ in 0..MOST_PAGES {
        let body = page(passing, upstream, asked.query(last.as_deref()).as_deref()).await?;
        let page: Page<'_> = serde_json::from_slice(&body).map_err(undecodable)?;
        let before = last.take();
        for file in page.data {
            let Identified { id } = serde_json::from_str(file.get()).map_err(undecodable)?;
            if before.as_deref() == Some(&*id) {
                // An upstream that does not know `after` tells from the beginning.
                own.clear();
            } else if ids.contains(&*id) {
                own.push((id.clone().into_owned(), file.to_owned()));
            }
            last = Some(id.into_owned());
        }
        own.truncate(wanted);
        if !page.has_more || own.len() == wanted || (after.is_none() && own.len() == ids.len()) {
            return Ok(Found { own, is_all: true });
        }
        if last.is_none() || last == before {
            tracing::warn!(upstream = upstream.name(), "the upstream's list does not go on");
            return Err(Refusal::Upstream(UpstreamFault::Undecodable));
        }
    }
    Ok(Found { own, is_all: false })
}

fn undecodable(_: serde_json::Error) -> Refusal {
    Refusal::Upstream(UpstreamFault::Undecodable)
}

/// A page of an upstream's list.
async fn page(passing: &Passing, upstream: &Upstream, query: Option<&str>) -> Result<bytes::Bytes, Refusal> {
    let request = Request {
        id: passing.id,
        method: &Method::GET,
        path: &passing.path,
        query,
        headers: &passing.headers,
    };
    let response = upstream
        .pass(request, Carried::Nothing)
        .await
        .map_err(|error| match error {
            NotPassed::Upstream(fault) => Refusal::Upstream(fault),
            NotPassed::TooLong | NotPassed::BodyLost => Refusal::Internal,
        })?;
    if !response.status().is_success() {
        let status = response.status();
        tracing::warn!(
            upstream = upstream.name(),
            status = status.as_u16(),
            "the upstream lists no files"
        );
        return Err(Refusal::Upstream(
            upstream.fault(status, None, b"").unwrap_or(UpstreamFault::Failed),
        ));
    }
    whole(passing, upstream, response).await
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_list_is_asked_for_in_the_largest_pages() {
        let asked = Asked::of(Some("limit=2&after=file-1&order=asc&purpose=user_data&x=y"));
        assert_eq!((asked.limit, asked.after.as_deref()), (2, Some("file-1")));
        assert_eq!(
            asked.query(Some("file 9")).as_deref(),
            Some("order=asc&purpose=user_data&limit=10000&after=file+9")
        );
        assert_eq!(Asked::of(Some("limit=0")).limit, 1);
        assert_eq!(Asked::of(None).query(None).as_deref(), Some("limit=10000"));
    }

    #[test]
    fn a_user_reads_one_list_at_a_time_and_all_users_a_few() {
        let listings = Listings::default();
        let turn = |number| listings.turn(UserId(Uuid::from_u128(number))).now_or_never();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let _entered = runtime.as_ref().expect("a runtime").enter();
        let first = turn(0).expect("at once").expect("a turn");
        assert!(turn(0).is_none(), "the user's second list waits");
        // Of some users the queue is that of another.
        let others: Vec<_> = (1..1_000).filter_map(turn).collect();
        assert_eq!(others.len(), AT_ONCE - 1);
        drop(others);
        drop(first);
        assert!(turn(0).expect("at once").is_ok());
    }
}
