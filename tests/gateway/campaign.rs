//! Campaigns: tests whose size and seed come from the environment, and that tell in one line what they did.

use std::sync::LazyLock;

use serde_json::{Value, json};

/// A number from the environment, if it is set.
fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text}")),
    )
}

/// How much to do: what the environment says, else the default.
pub fn size(name: &str, default: usize) -> usize {
    from_env(name).map_or(default, |size| usize::try_from(size).expect("64 bits"))
}

/// What chance depends on: `GATEWAY_SEED`, or another one each time.
pub fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).expect("random numbers");
        from_env("GATEWAY_SEED").unwrap_or(u64::from(u32::from_le_bytes(bytes)))
    });
    *SEED
}

/// Numbers that look random, the same ones for the same seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    /// One of the numbers below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) >> 1).expect("64 bits") % sides
    }
}

/// The line of a campaign that found nothing wrong.
pub fn report(suite: &str, mut counts: Value) {
    counts["suite"] = suite.into();
    counts["seed"] = seed().into();
    counts["failures"] = 0.into();
    println!("campaign: {counts}");
}

/// The line of a campaign that cannot be run here.
pub fn skip(suite: &str, why: &str) {
    println!("campaign: {}", json!({"suite": suite, "skipped": why}));
}
