-- tolerated
-- Only a task that has not started can be debounced. One key stands for many tasks, one after the other, and to look
-- through all that have ended took each creation 30 ms after a hundred thousand of them.

drop index tasks_debounced;
create index tasks_debounced on tasks (session, debounce_key)
where debounce_key is not null and state = 'queued' and started_at is null;
