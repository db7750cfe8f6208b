-- tolerated
-- Since when a session takes nothing any more, and the session with whose transcript it began. A program from before goes
-- on bringing things into a closed one.

alter table sessions add column closed_at integer;
alter table sessions add column forked_from text;
