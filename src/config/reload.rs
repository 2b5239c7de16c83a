//! Settings that change while a server runs: what it takes in, what has to wait for its next start, and how they differ.

use std::collections::{BTreeMap, BTreeSet};

use super::load::{Loaded, Setting};
use super::{Config, DiskConfig, LogConfig, MetricsConfig, ServerConfig, UpstreamConfig};

impl Config {
    /// These settings as a server takes them in that runs with `running`, and the names of those that need a restart:
    /// they differ, and stay as they are.
    #[must_use]
    pub fn taken_in(mut self, running: &Config) -> (Config, Vec<&'static str>) {
        let mut waiting = Vec::new();
        // Each setting is named here, so that a new one does not build before it is decided what becomes of it.
        let Config {
            server:
                ServerConfig {
                    listen,
                    header_timeout,
                    tls,
                    max_connections,
                    max_connections_per_address: _,
                    public_url: _,
                    trusted_proxies: _,
                    max_body: _,
                    max_response: _,
                    body_timeout: _,
                    drain_timeout: _,
                    websocket: _,
                },
            database,
            disk: DiskConfig { min_free, ballast },
            log: LogConfig { format, level },
            events,
            sinks,
            metrics: MetricsConfig { listen: metrics },
            billing: _,
            limits: _,
            upstreams: _,
        } = &mut self;
        let (server, disk, log) = (&running.server, &running.disk, &running.log);
        keep("server.listen", listen, &server.listen, &mut waiting);
        keep(
            "server.header_timeout",
            header_timeout,
            &server.header_timeout,
            &mut waiting,
        );
        keep("server.tls_cert", tls, &server.tls, &mut waiting);
        keep(
            "server.max_connections",
            max_connections,
            &server.max_connections,
            &mut waiting,
        );
        keep("database.path", database, &running.database, &mut waiting);
        keep("database.min_free", min_free, &disk.min_free, &mut waiting);
        keep("database.ballast", ballast, &disk.ballast, &mut waiting);
        keep("log.format", format, &log.format, &mut waiting);
        keep("log.level", level, &log.level, &mut waiting);
        keep("events", events, &running.events, &mut waiting);
        keep("sink", sinks, &running.sinks, &mut waiting);
        keep("metrics.listen", metrics, &running.metrics.listen, &mut waiting);
        (self, waiting)
    }
}

/// Whether a setting, by its whole name, is one of those that wait for a restart.
pub fn waits(name: &str, waiting: &[&str]) -> bool {
    let of_table = |table: &str| name.strip_prefix(table).is_some_and(|key| key.starts_with('.'));
    let is = |one: &&str| *one == name || of_table(one) || (*one == "server.tls_cert" && name == "server.tls_key");
    waiting.iter().any(is)
}

fn keep<T: Clone + PartialEq>(name: &'static str, new: &mut T, running: &T, waiting: &mut Vec<&'static str>) {
    if new != running {
        running.clone_into(new);
        waiting.push(name);
    }
}

/// The names of the settings that differ. An upstream that is new or gone is one name; a secret that reads otherwise
/// than before is its setting's.
pub fn differences(before: &Loaded, after: &Loaded) -> BTreeSet<String> {
    let values = |loaded: &Loaded| -> BTreeMap<String, Option<String>> {
        let named = |setting: &Setting| (setting.key.clone(), setting.value.clone());
        loaded.settings.iter().map(named).collect()
    };
    let (old, new) = (values(before), values(after));
    let mut names: BTreeSet<String> = old
        .keys()
        .chain(new.keys())
        .filter(|key| old.get(*key) != new.get(*key))
        .cloned()
        .collect();
    let (old, new) = (&before.config.upstreams, &after.config.upstreams);
    for upstream in new {
        if let Some(was) = named(old, &upstream.name) {
            names.extend(hidden_differences(was, upstream));
        }
    }
    for lone in old.iter().chain(new) {
        if named(old, &lone.name).is_none() || named(new, &lone.name).is_none() {
            let table = format!("upstream.{}", lone.name);
            names.retain(|name| name.rsplit_once('.').is_none_or(|(of, _)| of != table));
            names.insert(table);
        }
    }
    let order = |of: &[UpstreamConfig], others: &[UpstreamConfig]| -> Vec<String> {
        let both = of.iter().filter(|upstream| named(others, &upstream.name).is_some());
        both.map(|upstream| upstream.name.clone()).collect()
    };
    if order(old, new) != order(new, old) {
        names.insert("the order of upstreams".to_owned());
    }
    names
}

fn named<'a>(upstreams: &'a [UpstreamConfig], name: &str) -> Option<&'a UpstreamConfig> {
    upstreams.iter().find(|upstream| upstream.name == name)
}

