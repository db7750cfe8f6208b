-- tolerated
-- The twelfth of SQLite: the ended tasks of one organization, without those of others.

create index tasks_ended_of on tasks (organization_id, finished_at) where finished_at is not null;
