-- What makes a database of version 4 one of version 5: rate limits, attempts, events.

ALTER TABLE users ADD COLUMN rpm INTEGER CHECK (rpm > 0);
ALTER TABLE users ADD COLUMN tpm INTEGER CHECK (tpm > 0);
ALTER TABLE users ADD COLUMN concurrency INTEGER CHECK (concurrency > 0);
ALTER TABLE api_keys ADD COLUMN rpm INTEGER CHECK (rpm > 0);
ALTER TABLE api_keys ADD COLUMN tpm INTEGER CHECK (tpm > 0);
ALTER TABLE api_keys ADD COLUMN concurrency INTEGER CHECK (concurrency > 0);

CREATE TABLE attempts (
    exchange_id BLOB    NOT NULL REFERENCES usage_logs (exchange_id),
    number      INTEGER NOT NULL CHECK (number > 0),
    upstream    TEXT    NOT NULL,
    outcome     TEXT    NOT NULL CHECK (outcome <> ''),
    status      INTEGER,
    began_us    INTEGER NOT NULL CHECK (began_us >= 0),
    duration_us INTEGER NOT NULL CHECK (duration_us >= 0),
    PRIMARY KEY (exchange_id, number)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER attempts_are_never_changed BEFORE UPDATE ON attempts
BEGIN SELECT RAISE(ABORT, 'attempts are never changed'); END;
CREATE TRIGGER attempts_are_never_deleted BEFORE DELETE ON attempts
BEGIN SELECT RAISE(ABORT, 'attempts are never deleted'); END;
-- What was sent more than once before is known by its number only, and that nobody could be reached but the last time.
WITH RECURSIVE made (exchange_id, number) AS (
    SELECT exchange_id, 1 FROM usage_logs WHERE attempts > 1
    UNION ALL
    SELECT m.exchange_id, m.number + 1 FROM made m JOIN usage_logs u ON u.exchange_id = m.exchange_id
    WHERE m.number < u.attempts
)
INSERT INTO attempts (exchange_id, number, upstream, outcome, status, began_us, duration_us)
SELECT m.exchange_id, m.number, u.upstream,
       CASE WHEN m.number < u.attempts THEN 'unreachable' WHEN u.upstream_status IS NULL THEN 'abandoned'
            WHEN u.upstream_status BETWEEN 200 AND 299 THEN 'answered' ELSE 'refused' END,
       CASE WHEN m.number = u.attempts THEN u.upstream_status END, 0,
       CASE WHEN m.number = u.attempts THEN COALESCE(u.first_byte_us, u.duration_us) ELSE 0 END
FROM made m JOIN usage_logs u ON u.exchange_id = m.exchange_id;

CREATE TABLE events (
    seq     INTEGER PRIMARY KEY,
    id      BLOB    NOT NULL CHECK (length(id) = 16),
    user_id BLOB    NOT NULL REFERENCES users (id),
    type    TEXT    NOT NULL CHECK (type <> ''),
    at      INTEGER NOT NULL,
    data    TEXT    NOT NULL CHECK (json_valid(data))
) STRICT;
CREATE TABLE sinks (
    name       TEXT    NOT NULL PRIMARY KEY,
    delivered  INTEGER NOT NULL CHECK (delivered >= 0),
    lost       INTEGER NOT NULL DEFAULT 0 CHECK (lost >= 0),
    failing_at INTEGER,
    failure    TEXT,
    CHECK ((failing_at IS NULL) = (failure IS NULL))
) STRICT, WITHOUT ROWID;
