-- tolerated
-- The seventh of SQLite: since when a session takes nothing any more.

alter table sessions add column closed_at bigint;
