-- What makes a database of version 3 one of version 4: budgets, refunds, codes, idempotency, usage summed by day. Entries
-- are copied into a table that has refunds. No row changes.

ALTER TABLE users ADD COLUMN markup TEXT;
ALTER TABLE users ADD COLUMN language TEXT CHECK (language = 'en' OR language = 'zh');
ALTER TABLE api_keys ADD COLUMN budget_id BLOB CHECK (length(budget_id) = 16);

CREATE TABLE budgets (
    owner_id    BLOB    NOT NULL CHECK (length(owner_id) = 16),
    period      TEXT    NOT NULL CHECK (period = 'total' OR period = 'day' OR period = 'month'),
    limit_nanos INTEGER NOT NULL CHECK (limit_nanos >= 0),
    set_at      INTEGER NOT NULL,
    PRIMARY KEY (owner_id, period)
) STRICT, WITHOUT ROWID;
CREATE TABLE budget_windows (
    owner_id    BLOB    NOT NULL,
    period      TEXT    NOT NULL,
    start_at    INTEGER NOT NULL,
    held_nanos  INTEGER NOT NULL DEFAULT 0 CHECK (held_nanos >= 0),
    spent_nanos INTEGER NOT NULL DEFAULT 0 CHECK (spent_nanos >= 0),
    PRIMARY KEY (owner_id, period, start_at),
    FOREIGN KEY (owner_id, period) REFERENCES budgets (owner_id, period) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE TABLE codes (
    id           BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    prefix       TEXT    NOT NULL,
    hash         BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    amount_nanos INTEGER NOT NULL CHECK (amount_nanos > 0),
    note         TEXT,
    expires_at   INTEGER,
    created_at   INTEGER NOT NULL,
    revoked_at   INTEGER,
    redeemed_at  INTEGER,
    user_id      BLOB    REFERENCES users (id),
    entry        INTEGER UNIQUE REFERENCES ledger_entries (seq),
    CHECK ((redeemed_at IS NULL) = (user_id IS NULL) AND (redeemed_at IS NULL) = (entry IS NULL)),
    CHECK (redeemed_at IS NULL OR revoked_at IS NULL)
) STRICT, WITHOUT ROWID;
CREATE TABLE idempotency (
    key_id      BLOB NOT NULL REFERENCES api_keys (id),
    name_hash   BLOB NOT NULL CHECK (length(name_hash) = 32),
    body_hash   BLOB NOT NULL CHECK (length(body_hash) = 32),
    exchange_id BLOB NOT NULL UNIQUE REFERENCES holds (exchange_id),
    PRIMARY KEY (key_id, name_hash)
) STRICT, WITHOUT ROWID;
CREATE TABLE recordings (
    exchange_id BLOB    NOT NULL PRIMARY KEY REFERENCES usage_logs (exchange_id),
    sealed      BLOB    NOT NULL,
    recorded_at INTEGER NOT NULL
) STRICT;
CREATE TABLE usage_days (
    day_at            INTEGER NOT NULL,
    user_id           BLOB    NOT NULL REFERENCES users (id),
    key_id            BLOB    NOT NULL REFERENCES api_keys (id),
    model             TEXT    NOT NULL,
    upstream          TEXT    NOT NULL,
    exchanges         INTEGER NOT NULL,
    input_tokens      INTEGER NOT NULL,
    cached_tokens     INTEGER NOT NULL,
    output_tokens     INTEGER NOT NULL,
    cost_nanos        INTEGER NOT NULL,
    charge_nanos      INTEGER NOT NULL,
    uncollected_nanos INTEGER NOT NULL,
    PRIMARY KEY (day_at, user_id, key_id, model, upstream)
) STRICT, WITHOUT ROWID;
CREATE TABLE rolled_up (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    until_at INTEGER NOT NULL CHECK (until_at % 86400000000 = 0)
) STRICT;
INSERT INTO rolled_up (one, until_at) VALUES (1, 0);
CREATE INDEX recordings_by_time ON recordings (recorded_at);

DROP TRIGGER entries_fit;
DROP TRIGGER entries_move_money;
DROP TRIGGER balance_follows_entries;
DROP TRIGGER entries_are_final;
DROP TRIGGER entries_stay;
CREATE TABLE ledger_entries_4 (
    seq                 INTEGER PRIMARY KEY,
    user_id             BLOB    NOT NULL REFERENCES users (id),
    kind                TEXT    NOT NULL
                        CHECK (kind = 'credit' OR kind = 'adjustment' OR kind = 'charge' OR kind = 'refund'),
    amount_nanos        INTEGER NOT NULL CHECK (amount_nanos <> 0),
    balance_after_nanos INTEGER NOT NULL,
    exchange_id         BLOB    UNIQUE REFERENCES usage_logs (exchange_id),
    reference           TEXT    CHECK (reference <> ''),
    note                TEXT,
    at                  INTEGER NOT NULL,
    hash                BLOB    NOT NULL CHECK (length(hash) = 32),
    refunds             BLOB    REFERENCES usage_logs (exchange_id),
    CHECK ((kind = 'charge') = (exchange_id IS NOT NULL)),
    CHECK ((kind = 'refund') = (refunds IS NOT NULL)),
    CHECK (kind = 'adjustment' OR (kind = 'charge') = (amount_nanos < 0))
) STRICT;
INSERT INTO ledger_entries_4 (seq, user_id, kind, amount_nanos, balance_after_nanos, exchange_id, reference, note, at, hash)
SELECT seq, user_id, kind, amount_nanos, balance_after_nanos, exchange_id, reference, note, at, hash FROM ledger_entries;
DROP TABLE ledger_entries;
ALTER TABLE ledger_entries_4 RENAME TO ledger_entries;
CREATE INDEX ledger_entries_by_user ON ledger_entries (user_id, seq);
CREATE UNIQUE INDEX ledger_entries_by_reference ON ledger_entries (reference) WHERE reference IS NOT NULL;
CREATE INDEX ledger_entries_of_refunds ON ledger_entries (refunds) WHERE refunds IS NOT NULL;

CREATE TRIGGER entries_fit BEFORE INSERT ON ledger_entries
WHEN NEW.balance_after_nanos IS NOT (SELECT balance_nanos + NEW.amount_nanos FROM users WHERE id = NEW.user_id)
  OR EXISTS (SELECT 1 FROM ledger_entries WHERE user_id = NEW.user_id AND seq >= NEW.seq)
BEGIN SELECT RAISE(ABORT, 'an entry has to fit on the balance before it'); END;
CREATE TRIGGER refunds_fit BEFORE INSERT ON ledger_entries
WHEN NEW.kind = 'refund'
 AND NEW.amount_nanos + (SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE refunds = NEW.refunds)
   + COALESCE((SELECT amount_nanos FROM ledger_entries WHERE exchange_id = NEW.refunds AND user_id = NEW.user_id), 0) > 0
BEGIN SELECT RAISE(ABORT, 'a refund is at most what was charged'); END;
CREATE TRIGGER entries_move_money AFTER INSERT ON ledger_entries
BEGIN
    UPDATE users SET balance_nanos = NEW.balance_after_nanos, entries = entries + 1, head_hash = NEW.hash
    WHERE id = NEW.user_id;
END;
CREATE TRIGGER balance_follows_entries BEFORE UPDATE OF balance_nanos ON users
WHEN NEW.balance_nanos IS NOT OLD.balance_nanos
 AND NEW.balance_nanos IS NOT (SELECT balance_after_nanos FROM ledger_entries
                               WHERE user_id = NEW.id ORDER BY seq DESC LIMIT 1)
BEGIN SELECT RAISE(ABORT, 'a balance only changes by an entry'); END;
CREATE TRIGGER entries_are_final BEFORE UPDATE ON ledger_entries
BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON ledger_entries
BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
CREATE TRIGGER budgets_are_kept BEFORE UPDATE OF held_nanos, spent_nanos ON budget_windows
WHEN NEW.held_nanos + NEW.spent_nanos > OLD.held_nanos + OLD.spent_nanos
 AND NEW.held_nanos + NEW.spent_nanos
   > (SELECT limit_nanos FROM budgets WHERE owner_id = NEW.owner_id AND period = NEW.period)
BEGIN SELECT RAISE(ABORT, 'a budget is not exceeded'); END;
CREATE TRIGGER codes_end_once BEFORE UPDATE ON codes
WHEN OLD.redeemed_at IS NOT NULL OR OLD.revoked_at IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a code that is redeemed or revoked stays so'); END;
CREATE TRIGGER codes_stay BEFORE DELETE ON codes
BEGIN SELECT RAISE(ABORT, 'codes are not deleted'); END;
CREATE TRIGGER idempotency_is_kept BEFORE UPDATE ON idempotency
WHEN (SELECT state FROM holds WHERE exchange_id = OLD.exchange_id) IS NOT 'released'
BEGIN SELECT RAISE(ABORT, 'an exchange that runs or was charged keeps its Idempotency-Key'); END;
CREATE TRIGGER idempotency_stays BEFORE DELETE ON idempotency
BEGIN SELECT RAISE(ABORT, 'an Idempotency-Key is not forgotten'); END;
CREATE TRIGGER usage_logs_may_be_late AFTER INSERT ON usage_logs
WHEN NEW.started_at < (SELECT until_at FROM rolled_up)
BEGIN
    INSERT INTO usage_days (day_at, user_id, key_id, model, upstream, exchanges, input_tokens, cached_tokens,
                            output_tokens, cost_nanos, charge_nanos, uncollected_nanos)
    VALUES (NEW.started_at / 86400000000 * 86400000000, NEW.user_id, NEW.key_id, NEW.model, NEW.upstream, 1,
            NEW.input_tokens, NEW.cached_tokens, NEW.output_tokens, NEW.cost_nanos, NEW.charge_nanos,
            NEW.uncollected_nanos)
    ON CONFLICT DO UPDATE SET exchanges = exchanges + 1, input_tokens = input_tokens + excluded.input_tokens,
        cached_tokens = cached_tokens + excluded.cached_tokens, output_tokens = output_tokens + excluded.output_tokens,
        cost_nanos = cost_nanos + excluded.cost_nanos, charge_nanos = charge_nanos + excluded.charge_nanos,
        uncollected_nanos = uncollected_nanos + excluded.uncollected_nanos;
END;
CREATE TRIGGER rolled_up_stays BEFORE DELETE ON rolled_up
BEGIN SELECT RAISE(ABORT, 'how far usage is summed is not deleted'); END;
