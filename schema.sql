-- The whole schema of a gateway's database, version 6. A new database is made from this file.
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
PRAGMA user_version = 6;

-- Facts about this file.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY, -- what the fact is about: `catalogue` (fingerprint of the price catalogue written last)
    value TEXT NOT NULL              -- the fact; `catalogue_rows`: SHA-256, in hexadecimal, of the catalogue's rows in model_pricing;
                                     -- `low_balance` (nano-dollars) and `spent_share` (millionths): when events tell of them
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
    markup            TEXT,                                -- what the user pays per dollar of cost: `1.2`; NULL: as the settings say
    language          TEXT    CHECK (language = 'en' OR language = 'zh'), -- of what the user is told; NULL: as the client asks
    rpm               INTEGER CHECK (rpm > 0),             -- requests a minute, all keys together; NULL: no limit
    tpm               INTEGER CHECK (tpm > 0),             -- tokens a minute, all keys together; NULL: no limit
    concurrency       INTEGER CHECK (concurrency > 0),     -- calls at once, all keys together; NULL: no limit
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
    last_used_at INTEGER,                                 -- microseconds: last use, to a minute; NULL: never
    budget_id    BLOB    CHECK (length(budget_id) = 16),  -- the key whose budgets it shares, when it was rotated from it; NULL: its own
    rpm          INTEGER CHECK (rpm > 0),                 -- requests a minute; NULL: as the settings say
    tpm          INTEGER CHECK (tpm > 0),                 -- tokens a minute; NULL: as the settings say
    concurrency  INTEGER CHECK (concurrency > 0)          -- calls at once; NULL: as the settings say
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_by_user ON api_keys (user_id);
CREATE INDEX api_keys_by_prefix ON api_keys (prefix);

-- What a user or a key may spend at most, and what of it is spent.
CREATE TABLE budgets (
    owner_id    BLOB    NOT NULL CHECK (length(owner_id) = 16), -- UUID of the user or key
    period      TEXT    NOT NULL CHECK (period = 'total' OR period = 'day' OR period = 'month'), -- a day and a month are UTC's
    limit_nanos INTEGER NOT NULL CHECK (limit_nanos >= 0),   -- nano-dollars
    set_at      INTEGER NOT NULL,                            -- microseconds: since when there is one
    PRIMARY KEY (owner_id, period)
) STRICT, WITHOUT ROWID;

-- What calls of one window hold and have spent. A call belongs to the window in which its hold was taken. There is a row
-- for the windows in which calls were made while there was the budget, and for the one in which it was set.
CREATE TABLE budget_windows (
    owner_id    BLOB    NOT NULL,
    period      TEXT    NOT NULL,
    start_at    INTEGER NOT NULL,                            -- microseconds: when the window began; `total`: 0
    held_nanos  INTEGER NOT NULL DEFAULT 0 CHECK (held_nanos >= 0),  -- nano-dollars: sum of open holds
    spent_nanos INTEGER NOT NULL DEFAULT 0 CHECK (spent_nanos >= 0), -- nano-dollars: sum of charges, less refunds
    PRIMARY KEY (owner_id, period, start_at),
    FOREIGN KEY (owner_id, period) REFERENCES budgets (owner_id, period) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

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
    origin       TEXT    CHECK (origin IS NULL OR state = 'open' AND json_valid(origin)), -- JSON object: who asked, for the usage row
                                                            -- of an exchange that nobody ends; NULL: closed, or nothing is known
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
    row_hash                 BLOB    NOT NULL CHECK (length(row_hash) = 32), -- SHA-256 over the columns above and the hold; and those of
                                                             -- the columns below that are not NULL
    session                  TEXT    CHECK (length(session) BETWEEN 1 AND 128), -- the conversation, as the client calls it; NULL: it does not say
    turn                     TEXT    CHECK (length(turn) BETWEEN 1 AND 128),    -- the user's turn in it that this is for
    agent                    TEXT    CHECK (length(agent) BETWEEN 1 AND 128),   -- the sub-agent of the session that asked; NULL: it asked itself
    kind                     TEXT                            -- what it was for; NULL: the client does not say
                             CHECK (kind = 'turn' OR kind = 'title' OR kind = 'compaction' OR kind = 'review'
                                 OR kind = 'prewarm' OR kind = 'sub-agent'),
    client                   TEXT    CHECK (length(client) BETWEEN 1 AND 64)    -- program and version: `codex_exec/0.169.0`; NULL: it has no name
) STRICT;
CREATE INDEX usage_logs_by_user ON usage_logs (user_id, exchange_id);
CREATE INDEX usage_logs_by_start ON usage_logs (started_at);
CREATE INDEX usage_logs_by_response ON usage_logs (response_id) WHERE response_id IS NOT NULL;
CREATE INDEX usage_logs_by_session ON usage_logs (session, user_id) WHERE session IS NOT NULL;
CREATE INDEX usage_logs_by_agent ON usage_logs (agent, user_id) WHERE agent IS NOT NULL;

