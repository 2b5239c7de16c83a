//! `[[sink]]` and `[events]`: where events go, which, and what is told of.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use reqwest::Url;

use super::error::{ConfigError, Show, after};
use super::loader::{Loader, MASK, Nodes, SINK, Table, any_text, masked};
use super::parse::{self, Parsed, problem};
use super::source::{Node, Place, Value};
use super::{EventsConfig, Secret, SinkConfig, SinkTarget};
use crate::bilingual;
use crate::event::Kind;

/// Events that may be asked to wait, at most: some hundred gigabytes.
const MOST_WAITING: i64 = 100_000_000;

/// What a secret of the Standard Webhooks begins with; base64 follows.
const ENCODED: &str = "whsec_";

impl Loader<'_> {
    pub(super) fn events(&mut self, table: &mut Table) -> Result<EventsConfig, ConfigError> {
        Ok(EventsConfig {
            low_balance: self.optional(table, "low_balance", parse::amount),
            spent_share_ppm: self.value(table, "spent_share", "0.9", parse::share_ppm)?,
            max_waiting: self.value(table, "max_waiting", "1000000", waiting)?,
        })
    }

    pub(super) fn sinks(&mut self, raw: Option<Nodes>) -> Vec<SinkConfig> {
        let Some(node) = raw.and_then(|mut raw| raw.remove("")) else {
            return Vec::new();
        };
        let Value::List(items) = node.value else {
            let fix = bilingual!(en: "write [[sink]], in double brackets: there may be several", zh: "请写 [[sink]]，用双方括号：可以有多个");
            self.refuse(
                &node.key,
                bilingual!(en: "`sink` is not a list of tables", zh: "`sink` 不是表的列表"),
                fix,
            );
            return Vec::new();
        };
        let (mut names, mut files) = (BTreeSet::new(), BTreeSet::new());
        let mut sinks = Vec::new();
        for item in items {
            let Value::Table(nodes) = item.value else {
                let fix =
                    bilingual!(en: "write [[sink]] above the keys of each", zh: "请在每个去向的键之上写 [[sink]]");
                self.refuse(
                    &item.place,
                    bilingual!(en: "`sink` is not a list of tables", zh: "`sink` 不是表的列表"),
                    fix,
                );
                continue;
            };
            self.refuse_unknown(None, "[[sink]]", SINK, &nodes);
            let read = self.sink(nodes, &item.place, &mut names).map(Some);
            let sink = self.or_instead(read, None).flatten();
            if let Some(SinkTarget::File(path)) = sink.as_ref().map(|sink| &sink.target)
                && !files.insert(path.clone())
            {
                let shown = path.display();
                let what = bilingual!(en: "two sinks write to {shown}", zh: "有两个去向都写入 {shown}");
                let fix = bilingual!(en: "give each a file of its own", zh: "请给每个去向各自的文件");
                self.refuse(&item.place, what, fix);
            }
            sinks.extend(sink);
        }
        sinks
    }

    /// A sink; `None` when its secret cannot be resolved now.
    fn sink(
        &mut self,
        mut nodes: Nodes,
        place: &Place,
        names: &mut BTreeSet<String>,
    ) -> Result<Option<SinkConfig>, ConfigError> {
        let Some(named) = nodes.remove("name") else {
            let what = bilingual!(en: "this sink has no `name`", zh: "此去向没有 `name`");
            return Err(self.at(
                place,
                what,
                bilingual!(en: "add name = \"billing\"", zh: "请加上 name = \"billing\""),
            ));
        };
        let (name, _) = self.one("name", &named, parse::name)?;
        if !names.insert(name.clone()) {
            let what = bilingual!(en: "two sinks are called `{name}`", zh: "有两个去向都叫 `{name}`");
            self.refuse(
                &named.place,
                what,
                bilingual!(en: "give each a name of its own", zh: "请给每个去向各自的名称"),
            );
        }
        let table = &mut Table {
            name: format!("sink.{name}"),
            nodes,
        };
        let types = self.list(table, "types", &[], |text| {
            text.parse::<Kind>().or_else(|fix| {
                problem(
                    bilingual!(en: "`{text}` is no type of event", zh: "`{text}` 不是事件类型"),
                    fix,
                )
            })
        });
        let target = match (table.nodes.contains_key("url"), table.nodes.contains_key("file")) {
            (true, false) => self.webhook(table, place)?,
            (false, true) => {
                self.refuse_of_webhook(table);
                let path = self.optional(table, "file", any_text);
                path.map(|path| SinkTarget::File(self.beside_file(&path)))
            }
            (true, true) => {
                let fix = bilingual!(en: "keep one of them, and make another sink of the other", zh: "请保留其中一个，另一个另写一个去向");
                return Err(self.at(
                    place,
                    bilingual!(en: "this sink has a `url` and a `file`", zh: "此去向既有 `url` 又有 `file`"),
                    fix,
                ));
            }
            (false, false) => {
                let fix = bilingual!(en: "add url = \"https://…\" and its secret, or file = \"events.jsonl\"", zh: "请加上 url = \"https://…\" 及其 secret，或 file = \"events.jsonl\"");
                return Err(self.at(place, bilingual!(en: "this sink has neither a `url` nor a `file`", zh: "此去向既没有 `url` 也没有 `file`"), fix));
            }
        };
        Ok(target.map(|target| SinkConfig { name, target, types }))
    }

    fn webhook(&mut self, table: &mut Table, place: &Place) -> Result<Option<SinkTarget>, ConfigError> {
        let allow_private = self.value(table, "allow_private", "false", parse::truth)?;
        let url = match table.nodes.remove("url") {
            Some(node) => {
                let read = self.webhook_url(&node, allow_private);
                let url = self.or_instead(read.map(Some), None);
                self.note(table, "url", url.as_ref().map(shown), &node.place);
                url
            }
            None => None,
        };
        let Some(node) = table.nodes.remove("secret") else {
            let fix = bilingual!(en: "add secret = \"env:NAME\": whoever gets the events proves by it that they come from here", zh: "请加上 secret = \"env:NAME\"：收到事件的一方用它确认事件来自这里");
            return Err(self.at(
                place,
                bilingual!(en: "this sink has no `secret`", zh: "此去向没有 `secret`"),
                fix,
            ));
        };
        self.note(table, "secret", Some(masked(&node)), &node.place);
        let secret = self.secret("secret", &node).map(|(secret, _)| secret);
        if secret.as_ref().is_some_and(|secret| signing_key(secret).is_none()) {
            let (what, fix) = (
                bilingual!(en: "secret: what follows {ENCODED} is no base64", zh: "secret：{ENCODED} 之后不是 base64"),
                bilingual!(en: "write it as it was made, or a text of your own without that beginning", zh: "请按生成时的样子写，或写一段不以它开头的文本"),
            );
            let error = self.error(&node.key, Show::KeyOnly, what, fix);
            self.wrong.push(error);
        }
        Ok(url.zip(secret).map(|(url, secret)| SinkTarget::Webhook {
            url,
            secret,
            allow_private,
        }))
    }

    /// A webhook's URL, of which no error quotes anything: it may hold a password.
    fn webhook_url(&self, node: &Node, allow_private: bool) -> Result<Url, ConfigError> {
        let text = self.scalar("url", node)?;
        webhook_url(&text, allow_private)
            .map_err(|parse::Problem { what, fix }| self.error(&node.key, Show::KeyOnly, after("url", &what), fix))
    }

    /// What only a webhook has.
    fn refuse_of_webhook(&mut self, table: &mut Table) {
        for key in ["secret", "allow_private"] {
            if let Some(node) = table.nodes.remove(key) {
                let what = bilingual!(en: "`{key}` belongs to a sink with a `url`", zh: "`{key}` 属于带 `url` 的去向");
                self.refuse(&node.key, what, bilingual!(en: "take it out", zh: "请删去"));
            }
        }
    }
}

