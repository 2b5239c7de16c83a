//! `gateway price check`: configured models that calls would be refused for.

use serde::Serialize;

use crate::admin::{self, Unpriced};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Column, Items};
use crate::cli::{Global, language, open};
use crate::language::Said;
use crate::said;
use crate::store::Create;
use crate::time::now;

/// A configured model without a price in JSON documents.
#[derive(Serialize)]
struct UnpricedView<'a> {
    upstream: &'a str,
    list: &'a str,
    model: &'a str,
    alias: Option<&'a str>,
    nearest: Option<&'a str>,
    fix: String,
}

impl<'a> UnpricedView<'a> {
    fn new(one: &'a Unpriced) -> UnpricedView<'a> {
        let model = if one.model.contains('*') {
            "MODEL".to_owned()
        } else {
            output::shell_word(&one.model)
        };
        UnpricedView {
            upstream: &one.upstream,
            list: one.list.as_str(),
            model: &one.model,
            alias: one.alias.as_deref(),
            nearest: one.nearest.as_deref(),
            fix: format!("gateway price set {model} --list {} --input USD --output USD", one.list),
        }
    }
}

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let config = global.settings(Vec::new())?.config;
    let store = open(&config.database, Create::Never)?;
    let unpriced = admin::unpriced(&store, &config, now()).map_err(Failure::from)?;
    let fine = match config.upstreams.len() {
        0 => said!(
            language(),
            en: "no upstream is configured, so there is nothing to check",
            zh: "没有配置上游，所以没有什么可检查",
        ),
        _ => said!(
            language(),
            en: "every configured model has a price",
            zh: "每个已配置的模型都有价格",
        ),
    };
    let views: Vec<_> = unpriced.iter().map(UnpricedView::new).collect();
    let fix = views.first().map(|first| first.fix.clone());
    report(views, &fine, global)?;
    let Some(fix) = fix else { return Ok(()) };
    let count = unpriced.len();
    let what = said!(
        language(),
        en: "{count} configured models have no price",
        zh: "{count} 个已配置的模型没有价格",
    );
    let failure = Failure::new(Exit::Failed, what).why(said!(
        language(),
        en: "calls to them are refused: there is no default price",
        zh: "对它们的调用会被拒绝：没有默认价格",
    ));
    Err(failure.fix(Said::verbatim(fix)).into())
}

fn report(unpriced: Vec<UnpricedView<'_>>, fine: &Said, global: &Global) -> anyhow::Result<()> {
    if global.json {
        return output::json(&Items { items: unpriced });
    }
    if unpriced.is_empty() {
        return output::print(&format!("{fine}\n")).map(drop);
    }
    let columns = ["upstream", "list", "model without a price", "alias", "nearest"].map(Column::Left);
    let or_none = |value: Option<&str>| value.unwrap_or("-").to_owned();
    let row = |one: &UnpricedView<'_>| {
        vec![
            one.upstream.to_owned(),
            one.list.to_owned(),
            output::plain(one.model),
            or_none(one.alias),
            or_none(one.nearest),
        ]
    };
    output::table(&columns, unpriced.iter().map(row).collect())
}