-- What became of each attempt of an exchange that took several; of one that took one, its usage row tells.
CREATE TABLE attempts (
    exchange_id BLOB    NOT NULL REFERENCES usage_logs (exchange_id), -- UUID v7
    number      INTEGER NOT NULL CHECK (number > 0),         -- 1, 2, …: in this order they were made
    upstream    TEXT    NOT NULL,                            -- the upstream's name
    outcome     TEXT    NOT NULL CHECK (outcome <> ''),      -- what became of it: `answered`, `unreachable`, …
    status      INTEGER,                                     -- the upstream's HTTP status; NULL: no answer
    began_us    INTEGER NOT NULL CHECK (began_us >= 0),      -- microseconds from the hold to it
    duration_us INTEGER NOT NULL CHECK (duration_us >= 0),   -- microseconds it took
    PRIMARY KEY (exchange_id, number)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER attempts_are_never_changed BEFORE UPDATE ON attempts
BEGIN SELECT RAISE(ABORT, 'attempts are never changed'); END;
CREATE TRIGGER attempts_are_never_deleted BEFORE DELETE ON attempts
BEGIN SELECT RAISE(ABORT, 'attempts are never deleted'); END;

-- Where to find the exchange that made an item; the items' ids are in usage_logs.item_ids, this is their index.
CREATE TABLE usage_items (
    item_id     TEXT NOT NULL,                                        -- the upstream's id of an output item
    exchange_id BLOB NOT NULL REFERENCES usage_logs (exchange_id),    -- the exchange whose answer it is in
    PRIMARY KEY (item_id, exchange_id)
) STRICT, WITHOUT ROWID;

-- What upstreams keep for users, besides responses (usage_logs tells whose these are): only who made it may see it. Written
-- before its id is told, deleted when it is.
CREATE TABLE stored_objects (
    id         TEXT    NOT NULL CHECK (id <> ''),                      -- the upstream's id of it
    upstream   TEXT    NOT NULL CHECK (upstream <> ''),                -- the upstream's name
    user_id    BLOB    NOT NULL REFERENCES users (id),                 -- who made it
    kind       TEXT    NOT NULL CHECK (kind = 'conversation' OR kind = 'file' OR kind = 'upload'),
    created_at INTEGER NOT NULL,                                       -- microseconds: when
    PRIMARY KEY (id, upstream)
) STRICT, WITHOUT ROWID;
CREATE INDEX stored_objects_by_user ON stored_objects (user_id, kind, created_at);

-- Background responses that run at their upstreams: what their bills and usage rows will be made of. Such a hold stays open
-- when its create was answered, and across restarts. A row is written before the response's id is told, and deleted in the
-- transaction that closes the hold.
CREATE TABLE background_responses (
    exchange_id         BLOB    NOT NULL PRIMARY KEY REFERENCES holds (exchange_id), -- UUID v7 of its create
    user_id             BLOB    NOT NULL REFERENCES users (id),       -- whose it is
    response_id         TEXT    NOT NULL CHECK (response_id <> ''),   -- the upstream's id of it
    upstream            TEXT    NOT NULL CHECK (upstream <> ''),      -- the upstream that runs it
    deadline_at         INTEGER NOT NULL,                             -- microseconds: when its end is waited for no longer
    tier                TEXT    NOT NULL,                             -- the tier that was asked for: `standard`
    cache_ttl           TEXT    NOT NULL CHECK (cache_ttl = '30m' OR cache_ttl = '12h'), -- how long cache writes are to live
    price               TEXT    NOT NULL CHECK (json_valid(price)),   -- JSON: the model's price, as in model_pricing
    price_from          INTEGER,                                      -- microseconds: since when it is in force; NULL: free
    image_price         TEXT    CHECK (json_valid(image_price)),      -- JSON: that of the image model; NULL: none is used
    search              TEXT    NOT NULL CHECK (search = 'current' OR search = 'preview'), -- which fee a web search costs
    region              TEXT,                                         -- the upstream's region, which may have an uplift
    markup              TEXT    NOT NULL,                             -- what the user pays per dollar of cost: `1`
    input_tokens        INTEGER NOT NULL CHECK (input_tokens >= 0),   -- tokens read, as they were counted: for an estimate
    upstream_request_id TEXT,                                         -- as in usage_logs, which has them in the end
    upstream_status     INTEGER,
    attempts            INTEGER NOT NULL CHECK (attempts >= 0),
    first_byte_us       INTEGER CHECK (first_byte_us >= 0),
    tries               TEXT    NOT NULL CHECK (json_valid(tries))    -- JSON array: its rows of attempts, when there were several
) STRICT, WITHOUT ROWID;
CREATE INDEX background_responses_by_response ON background_responses (response_id);
CREATE INDEX background_responses_by_user ON background_responses (user_id);
CREATE TRIGGER background_responses_are_held BEFORE INSERT ON background_responses
WHEN (SELECT state FROM holds WHERE exchange_id = NEW.exchange_id AND user_id = NEW.user_id) IS NOT 'open'
BEGIN SELECT RAISE(ABORT, 'a background response has an open hold'); END;
CREATE TRIGGER background_responses_are_final BEFORE UPDATE ON background_responses
BEGIN SELECT RAISE(ABORT, 'what a background response is billed by is never changed'); END;
CREATE TRIGGER background_responses_are_settled BEFORE DELETE ON background_responses
WHEN (SELECT state FROM holds WHERE exchange_id = OLD.exchange_id) = 'open'
BEGIN SELECT RAISE(ABORT, 'a background response is kept until it is settled'); END;

-- The ledger: every movement of money, never changed.
CREATE TABLE ledger_entries (
    seq                 INTEGER PRIMARY KEY,              -- number within the whole ledger, ascending
    user_id             BLOB    NOT NULL REFERENCES users (id), -- whose balance
    kind                TEXT    NOT NULL               -- why it moved
                        CHECK (kind = 'credit' OR kind = 'adjustment' OR kind = 'charge' OR kind = 'refund'),
    amount_nanos        INTEGER NOT NULL CHECK (amount_nanos <> 0), -- nano-dollars, signed: charges are negative
    balance_after_nanos INTEGER NOT NULL,                 -- nano-dollars: the balance after it
    exchange_id         BLOB    UNIQUE REFERENCES usage_logs (exchange_id), -- the exchange a charge is for
    reference           TEXT    CHECK (reference <> ''),  -- the operator's reference: one entry each
    note                TEXT,                             -- the operator's note
    at                  INTEGER NOT NULL,                 -- microseconds: when
    hash                BLOB    NOT NULL CHECK (length(hash) = 32), -- SHA-256 over the user's hash before it, the columns above
                                                          -- and, for a charge, the usage row
    refunds             BLOB    REFERENCES usage_logs (exchange_id), -- the exchange whose charge a refund gives back
    CHECK ((kind = 'charge') = (exchange_id IS NOT NULL)),
    CHECK ((kind = 'refund') = (refunds IS NOT NULL)),
    CHECK (kind = 'adjustment' OR (kind = 'charge') = (amount_nanos < 0))
) STRICT;
CREATE INDEX ledger_entries_by_user ON ledger_entries (user_id, seq);
CREATE UNIQUE INDEX ledger_entries_by_reference ON ledger_entries (reference) WHERE reference IS NOT NULL;
CREATE INDEX ledger_entries_of_refunds ON ledger_entries (refunds) WHERE refunds IS NOT NULL;

-- Codes that put money into the balance of whoever redeems them, once. The code itself is not stored.
CREATE TABLE codes (
    id           BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16), -- UUID
    prefix       TEXT    NOT NULL,                            -- what is shown of it
    hash         BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32), -- SHA-256 of the whole code
    amount_nanos INTEGER NOT NULL CHECK (amount_nanos > 0),   -- nano-dollars it is worth
    note         TEXT,                                        -- the operator's note
    expires_at   INTEGER,                                     -- microseconds: from then on it is not redeemed; NULL: never
    created_at   INTEGER NOT NULL,                            -- microseconds: when it was made
    revoked_at   INTEGER,                                     -- microseconds: when it was revoked; NULL: it was not
    redeemed_at  INTEGER,                                     -- microseconds: when it was redeemed; NULL: it was not
    user_id      BLOB    REFERENCES users (id),               -- who redeemed it
    entry        INTEGER UNIQUE REFERENCES ledger_entries (seq), -- the credit it became
    CHECK ((redeemed_at IS NULL) = (user_id IS NULL) AND (redeemed_at IS NULL) = (entry IS NULL)),
    CHECK (redeemed_at IS NULL OR revoked_at IS NULL)
) STRICT, WITHOUT ROWID;

