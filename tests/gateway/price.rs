//! What a call has to cost: the simulator's own count times the catalogue's rates, in whole numbers, by hand.

use codex_gateway::simulator::ServedUsage;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

/// Nano-dollars in a dollar.
const NANOS: i128 = 1_000_000_000;

/// A price of the catalogue in the binary that is in force, as its JSON says it.
pub fn catalogue(list: &str, model: &str) -> Value {
    find_in_catalogue(list, model).unwrap_or_else(|| panic!("{model} is not in {list}"))
}

/// The same, if it is there.
pub fn find_in_catalogue(list: &str, model: &str) -> Option<Value> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/pricing/catalogue.json"));
    let all: Value = serde_json::from_str(text).expect("the catalogue is JSON");
    let today = codex_gateway::time::now().to_string();
    let begun = |row: &&Value| row["from"].as_str().is_some_and(|from| *from <= *today);
    let rows = all["prices"].as_array().expect("a list").iter().filter(begun);
    let of_model = rows.filter(|row| row["list"] == list && row["model"] == model);
    let newest = of_model.max_by(|a, b| a["from"].as_str().cmp(&b["from"].as_str()));
    newest.map(|row| row["price"].clone())
}

/// A price as it is at an hour: its cheaper hours are a matter of the clock.
pub fn at_hour(mut price: Value, at: Timestamp) -> Value {
    let at = at.to_zoned_datetime(TimeZone::UTC);
    let now = format!("{:02}:{:02}", at.hour(), at.minute());
    let day = json!(at.weekday().to_monday_one_offset());
    let holds = |window: &Value| {
        let mut hours = window["hours"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let within = |hours: &str| {
            let (from, to) = hours.split_once('-').expect("from and to");
            from <= now.as_str() && (to == "00:00" || now.as_str() < to)
        };
        window["days"].as_array().is_some_and(|days| days.contains(&day)) && hours.any(within)
    };
    if price["off_peak"]["windows"].as_array().into_iter().flatten().any(holds) {
        for (class, rate) in price["off_peak"]["rates"].as_object().expect("rates").clone() {
            price["rates"][class] = rate;
        }
    }
    price
}

/// Nano-dollars for so many calls of a hosted tool.
pub fn fee(price: &Value, tool: &str, calls: i128) -> i128 {
    if calls == 0 {
        return 0;
    }
    calls * nanos(price["fees"][tool].as_str().expect("a fee")) / 1_000
}

/// A usage as an upstream writes it, in the simulator's words. `beyond`: output is what the total has beyond the input.
pub fn reported(usage: &Value, tier: Option<&str>, beyond: bool) -> ServedUsage {
    let first = |names: &[&str]| names.iter().find_map(|name| usage[*name].as_u64()).unwrap_or(0);
    let details = ["prompt_tokens_details", "input_tokens_details"];
    let detail = |name: &str| details.iter().find_map(|of| usage[*of][name].as_u64());
    let input = first(&["prompt_tokens", "input_tokens"]);
    let output = first(&["completion_tokens", "output_tokens"]);
    ServedUsage {
        input,
        cached: detail("cached_tokens").unwrap_or_else(|| first(&["prompt_cache_hit_tokens", "cached_tokens"])),
        cache_write: detail("cache_write_tokens").unwrap_or(0),
        output: if beyond {
            first(&["total_tokens"]) - input
        } else {
            output
        },
        reasoning: 0,
        tier: tier.map(str::to_owned),
    }
}

/// A decimal text as a whole number of nano-units.
pub fn nanos(text: &str) -> i128 {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    assert!(fraction.len() <= 9, "{text} has more than nine decimals");
    let digits = format!("{whole}{fraction:0<9}");
    sign * digits.parse::<i128>().expect("a decimal")
}

/// The nearest whole number to `n / d`, ties up.
pub fn round(n: i128, d: i128) -> i128 {
    (2 * n + d).div_euclid(2 * d)
}

/// Nano-dollars that a call costs: each class of `usage` at its rate, times the markup, rounded once.
pub fn expected_charge(usage: &ServedUsage, price: &Value, markup: &str) -> i128 {
    let standard = rates(price, usage.input);
    let tier = match usage.tier.as_deref() {
        None | Some("default" | "auto" | "standard") => standard.clone(),
        Some(tier) if price["tiers"][tier].is_object() => rates(&price["tiers"][tier], usage.input),
        Some(_) => standard.clone(),
    };
    let rate = |class: &str, else_class: &str| {
        let named = [&tier[class], &standard[class], &tier[else_class], &standard[else_class]];
        let text = named.iter().find_map(|rate| rate.as_str());
        nanos(text.unwrap_or_else(|| panic!("no rate for {class}")))
    };
    let plain = usage.input - usage.cached - usage.cache_write;
    let parts = [
        (plain, rate("input", "input")),
        (usage.cached, rate("cached_input", "input")),
        (usage.cache_write, rate("cache_write", "input")),
        (
            usage.output,
            if usage.output == 0 { 0 } else { rate("output", "output") },
        ),
    ];
    // Rates are per million: the sum is in millionths of a nano-dollar, the markup adds nine decimals.
    let sum: i128 = parts.iter().map(|(count, rate)| i128::from(*count) * rate).sum();
    round(sum * nanos(markup), 1_000_000 * NANOS)
}

/// The rates for a call that reads so much: a step prices the whole call once its input is above it.
fn rates(price: &Value, input: u64) -> Value {
    let steps = price["steps"].as_array().into_iter().flatten();
    let mut reached = steps.filter(|step| step["above"].as_u64().is_some_and(|above| input > above));
    reached
        .next_back()
        .map_or_else(|| price["rates"].clone(), |step| step["rates"].clone())
}

#[test]
fn the_reckoning_is_right_by_hand() {
    let usage = |input, cached, output, tier: &str| ServedUsage {
        input,
        cached,
        output,
        tier: Some(tier.into()),
        ..ServedUsage::default()
    };
    let price = catalogue("openai", "gpt-6.1-sol");
    // 900 × $2 + 100 × $0.1 + 50 × $10 per million.
    assert_eq!(
        expected_charge(&usage(1_000, 100, 50, "default"), &price, "1"),
        2_310_000
    );
    assert_eq!(
        expected_charge(&usage(1_000, 100, 50, "priority"), &price, "1"),
        4_620_000
    );
    assert_eq!(
        expected_charge(&usage(272_001, 0, 0, "default"), &price, "1"),
        1_088_004_000
    );
    // 1 × $2 per million × 1.00025 = 2,000.5 nano-dollars: the tie goes up.
    assert_eq!(expected_charge(&usage(1, 0, 0, "default"), &price, "1.00025"), 2_001);
}
