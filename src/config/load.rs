//! Sources to settings: flags beat the environment, which beats the file, which beats the default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Config;
use super::error::{ConfigError, ConfigErrors};
use super::loader::{Loader, Nodes, Table, text_node};
use super::source::{Document, Origin, Place};
use crate::language::Bilingual;

/// Everything settings are made of.
pub struct Sources<'a> {
    /// The settings file and its text.
    pub file: Option<(PathBuf, String)>,
    /// The environment.
    pub env: &'a BTreeMap<String, String>,
    /// Flags that stand for a setting.
    pub flags: Vec<Flag>,
    /// Reads the file of a `file:PATH` secret; the error is for people.
    pub read: &'a dyn Fn(&Path) -> Result<String, Bilingual>,
}

/// A flag that stands for a setting of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag as typed: `--listen`.
    pub name: &'static str,
    /// The table: `server`.
    pub table: &'static str,
    /// The key: `listen`.
    pub key: &'static str,
    /// The value.
    pub value: String,
}

/// One effective setting, for `config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `server.listen`, `upstream.openai.base_url`.
    pub key: String,
    /// Its value as it would be written, secrets masked; `None`: not set, and there is no default.
    pub value: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Settings, and how they came about.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Each with its origin.
    pub settings: Vec<Setting>,
    /// Secrets that could not be resolved (`env:NAME` unset, `file:PATH` unreadable). Only who calls upstreams needs
    /// them, so commands beside a running server go on without.
    pub missing: Vec<ConfigError>,
}

impl Loaded {
    /// The settings for a process that calls upstreams.
    ///
    /// # Errors
    /// The secrets that could not be resolved.
    pub fn complete(self) -> Result<Config, ConfigErrors> {
        self.lacks_nothing().map(|()| self.config)
    }

    /// Whether the settings will do for a process that calls upstreams.
    ///
    /// # Errors
    /// The secrets that could not be resolved.
    pub fn lacks_nothing(&self) -> Result<(), ConfigErrors> {
        match self.missing.is_empty() {
            true => Ok(()),
            false => Err(ConfigErrors::new(self.missing.clone())),
        }
    }
}

impl Config {
    /// Settings from their sources.
    ///
    /// # Errors
    /// The settings that are unknown or wrong, each with its position and what to do.
    pub fn load(sources: Sources<'_>) -> Result<Loaded, ConfigErrors> {
        let mut loader = Loader {
            document: sources.file.map(|(path, text)| Document { path, text }),
            env: sources.env,
            read: sources.read,
            settings: Vec::new(),
            missing: Vec::new(),
            wrong: Vec::new(),
        };
        let mut tables = loader.file_tables();
        loader.add_env(&mut tables);
        for flag in sources.flags {
            let table = tables.entry(flag.table.to_owned()).or_default();
            table.insert(
                flag.key.to_owned(),
                text_node(flag.value, Place::Flag(flag.name.to_owned())),
            );
        }
        let config = loader.config(tables);
        let Loader {
            settings,
            missing,
            mut wrong,
            ..
        } = loader;
        match config {
            Ok(config) if wrong.is_empty() => Ok(Loaded {
                config,
                settings,
                missing,
            }),
            other => {
                wrong.extend(other.err());
                wrong.extend(missing);
                Err(ConfigErrors::new(wrong))
            }
        }
    }
}

