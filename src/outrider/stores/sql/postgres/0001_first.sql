-- The first schema, the one of SQLite after its first four migrations; read its comments for what things mean. What
-- differs: texts compare by their bytes; documents are text, since `jsonb` refuses a NUL in a string; numbers are
-- given out in blocks, so that a process knows them before it writes; `counts` are sharded, so that those who write
-- do not wait for one another.

create sequence task_numbers as bigint increment 1000;
create sequence session_numbers as bigint increment 1000;

create table sessions (
    number bigint primary key,
    id text collate "C" not null unique,
    organization_id text collate "C" not null,
    root_session_id text collate "C" not null,
    parent_session_id text collate "C",
    parent_task_id text collate "C",
    agent text collate "C",
    title text collate "C",
    labels text not null,
    driver_task_id text collate "C",
    first_seq bigint not null default 1,
    seq bigint not null default 0,
    tail bigint not null default 0,
    transcript bigint not null default 0,
    inbox bigint not null default 0,
    created_at bigint not null,
    updated_at bigint not null
) with (fillfactor = 70);
create index sessions_of_task on sessions (parent_task_id) where parent_task_id is not null;

create table tasks (
    number bigint primary key,
    id text collate "C" not null unique,
    session bigint not null,
    organization_id text collate "C" not null,
    root_session_id text collate "C",
    parent_task_id text collate "C",
    kind text collate "C" not null,
    route text collate "C" not null,
    priority bigint not null,
    concurrency_key text collate "C",
    idempotency_key text collate "C",
    debounce_key text collate "C",
    detached boolean not null,
    created_at bigint not null,
    state text collate "C" not null,
    version bigint not null,
    attempt bigint not null,
    failures bigint not null,
    worker_id text collate "C",
    attempt_started_at bigint,
    due_at bigint,
    readiness text collate "C",
    next_deadline_at bigint,
    started_at bigint,
    finished_at bigint,
    finished_by bigint,
    updated_at bigint not null,
    blocked_by text collate "C",
    rank bigint not null,
    core text,
    outcome text,
    live text,
    active_at bigint,
    active_attempt bigint
) with (fillfactor = 70);
create index tasks_of_session on tasks (session, id);
create index tasks_of_root on tasks (root_session_id, id) where root_session_id is not null;
create index tasks_of_parent on tasks (parent_task_id) where parent_task_id is not null;
create unique index tasks_by_key on tasks (session, idempotency_key) where idempotency_key is not null;
create unique index tasks_debounced on tasks (session, debounce_key)
where debounce_key is not null and state = 'queued' and started_at is null;
create index tasks_ready on tasks (route, rank, number) where readiness = 'ready';
create index tasks_timed on tasks (route, due_at) where readiness = 'timed';
create index tasks_set_aside on tasks (concurrency_key, route, rank, number) where blocked_by = 'limit';
create index tasks_paused on tasks (session) where blocked_by = 'paused';
create index tasks_overdue on tasks (next_deadline_at) where next_deadline_at is not null;
create index tasks_held on tasks (worker_id) where worker_id is not null;
create index tasks_held_of_key on tasks (concurrency_key) where concurrency_key is not null and worker_id is not null;
create index tasks_ended on tasks (finished_at) where finished_at is not null;

-- `labels` once more, to be searched.
create table inputs (
    task bigint primary key,
    data text not null,
    labels jsonb
);

create table counts (
    state text collate "C" not null,
    shard integer not null,
    tasks bigint not null,
    primary key (state, shard)
) with (fillfactor = 50);
insert into counts (state, shard, tasks)
values
    ('queued', 0, 0), ('running', 0, 0), ('awaiting_input', 0, 0), ('succeeded', 0, 0), ('failed', 0, 0),
    ('canceled', 0, 0);

