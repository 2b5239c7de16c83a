-- Makes a database of ours one of version 1 (schema-1.sql), with the rows it has.
PRAGMA foreign_keys = OFF;
PRAGMA legacy_alter_table = ON;
BEGIN IMMEDIATE;
DROP TABLE background_responses;
DROP TABLE stored_objects;
DROP INDEX usage_logs_by_session;
DROP INDEX usage_logs_by_agent;
ALTER TABLE holds DROP COLUMN origin;
ALTER TABLE usage_logs DROP COLUMN session;
ALTER TABLE usage_logs DROP COLUMN turn;
ALTER TABLE usage_logs DROP COLUMN agent;
ALTER TABLE usage_logs DROP COLUMN kind;
ALTER TABLE usage_logs DROP COLUMN client;
DROP TABLE attempts;
DROP TABLE sinks;
DROP TABLE events;
ALTER TABLE users DROP COLUMN concurrency;
ALTER TABLE users DROP COLUMN tpm;
ALTER TABLE users DROP COLUMN rpm;
ALTER TABLE api_keys DROP COLUMN concurrency;
ALTER TABLE api_keys DROP COLUMN tpm;
ALTER TABLE api_keys DROP COLUMN rpm;
DROP TRIGGER refunds_fit;
DROP TABLE budget_windows;
DROP TABLE budgets;
DROP TABLE codes;
DROP TABLE idempotency;
DROP TABLE recordings;
DROP TABLE usage_days;
DROP TABLE rolled_up;
ALTER TABLE users DROP COLUMN markup;
ALTER TABLE users DROP COLUMN language;
ALTER TABLE api_keys DROP COLUMN budget_id;
DROP TRIGGER entries_fit;
DROP TRIGGER entries_move_money;
DROP TRIGGER balance_follows_entries;
DROP TRIGGER entries_are_final;
DROP TRIGGER entries_stay;
DROP TRIGGER usage_logs_are_final;
DROP TRIGGER usage_logs_stay;
DROP TRIGGER holds_start_open;
DROP TRIGGER holds_close_once;
DROP TRIGGER holds_are_final;
DROP TRIGGER holds_stay;
CREATE TABLE holds_1 (
    exchange_id  BLOB    NOT NULL PRIMARY KEY CHECK (length(exchange_id) = 16),
    user_id      BLOB    NOT NULL REFERENCES users (id),
    key_id       BLOB    NOT NULL REFERENCES api_keys (id),
    amount_nanos INTEGER NOT NULL CHECK (amount_nanos >= 0),
    output_limit INTEGER CHECK (output_limit >= 0),
    endpoint     TEXT    NOT NULL,
    streamed     INTEGER NOT NULL CHECK (streamed IN (0, 1)),
    model        TEXT    NOT NULL,
    priced_model TEXT    NOT NULL,
    upstream     TEXT    NOT NULL,
    list         TEXT,
    placed_at    INTEGER NOT NULL,
    hash         BLOB    NOT NULL CHECK (length(hash) = 32),
    state        TEXT    NOT NULL CHECK (state IN ('open', 'settled', 'released')),
    closed_at    INTEGER,
    CHECK ((state = 'open') = (closed_at IS NULL))
) STRICT, WITHOUT ROWID;
INSERT INTO holds_1 SELECT * FROM holds;
DROP TABLE holds;
ALTER TABLE holds_1 RENAME TO holds;
CREATE INDEX holds_open ON holds (user_id) WHERE state = 'open';
CREATE TABLE usage_logs_1 (
    exchange_id              BLOB    NOT NULL PRIMARY KEY REFERENCES holds (exchange_id),
    user_id                  BLOB    NOT NULL REFERENCES users (id),
    key_id                   BLOB    NOT NULL REFERENCES api_keys (id),
    endpoint                 TEXT    NOT NULL,
    streamed                 INTEGER NOT NULL CHECK (streamed IN (0, 1)),
    model                    TEXT    NOT NULL,
    priced_model             TEXT    NOT NULL,
    answered_model           TEXT,
    upstream                 TEXT    NOT NULL,
    list                     TEXT,
    price_from               INTEGER,
    tier                     TEXT    NOT NULL,
    state                    TEXT    NOT NULL CHECK (state IN ('completed', 'incomplete', 'refused', 'failed', 'broken',
                                                               'limited', 'left', 'cancelled', 'interrupted')),
    basis                    TEXT    NOT NULL CHECK (basis IN ('reported', 'estimated')),
    input_tokens             INTEGER NOT NULL CHECK (input_tokens >= 0),
    cached_tokens            INTEGER NOT NULL CHECK (cached_tokens >= 0),
    cache_write_tokens       INTEGER NOT NULL CHECK (cache_write_tokens >= 0),
    cache_write_12h_tokens   INTEGER NOT NULL CHECK (cache_write_12h_tokens >= 0),
    audio_input_tokens       INTEGER NOT NULL CHECK (audio_input_tokens >= 0),
    output_tokens            INTEGER NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens         INTEGER NOT NULL CHECK (reasoning_tokens >= 0),
    audio_output_tokens      INTEGER NOT NULL CHECK (audio_output_tokens >= 0),
    web_searches             INTEGER NOT NULL CHECK (web_searches >= 0),
    file_searches            INTEGER NOT NULL CHECK (file_searches >= 0),
    containers               INTEGER NOT NULL CHECK (containers >= 0),
    image_text_input_tokens  INTEGER CHECK (image_text_input_tokens >= 0),
    image_input_tokens       INTEGER CHECK (image_input_tokens >= 0),
    image_text_output_tokens INTEGER CHECK (image_text_output_tokens >= 0),
    image_output_tokens      INTEGER CHECK (image_output_tokens >= 0),
    lines                    TEXT    NOT NULL CHECK (json_valid(lines)),
    uplift                   TEXT,
    markup                   TEXT    NOT NULL,
    cost_nanos               INTEGER NOT NULL CHECK (cost_nanos >= 0),
    charge_nanos             INTEGER NOT NULL CHECK (charge_nanos >= 0),
    uncollected_nanos        INTEGER NOT NULL
                             CHECK (uncollected_nanos BETWEEN 0 AND charge_nanos),
    held_nanos               INTEGER NOT NULL CHECK (held_nanos >= 0),
    output_limit             INTEGER CHECK (output_limit >= 0),
    balance_after_nanos      INTEGER NOT NULL,
    response_id              TEXT,
    item_ids                 TEXT    NOT NULL DEFAULT '[]' CHECK (json_valid(item_ids)),
    upstream_request_id      TEXT,
    upstream_status          INTEGER,
    attempts                 INTEGER NOT NULL CHECK (attempts >= 0),
    started_at               INTEGER NOT NULL,
    first_byte_us            INTEGER CHECK (first_byte_us >= 0),
    duration_us              INTEGER NOT NULL CHECK (duration_us >= 0),
    row_hash                 BLOB    NOT NULL CHECK (length(row_hash) = 32)
) STRICT;
INSERT INTO usage_logs_1 SELECT * FROM usage_logs;
DROP TABLE usage_logs;
ALTER TABLE usage_logs_1 RENAME TO usage_logs;
CREATE INDEX usage_logs_by_user ON usage_logs (user_id, exchange_id);
CREATE INDEX usage_logs_by_start ON usage_logs (started_at);
CREATE INDEX usage_logs_by_response ON usage_logs (response_id) WHERE response_id IS NOT NULL;
CREATE TABLE ledger_entries_1 (
    seq                 INTEGER PRIMARY KEY,
    user_id             BLOB    NOT NULL REFERENCES users (id),
    kind                TEXT    NOT NULL CHECK (kind IN ('credit', 'adjustment', 'charge')),
    amount_nanos        INTEGER NOT NULL CHECK (amount_nanos <> 0),
    balance_after_nanos INTEGER NOT NULL,
    exchange_id         BLOB    UNIQUE REFERENCES usage_logs (exchange_id),
    reference           TEXT    UNIQUE CHECK (reference <> ''),
    note                TEXT,
    at                  INTEGER NOT NULL,
    hash                BLOB    NOT NULL CHECK (length(hash) = 32),
    CHECK ((kind = 'charge') = (exchange_id IS NOT NULL)),
    CHECK (kind = 'adjustment' OR (kind = 'charge') = (amount_nanos < 0))
) STRICT;
INSERT INTO ledger_entries_1
SELECT seq, user_id, kind, amount_nanos, balance_after_nanos, exchange_id, reference, note, at, hash FROM ledger_entries;
DROP TABLE ledger_entries;
ALTER TABLE ledger_entries_1 RENAME TO ledger_entries;
CREATE INDEX ledger_entries_by_user ON ledger_entries (user_id, seq);
CREATE TRIGGER entries_fit BEFORE INSERT ON ledger_entries
WHEN NEW.balance_after_nanos IS NOT (SELECT balance_nanos + NEW.amount_nanos FROM users WHERE id = NEW.user_id)
  OR EXISTS (SELECT 1 FROM ledger_entries WHERE user_id = NEW.user_id AND seq >= NEW.seq)
