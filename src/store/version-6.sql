-- What makes a database of version 5 one of version 6: who asked, whose the objects are that upstreams keep, and
-- what runs on at upstreams.

ALTER TABLE usage_logs ADD COLUMN session TEXT CHECK (length(session) BETWEEN 1 AND 128);
ALTER TABLE usage_logs ADD COLUMN turn TEXT CHECK (length(turn) BETWEEN 1 AND 128);
ALTER TABLE usage_logs ADD COLUMN agent TEXT CHECK (length(agent) BETWEEN 1 AND 128);
ALTER TABLE usage_logs ADD COLUMN kind TEXT
    CHECK (kind = 'turn' OR kind = 'title' OR kind = 'compaction' OR kind = 'review'
        OR kind = 'prewarm' OR kind = 'sub-agent');
ALTER TABLE usage_logs ADD COLUMN client TEXT CHECK (length(client) BETWEEN 1 AND 64);
CREATE INDEX usage_logs_by_session ON usage_logs (session, user_id) WHERE session IS NOT NULL;
CREATE INDEX usage_logs_by_agent ON usage_logs (agent, user_id) WHERE agent IS NOT NULL;
ALTER TABLE holds ADD COLUMN origin TEXT CHECK (origin IS NULL OR state = 'open' AND json_valid(origin));

CREATE TABLE stored_objects (
    id         TEXT    NOT NULL CHECK (id <> ''),
    upstream   TEXT    NOT NULL CHECK (upstream <> ''),
    user_id    BLOB    NOT NULL REFERENCES users (id),
    kind       TEXT    NOT NULL CHECK (kind = 'conversation' OR kind = 'file' OR kind = 'upload'),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (id, upstream)
) STRICT, WITHOUT ROWID;
CREATE INDEX stored_objects_by_user ON stored_objects (user_id, kind, created_at);

-- A row that is late is added to the sums of its day by whoever writes it.
DROP TRIGGER usage_logs_may_be_late;

-- Behind a change they see what those before it did, and undo it alike; but a row is read once more after a trigger that comes
-- before its change.
DROP TRIGGER balance_follows_entries;
DROP TRIGGER holds_start_open;
DROP TRIGGER holds_close_once;
CREATE TRIGGER balance_follows_entries AFTER UPDATE OF balance_nanos ON users
WHEN NEW.balance_nanos IS NOT OLD.balance_nanos
 AND NEW.balance_nanos IS NOT (SELECT balance_after_nanos FROM ledger_entries
                               WHERE user_id = NEW.id ORDER BY seq DESC LIMIT 1)
BEGIN SELECT RAISE(ABORT, 'a balance only changes by an entry'); END;
CREATE TRIGGER holds_start_open AFTER INSERT ON holds
WHEN NEW.state <> 'open'
BEGIN SELECT RAISE(ABORT, 'a hold starts open'); END;
CREATE TRIGGER holds_close_once AFTER UPDATE OF state, closed_at ON holds
WHEN OLD.state <> 'open' OR NEW.state = 'open'
BEGIN SELECT RAISE(ABORT, 'a hold is closed once'); END;

CREATE TABLE background_responses (
    exchange_id         BLOB    NOT NULL PRIMARY KEY REFERENCES holds (exchange_id),
    user_id             BLOB    NOT NULL REFERENCES users (id),
    response_id         TEXT    NOT NULL CHECK (response_id <> ''),
    upstream            TEXT    NOT NULL CHECK (upstream <> ''),
    deadline_at         INTEGER NOT NULL,
    tier                TEXT    NOT NULL,
    cache_ttl           TEXT    NOT NULL CHECK (cache_ttl = '30m' OR cache_ttl = '12h'),
    price               TEXT    NOT NULL CHECK (json_valid(price)),
    price_from          INTEGER,
    image_price         TEXT    CHECK (json_valid(image_price)),
    search              TEXT    NOT NULL CHECK (search = 'current' OR search = 'preview'),
    region              TEXT,
    markup              TEXT    NOT NULL,
    input_tokens        INTEGER NOT NULL CHECK (input_tokens >= 0),
    upstream_request_id TEXT,
    upstream_status     INTEGER,
    attempts            INTEGER NOT NULL CHECK (attempts >= 0),
    first_byte_us       INTEGER CHECK (first_byte_us >= 0),
    tries               TEXT    NOT NULL CHECK (json_valid(tries))
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
