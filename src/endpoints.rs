//! OpenAI's endpoints, in one table: what is billed and how, what costs nothing and is passed on, and what is refused
//! because its cost cannot be metered here.
//!
//! `server::routes` routes by it, `docs/endpoints.md` is written from it, and tests hold `openapi.json` and the page
//! against it. The gateway's own paths (`/models`, `/gateway/…`, reports) are the routes' own.

use http::Method;

use crate::call::Endpoint;

/// What becomes of a request to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A call: held, metered, charged.
    Billed(Endpoint),
    /// Passed on to the upstream that it belongs to, without a hold: it costs nothing there.
    Free(Free),
    /// Refused, whatever its method: what it costs is not told by its answer.
    Refused,
}

/// What is passed on, by what has to be known of it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Free {
    /// It asks a model, and nothing is kept of it: any upstream that serves the model.
    Moderation,
    /// One of Codex's whose cost no answer tells: an upstream at which everything is free, if there is one. Elsewhere it is
    /// refused.
    Untold,
    /// It counts the input of a response: an upstream that serves the model, with all that the response may refer to.
    Count,
    /// It makes an object.
    Make(Kind),
    /// It reads an object of the user's, or what belongs to it.
    Read(Kind),
    /// It changes an object of the user's: items are added, a response is cancelled.
    Change(Kind),
    /// It deletes an object of the user's.
    Delete(Kind),
    /// It lists the user's objects.
    List(Kind),
    /// It sends a part of a file that comes in parts.
    Part,
    /// It makes a file of the parts of an upload: the file is the user's from then on, the upload nobody's.
    Complete,
}

/// What upstreams keep, and only the user who made it may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Made by a call: `usage_logs` tells whose it is.
    Response,
    /// A conversation, with its items.
    Conversation,
    /// An uploaded file.
    File,
    /// A file that comes in parts, until it is complete.
    Upload,
}

impl Kind {
    /// The name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Response => "response",
            Kind::Conversation => "conversation",
            Kind::File => "file",
            Kind::Upload => "upload",
        }
    }
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// The method; a refused row is for all of them.
    pub method: Method,
    /// The path below `/v1`: a part in braces takes any text without a slash, `…` at the end takes any rest.
    pub path: &'static str,
    /// What becomes of it.
    pub service: Service,
    /// By what it is metered, or why it is free or refused: for the page.
    pub because: &'static str,
}

const fn billed(endpoint: Endpoint, because: &'static str) -> Row {
    Row {
        method: Method::POST,
        path: endpoint.path(),
        service: Service::Billed(endpoint),
        because,
    }
}

const fn free(method: Method, path: &'static str, free: Free, because: &'static str) -> Row {
    Row {
        method,
        path,
        service: Service::Free(free),
        because,
    }
}

const fn refused(path: &'static str, because: &'static str) -> Row {
    Row {
        method: Method::POST,
        path,
        service: Service::Refused,
        because,
    }
}

const OF_ITS_MAKER: &str = "nothing; only for the user whose call made it";
const OF_ITS_OWNER: &str = "nothing; only for the user who made it";

const UNTOLD: &str = "not told: only at an upstream with `prices = \"free\"`; without one it is refused";