impl Loader<'_> {
    fn config(&mut self, mut tables: BTreeMap<String, Nodes>) -> Result<Config, ConfigError> {
        let upstreams = tables.remove("upstream");
        let sinks = tables.remove("sink");
        let mut table = |name: &str| Table {
            name: name.to_owned(),
            nodes: tables.remove(name).unwrap_or_default(),
        };
        let mut database = table("database");
        Ok(Config {
            server: self.server(&mut table("server"))?,
            disk: self.disk(&mut database)?,
            database: self.database(&mut database)?,
            billing: self.billing(&mut table("billing"))?,
            limits: self.limits(&mut table("limits")),
            log: self.log(&mut table("log"))?,
            events: self.events(&mut table("events"))?,
            sinks: self.sinks(sinks),
            metrics: self.metrics(&mut table("metrics")),
            upstreams: self.upstreams(upstreams)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::super::loader::{SINK, TABLES, UPSTREAM};
    use super::super::{Pricing, UpstreamConfig};
    use super::*;
    use crate::bilingual;
    use crate::call::ChatLimitField;
    use crate::language::Language;
    use crate::language::agreement::agree;
    use crate::limits::AtMost;
    use crate::pricing::{Factor, ListName};

    type Env = BTreeMap<String, String>;

    fn env(pairs: &[(&str, &str)]) -> Env {
        let home = [("HOME", "/home/me")];
        let all = home.iter().chain(pairs);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn load_with(text: &str, env: &Env, flags: Vec<Flag>) -> Result<Loaded, ConfigErrors> {
        let read = |path: &Path| match path.to_str() {
            Some("/etc/gw/key.txt") => Ok("sk-from-file\n".to_owned()),
            _ => {
                let path = path.display();
                Err(bilingual!(en: "{path} cannot be read", zh: "无法读取 {path}"))
            }
        };
        Config::load(Sources {
            file: Some(("/etc/gw/gateway.toml".into(), text.to_owned())),
            env,
            flags,
            read: &read,
        })
    }

    fn load(text: &str) -> Result<Loaded, ConfigErrors> {
        load_with(text, &env(&[]), Vec::new())
    }

    /// Insists that they say the same in every language.
    fn agreed(errors: &ConfigErrors) {
        for error in errors.iter() {
            for text in [&error.what, &error.fix] {
                let [en, zh] = Language::ALL.map(|language| text.of(language));
                agree(en, zh);
            }
        }
    }

    fn refusal(text: &str) -> String {
        load(text).map(|_| ()).expect_err(text).to_string()
    }

    fn upstream(text: &str) -> UpstreamConfig {
        let text = format!("[[upstream]]\nname = \"u\"\n{text}");
        load(&text).expect(&text).config.upstreams.remove(0)
    }

    fn setting(loaded: &Loaded, key: &str) -> (Option<String>, String) {
        let setting = loaded.settings.iter().find(|setting| setting.key == key).expect(key);
        (setting.value.clone(), setting.origin.to_string())
    }

    #[test]
    fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\n";
        let variable = env(&[("GATEWAY_SERVER__LISTEN", "127.0.0.1:2")]);
        let flag = Flag {
            name: "--listen",
            table: "server",
            key: "listen",
            value: "127.0.0.1:3".into(),
        };
        let port = |loaded: Loaded| (loaded.config.server.listen.port(), setting(&loaded, "server.listen").1);
        let none = load("").expect("defaults");
        assert_eq!(port(none), (8080, "default".into()));
        assert_eq!(port(load(file).expect("file")), (1, "/etc/gw/gateway.toml:2".into()));
        let over = load_with(file, &variable, Vec::new()).expect("variable");
        assert_eq!(port(over), (2, "GATEWAY_SERVER__LISTEN".into()));
        let over = load_with(file, &variable, vec![flag]).expect("flag");
        assert_eq!(port(over), (3, "--listen".into()));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_name() {
        let text = refusal("[billing]\nmark_up = 1.04\n");
        assert_eq!(
            text,
            "/etc/gw/gateway.toml:2:1: unknown key `mark_up` in [billing]\n  2 │ mark_up = 1.04\n    │ ^^^^^^^\n  fix   did you mean `markup`?"
        );
        assert!(refusal("[server]\nmarkup = 1").contains("`markup` belongs into [billing]"));
        assert!(refusal("[sever]\n").contains("did you mean `server`?"));
        assert!(refusal("[quotas]\nrpm = 3").contains("unknown table or key `quotas`"));
        assert!(refusal("[[upstream]]\nbaseurl = \"x\"").contains("did you mean `base_url`?"));
        assert!(refusal("[upstream]\nname = \"x\"").contains("[[upstream]]"));
        assert!(refusal("[[sink]]\nfil = \"x\"").contains("did you mean `file`?"));
        assert!(refusal("[[sinks]]\n").contains("did you mean `sink`?"));
        assert!(refusal("server = 3").contains("write [server]"));
    }

    #[test]
    fn a_file_is_of_one_sink() {
        let sinks = |one: &str, other: &str| {
            format!("[[sink]]\nname = \"a\"\nfile = \"{one}\"\n[[sink]]\nname = \"b\"\nfile = \"{other}\"\n")
        };
        assert_eq!(
            load(&sinks("x.jsonl", "y.jsonl"))
                .expect("two files")
                .config
                .sinks
                .len(),
            2
        );
        let refused = refusal(&sinks("x.jsonl", "/etc/gw/x.jsonl"));
        assert!(refused.contains("two sinks write to /etc/gw/x.jsonl"), "{refused}");
    }

    #[test]
    fn an_unknown_variable_is_refused_and_foreign_ones_are_left_alone() {
        let with = |name: &str| load_with("", &env(&[(name, "1")]), Vec::new()).map(|_| ());
        let refused = |name: &str| with(name).expect_err(name).to_string();
        assert!(refused("GATEWAY_SERVER__LISTEM").contains("did you mean GATEWAY_SERVER__LISTEN?"));
        assert!(refused("GATEWAY_SERVER__listen").contains("did you mean GATEWAY_SERVER__LISTEN?"));
        assert!(refused("GATEWAY_UPSTREAM__API_KEY").contains("env:NAME"));
        for foreign in ["GATEWAY_FIXTURES", "GATEWAY_LOG", "CODEX_GATEWAY__X", "PATH"] {
            assert!(with(foreign).is_ok(), "{foreign}");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_place_and_what_would_be_right() {
        let text = refusal("[server]\nheader_timeout = 10");
        assert!(
            text.starts_with("/etc/gw/gateway.toml:2:18: header_timeout: `10` is not a time"),
            "{text}"
        );
        assert!(text.contains("\"10s\""), "{text}");
        for wrong in [
            "[billing]\nmarkup = -1",
            "[billing]\nmarkup = 1.0000001",
            "[billing]\nmarkup = [1]",
            "[billing]\nhold_share = 0",
            "[billing]\non_hangup = \"wait\"",
            "[server]\nlisten = 8080",
            "[server]\nmax_body = true",
            "[server]\ntrusted_proxies = [\"ten\"]",
            "[database]\npath = \"\"",
            "[log]\nlevel = \"loud=very\"",
            "[log]\nformat = \"xml\"",
            "[limits]\nrpm = 0",
            "[limits]\ntpm = 1.5",
            "[limits]\nmodel_concurrency = { x = -1 }",
            "[limits]\nmodel_rpm = { x = \"many\" }",
            "[[upstream]]\nbase_url = \"https://x\"",
            "[[upstream]]\nname = \"x\"",
            "[[upstream]]\nname = \"a b\"\nbase_url = \"https://x\"",
            "[[upstream]]\nname = \"x\"\nbase_url = \"https://x\"\nheaders = { Host = \"y\" }",
            "[[upstream]]\nname = \"x\"\nbase_url = \"https://x\"\naliases = { a = \"a\" }",
            "[[upstream]]\nname = \"x\"\nbase_url = \"https://x\"\nproxy = \"proxy\"",
            "[events]\nlow_balance = -1",
            "[events]\nmax_waiting = 1",
            "[sink]\nname = \"x\"",
            "[[sink]]\nfile = \"x\"",
            "[[sink]]\nname = \"x\"",
            "[[sink]]\nname = \"x\"\nfile = \"x\"\nurl = \"https://x\"\nsecret = \"x\"",
            "[[sink]]\nname = \"x\"\nfile = \"x\"\nsecret = \"x\"",
            "[[sink]]\nname = \"x\"\nurl = \"https://x\"",
            "[[sink]]\nname = \"x\"\nurl = \"https://x\"\nsecret = \"whsec_?\"",
            "[[sink]]\nname = \"x\"\nurl = \"http://10.0.0.1\"\nsecret = \"x\"",
            "[[sink]]\nname = \"x\"\nfile = \"x\"\ntypes = [\"balance.lo\"]",
            "[[sink]]\nname = \"x\"\nfile = \"x\"\n[[sink]]\nname = \"x\"\nfile = \"y\"",
            "[[upstream]]\nname = \"x\"\nbase_url = \"https://x\"\n[[upstream]]\nname = \"x\"\nbase_url = \"https://y\"",
        ] {
            assert!(
                refusal(wrong).starts_with("/etc/gw/gateway.toml:"),
                "{}",
                refusal(wrong)
            );
            agreed(&load(wrong).expect_err(wrong));
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_in_the_order_of_the_file() {
        let text = "\
[server]
listen = \"foo\"
drain_timeout = 10
trusted_proxies = [\"ten\", \"10.0.0.0/8\", \"x\"]
[billing]
mark_up = 2
hold_share = 0
[[upstream]]
base_url = \"x\"
auth = \"none\"
aliases = { a = \"a\", b = \"\" }
[[upstream]]
name = \"u\"
base_url = \"https://x\"
api_key = \"env:NOPE\"
idle_timeout = 3
modles = []
[quotas]
[[upstream]]
name = \"u\"
base_url = \"https://y\"
[[upstream]]
name = \"u\"
base_url = \"https://z\"
";
        let variables = env(&[("GATEWAY_LOG__FORMAT", "xml"), ("GATEWAY_LOG__COLOUR", "1")]);
        let wrong = load_with(text, &variables, Vec::new()).expect_err("much is wrong");
        let places: Vec<String> = wrong.iter().map(|error| error.place.clone()).collect();
        let places: Vec<&str> = places.iter().filter_map(|place| place.rsplit('/').next()).collect();
        let expected = [
            "GATEWAY_LOG__COLOUR",
            "GATEWAY_LOG__FORMAT",
            "gateway.toml:2:10",
            "gateway.toml:3:17",
            "gateway.toml:4:20",
            "gateway.toml:4:41",
            "gateway.toml:6:1",
            "gateway.toml:7:14",
            "gateway.toml:8:1",
            "gateway.toml:9:1",
            "gateway.toml:10:8",
            "gateway.toml:11:17",
            "gateway.toml:11:26",
            "gateway.toml:15:1",
            "gateway.toml:16:16",
            "gateway.toml:17:1",
            "gateway.toml:18:2",
            "gateway.toml:20:8",
            "gateway.toml:23:8",
        ];
        assert_eq!(places, expected, "{wrong}");
        assert_eq!(wrong.to_string().matches("  fix   ").count(), expected.len());
        assert_eq!(
            wrong.told(Language::Chinese).matches("  处理  ").count(),
            expected.len()
        );
        agreed(&wrong);
    }

    #[test]
    fn a_variable_that_is_wrong_is_named_once() {
        let variable = env(&[("GATEWAY_SERVER__LISTEN", "foo")]);
        let wrong = load_with("", &variable, Vec::new())
            .expect_err("no address")
            .to_string();
        assert!(
            wrong.starts_with("GATEWAY_SERVER__LISTEN: `foo` is not an address"),
            "{wrong}"
        );
    }

    #[test]
    fn a_model_has_its_own_markup_and_a_user_has_theirs() {
        let text = "[billing]\nmarkup = 1.2\nmodel_markup = { \"gpt-5*\" = 1.1, \"gpt-5*-mini\" = 1.3, \"gpt-5-*\" = 1.4, \"gpt-5\" = 2 }";
        let markup = load(text).expect("fine").config.billing.markup;
        for (model, expected) in [
            ("gpt-4o", "1.2"),
            ("gpt-5", "2"),
            ("gpt-5.5", "1.1"),
            ("gpt-5-mini", "1.3"),
            ("gpt-5-pro", "1.4"),
        ] {
            assert_eq!(markup.of(None, model).to_string(), expected, "{model}");
            assert_eq!(markup.of(Some(Factor::ONE), model), Factor::ONE);
        }
        let wrong = refusal("[billing]\nmodel_markup = { x = 1.0000001 }");
        assert!(wrong.contains("model_markup: "), "{wrong}");
    }

    #[test]
    fn a_model_has_the_limits_of_the_longest_pattern_that_matches() {
        let text =
            "[limits]\nrpm = 60\nmodel_rpm = { \"gpt-5*\" = 100, \"gpt-5-mini\" = 7 }\nmodel_tpm = { \"*\" = 9000 }";
        let loaded = load(text).expect("fine");
        let limits = &loaded.config.limits;
        let of = |model: &str| limits.of_model(model).named().map(|(_, limit)| limit.map(AtMost::get));
        assert_eq!(of("gpt-5.5"), [Some(100), Some(9000), None]);
        assert_eq!(of("gpt-5-mini"), [Some(7), Some(9000), None]);
        assert_eq!(of("gpt-4o"), [None, Some(9000), None]);
        assert_eq!(
            limits.key.named().map(|(_, limit)| limit.map(AtMost::get)),
            [Some(60), None, None]
        );
        let shown = setting(&loaded, "limits.model_rpm").0;
        assert_eq!(shown.as_deref(), Some("gpt-5* = 100, gpt-5-mini = 7"));
        assert_eq!(setting(&loaded, "limits.concurrency").0, None);
    }

    #[test]
    fn decimals_never_pass_through_a_float() {
        let loaded = load("[billing]\nmarkup = 1.000001\nhold_share = 0.000001").expect("exact");
        assert_eq!(loaded.config.billing.markup.general.to_string(), "1.000001");
        assert_eq!(loaded.config.billing.hold.share_ppm, 1);
    }

    #[test]
    fn no_secret_is_ever_quoted() {
        let base = "[[upstream]]\nname = \"u\"\nbase_url = \"https://x\"\n";
        for wrong in [
            "api_key = sk-secret",
            "apikey = \"sk-secret\"",
            "api_key = [\"sk-secret\"]",
            "api_key = \"sk-secret\\nx\"\nbogus = 1",
            "proxy = \"me:sk-secret@host\"",
            "headers = { Authorization = \"sk-secret\" }",
            "headers = \"sk-secret\"",
            "models = [\"\"]\nheaders = { x = \"sk-secret\" }",
        ] {
            let text = refusal(&format!("{base}{wrong}"));
            assert!(!text.contains("sk-secret"), "{text}");
        }
        let twice = "[[upstream]]\nname = \"u\"\nbase_url = \"https://me:sk-secret@x/v1\"\n";
        assert!(!refusal(twice).contains("sk-secret"));
        let fine = load(&format!(
            "{base}api_key = \"sk-secret\"\nproxy = \"http://me:sk-secret@host\"\nheaders = {{ x = \"sk-secret\" }}"
        ));
        let fine = fine.expect("fine");
        assert_eq!(fine.config.upstreams[0].headers["x"].reveal(), "sk-secret");
        assert!(!format!("{:?}", fine.settings).contains("sk-secret"));
        assert!(!format!("{:?}", fine.config.upstreams[0].api_key).contains("sk-secret"));
    }

    #[test]
    fn a_secret_comes_from_a_variable_a_file_or_the_text() {
        let base = "base_url = \"https://x\"\n";
        let of = |key: &str| {
            let upstream = upstream(&format!("{base}api_key = \"{key}\""));
            let key = upstream.api_key.map(|key| key.reveal().to_owned());
            (key, upstream.api_key_origin)
        };
        assert_eq!(of("sk-x"), (Some("sk-x".into()), Some("/etc/gw/gateway.toml:4".into())));
        assert_eq!(
            of("file:key.txt"),
            (Some("sk-from-file".into()), Some("/etc/gw/key.txt".into()))
        );
        assert_eq!(of("env:HOME"), (Some("/home/me".into()), Some("HOME".into())));
    }

    #[test]
    fn a_missing_secret_stops_only_who_needs_it() {
        let text = "[[upstream]]\nname = \"u\"\nbase_url = \"https://x\"\napi_key = \"env:NOPE\"";
        let loaded = load(text).expect("other commands go on");
        assert_eq!(loaded.config.upstreams[0].api_key, None);
        let error = loaded.complete().expect_err("a server does not").to_string();
        assert!(error.contains("the variable NOPE is not set"), "{error}");
    }

    #[test]
    fn openai_is_the_upstream_when_only_its_key_is_there() {
        let loaded = load_with("", &env(&[("OPENAI_API_KEY", "sk-x")]), Vec::new()).expect("fine");
        let openai = &loaded.config.upstreams[0];
        assert_eq!(
            (openai.name.as_str(), openai.base_url.as_str()),
            ("openai", "https://api.openai.com/v1")
        );
        assert_eq!(openai.api_key_origin.as_deref(), Some("OPENAI_API_KEY"));
        assert_eq!(openai.list(), Some(&ListName::openai()));
        assert_eq!(openai.chat_limit_field(), ChatLimitField::MaxCompletionTokens);
        assert!(load("").expect("fine").config.upstreams.is_empty());
        assert!(
            load_with("", &env(&[("OPENAI_API_KEY", " ")]), Vec::new())
                .expect("fine")
                .config
                .upstreams
                .is_empty()
        );
    }

    #[test]
    fn an_upstream_is_priced_and_placed_by_its_host_unless_told() {
        let eu = upstream("base_url = \"https://eu.api.openai.com/v1/\"");
        assert_eq!(
            (eu.region.as_deref(), eu.base_url.as_str()),
            (Some("eu"), "https://eu.api.openai.com/v1")
        );
        let own = upstream("base_url = \"http://127.0.0.1:9/v1\"");
        assert_eq!(own.list().map(ListName::as_str), Some("u"));
        assert_eq!(own.chat_limit_field(), ChatLimitField::MaxTokens);
        assert_eq!(
            upstream("base_url = \"http://x\"\nprices = \"free\"").prices,
            Pricing::Free
        );
        let told = upstream("base_url = \"http://x\"\nprices = \"xai\"\nidle_timeout = \"1s\"");
        assert_eq!(told.list().map(ListName::as_str), Some("xai"));
        assert_eq!(told.idle_timeout, Duration::from_secs(1));
    }

    #[test]
    fn the_database_is_the_same_from_any_folder() {
        let path = |text: &str, pairs: &[(&str, &str)]| {
            load_with(text, &env(pairs), Vec::new()).expect("fine").config.database
        };
        assert_eq!(
            path("", &[]),
            Path::new("/home/me/.local/share/codex-gateway/gateway.db")
        );
        assert_eq!(
            path("", &[("XDG_DATA_HOME", "/data")]),
            Path::new("/data/codex-gateway/gateway.db")
        );
        assert_eq!(
            path("", &[("XDG_DATA_HOME", "data")]),
            path("", &[]),
            "a relative one does not count"
        );
        assert_eq!(path("[database]\npath = \"gw.db\"", &[]), Path::new("/etc/gw/gw.db"));
        assert_eq!(path("", &[("GATEWAY_DATABASE__PATH", "/x.db")]), Path::new("/x.db"));
    }

    #[test]
    fn clients_are_told_an_address_that_they_can_reach() {
        let url = |text: &str| load(text).expect(text).config.server.url();
        assert_eq!(url(""), "http://127.0.0.1:8080");
        assert_eq!(url("[server]\nlisten = \"0.0.0.0:9\""), "http://127.0.0.1:9");
        assert_eq!(url("[server]\nlisten = \"[::]:9\""), "http://[::1]:9");
        assert_eq!(
            url("[server]\npublic_url = \"https://gw.example/v1/\""),
            "https://gw.example"
        );
    }

    const EXAMPLE: &str = include_str!("../../gateway.toml.example");

    /// The example with the commented settings in force: one `#` for defaults, two for what has none.
    fn uncommented(marks: &[&str]) -> String {
        let line = |line: &str| match marks.iter().find_map(|mark| line.strip_prefix(mark)) {
            Some(rest) if !rest.is_empty() && !rest.starts_with([' ', '#']) => rest.to_owned(),
            _ => line.to_owned(),
        };
        EXAMPLE.lines().map(|text| line(text) + "\n").collect()
    }

    #[test]
    fn the_example_says_the_defaults() {
        let key = env(&[("OPENAI_API_KEY", "sk-x")]);
        let values = |text: &str| {
            let loaded = load_with(text, &key, Vec::new()).expect("the example parses");
            let values = loaded.settings.into_iter().map(|setting| (setting.key, setting.value));
            values.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(values(&uncommented(&["#"])), values(""));
    }

    #[test]
    fn the_example_names_every_setting_and_no_other() {
        let key = env(&[("OPENAI_API_KEY", "sk-x")]);
        let loaded = load_with(&uncommented(&["## ", "#"]), &key, Vec::new()).expect("the example parses");
        let named: BTreeSet<String> = loaded
            .settings
            .iter()
            .filter(|setting| matches!(setting.origin, Origin::File { .. }))
            .map(|setting| setting.key.clone())
            .collect();
        let of = |name: &str, keys: &[&str]| keys.iter().map(|key| format!("{name}.{key}")).collect::<Vec<_>>();
        let mut known: BTreeSet<String> = TABLES.iter().flat_map(|(name, keys)| of(name, keys)).collect();
        known.extend(of("upstream.openai", UPSTREAM));
        known.remove("upstream.openai.name");
        known.extend(of("sink.billing", SINK));
        for elsewhere in ["sink.billing.name", "sink.billing.file"] {
            known.remove(elsewhere);
        }
        known.insert("sink.archive.file".to_owned());
        assert_eq!(named, known);
    }
}