-- `position` is made of the number of the transaction and of the entry's place in it, so that what is committed later
-- never stands before what a reader has seen: see `news`.
create table events (
    position bigint primary key,
    session bigint not null,
    seq bigint not null,
    task bigint,
    type text collate "C" not null,
    at bigint not null,
    data text not null
);
create unique index events_of_session on events (session, seq);
create index events_of_task on events (task, seq) where task is not null;

-- What this database is called among others, and where positions begin: moved when a copy of the database goes on under
-- a server that counts transactions anew.
create table origin (
    id uuid not null default gen_random_uuid(),
    position bigint not null
);
insert into origin (position) values (0);

create table follow_ups (
    id bigint generated always as identity primary key,
    task_id text collate "C" not null,
    event json not null
);
create index follow_ups_of_task on follow_ups (task_id);

create table watches (
    number bigint generated always as identity primary key,
    awaited text collate "C" not null,
    watcher text collate "C" not null
);
create unique index watches_of on watches (awaited, watcher);

create table steps (
    number bigint generated always as identity primary key,
    task bigint not null,
    position text collate "C" not null,
    ordinal bigint not null,
    verb text collate "C" not null,
    attempt bigint not null,
    created_at bigint not null,
    done boolean not null,
    value text
);
create unique index steps_of_task on steps (task, position);

create table attempts (
    task bigint not null,
    attempt bigint not null,
    worker_id text collate "C" not null,
    started_at bigint not null,
    ended_at bigint not null,
    ending text collate "C" not null,
    error text,
    primary key (task, attempt)
);

create table requests (
    number bigint generated always as identity primary key,
    id text collate "C" not null unique,
    task bigint not null,
    data json not null
);
create index requests_of_task on requests (task);

create table messages (
    number bigint generated always as identity primary key,
    id text collate "C" not null unique,
    task bigint not null,
    direction text collate "C" not null,
    data json not null
);
create index messages_of_task on messages (task);

create table files (
    folder bigint not null,
    path text collate "C" not null,
    media_type text collate "C" not null,
    size bigint not null,
    created_at bigint not null,
    task_id text collate "C",
    content bytea not null,
    primary key (folder, path)
);

create table outputs (
    task bigint primary key,
    first bigint not null,
    next bigint not null
) with (fillfactor = 70);
-- `text` is a JSON string: output may hold a NUL, and `text` of PostgreSQL may not.
create table output (
    number bigint generated always as identity primary key,
    task bigint not null,
    start bigint not null,
    size bigint not null,
    stream text collate "C" not null,
    at bigint not null,
    text json not null
);
create index output_of_task on output (task, start);

create table transcript (
    session bigint not null,
    number bigint not null,
    task_id text collate "C" not null,
    iteration bigint not null,
    message text not null,
    primary key (session, number)
);

create table inbox (
    session bigint not null,
    task_id text collate "C" not null,
    seq bigint not null,
    reason text collate "C" not null,
    body json not null,
    created_at bigint not null,
    primary key (session, task_id)
);

create table workers (
    id text collate "C" primary key,
    card json not null,
    beat bigint not null,
    beat_at bigint not null
) with (fillfactor = 50);

-- The last transaction of each process that has changed anything: it asks for it when it was not told how its commit
-- ended. The server's own numbers of transactions say nothing certain after a crash: those that were not yet on the disk
-- are given out again.
create table writers (
    id integer generated by default as identity primary key,
    number bigint not null,
    at bigint not null
) with (fillfactor = 50);

create table limits (
    key text collate "C" primary key,
    capacity bigint,
    rate bigint,
    span bigint not null
);

-- One row for each concurrency key in use: who counts what it holds, or changes that, locks it.
create table rates (
    key text collate "C" primary key,
    spent json not null,
    opens_at bigint
) with (fillfactor = 50);
create index rates_opening on rates (opens_at) where opens_at is not null;

create table pauses (
    scope text collate "C" not null,
    name text collate "C" not null,
    at bigint not null,
    by text,
    reason text,
    is_over integer not null default 0,
    primary key (scope, name)
);
