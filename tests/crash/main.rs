//! What is left of the gateway's promises when its process dies, fails, panics or waits at any moment.
//!
//! ONE crate. `rig` is the machine with the real program, `load` who calls it, `accounts` the three books compared,
//! `shim` what its disk and its clock may do.

#[path = "../gateway/books.rs"]
#[expect(dead_code, reason = "shared with the tests of a gateway that lives")]
mod books;
#[path = "../gateway/campaign.rs"]
#[expect(dead_code, reason = "shared with the tests of a gateway that lives")]
mod campaign;
#[path = "../gateway/client.rs"]
#[expect(dead_code, reason = "shared with the tests of a gateway that lives")]
mod client;
#[path = "../gateway/harness.rs"]
#[expect(dead_code, reason = "shared with the tests of a gateway that lives")]
mod harness;
#[path = "../gateway/price.rs"]
#[expect(dead_code, reason = "shared with the tests of a gateway that lives")]
mod price;

mod accounts;
mod dice;
mod disk;
mod files;
mod kills;
mod load;
#[cfg(feature = "failpoints")]
mod points;
mod power;
mod rig;
mod shim;
mod soak;
mod storage;
mod wait;
