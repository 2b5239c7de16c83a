//! The bare pass-through that the gateway is measured against: axum in front, reqwest behind, and nothing between.
//!
//! It knows nobody, reads no usage and keeps no books. It reads a request's body whole and streams the answer, as the
//! gateway does; threads, allocator and `TCP_NODELAY` are the same. It stays as it is, so that figures can be compared.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::serve::ListenerExt;

/// The largest body it takes.
const MAX_BODY: usize = 64 << 20;

/// Where calls go.
#[derive(Clone)]
struct Upstream {
    client: reqwest::Client,
    url: String,
}

/// Serves until the process is killed.
pub async fn serve(listen: SocketAddr, upstream: SocketAddr) -> std::io::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("no other was installed");
    let client = reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .build()
        .expect("no setting is wrong");
    let url = format!("http://{upstream}");
    let app = Router::new().fallback(pass).with_state(Upstream { client, url });
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let listener = listener.tap_io(|connection| connection.set_nodelay(true).expect("a TCP connection"));
    axum::serve(listener, app).await
}

async fn pass(State(upstream): State<Upstream>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return refused(StatusCode::BAD_REQUEST);
    };
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let sent = upstream
        .client
        .request(head.method, format!("{}{path}", upstream.url))
        .headers(end_to_end(head.headers))
        .body(body)
        .send();
    let Ok(mut answer) = sent.await else {
        return refused(StatusCode::BAD_GATEWAY);
    };
    let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
    *response.status_mut() = status;
    *response.headers_mut() = end_to_end(headers);
    response
}

/// The headers without those of one connection.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}

fn refused(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
