//! The way to an upstream is what its settings say: a proxy, a certificate authority, and nothing from elsewhere.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use codex_gateway::config::Config;
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::client::Client;
use crate::harness::Harness;

async fn hello(client: &Client) -> u16 {
    let body = json!({"model": "gpt-6.1-sol", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100});
    client.post("/v1/chat/completions", &body).await.status.as_u16()
}

/// Where the simulator listens, from the settings that the harness made.
fn simulator(config: &Config) -> SocketAddr {
    let url = config.upstreams[0]
        .base_url
        .trim_start_matches("http://")
        .trim_end_matches("/v1");
    url.parse().expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_is_reached_through_its_proxy() {
    let tweak = |config: &mut Config| {
        config.upstreams[0].proxy = Some(format!("http://{}", simulator(config)));
        config.upstreams[0].base_url = "http://upstream.invalid/v1".into();
    };
    let harness = Harness::builder().tweak(tweak).start().await;
    assert_eq!(hello(&harness.client).await, 200);
    let served = harness.served();
    let host = served[0].headers.get("host").expect("a host");
    assert_eq!(host, "upstream.invalid", "the name is resolved by nobody but the proxy");
    harness.finish().await;
}

/// An upstream behind TLS with a certificate of its own; gives its port and the certificate as PEM.
async fn tls_before(simulator: SocketAddr) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
        })
        .expect("a TLS server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serve = async move {
        loop {
            let (client, _) = listener.accept().await.expect("a connection");
            let Ok(mut client) = acceptor.accept(client).await else {
                continue;
            };
            let mut upstream = TcpStream::connect(simulator).await.expect("the simulator");
            // Either side may end it.
            copy_bidirectional(&mut client, &mut upstream).await.ok();
        }
    };
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(serve);
    (port, made.cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_authority_of_an_upstream_makes_its_own_certificate_good() {
    let behind = Harness::start().await;
    let (port, pem) = tls_before(behind.simulator.address()).await;
    let dir = tempfile::tempdir().expect("a folder");
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, pem).expect("it is written");
    for (ca_file, expected) in [(None, 502), (Some(ca_file), 200)] {
        let tweak = move |config: &mut Config| {
            config.upstreams[0].base_url = format!("https://localhost:{port}/v1");
            config.upstreams[0].ca_file = ca_file;
        };
        let harness = Harness::builder().tweak(tweak).start().await;
        assert_eq!(hello(&harness.client).await, expected);
        harness.finish().await;
    }
    assert_eq!(
        behind.served().len(),
        1,
        "nothing is sent to somebody who cannot show who it is"
    );
    behind.finish().await;
}