/// Every endpoint. The first row that matches counts.
pub static TABLE: [Row; 61] = [
    billed(
        Endpoint::Responses,
        "tokens and hosted tools, as the answer's usage tells",
    ),
    billed(Endpoint::Compact, "tokens, as the answer's usage tells"),
    billed(Endpoint::ChatCompletions, "tokens, as the answer's usage tells"),
    billed(Endpoint::Completions, "tokens, as the answer's usage tells"),
    billed(Endpoint::Embeddings, "tokens, as the answer's usage tells"),
    billed(Endpoint::ImageGenerations, "tokens, as the answer's usage tells"),
    billed(Endpoint::ImageEdits, "tokens, as the answer's usage tells"),
    billed(
        Endpoint::Speech,
        "characters of the text; by the token, as the usage of a stream tells",
    ),
    billed(
        Endpoint::Transcriptions,
        "seconds or tokens, as the answer's usage tells",
    ),
    billed(Endpoint::Translations, "seconds, as a `verbose_json` tells"),
    free(
        Method::POST,
        "/responses/input_tokens",
        Free::Count,
        "nothing; counts a call's input",
    ),
    free(
        Method::GET,
        "/responses/{response_id}",
        Free::Read(Kind::Response),
        OF_ITS_MAKER,
    ),
    free(
        Method::DELETE,
        "/responses/{response_id}",
        Free::Delete(Kind::Response),
        OF_ITS_MAKER,
    ),
    free(
        Method::POST,
        "/responses/{response_id}/cancel",
        Free::Change(Kind::Response),
        OF_ITS_MAKER,
    ),
    free(
        Method::GET,
        "/responses/{response_id}/input_items",
        Free::Read(Kind::Response),
        OF_ITS_MAKER,
    ),
    free(
        Method::POST,
        "/conversations",
        Free::Make(Kind::Conversation),
        "nothing; what responses read of it is their input",
    ),
    free(
        Method::GET,
        "/conversations/{conversation_id}",
        Free::Read(Kind::Conversation),
        OF_ITS_OWNER,
    ),
    free(
        Method::POST,
        "/conversations/{conversation_id}",
        Free::Change(Kind::Conversation),
        OF_ITS_OWNER,
    ),
    free(
        Method::DELETE,
        "/conversations/{conversation_id}",
        Free::Delete(Kind::Conversation),
        OF_ITS_OWNER,
    ),
    free(
        Method::GET,
        "/conversations/{conversation_id}/items",
        Free::Read(Kind::Conversation),
        OF_ITS_OWNER,
    ),
    free(
        Method::POST,
        "/conversations/{conversation_id}/items",
        Free::Change(Kind::Conversation),
        OF_ITS_OWNER,
    ),
    free(
        Method::GET,
        "/conversations/{conversation_id}/items/{item_id}",
        Free::Read(Kind::Conversation),
        OF_ITS_OWNER,
    ),
    free(
        Method::DELETE,
        "/conversations/{conversation_id}/items/{item_id}",
        Free::Change(Kind::Conversation),
        OF_ITS_OWNER,
    ),
    free(
        Method::POST,
        "/files",
        Free::Make(Kind::File),
        "nothing; at most 512 MiB, streamed through",
    ),
    free(
        Method::GET,
        "/files",
        Free::List(Kind::File),
        "nothing; the user's own files",
    ),
    free(Method::GET, "/files/{file_id}", Free::Read(Kind::File), OF_ITS_OWNER),
    free(
        Method::DELETE,
        "/files/{file_id}",
        Free::Delete(Kind::File),
        OF_ITS_OWNER,
    ),
    free(
        Method::GET,
        "/files/{file_id}/content",
        Free::Read(Kind::File),
        OF_ITS_OWNER,
    ),
    free(
        Method::POST,
        "/uploads",
        Free::Make(Kind::Upload),
        "nothing; a file that comes in parts",
    ),
    free(
        Method::POST,
        "/uploads/{upload_id}/parts",
        Free::Part,
        "nothing; only for the user who made it; streamed through",
    ),
    free(
        Method::POST,
        "/uploads/{upload_id}/complete",
        Free::Complete,
        "nothing; only for the user who made it, whose the file is then",
    ),
    free(
        Method::POST,
        "/uploads/{upload_id}/cancel",
        Free::Delete(Kind::Upload),
        OF_ITS_OWNER,
    ),
    free(Method::POST, "/moderations", Free::Moderation, "nothing"),
    free(Method::POST, "/alpha/search", Free::Untold, UNTOLD),
    free(Method::POST, "/memories/trace_summarize", Free::Untold, UNTOLD),
    refused("/agents…", "tokens and environments, told after the fact"),
    refused("/alpha…", "not told"),
    refused("/assistants…", "runs of their own, billed by the run"),
    refused("/audio…", "not metered here"),
    refused("/batches…", "tokens of a file of calls, told after the fact"),
    refused("/chat…", "kept upstream for all users alike"),
    refused("/completions…", "no such path upstream"),
    refused("/containers…", "sessions by memory, not told"),
    refused("/content_provenance_checks…", "not told"),
    refused("/conversations…", "no such path upstream"),
    refused("/decisions…", "not metered here"),
    refused("/embeddings…", "no such path upstream"),
    refused("/evals…", "tokens of other models, told after the fact"),
    refused("/files…", "no such path upstream"),
    refused("/fine_tuning…", "training, told after the fact"),
    refused("/images…", "not metered here"),
    refused("/live…", "seconds of a session that goes past the gateway"),
    refused("/memories…", "tokens, not told"),
    refused("/moderations…", "no such path upstream"),
    refused("/organization…", "the operator's account"),
    refused("/realtime…", "sessions, which go past the gateway"),
    refused("/responses…", "no such path upstream"),
    refused("/skills…", "kept upstream for all users alike"),
    refused("/threads…", "runs of their own, billed by the run"),
    refused("/uploads…", "no such path upstream"),
    refused("/vector_stores…", "storage by the day, not told"),
];