-- Which exchange a client's Idempotency-Key stands for.
CREATE TABLE idempotency (
    key_id      BLOB NOT NULL REFERENCES api_keys (id),       -- the gateway key it came with
    name_hash   BLOB NOT NULL CHECK (length(name_hash) = 32), -- SHA-256 of the Idempotency-Key
    body_hash   BLOB NOT NULL CHECK (length(body_hash) = 32), -- SHA-256 of the request's path and body
    exchange_id BLOB NOT NULL UNIQUE REFERENCES holds (exchange_id), -- the exchange; released, another may take its place
    PRIMARY KEY (key_id, name_hash)
) STRICT, WITHOUT ROWID;

-- Answers that are given again to the same Idempotency-Key, where the operator wants it. Deleted after a day.
CREATE TABLE recordings (
    exchange_id BLOB    NOT NULL PRIMARY KEY REFERENCES usage_logs (exchange_id), -- whose answer
    sealed      BLOB    NOT NULL,                             -- status, head and body, encrypted under a key that is made of
                                                              -- the client's own gateway key
    recorded_at INTEGER NOT NULL                              -- microseconds: when
) STRICT;
CREATE INDEX recordings_by_time ON recordings (recorded_at);

-- Usage rows summed by day: of those that began before `rolled_up`, all. What the others come to is read from them.
CREATE TABLE usage_days (
    day_at            INTEGER NOT NULL,                       -- microseconds: when the day began (UTC)
    user_id           BLOB    NOT NULL REFERENCES users (id),
    key_id            BLOB    NOT NULL REFERENCES api_keys (id),
    model             TEXT    NOT NULL,                       -- the model the client asked for
    upstream          TEXT    NOT NULL,
    exchanges         INTEGER NOT NULL,                       -- how many; the others are the sums of their columns
    input_tokens      INTEGER NOT NULL,
    cached_tokens     INTEGER NOT NULL,
    output_tokens     INTEGER NOT NULL,
    cost_nanos        INTEGER NOT NULL,
    charge_nanos      INTEGER NOT NULL,
    uncollected_nanos INTEGER NOT NULL,
    PRIMARY KEY (day_at, user_id, key_id, model, upstream)
) STRICT, WITHOUT ROWID;
CREATE TABLE rolled_up (
    one      INTEGER PRIMARY KEY CHECK (one = 1),             -- there is one row
    until_at INTEGER NOT NULL CHECK (until_at % 86400000000 = 0) -- microseconds: the first day that is not summed
) STRICT;
INSERT INTO rolled_up (one, until_at) VALUES (1, 0);

