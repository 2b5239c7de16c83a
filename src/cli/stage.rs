//! A gateway to try things on: a temporary database, a simulated upstream, a server on a port of its own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use super::failure::Failure;
use super::{actor, language};
use crate::admin::{self, KeySpec, UserSpec};
use crate::config::{Config, Sources};
use crate::limits::Rates;
use crate::money::Usd;
use crate::server::{self, Server};
use crate::simulator::playwright::{Pace, standard};
use crate::simulator::{Options, Simulator};
use crate::store::{Create, Store};
use crate::{bilingual, said, time};

/// All of it. Settings are the defaults; the environment and the files of this machine play no part.
pub struct Stage {
    simulator: Simulator,
    /// The gateway.
    pub server: Server,
    /// Its books.
    pub store: Store,
    /// The last to go.
    dir: TempDir,
}

impl Stage {
    /// Starts it in a temporary directory whose name begins with `prefix`.
    ///
    /// # Errors
    /// No temporary directory or port can be had.
    pub async fn set(prefix: &str) -> anyhow::Result<Stage> {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir();
        let dir =
            dir.context(said!(language(), en: "no temporary directory could be made", zh: "无法创建临时文件夹"))?;
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let simulator = Simulator::start(anywhere, standard(Pace::default()), Options { remember: 0 }).await;
        let simulator = simulator
            .context(said!(language(), en: "the simulated upstream did not start", zh: "模拟的上游没有启动"))?;
        let config = settings(dir.path(), &simulator.base_url())?;
        let store = Store::open(&config.database, Create::IfMissing)?;
        let server = server::start(config, store.clone()).await?;
        Ok(Stage {
            simulator,
            server,
            store,
            dir,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The database's file.
    pub fn database(&self) -> PathBuf {
        self.dir.path().join("gateway.db")
    }

    /// A user with so much money, and a key of theirs, of the same name.
    ///
    /// # Errors
    /// There is one of this name.
    pub async fn user(&self, name: &'static str, balance: Usd, rates: Rates) -> anyhow::Result<String> {
        self.store
            .blocking(move |store| user_and_key(store, name, balance, rates))
            .await
    }

    /// Ends everything and removes the directory; `at_once` ends what runs.
    ///
    /// # Errors
    /// The books may not be as they seem, or the directory stays.
    pub async fn strike(self, at_once: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Stage {
            server,
            simulator,
            store,
            dir,
        } = self;
        let cutoff = server.cutoff();
        let mut stopping = std::pin::pin!(server.stop());
        let stopped = tokio::select! {
            stopped = &mut stopping => stopped,
            () = at_once => {
                cutoff.cancel();
                stopping.await
            }
        };
        simulator.stop().await;
        drop(store);
        let path = dir.path().display().to_string();
        dir.close()
            .with_context(|| said!(language(), en: "{path} could not be removed", zh: "无法删除 {path}"))?;
        stopped.map_err(anyhow::Error::msg)
    }
}

/// Settings as a file would give them.
fn settings(dir: &Path, upstream: &str) -> anyhow::Result<Config> {
    let table = |pairs: &[(&str, &str)]| -> toml::Table {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), toml::Value::from(*value));
        pairs.iter().map(pair).collect()
    };
    let database = dir.join("gateway.db");
    let database = database
        .to_str()
        .context(said!(language(), en: "the temporary directory's name is not text", zh: "临时文件夹的名称不是文本"))?;
    let upstream = table(&[("name", "simulator"), ("base_url", upstream), ("prices", "openai")]);
    let mut document = toml::Table::new();
    // So few that no system has too few open files for them.
    let server = table(&[("listen", "127.0.0.1:0"), ("max_connections", "256")]);
    document.insert("server".into(), server.into());
    document.insert(
        "database".into(),
        table(&[("path", database), ("min_free", "0"), ("ballast", "0")]).into(),
    );
    document.insert("upstream".into(), toml::Value::Array(vec![upstream.into()]));
    let sources = Sources {
        file: Some((PathBuf::from("demo"), document.to_string())),
        env: &BTreeMap::new(),
        flags: Vec::new(),
        read: &|path| {
            let path = path.display();
            Err(bilingual!(en: "{path} is not read here", zh: "这里不读取 {path}"))
        },
    };
    Ok(Config::load(sources)?.complete()?)
}

fn user_and_key(store: &Store, name: &str, balance: Usd, rates: Rates) -> anyhow::Result<String> {
    let (by, now) = (actor(), time::now());
    let spec = UserSpec {
        name: name.into(),
        email: None,
        balance,
        credit_line: Usd::ZERO,
        budgets: Vec::new(),
        rates,
    };
    let user = admin::add_user(store, &spec, &by, now).map_err(Failure::from)?;
    let spec = KeySpec {
        name: Some(name.into()),
        ..KeySpec::default()
    };
    let issued = admin::issue_key(store, &user.name, &spec, &by, now).map_err(Failure::from)?;
    Ok(issued.secret.reveal().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_the_defaults_but_for_where() {
        let config = settings(Path::new("/tmp/a \"quoted\" dir"), "http://127.0.0.1:9/v1").expect("settings");
        assert_eq!(config.database, Path::new("/tmp/a \"quoted\" dir/gateway.db"));
        assert_eq!((config.server.listen.port(), config.upstreams.len()), (0, 1));
        assert_eq!(config.upstreams[0].base_url, "http://127.0.0.1:9/v1");
    }
}
