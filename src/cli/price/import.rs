//! `gateway price import`: the prices of a file, shown first, written with consent.

use std::path::Path;

use super::differences::{self, Difference};
use super::file::{self, Wanted};
use crate::admin;
use crate::cli::failure::Failure;
use crate::cli::prompt::{self, Consent};
use crate::cli::values::When;
use crate::cli::{Global, actor, language};
use crate::pricing::ListName;
use crate::said;
use crate::store::Create;
use crate::time::now;

pub(super) fn run(
    file: &Path,
    list: Option<&ListName>,
    from: Option<When>,
    consent: Consent,
    global: &Global,
) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let (at, language) = (now(), language());
    let wanted = Wanted {
        file,
        list,
        from: from.map(|when| when.ahead(at)),
        at,
        in_vain: said!(language, en: "nothing was imported", zh: "没有导入任何内容"),
    };
    let changes = admin::price_changes(&store, wanted.read(&store, global)?).map_err(Failure::from)?;
    differences::show(changes.iter().map(Difference::of_change), ["before", "after"], global)?;
    if changes.is_empty() {
        global.say(&file::nothing_differs());
        return Ok(());
    }
    let count = changes.len();
    let prices = match count {
        1 => said!(language, en: "1 price", zh: "1 个价格"),
        _ => said!(language, en: "{count} prices", zh: "{count} 个价格"),
    };
    let question = said!(language, en: "write {prices}?", zh: "写入{prices}？");
    if !prompt::agreed(&question, consent, global)? {
        return Ok(());
    }
    admin::set_prices(&store, &changes, &actor(), now()).map_err(Failure::from)?;
    global.say(&said!(language, en: "{prices} written", zh: "已写入{prices}"));
    Ok(())
}
