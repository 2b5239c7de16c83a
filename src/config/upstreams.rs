//! `[[upstream]]`: what is derived from its host, its secrets, and the upstream that `OPENAI_API_KEY` alone makes.

use std::collections::{BTreeMap, BTreeSet};

use http::HeaderName;

use super::error::{ConfigError, Show, after};
use super::loader::{Loader, MASK, Nodes, Table, UPSTREAM, any_text, masked, text_node};
use super::parse::{self, Parsed, Problem};
use super::source::{Node, Place, Value};
use super::{Pricing, Secret, UpstreamConfig};
use crate::bilingual;
use crate::pricing::ListName;

/// Headers that the gateway or the connection sets.
const OWN_HEADERS: [&str; 7] = [
    "authorization",
    "api-key",
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
];

/// The heaviest upstream: each unit is a draw (`route::Routes::choose`).
const MAX_WEIGHT: u32 = 100;

/// The variable that makes an upstream when none is configured.
const OPENAI_KEY: &str = "OPENAI_API_KEY";

impl Loader<'_> {
    pub(super) fn upstreams(&mut self, raw: Option<Nodes>) -> Result<Vec<UpstreamConfig>, ConfigError> {
        let Some(node) = raw.and_then(|mut raw| raw.remove("")) else {
            return self.upstream_of_env();
        };
        let Value::List(items) = node.value else {
            let fix = bilingual!(en: "write [[upstream]], in double brackets: there may be several", zh: "请写 [[upstream]]，用双方括号：可以有多个");
            self.refuse(
                &node.key,
                bilingual!(en: "`upstream` is not a list of tables", zh: "`upstream` 不是表的列表"),
                fix,
            );
            return Ok(Vec::new());
        };
        let mut names = BTreeSet::new();
        let mut upstreams = Vec::new();
        for item in items {
            let Value::Table(nodes) = item.value else {
                let fix = bilingual!(en: "write [[upstream]] above the keys of each", zh: "请在每个上游的键之上写 [[upstream]]");
                self.refuse(
                    &item.place,
                    bilingual!(en: "`upstream` is not a list of tables", zh: "`upstream` 不是表的列表"),
                    fix,
                );
                continue;
            };
            self.refuse_unknown(None, "[[upstream]]", UPSTREAM, &nodes);
            let named = nodes.get("name");
            if let Some((Ok(name), place)) = named.map(|node| (self.scalar("name", node), node.place.clone()))
                && !names.insert(name.clone())
            {
                let what = bilingual!(en: "two upstreams are called `{name}`", zh: "有两个上游都叫 `{name}`");
                self.refuse(
                    &place,
                    what,
                    bilingual!(en: "give each a name of its own", zh: "请给每个上游各自的名称"),
                );
            }
            let read = self.upstream(nodes, &item.place).map(Some);
            upstreams.extend(self.or_instead(read, None));
        }
        Ok(upstreams)
    }

    /// With nothing configured, `OPENAI_API_KEY` makes OpenAI the upstream.
    fn upstream_of_env(&mut self) -> Result<Vec<UpstreamConfig>, ConfigError> {
        if self.env.get(OPENAI_KEY).is_none_or(|key| key.trim().is_empty()) {
            return Ok(Vec::new());
        }
        let default = |text: &str| text_node(text.to_owned(), Place::Default);
        let key = text_node(format!("env:{OPENAI_KEY}"), Place::Env(OPENAI_KEY.to_owned()));
        let nodes = BTreeMap::from([
            ("name".to_owned(), default("openai")),
            ("base_url".to_owned(), default("https://api.openai.com/v1")),
            ("api_key".to_owned(), key),
        ]);
        Ok(vec![self.upstream(nodes, &Place::Default)?])
    }

    fn upstream(&mut self, mut nodes: Nodes, place: &Place) -> Result<UpstreamConfig, ConfigError> {
        let name = self.required(&mut nodes, place, "name", parse::name);
        let base_url = self.required(&mut nodes, place, "base_url", parse::base_url);
        // An upstream without one of them has a place among the errors, and the rest of it is read all the same.
        let stand_in = |text: &str| (text.to_owned(), Place::Default);
        let (name, _) = self.or_instead(name, stand_in("upstream"));
        let (base_url, url_place) = self.or_instead(base_url, stand_in("http://localhost"));
        let table = &mut Table {
            name: format!("upstream.{name}"),
            nodes,
        };
        self.note(table, "base_url", Some(base_url.clone()), &url_place);
        let host = parse::host_of(&base_url);
        let (api_key, api_key_origin) = self.api_key(table).unzip();
        Ok(UpstreamConfig {
            auth: self.value(table, "auth", "bearer", parse::auth)?,
            models: self.list(table, "models", &["*"], parse::glob),
            aliases: self.aliases(table),
            prices: self.prices(table, &host, &name)?,
            wire: self.value(table, "wire", "responses+chat", parse::wire)?,
            region: self.region(table, &host)?,
            proxy: self.proxy(table),
            ca_file: self
                .optional(table, "ca_file", any_text)
                .map(|path| self.beside_file(&path)),
            connect_timeout: self.value(table, "connect_timeout", "10s", parse::duration)?,
            first_byte_timeout: self.value(table, "first_byte_timeout", "600s", parse::duration)?,
            idle_timeout: self.value(table, "idle_timeout", "300s", parse::duration)?,
            priority: self.value(table, "priority", "0", parse::number(0..=1_000))?,
            weight: self.value(table, "weight", "1", parse::number(1..=MAX_WEIGHT))?,
            max_concurrency: self.optional(table, "max_concurrency", parse::number(1..=1_000_000)),
            breaker_interval: self.value(table, "breaker_interval", "10s", parse::duration)?,
            retry_gateway_errors: self.value(table, "retry_gateway_errors", "false", parse::truth)?,
            websocket: self.value(table, "websocket", "false", parse::truth)?,
            headers: self.headers(table),
            name,
            base_url,
            api_key,
            api_key_origin,
        })
    }

    fn required<T>(
        &self,
        nodes: &mut Nodes,
        place: &Place,
        key: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<(T, Place), ConfigError> {
        let Some(node) = nodes.remove(key) else {
            let example = match key {
                "name" => "openai",
                _ => "https://api.openai.com/v1",
            };
            let (what, fix) = (
                bilingual!(en: "this upstream has no `{key}`", zh: "此上游没有 `{key}`"),
                bilingual!(en: "add {key} = \"{example}\"", zh: "请添加 {key} = \"{example}\""),
            );
            return Err(self.at(place, what, fix));
        };
        Ok((self.hidden(key, &node, parse)?, node.place))
    }

    /// A value of which no error quotes anything: a URL may hold a password where none belongs.
    fn hidden<T>(&self, key: &str, node: &Node, parse: impl Fn(&str) -> Parsed<T>) -> Result<T, ConfigError> {
        parse(&self.scalar(key, node)?)
            .map_err(|Problem { what, fix }| self.error(&node.key, Show::KeyOnly, after(key, &what), fix))
    }

    fn api_key(&mut self, table: &mut Table) -> Option<(Secret, String)> {
        let Some(node) = table.nodes.remove("api_key") else {
            self.note(table, "api_key", None, &Place::Default);
            return None;
        };
        self.note(table, "api_key", Some(masked(&node)), &node.place);
        self.secret("api_key", &node)
    }

    fn proxy(&mut self, table: &mut Table) -> Option<String> {
        let Some(node) = table.nodes.remove("proxy") else {
            self.note(table, "proxy", None, &Place::Default);
            return None;
        };
        let read = self.hidden("proxy", &node, parse::proxy).map(Some);
        let proxy = self.or_instead(read, None)?;
        let shown = match proxy.rsplit_once('@') {
            Some((_, host)) => format!("{MASK}@{host}"),
            None => proxy.clone(),
        };
        self.note(table, "proxy", Some(shown), &node.place);
        Some(proxy)
    }

    fn prices(&mut self, table: &mut Table, host: &str, name: &str) -> Result<Pricing, ConfigError> {
        let default = parse::list_of_host(host).map_or_else(|| name.to_ascii_lowercase(), str::to_owned);
        self.value(table, "prices", &default, |text| match text {
            "free" => Ok(Pricing::Free),
            list => parse::list(list).map(Pricing::List),
        })
    }

    fn region(&mut self, table: &mut Table, host: &str) -> Result<Option<String>, ConfigError> {
        match parse::region_of_host(host) {
            Some(region) => self.value(table, "region", &region, parse::name).map(Some),
            None => Ok(self.optional(table, "region", parse::name)),
        }
    }

    fn aliases(&mut self, table: &mut Table) -> BTreeMap<String, String> {
        let (nodes, place) = self.entries(table, "aliases");
        let mut aliases = BTreeMap::new();
        for (alias, node) in nodes {
            let read = self.scalar(&alias, &node);
            let read = read.and_then(|text| self.parsed(&node, "aliases", &text, any_text).map(Some));
            match self.or_instead(read, None) {
                Some(model) if model == alias => {
                    let fix = bilingual!(en: "an alias is another name; the model's own needs no line", zh: "别名是另一个名称；模型自己的名称不需要写");
                    self.refuse(
                        &node.place,
                        bilingual!(en: "`{alias}` is an alias of itself", zh: "`{alias}` 是它自己的别名"),
                        fix,
                    );
                }
                Some(model) => drop(aliases.insert(alias, model)),
                None => {}
            }
        }
        let shown: Vec<String> = aliases
            .iter()
            .map(|(alias, model)| format!("{alias} = {model}"))
            .collect();
        self.note(table, "aliases", Some(shown.join(", ")), &place);
        aliases
    }

    fn headers(&mut self, table: &mut Table) -> BTreeMap<String, Secret> {
        let (nodes, place) = self.entries(table, "headers");
        let mut headers = BTreeMap::new();
        let mut shown = Vec::new();
        for (name, node) in nodes {
            let lower = name.to_ascii_lowercase();
            if HeaderName::from_bytes(lower.as_bytes()).is_err() || OWN_HEADERS.contains(&lower.as_str()) {
                let what = bilingual!(en: "the header `{name}` cannot be set here", zh: "不能在此设置请求头 `{name}`");
                let fix = bilingual!(en: "use a header of the vendor's; a credential goes into `api_key`", zh: "请使用供应商的请求头；凭证写入 `api_key`");
                let error = self.error(&node.key, Show::KeyOnly, what, fix);
                self.wrong.push(error);
                continue;
            }
            shown.push(format!("{lower} = {}", masked(&node)));
            if let Some((secret, _)) = self.secret(&name, &node) {
                headers.insert(lower, secret);
            }
        }
        self.note(table, "headers", Some(shown.join(", ")), &place);
        headers
    }
}

impl UpstreamConfig {
    /// The name of its price list; `None` when it is free.
    pub fn list(&self) -> Option<&ListName> {
        match &self.prices {
            Pricing::List(list) => Some(list),
            Pricing::Free => None,
        }
    }
}
