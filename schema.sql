-- The whole schema of a gateway's database, version 3. A new database is made from this file.
--
-- Conventions: money is an integer count of nano-dollars (1 USD = 10^9), in columns named *_nanos; times are
-- microseconds since 1970-01-01 UTC, in columns named *_at; ids are UUIDs in 16 bytes; hashes are SHA-256 in 32 bytes
-- (what they cover is documented in src/store/digest.rs).
--
-- The constraints and triggers below hold two laws without any help from the code:
--   1. balance + credit line - open holds >= 0 for every user (the CHECK at the end of `users`);
--   2. balance = sum of entries for every user: entries are only added, an entry fits on the balance before it, and a
--      balance changes only to what the newest entry says.
-- A user's row also keeps how many entries and holds there are and the newest entry's hash: rows that are missing at the
-- end of a table are found by it.
-- (Words are checked one by one: for `IN` with more than two, SQLite makes and drops a table at every statement.)

PRAGMA application_id = 0x43784777; -- "CxGw"
PRAGMA user_version = 3;

-- Facts about this file.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY, -- what the fact is about: `catalogue` (fingerprint of the price catalogue written last)
    value TEXT NOT NULL              -- the fact; `catalogue_rows`: SHA-256, in hexadecimal, of the catalogue's rows in model_pricing
) STRICT, WITHOUT ROWID;

-- How many transactions were committed. The high-water mark beside the database says how many there have to be at least:
-- so a lost log or an old copy is found (src/store/mark.rs).
CREATE TABLE commits (
    one   INTEGER PRIMARY KEY CHECK (one = 1), -- there is one row
    count INTEGER NOT NULL CHECK (count >= 0)  -- transactions since the database was made, or since it was given this table
) STRICT;
INSERT INTO commits (one, count) VALUES (1, 0);

-- Who owns a balance.
CREATE TABLE users (
    id                BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16), -- UUID
    name              TEXT    NOT NULL COLLATE NOCASE UNIQUE CHECK (name <> ''), -- handle, without spaces
    email             TEXT    COLLATE NOCASE UNIQUE,       -- e-mail address, if known
    password_hash     TEXT,                                -- PHC string for signing in on the web, if there is one
    status            TEXT    NOT NULL CHECK (status IN ('active', 'suspended')), -- may call, or may not
    balance_nanos     INTEGER NOT NULL DEFAULT 0           -- nano-dollars: sum of the user's entries
                      CHECK (balance_nanos BETWEEN -4000000000000000000 AND 4000000000000000000),
    credit_line_nanos INTEGER NOT NULL DEFAULT 0           -- nano-dollars: how far below zero the balance may go
                      CHECK (credit_line_nanos BETWEEN 0 AND 4000000000000000000),
    held_nanos        INTEGER NOT NULL DEFAULT 0 CHECK (held_nanos >= 0), -- nano-dollars: sum of the user's open holds
    created_at        INTEGER NOT NULL,                    -- microseconds: when the user was added
    entries           INTEGER NOT NULL DEFAULT 0 CHECK (entries >= 0), -- how many entries the user has
    head_hash         BLOB    CHECK (length(head_hash) = 32), -- the hash of the newest of them; NULL: there is none
    holds             INTEGER NOT NULL DEFAULT 0 CHECK (holds >= 0), -- how many holds were ever taken
    CONSTRAINT available_is_not_negative CHECK (balance_nanos + credit_line_nanos - held_nanos >= 0)
) STRICT, WITHOUT ROWID;

-- Gateway keys. The key itself is not stored.
CREATE TABLE api_keys (
    id           BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16), -- UUID
    user_id      BLOB    NOT NULL REFERENCES users (id),  -- whose
    name         TEXT    NOT NULL,                        -- what it is called: `laptop`
    prefix       TEXT    NOT NULL,                        -- what is shown of it: `sk-gw-` and a few characters
    hash         BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32), -- SHA-256 of the whole key
    expires_at   INTEGER,                                 -- microseconds: from then on it is not valid; NULL: never
    revoked_at   INTEGER,                                 -- microseconds: when it was revoked; NULL: it was not
    models       TEXT    NOT NULL DEFAULT '[]',           -- JSON array of globs: models it may use; empty: all
    ips          TEXT    NOT NULL DEFAULT '[]',           -- JSON array of CIDRs: where it may be used from; empty: anywhere
    on_hangup    TEXT    CHECK (on_hangup IN ('drain', 'cancel')), -- when its client leaves; NULL: as the setting says
    created_at   INTEGER NOT NULL,                        -- microseconds: when it was issued
    last_used_at INTEGER                                  -- microseconds: last use, to a minute; NULL: never
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_by_user ON api_keys (user_id);
CREATE INDEX api_keys_by_prefix ON api_keys (prefix);

