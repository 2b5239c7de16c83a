-- What makes a database of version 5 one of version 6: who asked, and whose the objects are that upstreams keep.

ALTER TABLE usage_logs ADD COLUMN session TEXT CHECK (length(session) BETWEEN 1 AND 128);
ALTER TABLE usage_logs ADD COLUMN turn TEXT CHECK (length(turn) BETWEEN 1 AND 128);
ALTER TABLE usage_logs ADD COLUMN agent TEXT CHECK (length(agent) BETWEEN 1 AND 128);
ALTER TABLE usage_logs ADD COLUMN kind TEXT
    CHECK (kind = 'turn' OR kind = 'title' OR kind = 'compaction' OR kind = 'review'
        OR kind = 'prewarm' OR kind = 'sub-agent');
ALTER TABLE usage_logs ADD COLUMN client TEXT CHECK (length(client) BETWEEN 1 AND 64);
CREATE INDEX usage_logs_by_session ON usage_logs (session, user_id) WHERE session IS NOT NULL;
CREATE INDEX usage_logs_by_agent ON usage_logs (agent, user_id) WHERE agent IS NOT NULL;
ALTER TABLE holds ADD COLUMN origin TEXT CHECK (json_valid(origin));

CREATE TABLE stored_objects (
    id         TEXT    NOT NULL CHECK (id <> ''),
    upstream   TEXT    NOT NULL CHECK (upstream <> ''),
    user_id    BLOB    NOT NULL REFERENCES users (id),
    kind       TEXT    NOT NULL CHECK (kind = 'conversation' OR kind = 'file'),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (id, upstream)
) STRICT, WITHOUT ROWID;
CREATE INDEX stored_objects_by_user ON stored_objects (user_id, kind, created_at);

-- A row that is late is added to the sums of its day by whoever writes it.
DROP TRIGGER usage_logs_may_be_late;
