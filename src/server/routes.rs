//! What is served: the paths of the gateway's own, and OpenAI's by the table of [`endpoints`]. `openapi.json` documents
//! all of them but those that are refused, and a test holds one against the other.

use axum::http::Method;

use super::payer::View;
use crate::call::Endpoint;
use crate::endpoints::{self, Free, Service};
use crate::refusal::Refusal;

/// What a request is answered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Whether the process lives.
    Health,
    /// Whether calls are taken.
    Ready,
    /// The OpenAPI document.
    OpenApi,
    /// A billed call.
    Call(Endpoint),
    /// A request that costs nothing and is passed on.
    Free(Free),
    /// An endpoint whose cost cannot be metered here.
    Refused,
    /// Responses over a WebSocket.
    Upgrade,
    /// What a key may use.
    Models,
    /// One model.
    Model,
    /// What a key may read of itself.
    Payer(View),
    /// A code that becomes credit.
    Redeem,
}

/// The routes of the gateway's own: method, path below `/v1` (the same without), and what answers. A last part in braces
/// takes any text; a model's name may have slashes in it.
const ROUTES: [(Method, &str, Route); 18] = [
    (Method::GET, "/healthz", Route::Health),
    (Method::GET, "/readyz", Route::Ready),
    (Method::GET, "/openapi.json", Route::OpenApi),
    (Method::GET, "/responses", Route::Upgrade),
    (Method::GET, "/models", Route::Models),
    (Method::GET, "/models/{model}", Route::Model),
    (Method::GET, "/gateway/me", Route::Payer(View::Me)),
    (Method::GET, "/gateway/requests", Route::Payer(View::Requests)),
    (Method::GET, "/gateway/requests/{id}", Route::Payer(View::Request)),
    (Method::GET, "/gateway/usage", Route::Payer(View::Usage)),
    (Method::GET, "/gateway/sessions", Route::Payer(View::Sessions)),
    (Method::GET, "/gateway/sessions/{id}", Route::Payer(View::Session)),
    (Method::POST, "/gateway/redeem", Route::Redeem),
    (
        Method::GET,
        "/dashboard/billing/subscription",
        Route::Payer(View::Subscription),
    ),
    (
        Method::GET,
        "/dashboard/billing/usage",
        Route::Payer(View::BillingUsage),
    ),
    (
        Method::GET,
        "/dashboard/billing/credit_grants",
        Route::Payer(View::CreditGrants),
    ),
    (
        Method::GET,
        "/organization/usage/completions",
        Route::Payer(View::OrganizationUsage),
    ),
    (
        Method::GET,
        "/organization/costs",
        Route::Payer(View::OrganizationCosts),
    ),
];

/// The methods that a path takes.
#[derive(Clone, Copy, Debug, Default)]
struct Methods {
    get: bool,
    post: bool,
    delete: bool,
}

impl Methods {
    fn add(&mut self, method: &Method) {
        self.get |= *method == Method::GET;
        self.post |= *method == Method::POST;
        self.delete |= *method == Method::DELETE;
    }

    /// As `Allow` names them; `None`: there is no such path.
    fn allowed(self) -> Option<&'static str> {
        match (self.get, self.post, self.delete) {
            (false, false, false) => None,
            (true, false, false) => Some("GET, HEAD"),
            (false, true, false) => Some("POST"),
            (false, false, true) => Some("DELETE"),
            (true, true, false) => Some("GET, HEAD, POST"),
            (true, false, true) => Some("GET, HEAD, DELETE"),
            (false, true, true) => Some("POST, DELETE"),
            (true, true, true) => Some("GET, HEAD, POST, DELETE"),
        }
    }
}

