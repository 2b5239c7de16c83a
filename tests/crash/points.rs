//! Every point of the code × {abort, error, panic, delay}: the gateway dies, goes on, or stops by itself, and in each
//! case the three books are right.
//!
//! An exchange's point is met under load. In one process it first aborts; in the next it is an error, then waits, then
//! panics, in this order: a panic that was heard says that the others have been. A panic in a settlement's transaction
//! leaves its outcome unknown: there the gateway has to stop by itself, and nowhere else.

use std::os::unix::process::ExitStatusExt;

use codex_gateway::fail_point::Point;
use rustix::process::Signal;

use crate::accounts::Accounts;
use crate::dice::Dice;
use crate::load::{Fate, Load, Seen, six_people};
use crate::rig::{Machine, Serving};

/// How long a delay takes, in milliseconds: many times what an exchange does.
const DELAY: u64 = 400;

/// A machine that serves, with all that was seen of it.
struct Cell {
    point: Point,
    machine: Machine,
    seen: Vec<Seen>,
}

impl Cell {
    async fn new(point: Point) -> Cell {
        let machine = Machine::new(&Dice::new(Dice::seed()), "").await.with(six_people);
        Cell {
            point,
            machine,
            seen: Vec::new(),
        }
    }

    /// A gateway that does this at the point.
    async fn serve(&self, actions: &str) -> Serving {
        let points = format!("{}={actions}", self.point.name());
        self.machine.serve_with(&[("FAILPOINTS", &points)]).await
    }

    /// Starts the gateway without points, and compares the books.
    async fn recover(&self) -> Accounts {
        let serving = self.machine.serve().await;
        let accounts = Accounts::compared(&self.machine, &self.seen);
        serving.stop().await;
        accounts
    }

    /// The process aborts in the middle of its work.
    async fn aborts(&mut self) {
        let mut serving = self.serve("20*off->return(abort)").await;
        let load = Load::start(&self.machine, &serving);
        let status = serving.end().await;
        assert_eq!(
            status.signal(),
            Some(Signal::ABORT.as_raw()),
            "{:?}: {}",
            self.point,
            serving.said()
        );
        self.seen.extend(load.until_it_is_gone().await);
        self.recover().await;
    }

    /// The point fails, waits and panics, and the gateway goes on.
    async fn fails_and_goes_on(&mut self) {
        let serving = self
            .serve(&format!(
                "9*off->2*return(error)->4*off->1*sleep({DELAY})->4*off->2*panic"
            ))
            .await;
        let load = Load::start(&self.machine, &serving);
        serving.until_it_says(&self.panic(), 2).await;
        self.seen.extend(load.stop().await);
        let fresh = Load::one(&self.machine, &serving).await;
        assert_eq!(
            fresh.fate,
            Fate::Whole,
            "{:?} has passed: {fresh:?} {}",
            self.point,
            serving.said()
        );
        self.seen.push(fresh);
        serving.stop().await;
        self.recover().await;
    }

    fn panic(&self) -> String {
        format!("failpoint {} panic", self.point.name())
    }
}

macro_rules! matrix {
    ($($test:ident: $point:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            let mut cell = Cell::new(Point::$point).await;
            cell.aborts().await;
            cell.fails_and_goes_on().await;
        }
    )*};
}

matrix! {
    it_may_fail_when_the_key_is_known: Authenticated,
    it_may_fail_when_the_money_is_set_aside: Held,
    it_may_fail_when_the_upstream_is_reached: Connected,
    it_may_fail_when_the_call_is_sent: Sent,
    it_may_fail_when_the_head_is_there: Head,
    it_may_fail_at_the_first_piece_of_a_stream: FirstPiece,
    it_may_fail_in_the_middle_of_a_stream: MidStream,
    it_may_fail_before_a_settlement: BeforeSettlement,
    it_may_fail_between_a_settlement_and_the_end: Settled,
    it_may_fail_after_the_end: AfterEnd,
}