impl Row {
    /// Whether the row is for this path below `/v1`; the text in its first braces, or none.
    pub fn takes<'p>(&self, below: &'p str) -> Option<&'p str> {
        if let Some(start) = self.path.strip_suffix('…') {
            let rest = below.strip_prefix(start)?;
            return (rest.is_empty() || rest.starts_with('/')).then_some("");
        }
        let (mut parts, mut named) = (below.split('/'), None);
        for wanted in self.path.split('/') {
            let part = parts.next()?;
            if wanted.starts_with('{') {
                if part.is_empty() {
                    return None;
                }
                named = named.or(Some(part));
            } else if part != wanted {
                return None;
            }
        }
        parts.next().is_none().then_some(named.unwrap_or(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(method: &Method, below: &str) -> Option<(Service, &'static str, String)> {
        let mut rows = TABLE.iter();
        rows.find_map(|row| {
            let named = row.takes(below)?.to_owned();
            (row.service == Service::Refused || row.method == *method).then_some((row.service, row.path, named))
        })
    }

    #[test]
    fn a_path_leads_to_one_row_with_the_object_that_it_names() {
        let (get, post) = (Method::GET, Method::POST);
        let named = |method: &Method, below: &str| service(method, below).map(|(_, path, named)| (path, named));
        let is = |path, named: &str| Some((path, named.to_owned()));
        assert_eq!(
            named(&get, "/responses/resp_1"),
            is("/responses/{response_id}", "resp_1")
        );
        assert_eq!(
            named(&post, "/responses/input_tokens"),
            is("/responses/input_tokens", "")
        );
        assert_eq!(
            named(&get, "/conversations/c/items/i"),
            is("/conversations/{conversation_id}/items/{item_id}", "c")
        );
        assert_eq!(named(&get, "/files/f/content"), is("/files/{file_id}/content", "f"));
        assert_eq!(named(&get, "/files/f/other"), is("/files…", ""));
        assert_eq!(named(&post, "/batches/b/cancel"), is("/batches…", ""));
        assert_eq!(named(&post, "/responses/"), is("/responses…", ""));
        assert_eq!(named(&post, "/batch"), None);
        assert_eq!(named(&post, "/filesystem"), None);
    }

    #[test]
    fn every_billed_endpoint_has_its_row() {
        let billed: Vec<Endpoint> = TABLE
            .iter()
            .filter_map(|row| match row.service {
                Service::Billed(endpoint) => Some(endpoint),
                _ => None,
            })
            .collect();
        for endpoint in Endpoint::ALL {
            assert!(billed.contains(&endpoint), "{endpoint:?}");
        }
    }

    /// The table as the page has it.
    fn page() -> String {
        let mut page = String::from("| Method | Path | What becomes of it | What it costs |\n|---|---|---|---|\n");
        for row in &TABLE {
            let (method, service) = match row.service {
                Service::Billed(_) => (row.method.as_str(), "billed"),
                Service::Free(_) => (row.method.as_str(), "free, passed on"),
                Service::Refused => ("any", "refused"),
            };
            page.push_str(&format!(
                "| {method} | `{}` | {service} | {} |\n",
                row.path, row.because
            ));
        }
        page
    }

    #[test]
    fn the_page_has_the_table_as_it_is() {
        let written = include_str!("../docs/endpoints.md");
        let page = page();
        assert!(written.contains(&page), "docs/endpoints.md lacks this table:\n{page}");
    }
}