/// The route of a request, and the part of its path that stands for the braces. `None`: there is no such path.
///
/// # Errors
/// [`Refusal::Method`], when the path takes another method.
pub(super) fn find<'p>(method: &Method, below: &'p str) -> Result<Option<(Route, &'p str)>, Refusal> {
    // Most requests are calls, and need not be looked for among all rows.
    if *method == Method::POST
        && let Some(endpoint) = Endpoint::from_path(below)
    {
        return Ok(Some((Route::Call(endpoint), "")));
    }
    let mut methods = Methods::default();
    let is_asked = |takes: &Method| method == takes || *method == Method::HEAD && *takes == Method::GET;
    for (takes, path, route) in &ROUTES {
        let Some(part) = matched(path, below) else { continue };
        // A WebSocket is no method that a client could be told of.
        if *route == Route::Upgrade {
            if method == takes {
                return Ok(Some((*route, part)));
            }
            continue;
        }
        if is_asked(takes) {
            return Ok(Some((*route, part)));
        }
        methods.add(takes);
    }
    for row in &endpoints::TABLE {
        let Some(part) = row.takes(below) else { continue };
        let route = match row.service {
            Service::Billed(endpoint) => Route::Call(endpoint),
            Service::Free(free) => Route::Free(free),
            // Of a path that is served, other methods are another matter.
            Service::Refused if methods.allowed().is_some() => continue,
            Service::Refused => return Ok(Some((Route::Refused, ""))),
        };
        if is_asked(&row.method) {
            return Ok(Some((route, part)));
        }
        methods.add(&row.method);
    }
    methods
        .allowed()
        .map_or(Ok(None), |allowed| Err(Refusal::Method { allowed }))
}

fn matched<'p>(path: &str, below: &'p str) -> Option<&'p str> {
    let Some((start, name)) = path.split_once('{') else {
        return (path == below).then_some("");
    };
    let part = below.strip_prefix(start)?;
    let one_part = name == "model}" || !part.contains('/');
    (!part.is_empty() && one_part).then_some(part)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::endpoints::Kind;

    /// `GET /v1/models`, with the paths that are no part of the API where everybody looks for them.
    fn documented_as(method: &Method, path: &str, route: Route) -> String {
        let at_the_root = matches!(route, Route::Health | Route::Ready | Route::OpenApi);
        format!("{method} {}{path}", if at_the_root { "" } else { "/v1" })
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(super::super::OPENAPI).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let documented: BTreeSet<String> = paths
            .iter()
            .flat_map(|(path, operations)| {
                let methods = operations.as_object().expect("operations").keys();
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        let own = ROUTES
            .iter()
            .map(|(method, path, route)| documented_as(method, path, *route));
        let served = endpoints::TABLE.iter().filter(|row| row.service != Service::Refused);
        let of_openai = served.map(|row| format!("{} /v1{}", row.method, row.path));
        assert_eq!(documented, own.chain(of_openai).collect());
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn a_path_leads_to_its_route_by_its_own_methods_only() {
        let (get, head, post) = (Method::GET, Method::HEAD, Method::POST);
        let to = |method: &Method, path: &str| find(method, path).map(|found| found.map(|(route, _)| route));
        let takes = |allowed| Err(Refusal::Method { allowed });
        assert_eq!(to(&head, "/models"), Ok(Some(Route::Models)));
        assert_eq!(to(&get, "/responses"), Ok(Some(Route::Upgrade)));
        assert_eq!(to(&head, "/responses"), takes("POST"));
        assert_eq!(to(&post, "/gateway/me"), takes("GET, HEAD"));
        assert_eq!(
            to(&get, "/responses/input_tokens"),
            Ok(Some(Route::Free(Free::Read(Kind::Response))))
        );
        assert_eq!(to(&Method::PUT, "/files/f"), takes("GET, HEAD, DELETE"));
        assert_eq!(to(&Method::PUT, "/files"), takes("GET, HEAD, POST"));
        assert_eq!(to(&post, "/organization/costs"), takes("GET, HEAD"));
        assert_eq!(
            find(&get, "/files/f/content"),
            Ok(Some((Route::Free(Free::Read(Kind::File)), "f")))
        );
        for refused in [
            "/batches",
            "/files/f/other",
            "/chat/completions/c",
            "/organization",
            "/batches/b/cancel",
        ] {
            assert_eq!(to(&get, refused), Ok(Some(Route::Refused)), "{refused}");
        }
        assert_eq!(find(&get, "/models/a/b%2Fc"), Ok(Some((Route::Model, "a/b%2Fc"))));
        for nowhere in [
            "/",
            "/models/",
            "/gateway",
            "/gateway/requests/",
            "/gateway/requests/a/b",
            "/filesystem",
        ] {
            assert_eq!(to(&get, nowhere), Ok(None), "{nowhere}");
        }
    }
}
