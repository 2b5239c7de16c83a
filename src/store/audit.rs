//! The audit log: who did what, with the state before and after, in the act's own transaction.