-- Prices, by list and model, from a date on.
CREATE TABLE model_pricing (
    list        TEXT    NOT NULL CHECK (list <> ''),      -- the price list: `openai`
    model       TEXT    NOT NULL CHECK (model <> ''),     -- the model, by its upstream's name
    from_at     INTEGER NOT NULL,                         -- microseconds: in force from
    source      TEXT    NOT NULL CHECK (source IN ('catalogue', 'operator')), -- who wrote it; the operator's rows win
    price       TEXT    NOT NULL CHECK (json_valid(price)), -- JSON: the rates, in dollars per million units as decimal strings
    recorded_at INTEGER NOT NULL,                         -- microseconds: when the row was written
    PRIMARY KEY (list, model, from_at, source)
) STRICT, WITHOUT ROWID;

-- Money set aside for exchanges. Open once, closed once, kept.
CREATE TABLE holds (
    exchange_id  BLOB    NOT NULL PRIMARY KEY CHECK (length(exchange_id) = 16), -- UUID v7: the exchange it is for
    user_id      BLOB    NOT NULL REFERENCES users (id),    -- who pays
    key_id       BLOB    NOT NULL REFERENCES api_keys (id), -- with which key
    amount_nanos INTEGER NOT NULL CHECK (amount_nanos >= 0), -- nano-dollars set aside
    output_limit INTEGER CHECK (output_limit >= 0),         -- tokens: the output limit it pays for, if it lowered one
    endpoint     TEXT    NOT NULL,                          -- path below /v1: `/responses`
    streamed     INTEGER NOT NULL CHECK (streamed IN (0, 1)), -- 1: a stream was asked for
    model        TEXT    NOT NULL,                          -- the model the client asked for
    priced_model TEXT    NOT NULL,                          -- the model that is priced
    upstream     TEXT    NOT NULL,                          -- the upstream's name
    list         TEXT,                                      -- the price list; NULL: free
    placed_at    INTEGER NOT NULL,                          -- microseconds: when it was taken
    hash         BLOB    NOT NULL CHECK (length(hash) = 32), -- SHA-256 over the columns above
    state        TEXT    NOT NULL CHECK (state = 'open' OR state = 'settled' OR state = 'released'), -- settled: charged; released: not
    closed_at    INTEGER,                                   -- microseconds: when it was closed
    CHECK ((state = 'open') = (closed_at IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX holds_open ON holds (user_id) WHERE state = 'open';

-- One row per exchange that took a hold, written when it is closed: the receipt.
CREATE TABLE usage_logs (
    exchange_id              BLOB    NOT NULL PRIMARY KEY REFERENCES holds (exchange_id), -- UUID v7
    user_id                  BLOB    NOT NULL REFERENCES users (id),    -- who paid
    key_id                   BLOB    NOT NULL REFERENCES api_keys (id), -- with which key
    endpoint                 TEXT    NOT NULL,               -- path below /v1: `/responses`
    streamed                 INTEGER NOT NULL CHECK (streamed IN (0, 1)), -- 1: a stream
    model                    TEXT    NOT NULL,               -- the model the client asked for
    priced_model             TEXT    NOT NULL,               -- the model that was priced
    answered_model           TEXT,                           -- the model the answer names
    upstream                 TEXT    NOT NULL,               -- the upstream's name
    list                     TEXT,                           -- the price list; NULL: free
    price_from               INTEGER,                        -- microseconds: since when the price is in force
    tier                     TEXT    NOT NULL,               -- the tier that was priced: `standard`
    state                    TEXT    NOT NULL            -- how it ended
                             CHECK (state = 'completed' OR state = 'incomplete' OR state = 'refused' OR state = 'failed'
                                 OR state = 'broken' OR state = 'limited' OR state = 'left' OR state = 'cancelled'
                                 OR state = 'interrupted'),
    basis                    TEXT    NOT NULL CHECK (basis IN ('reported', 'estimated')), -- where the usage comes from
    input_tokens             INTEGER NOT NULL CHECK (input_tokens >= 0),             -- tokens read, all of them
    cached_tokens            INTEGER NOT NULL CHECK (cached_tokens >= 0),            -- of the input: read from the cache
    cache_write_tokens       INTEGER NOT NULL CHECK (cache_write_tokens >= 0),       -- of the input: cached for 30 minutes
    cache_write_12h_tokens   INTEGER NOT NULL CHECK (cache_write_12h_tokens >= 0),   -- of the input: cached for 12 hours
    audio_input_tokens       INTEGER NOT NULL CHECK (audio_input_tokens >= 0),       -- of the input: audio
    output_tokens            INTEGER NOT NULL CHECK (output_tokens >= 0),            -- tokens generated, all of them
    reasoning_tokens         INTEGER NOT NULL CHECK (reasoning_tokens >= 0),         -- of the output: reasoning
    audio_output_tokens      INTEGER NOT NULL CHECK (audio_output_tokens >= 0),      -- of the output: audio
    web_searches             INTEGER NOT NULL CHECK (web_searches >= 0),             -- calls of the hosted web search
    file_searches            INTEGER NOT NULL CHECK (file_searches >= 0),            -- calls of the hosted file search
    containers               INTEGER NOT NULL CHECK (containers >= 0),               -- hosted containers
    image_text_input_tokens  INTEGER CHECK (image_text_input_tokens >= 0),  -- image model: text tokens read; NULL: it did not run
    image_input_tokens       INTEGER CHECK (image_input_tokens >= 0),       -- image model: image tokens read
    image_text_output_tokens INTEGER CHECK (image_text_output_tokens >= 0), -- image model: text tokens generated
    image_output_tokens      INTEGER CHECK (image_output_tokens >= 0),      -- image model: image tokens generated
    lines                    TEXT    NOT NULL CHECK (json_valid(lines)), -- JSON: class, quantity, rate and amount (dollars) of each line
    uplift                   TEXT,                           -- regional uplift, when it applied: `1.1`
    markup                   TEXT    NOT NULL,               -- what the user pays per dollar of cost: `1`
    cost_nanos               INTEGER NOT NULL CHECK (cost_nanos >= 0),   -- nano-dollars by the price list
    charge_nanos             INTEGER NOT NULL CHECK (charge_nanos >= 0), -- nano-dollars: cost with markup
    uncollected_nanos        INTEGER NOT NULL
                             CHECK (uncollected_nanos BETWEEN 0 AND charge_nanos), -- nano-dollars of the charge that were not there
    held_nanos               INTEGER NOT NULL CHECK (held_nanos >= 0), -- nano-dollars that were set aside
    output_limit             INTEGER CHECK (output_limit >= 0), -- tokens: the output limit written into the request
    balance_after_nanos      INTEGER NOT NULL,               -- nano-dollars: the balance after it
    response_id              TEXT,                           -- the upstream's id of the answer
    item_ids                 TEXT    NOT NULL DEFAULT '[]' CHECK (json_valid(item_ids)), -- JSON array: ids of the answer's items
    upstream_request_id      TEXT,                           -- the upstream's id of the request
    upstream_status          INTEGER,                        -- the upstream's HTTP status; NULL: no answer
    attempts                 INTEGER NOT NULL CHECK (attempts >= 0), -- how often it was sent
    started_at               INTEGER NOT NULL,               -- microseconds: when the hold was taken
    first_byte_us            INTEGER CHECK (first_byte_us >= 0), -- microseconds from there to the answer's first byte
    duration_us              INTEGER NOT NULL CHECK (duration_us >= 0), -- microseconds from there to the settlement
    row_hash                 BLOB    NOT NULL CHECK (length(row_hash) = 32) -- SHA-256 over the columns above and the hold
) STRICT;
CREATE INDEX usage_logs_by_user ON usage_logs (user_id, exchange_id);
CREATE INDEX usage_logs_by_start ON usage_logs (started_at);
CREATE INDEX usage_logs_by_response ON usage_logs (response_id) WHERE response_id IS NOT NULL;

-- Where to find the exchange that made an item; the items' ids are in usage_logs.item_ids, this is their index.
CREATE TABLE usage_items (
    item_id     TEXT NOT NULL,                                        -- the upstream's id of an output item
    exchange_id BLOB NOT NULL REFERENCES usage_logs (exchange_id),    -- the exchange whose answer it is in
    PRIMARY KEY (item_id, exchange_id)
) STRICT, WITHOUT ROWID;

-- The ledger: every movement of money, never changed.
CREATE TABLE ledger_entries (
    seq                 INTEGER PRIMARY KEY,              -- number within the whole ledger, ascending
    user_id             BLOB    NOT NULL REFERENCES users (id), -- whose balance
    kind                TEXT    NOT NULL CHECK (kind = 'credit' OR kind = 'adjustment' OR kind = 'charge'), -- why it moved
    amount_nanos        INTEGER NOT NULL CHECK (amount_nanos <> 0), -- nano-dollars, signed: charges are negative
    balance_after_nanos INTEGER NOT NULL,                 -- nano-dollars: the balance after it
    exchange_id         BLOB    UNIQUE REFERENCES usage_logs (exchange_id), -- the exchange a charge is for
    reference           TEXT    CHECK (reference <> ''),  -- the operator's reference: one entry each
    note                TEXT,                             -- the operator's note
    at                  INTEGER NOT NULL,                 -- microseconds: when
    hash                BLOB    NOT NULL CHECK (length(hash) = 32), -- SHA-256 over the user's hash before it, the columns above
                                                          -- and, for a charge, the usage row
    CHECK ((kind = 'charge') = (exchange_id IS NOT NULL)),
    CHECK (kind = 'adjustment' OR (kind = 'charge') = (amount_nanos < 0))
) STRICT;
CREATE INDEX ledger_entries_by_user ON ledger_entries (user_id, seq);
CREATE UNIQUE INDEX ledger_entries_by_reference ON ledger_entries (reference) WHERE reference IS NOT NULL;

-- Who did what, with the state before and after it, written in the act's own transaction.
CREATE TABLE audit_log (
    seq         INTEGER PRIMARY KEY,          -- order of the acts
    at          INTEGER NOT NULL,             -- microseconds: when
    actor       TEXT    NOT NULL,             -- who: `cli:root@host`, `server`
    action      TEXT    NOT NULL,             -- what: `user.add`, `user.status`, `key.issue`, `key.revoke`, `price.set` …
    subject     TEXT    NOT NULL,             -- on what: the id of a user or key, or `list/model from TIME`
    before      TEXT    CHECK (before IS NULL OR json_valid(before)), -- JSON: the state before; NULL: there was none
    after       TEXT    NOT NULL CHECK (json_valid(after))            -- JSON: the state after
) STRICT;
CREATE INDEX audit_log_by_subject ON audit_log (subject, seq);

-- Law 2. -------------------------------------------------------------------------------------------------------------

CREATE TRIGGER users_start_empty BEFORE INSERT ON users
WHEN NEW.balance_nanos <> 0 OR NEW.held_nanos <> 0 OR NEW.entries <> 0 OR NEW.holds <> 0 OR NEW.head_hash IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a user starts with nothing; money comes by an entry'); END;

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

CREATE TRIGGER users_stay BEFORE DELETE ON users
BEGIN SELECT RAISE(ABORT, 'users are not deleted'); END;

CREATE TRIGGER users_keep_their_id BEFORE UPDATE OF id ON users
WHEN NEW.id IS NOT OLD.id
BEGIN SELECT RAISE(ABORT, 'a user keeps the id'); END;

-- What is written stays. ---------------------------------------------------------------------------------------------
-- (REPLACE deletes first; the triggers see it because every connection sets recursive_triggers.)

CREATE TRIGGER entries_are_final BEFORE UPDATE ON ledger_entries
BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON ledger_entries
BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;

CREATE TRIGGER usage_logs_are_final BEFORE UPDATE ON usage_logs
BEGIN SELECT RAISE(ABORT, 'usage rows are never changed'); END;
CREATE TRIGGER usage_logs_stay BEFORE DELETE ON usage_logs
BEGIN SELECT RAISE(ABORT, 'usage rows are never deleted'); END;

CREATE TRIGGER audit_log_is_final BEFORE UPDATE ON audit_log
BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END;
CREATE TRIGGER audit_log_stays BEFORE DELETE ON audit_log
BEGIN SELECT RAISE(ABORT, 'audit rows are never deleted'); END;

-- A hold is taken open, closed once, and otherwise left alone. --------------------------------------------------------

CREATE TRIGGER holds_start_open BEFORE INSERT ON holds
WHEN NEW.state <> 'open'
BEGIN SELECT RAISE(ABORT, 'a hold starts open'); END;

CREATE TRIGGER holds_close_once BEFORE UPDATE OF state, closed_at ON holds
WHEN OLD.state <> 'open' OR NEW.state = 'open'
BEGIN SELECT RAISE(ABORT, 'a hold is closed once'); END;

-- (It runs only for a statement that sets one of these: comparing them all at every closing costs more than closing.)
CREATE TRIGGER holds_are_final BEFORE UPDATE OF exchange_id, user_id, key_id, amount_nanos, output_limit, endpoint, streamed,
    model, priced_model, upstream, list, placed_at, hash ON holds
BEGIN SELECT RAISE(ABORT, 'a hold is closed, and nothing else of it changes'); END;

CREATE TRIGGER holds_stay BEFORE DELETE ON holds
BEGIN SELECT RAISE(ABORT, 'holds are never deleted'); END;

CREATE TRIGGER commits_are_counted BEFORE UPDATE ON commits
WHEN NEW.count IS NOT OLD.count + 1 OR NEW.one IS NOT OLD.one
BEGIN SELECT RAISE(ABORT, 'commits are counted one by one'); END;
CREATE TRIGGER commits_stay BEFORE DELETE ON commits
BEGIN SELECT RAISE(ABORT, 'the count of commits is not deleted'); END;