/// What is shown masked, or by where it is read from.
fn hidden_differences(was: &UpstreamConfig, is: &UpstreamConfig) -> impl Iterator<Item = String> {
    let hidden = [
        ("api_key", was.api_key != is.api_key),
        ("headers", was.headers != is.headers),
        ("proxy", was.proxy != is.proxy),
    ];
    let name = is.name.clone();
    let differing = hidden.into_iter().filter(|(_, differs)| *differs);
    differing.map(move |(key, _)| format!("upstream.{name}.{key}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::super::Sources;
    use super::*;

    fn load(text: &str, secret: &str) -> Loaded {
        let env = BTreeMap::from([("HOME".to_owned(), "/home/me".to_owned())]);
        let loaded = Config::load(Sources {
            file: Some(("/etc/gw/gateway.toml".into(), text.to_owned())),
            env: &env,
            flags: Vec::new(),
            read: &|_: &Path| Ok(secret.to_owned()),
        });
        loaded.expect(text)
    }

    fn differing(before: &str, after: &str) -> Vec<String> {
        let names = differences(&load(before, "secret"), &load(after, "secret"));
        names.into_iter().collect()
    }

    const A: &str = "[[upstream]]\nname = \"a\"\nbase_url = \"https://a\"\napi_key = \"file:key\"\n";
    const B: &str =
        "[[upstream]]\nname = \"a.b\"\nbase_url = \"https://b\"\napi_key = \"sk-1\"\nproxy = \"http://u:1@p\"\n";

    #[test]
    fn what_differs_is_named_and_where_it_stands_does_not_count() {
        assert_eq!(differing(A, &format!("\n\n# more lines\n{A}")), [""; 0]);
        assert_eq!(
            differing(A, &format!("[billing]\nmarkup = 2\n[server]\nmax_body = \"1MiB\"\n{A}")),
            ["billing.markup", "server.max_body"]
        );
        assert_eq!(differing(A, &format!("{A}models = [\"x\"]")), ["upstream.a.models"]);
    }

    #[test]
    fn a_secret_that_reads_otherwise_is_named_and_not_shown() {
        let other = B.replace("sk-1", "sk-2").replace("u:1@", "u:2@");
        assert_eq!(differing(B, &other), ["upstream.a.b.api_key", "upstream.a.b.proxy"]);
        let names = differences(&load(A, "before"), &load(A, "after"));
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["upstream.a.api_key"]);
    }

    #[test]
    fn an_upstream_that_comes_or_goes_is_one_name() {
        assert_eq!(differing(A, &format!("{A}{B}")), ["upstream.a.b"]);
        assert_eq!(differing(&format!("{A}{B}"), B), ["upstream.a"]);
        assert_eq!(
            differing(&format!("{A}{B}"), &format!("{B}{A}")),
            ["the order of upstreams"]
        );
    }

    #[test]
    fn a_setting_waits_by_its_own_name_or_that_of_its_table() {
        let waiting = ["events", "sink", "server.tls_cert"];
        for name in ["events.low_balance", "sink.a.url", "server.tls_cert", "server.tls_key"] {
            assert!(waits(name, &waiting), "{name}");
        }
        for name in ["server.max_body", "eventsy.x", "upstream.sink.url"] {
            assert!(!waits(name, &waiting), "{name}");
        }
    }

    #[test]
    fn what_cannot_change_while_a_server_runs_stays_and_is_named() {
        let running = load(A, "secret").config;
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:1\"\nheader_timeout = \"1s\"\ndrain_timeout = \"1s\"\n\
             tls_cert = \"c\"\ntls_key = \"k\"\nmax_connections = 1\nmax_connections_per_address = 1\n\
             [database]\npath = \"x.db\"\nmin_free = \"1MiB\"\nballast = \"1MiB\"\n\
             [log]\nlevel = \"debug\"\nformat = \"json\"\n[metrics]\nlisten = \"127.0.0.1:2\"\n[billing]\nmarkup = 2\n[events]\nlow_balance = 1\n{A}\
             [[sink]]\nname = \"a\"\nfile = \"a.jsonl\"\n"
        );
        let (taken, waiting) = load(&text, "secret").config.taken_in(&running);
        let expected = [
            "server.listen",
            "server.header_timeout",
            "server.tls_cert",
            "server.max_connections",
            "database.path",
            "database.min_free",
            "database.ballast",
            "log.format",
            "log.level",
            "events",
            "sink",
            "metrics.listen",
        ];
        assert_eq!(waiting, expected);
        assert_eq!(
            (taken.server.listen, taken.database),
            (running.server.listen, running.database)
        );
        assert_eq!(taken.server.drain_timeout.as_secs(), 1);
        assert_eq!(taken.billing.markup.general.to_string(), "2");
    }
}
