-- tolerated
-- What pruning looks for: the tasks that ended before a moment, and the sessions that a task opened.

create index tasks_ended on tasks (finished_at) where finished_at is not null;
create index sessions_of_task on sessions (parent_task_id) where parent_task_id is not null;
