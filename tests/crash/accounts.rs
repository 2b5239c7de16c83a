//! The three books of a machine compared: what the upstream served, what clients received, what the ledger charged.
//!
//! What must be, whenever the gateway died and was started again (or has stopped):
//!
//! - Who received the end of an answer is charged for it, by what the upstream reports. The end of a stream is its
//!   last event, of a unary answer its head.
//! - Nothing is charged that the upstream did not serve, and no answer twice: a charge carries the upstream's id of the
//!   answer. A call reaches the upstream once at most.
//! - What is charged by a report is the upstream's own count times the catalogue's rates, to the nano-dollar, and is
//!   collected whole; so is their sum, the entries' and what is missing in the balances.
//! - Whose call is refused is not charged, unless told that it is not known; nor is who was told so.
//! - No hold is open, and every law holds.
//!
//! What may be: an exchange whose client did not receive the end is charged by the report (the settlement was durable,
//! the end had not left yet, or the client had hung up); by an estimate within the hold, if the gateway lived and its
//! stream broke; or not at all, and then it is released. An exchange that a dying process left open is always released:
//! nobody can tell what it used, and nobody has its end.

use std::collections::HashMap;

use codex_gateway::simulator::Served;
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};

use crate::books::Books;
use crate::load::{Fate, MARK, Seen};
use crate::price::{catalogue, expected_charge};
use crate::rig::Machine;

/// The books of a machine, read when nobody calls, checked and compared.
pub struct Accounts {
    /// The ledger's.
    pub books: Books,
    /// The upstream's, by the mark of the call.
    served: HashMap<String, Served>,
    /// Which exchange is about which of the upstream's answers.
    by_response: HashMap<String, usize>,
}

impl Accounts {
    /// Reads the books and compares all that was seen since they were empty.
    pub fn compared(machine: &Machine, seen: &[Seen]) -> Accounts {
        let accounts = Accounts::read(machine);
        accounts.charges_are_what_was_served();
        for seen in seen {
            accounts.client_is_treated_as_told(seen);
        }
        accounts
    }

    fn read(machine: &Machine) -> Accounts {
        let books = Books::checked(&machine.database());
        let mut served = HashMap::new();
        for one in machine.simulator.served() {
            let mark = one.headers.get(MARK).and_then(|mark| mark.to_str().ok());
            let mark = mark.expect("every call has a mark").to_owned();
            let before = served.insert(mark, one);
            assert!(before.is_none(), "sent twice: {before:?}");
        }
        let mut by_response = HashMap::new();
        for (number, row) in books.exchanges.iter().enumerate() {
            if let Some(id) = &row.response_id {
                let before = by_response.insert(id.clone(), number);
                assert_eq!(before, None, "two exchanges for {id}");
            }
        }
        Accounts {
            books,
            served,
            by_response,
        }
    }

    /// What the upstream served for a call.
    pub fn served(&self, mark: &str) -> Option<&Served> {
        self.served.get(mark)
    }

    /// The exchange of a call, as far as its answer came.
    pub fn row(&self, mark: &str) -> Option<&ExchangeRow> {
        let response = self.served(mark)?.response_id.as_ref()?;
        self.by_response
            .get(response)
            .map(|number| &self.books.exchanges[*number])
    }

    /// Charged ⊆ served, and the sums.
    fn charges_are_what_was_served(&self) {
        let answers: HashMap<&str, &Served> = self
            .served
            .values()
            .filter_map(|served| Some((served.response_id.as_deref()?, served)))
            .collect();
        let (mut prices, mut expected, mut estimated) = (HashMap::new(), 0, 0);
        for row in self
            .books
            .exchanges
            .iter()
            .filter(|row| row.charge.nanos() > 0 || row.state == State::Completed)
        {
            let id = row
                .response_id
                .as_deref()
                .unwrap_or_else(|| panic!("charged without an answer: {row:?}"));
            let served = answers
                .get(id)
                .unwrap_or_else(|| panic!("charged and not served: {row:?}"));
            match row.basis {
                Basis::Reported => {
                    let usage = served.usage.as_ref().expect("every answer has a usage");
                    let price = prices
                        .entry(&row.priced_model)
                        .or_insert_with_key(|model| catalogue("openai", model));
                    let charge = expected_charge(usage, price, "1");
                    assert_eq!(
                        i128::from(row.charge.nanos()),
                        charge,
                        "the upstream's count: {usage:?} {row:?}"
                    );
                    assert_eq!(row.uncollected.nanos(), 0, "{row:?}");
                    expected += charge;
                }
                Basis::Estimated => {
                    assert!(
                        matches!(
                            row.state,
                            State::Broken | State::Failed | State::Cancelled | State::Left
                        ),
                        "{row:?}"
                    );
                    let charged = row.charge.nanos() - row.uncollected.nanos();
                    assert!(charged <= row.held.nanos(), "an estimate within the hold: {row:?}");
                    assert!(
                        row.usage.output_tokens.get() <= served.output_sent,
                        "{served:?} {row:?}"
                    );
                    estimated += i128::from(charged);
                }
            }
        }
        assert_eq!(self.books.charged(), expected + estimated, "Σ charges");
    }

    /// Received whole ⊆ charged, and told nothing ⊆ not charged.
    fn client_is_treated_as_told(&self, seen: &Seen) {
        let row = self.exchange(seen);
        if seen.fate == Fate::Whole || seen.status == Some(200) && !seen.streamed {
            let row = row.unwrap_or_else(|| panic!("free: {seen:?}"));
            assert!(
                matches!(row.state, State::Completed | State::Incomplete),
                "{seen:?} {row:?}"
            );
            assert!(
                row.charge.nanos() > 0 && row.basis == Basis::Reported,
                "{seen:?} {row:?}"
            );
            assert!(
                seen.response.is_none() || seen.response == row.response_id,
                "{seen:?} {row:?}"
            );
            assert_eq!(self.row(&seen.mark).map(|row| row.id), Some(row.id), "{seen:?}");
        }
        if let Fate::Refused(text) | Fate::Failed(text) = &seen.fate
            && (seen.status != Some(200) || text.contains("othing was charged"))
            && !text.contains("it is not known whether it was charged")
        {
            assert!(row.is_none_or(|row| row.charge.nanos() == 0), "{seen:?} {row:?}");
        }
    }

    /// The exchange with the id that the client was told.
    fn exchange(&self, seen: &Seen) -> Option<&ExchangeRow> {
        let id: uuid::Uuid = seen.exchange.as_ref()?.parse().expect("an id");
        let found = self.books.exchanges.binary_search_by_key(&id, |row| row.id.0);
        found.ok().map(|number| &self.books.exchanges[number])
    }
}
