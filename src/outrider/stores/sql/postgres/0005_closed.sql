-- tolerated
-- The eighth of SQLite: since when a session takes nothing any more, and the session with whose transcript it began.

alter table sessions add column closed_at bigint;
alter table sessions add column forked_from text collate "C";
