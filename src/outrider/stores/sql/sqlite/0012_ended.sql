-- tolerated
-- What pruning looks for within one organization: its newest and its longest ended tasks, without those of others.

create index tasks_ended_of on tasks (organization_id, finished_at) where finished_at is not null;
