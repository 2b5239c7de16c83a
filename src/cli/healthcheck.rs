//! `gateway healthcheck`: whether the server of these settings answers, for containers that hold no other program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;

use super::failure::{Exit, Failure};
use super::{Global, block_on, language, output};
use crate::language::Said;
use crate::said;

/// How long the server has for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// `gateway healthcheck`
#[derive(Debug, clap::Args)]
pub struct HealthcheckArgs {
    /// Ask whether it can serve (/readyz), not only whether it lives (/healthz)
    #[arg(long)]
    ready: bool,
}

/// Asks the server.
///
/// # Errors
/// It does not answer, or not with 200: exit code 7.
pub fn run(args: &HealthcheckArgs, global: &Global) -> anyhow::Result<()> {
    let server = global.settings_as_served()?.server;
    let (scheme, address) = (server.scheme(), reachable(server.listen));
    let url = format!(
        "{scheme}://{address}{}",
        if args.ready { "/readyz" } else { "/healthz" }
    );
    // Whoever was first has installed the same.
    rustls::crypto::ring::default_provider().install_default().unwrap_or(());
    let (status, body) = block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            // It is asked by its address, which no certificate names; and told nothing that is secret.
            .tls_danger_accept_invalid_certs(true)
            .timeout(PATIENCE);
        let client = client
            .build()
            .context(said!(language(), en: "no client can be made", zh: "无法创建客户端"))?;
        let answer = client.get(&url).send().await.map_err(|error| silent(&url, &error))?;
        let status = answer.status();
        Ok((status, answer.text().await.map_err(|error| silent(&url, &error))?))
    })?;
    if status.is_success() {
        return output::print(&format!("{}\n", body.trim_end())).map(drop);
    }
    let what = said!(
        language(),
        en: "{url} answers {status}",
        zh: "{url} 返回 {status}",
    );
    Err(Failure::new(Exit::Upstream, what)
        .why(Said::verbatim(body.trim_end()))
        .into())
}

/// An address that listens on all is reached on this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn silent(url: &str, error: &reqwest::Error) -> Failure {
    let what = said!(
        language(),
        en: "no server answers at {url}",
        zh: "{url} 没有服务器应答",
    );
    let why = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Failure::new(Exit::Upstream, what)
        .why(Said::verbatim(why))
        .fix(Said::verbatim("gateway serve"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_on_all_addresses_is_asked_on_this_machine() {
        for (listen, asked) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("10.1.2.3:80", "10.1.2.3:80"),
        ] {
            assert_eq!(reachable(listen.parse().expect("an address")).to_string(), asked);
        }
    }
}