-- The outbox: what is told to others, written in the transaction of what it tells, while there is a sink. An event is
-- deleted when every sink has it. docs/events.md says what is in `data`.
CREATE TABLE events (
    seq     INTEGER PRIMARY KEY,                             -- order of the events; the newest stays, so that no number is given twice
    id      BLOB    NOT NULL CHECK (length(id) = 16),        -- UUID: the same however often it is sent
    user_id BLOB    NOT NULL REFERENCES users (id),          -- whom it is about
    type    TEXT    NOT NULL CHECK (type <> ''),             -- what happened: `exchange.settled`, `balance.changed`, …
    at      INTEGER NOT NULL,                                -- microseconds: when
    data    TEXT    NOT NULL CHECK (json_valid(data))        -- JSON: the rest of it
) STRICT;
CREATE TABLE sinks (
    name       TEXT    NOT NULL PRIMARY KEY,                 -- where events go, by its name in the settings
    delivered  INTEGER NOT NULL CHECK (delivered >= 0),      -- the last event that was delivered to it
    lost       INTEGER NOT NULL DEFAULT 0 CHECK (lost >= 0), -- events it never got, because too many waited for it
    failing_at INTEGER,                                      -- microseconds: since when nothing can be delivered; NULL: it can
    failure    TEXT,                                         -- why
    CHECK ((failing_at IS NULL) = (failure IS NULL))
) STRICT, WITHOUT ROWID;

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

-- A refund gives back what was charged, at most, to whom it was charged.
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

CREATE TRIGGER balance_follows_entries AFTER UPDATE OF balance_nanos ON users
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

CREATE TRIGGER holds_start_open AFTER INSERT ON holds
WHEN NEW.state <> 'open'
BEGIN SELECT RAISE(ABORT, 'a hold starts open'); END;

CREATE TRIGGER holds_close_once AFTER UPDATE OF state, closed_at ON holds
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

-- Budgets. -----------------------------------------------------------------------------------------------------------

CREATE TRIGGER budgets_are_kept BEFORE UPDATE OF held_nanos, spent_nanos ON budget_windows
WHEN NEW.held_nanos + NEW.spent_nanos > OLD.held_nanos + OLD.spent_nanos
 AND NEW.held_nanos + NEW.spent_nanos
   > (SELECT limit_nanos FROM budgets WHERE owner_id = NEW.owner_id AND period = NEW.period)
BEGIN SELECT RAISE(ABORT, 'a budget is not exceeded'); END;

-- What is made once. -------------------------------------------------------------------------------------------------

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

CREATE TRIGGER rolled_up_stays BEFORE DELETE ON rolled_up
BEGIN SELECT RAISE(ABORT, 'how far usage is summed is not deleted'); END;
