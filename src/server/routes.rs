//! What is served: the one table that decides the route of a request. `openapi.json` documents its rows, and a test
//! holds one against the other.

use axum::http::Method;

use super::payer::View;
use crate::call::Endpoint;
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
    /// A WebSocket, which is not spoken.
    Upgrade,
    /// What a key may use.
    Models,
    /// One model.
    Model,
    /// What a key may read of itself.
    Payer(View),
}

/// Every route: its method, its path below `/v1` (the same without), and what answers. A last part in braces takes any
/// text; a model's name may have slashes in it.
const ROUTES: [(Method, &str, Route); 19] = [
    (Method::GET, "/healthz", Route::Health),
    (Method::GET, "/readyz", Route::Ready),
    (Method::GET, "/openapi.json", Route::OpenApi),
    (Method::POST, "/responses", Route::Call(Endpoint::Responses)),
    (Method::GET, "/responses", Route::Upgrade),
    (
        Method::POST,
        "/chat/completions",
        Route::Call(Endpoint::ChatCompletions),
    ),
    (Method::POST, "/completions", Route::Call(Endpoint::Completions)),
    (Method::POST, "/embeddings", Route::Call(Endpoint::Embeddings)),
    (Method::GET, "/models", Route::Models),
    (Method::GET, "/models/{model}", Route::Model),
    (Method::GET, "/gateway/me", Route::Payer(View::Me)),
    (Method::GET, "/gateway/requests", Route::Payer(View::Requests)),
    (Method::GET, "/gateway/requests/{id}", Route::Payer(View::Request)),
    (Method::GET, "/gateway/usage", Route::Payer(View::Usage)),
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

/// The route of a request, and the part of its path that stands for the braces. `None`: there is no such path.
///
/// # Errors
/// [`Refusal::Method`], when the path takes another method.
pub(super) fn find<'p>(method: &Method, below: &'p str) -> Result<Option<(Route, &'p str)>, Refusal> {
    let mut allowed = None;
    for (takes, path, route) in &ROUTES {
        let Some(part) = matched(path, below) else { continue };
        let head_of_get = *method == Method::HEAD && *takes == Method::GET && *route != Route::Upgrade;
        if method == takes || head_of_get {
            return Ok(Some((*route, part)));
        }
        if *route != Route::Upgrade {
            allowed = Some(if *takes == Method::GET { "GET, HEAD" } else { "POST" });
        }
    }
    allowed.map_or(Ok(None), |allowed| Err(Refusal::Method { allowed }))
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
        let routed = ROUTES
            .iter()
            .map(|(method, path, route)| documented_as(method, path, *route));
        assert_eq!(documented, routed.collect());
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
        assert_eq!(find(&get, "/models/a/b%2Fc"), Ok(Some((Route::Model, "a/b%2Fc"))));
        for nowhere in [
            "/",
            "/models/",
            "/gateway",
            "/gateway/requests/",
            "/gateway/requests/a/b",
            "/organization",
        ] {
            assert_eq!(to(&get, nowhere), Ok(None), "{nowhere}");
        }
    }
}
