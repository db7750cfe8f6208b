-- The queue: what holds a task back has a column, and limits and pauses have tables that say what they mean. Not
-- tolerated: a program that does not know them would start what they forbid.

alter table tasks add column blocked_by text;
alter table tasks add column debounce_key text;

update tasks
set blocked_by = core ->> 'blocked_by', core = nullif(json_remove(core, '$.blocked_by'), '{}')
where core ->> 'blocked_by' is not null;

drop index tasks_blocked;
create index tasks_set_aside on tasks (concurrency_key, route, rank) where blocked_by = 'limit';
create index tasks_paused on tasks (session) where blocked_by = 'paused';
create index tasks_held_of_key on tasks (concurrency_key) where concurrency_key is not null and worker_id is not null;
create index tasks_debounced on tasks (session, debounce_key) where debounce_key is not null;

-- What a `concurrency_key` admits; NULL for no bound. A key that ends in * means all that begin like it.
drop table limits;
create table limits (
    key text primary key,
    capacity integer,
    rate integer,
    span integer not null
) without rowid;

-- The starts of a key that still count against its rate (JSON: [slice, starts]), and when the next returns, as long
-- as tasks are set aside for it.
drop table rates;
create table rates (
    key text primary key,
    spent text not null,
    opens_at integer
) without rowid;
create index rates_opening on rates (opens_at) where opens_at is not null;

-- What is not started; `is_over` while what was set aside for it is being let in again.
create table pauses (
    scope text not null,
    name text not null,
    at integer not null,
    by text,
    reason text,
    is_over integer not null default 0,
    primary key (scope, name)
) without rowid;
