-- tolerated
-- Since when a session takes nothing any more. A program from before goes on bringing things there.

alter table sessions add column closed_at integer;