BEGIN SELECT RAISE(ABORT, 'an entry has to fit on the balance before it'); END;
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
CREATE TRIGGER usage_logs_are_final BEFORE UPDATE ON usage_logs
BEGIN SELECT RAISE(ABORT, 'usage rows are never changed'); END;
CREATE TRIGGER usage_logs_stay BEFORE DELETE ON usage_logs
BEGIN SELECT RAISE(ABORT, 'usage rows are never deleted'); END;
CREATE TRIGGER holds_start_open BEFORE INSERT ON holds
WHEN NEW.state <> 'open'
BEGIN SELECT RAISE(ABORT, 'a hold starts open'); END;
CREATE TRIGGER holds_close_once BEFORE UPDATE ON holds
WHEN OLD.state <> 'open' OR NEW.state = 'open'
  OR NEW.exchange_id IS NOT OLD.exchange_id OR NEW.user_id IS NOT OLD.user_id OR NEW.key_id IS NOT OLD.key_id
  OR NEW.amount_nanos IS NOT OLD.amount_nanos OR NEW.output_limit IS NOT OLD.output_limit
  OR NEW.endpoint IS NOT OLD.endpoint OR NEW.streamed IS NOT OLD.streamed OR NEW.model IS NOT OLD.model
  OR NEW.priced_model IS NOT OLD.priced_model OR NEW.upstream IS NOT OLD.upstream OR NEW.list IS NOT OLD.list
  OR NEW.placed_at IS NOT OLD.placed_at OR NEW.hash IS NOT OLD.hash
BEGIN SELECT RAISE(ABORT, 'a hold is closed once, and nothing else of it changes'); END;
CREATE TRIGGER holds_stay BEFORE DELETE ON holds
BEGIN SELECT RAISE(ABORT, 'holds are never deleted'); END;
DROP TABLE commits;
PRAGMA user_version = 1;
COMMIT;
PRAGMA legacy_alter_table = OFF;
PRAGMA foreign_keys = ON;
