//! Dice: numbers that look random and come again with the same seed.

/// A sequence of them (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The seed of `GATEWAY_SEED`, else one of the system's.
    pub fn seed() -> u64 {
        let mut entropy = [0; 8];
        getrandom::fill(&mut entropy).expect("random numbers");
        let said = std::env::var("GATEWAY_SEED").ok();
        said.map_or(u64::from_le_bytes(entropy), |seed| {
            seed.parse().expect("GATEWAY_SEED is a number")
        })
    }

    /// A sequence of its own for something that has a number.
    pub fn of(&self, number: u64) -> Dice {
        let mut own = Dice(self.0 ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        own.throw();
        own
    }

    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from `from` up to, but without, `to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.throw() % (to - from).max(1)
    }

    /// Puts things into any order.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            let other = self.between(0, last as u64 + 1);
            things.swap(last, usize::try_from(other).expect("a place"));
        }
    }
}