/// The key that a secret stands for: what base64 after `whsec_` says, as the Standard Webhooks have it, else its own
/// bytes.
pub(super) fn signing_key(secret: &Secret) -> Option<Vec<u8>> {
    use base64::Engine;
    match secret.reveal().strip_prefix(ENCODED) {
        Some(encoded) => base64::engine::general_purpose::STANDARD.decode(encoded).ok(),
        None => Some(secret.reveal().as_bytes().to_vec()),
    }
}

/// A URL without what may be secret in it.
pub(super) fn shown(url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    match (url.path(), url.query()) {
        ("" | "/", None) => origin,
        _ => format!("{origin}/{MASK}"),
    }
}

fn webhook_url(text: &str, allow_private: bool) -> Parsed<Url> {
    let example = bilingual!(en: "write it like \"https://billing.example.com/events\"", zh: "请写成 \"https://billing.example.com/events\" 这样");
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            return problem(
                bilingual!(en: "the URL is neither http:// nor https:// with a host", zh: "URL 不是带主机名的 http:// 或 https://"),
                example,
            );
        }
    };
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return problem(
            bilingual!(en: "the URL holds a user name, a password or a fragment", zh: "URL 含有用户名、密码或片段"),
            bilingual!(en: "take it out", zh: "请删去"),
        );
    }
    let host = url.host_str().unwrap_or_default();
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    if !allow_private && address.is_some_and(|address| !is_public(address)) {
        return problem(
            bilingual!(en: "the URL names an address that is not of the public internet", zh: "URL 指向的地址不属于公共互联网"),
            bilingual!(en: "events may go there with allow_private = true", zh: "加上 allow_private = true 后事件可以发往那里"),
        );
    }
    Ok(url)
}

fn waiting(text: &str) -> Parsed<i64> {
    match text.parse() {
        Ok(count) if (1_000..=MOST_WAITING).contains(&count) => Ok(count),
        _ => problem(
            bilingual!(en: "`{text}` is not a count of events", zh: "`{text}` 不是事件数"),
            bilingual!(en: "write a whole number from 1000 to 100000000", zh: "请写 1000 到 100000000 的整数"),
        ),
    }
}

/// Whether an address is of the public internet: not of this machine, its network, a provider's own, the addresses at
/// which clouds tell their machines' secrets, or of none (the special-purpose registries of IANA, RFC 6890).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 192 && b == 88 && c == 99)
                // Azure's own service for its machines.
                || address == Ipv4Addr::new(168, 63, 129, 16)
                || (a == 198 && (b == 18 || b == 19)))
        }
        IpAddr::V6(address) => {
            let parts = address.segments();
            let within = |high: u16, low: u16| {
                let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
                is_public(IpAddr::from([a, b, c, d]))
            };
            match parts {
                // Of IPv4, written as IPv6.
                [0, 0, 0, 0, 0, 0xffff, high, low] => within(high, low),
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => within(high, low),
                // 6to4 and Teredo lead to IPv4 addresses as well; nobody is reached by them.
                [0x2002, ..] | [0x2001, 0, ..] => false,
                // Documentation, benchmarks, and what else is of no machine.
                [0x2001, 0xdb8, ..] | [0x3fff, ..] => false,
                [0x2001, second, ..] if second < 0x200 => false,
                [first, ..] => first & 0xe000 == 0x2000,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Language;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        let private = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "168.63.129.16",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for address in private {
            assert!(!is_public(address.parse().expect(address)), "{address}");
        }
        let public = [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.1.0.1",
            "198.20.0.1",
            "203.0.112.1",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2606:4700:4700::1111",
            "2a00:1450::1",
        ];
        for address in public {
            assert!(is_public(address.parse().expect(address)), "{address}");
        }
    }

    #[test]
    fn however_a_private_address_is_written_it_is_refused_unless_it_is_allowed() {
        for url in [
            "http://127.0.0.1/x",
            "http://2130706433/x",
            "http://0x7f.1/x",
            "http://0177.0.0.1/x",
            "http://[::1]:9/x",
            "http://[::ffff:a9fe:a9fe]/latest",
        ] {
            let refused = webhook_url(url, false).expect_err(url);
            assert!(
                refused.fix.of(Language::English).contains("allow_private"),
                "{refused:?}"
            );
            webhook_url(url, true).expect(url);
        }
        webhook_url("https://billing.example.com/events?x=1", false).expect("public");
        for url in ["ftp://x/", "x", "https://me:pw@x/", "https://x/#a"] {
            webhook_url(url, true).expect_err(url);
        }
    }

    #[test]
    fn a_secret_is_its_own_bytes_or_what_its_base64_says() {
        let key = |text: &str| signing_key(&Secret::new(text.to_owned()));
        assert_eq!(key("plain"), Some(b"plain".to_vec()));
        assert_eq!(key("whsec_AQID"), Some(vec![1, 2, 3]));
        assert_eq!(key("whsec_?"), None);
    }

    #[test]
    fn a_url_is_shown_without_its_path() {
        let shown = |url: &str| shown(&Url::parse(url).expect(url));
        assert_eq!(
            shown("https://hooks.example.com/T0/secret"),
            "https://hooks.example.com/••••"
        );
        assert_eq!(shown("https://x.example:8443?token=1"), "https://x.example:8443/••••");
        assert_eq!(shown("https://x.example"), "https://x.example");
    }
}
