-- The first schema. Integer keys (`number`) are the database's own and never leave it; the program's ids are
-- text beside them: an index on numbers is a third of the size, and a commit costs what pages it dirties.
-- Moments are microseconds since the Unix epoch. Documents are JSON text; what equals its default is left out.
-- `references` say what a number is of and are not enforced: that would cost a look-up a row, for rows that one
-- writer makes from heads which it has just read.

create table sessions (
    number integer primary key autoincrement,
    id text not null unique,
    organization_id text not null,
    root_session_id text not null,
    parent_session_id text,
    parent_task_id text,
    agent text,
    title text,
    labels text not null,
    driver_task_id text,
    first_seq integer not null default 1,        -- the oldest entry of the log that is kept
    seq integer not null default 0,              -- the newest
    tail integer not null default 0,             -- where its newest task stands in the queue
    transcript integer not null default 0,       -- the number of its newest transcript entry
    inbox integer not null default 0,            -- the number of its newest inbox entry
    created_at integer not null,
    updated_at integer not null
);

-- The hot row: what transitions write and claims read. `core` holds the fields of the lifecycle that are not
-- columns; NULL documents are values all of whose fields have their defaults.
create table tasks (
    number integer primary key autoincrement,
    id text not null unique,
    session integer not null references sessions,
    organization_id text not null,
    root_session_id text,                        -- NULL where it is the session itself
    parent_task_id text,
    kind text not null,
    route text not null,
    priority integer not null,
    concurrency_key text,
    idempotency_key text,
    detached integer not null,
    created_at integer not null,
    state text not null,
    version integer not null,
    attempt integer not null,
    failures integer not null,
    worker_id text,
    attempt_started_at integer,
    due_at integer,
    readiness text,                              -- timed, ready, blocked; NULL: wants no worker
    next_deadline_at integer,
    started_at integer,
    finished_at integer,
    finished_by integer,
    updated_at integer not null,
    rank integer not null,
    core text,
    outcome text,
    live text,
    active_at integer,
    active_attempt integer                       -- the attempt that `active_at` is a sign of
);
create index tasks_of_session on tasks (session, id);
create index tasks_of_root on tasks (root_session_id, id) where root_session_id is not null;
create index tasks_of_parent on tasks (parent_task_id) where parent_task_id is not null;
create unique index tasks_by_key on tasks (session, idempotency_key) where idempotency_key is not null;
create index tasks_ready on tasks (route, rank) where readiness = 'ready';
create index tasks_timed on tasks (route, due_at) where readiness = 'timed';
create index tasks_blocked on tasks (concurrency_key, rank) where readiness = 'blocked' and concurrency_key is not null;
create index tasks_overdue on tasks (next_deadline_at) where next_deadline_at is not null;
create index tasks_held on tasks (worker_id) where worker_id is not null;

-- What was asked for; written once and never again, so that a transition does not carry a large `spec` along.
create table inputs (
    task integer primary key references tasks,
    data text not null
);

-- Kept by the writer, in the transaction of every transition: counting a million rows would take a second.
create table counts (
    state text primary key,
    tasks integer not null
) without rowid;
insert into counts (state, tasks)
values ('queued', 0), ('running', 0), ('awaiting_input', 0), ('succeeded', 0), ('failed', 0), ('canceled', 0);

-- The log. `task.created` leaves out the input, which readers find in `inputs`.
create table events (
    position integer primary key autoincrement,
    session integer not null references sessions,
    seq integer not null,
    task integer,
    type text not null,
    at integer not null,
    data text not null
);
create unique index events_of_session on events (session, seq);
create index events_of_task on events (task, seq) where task is not null;

create table follow_ups (
    id integer primary key autoincrement,
    task_id text not null,
    event text not null
);
create index follow_ups_of_task on follow_ups (task_id);

-- Who hears when a task ends. The number keeps the order in which they asked.
create table watches (
    number integer primary key,
    awaited text not null,
    watcher text not null
);
create unique index watches_of on watches (awaited, watcher);

create table steps (
    number integer primary key,
    task integer not null references tasks,
    position text not null,
    ordinal integer not null,
    verb text not null,
    attempt integer not null,
    created_at integer not null,
    done integer not null,
    value text
);
create unique index steps_of_task on steps (task, position);

create table attempts (
    task integer not null references tasks,
    attempt integer not null,
    worker_id text not null,
    started_at integer not null,
    ended_at integer not null,
    ending text not null,
    error text,
    primary key (task, attempt)
) without rowid;

create table requests (
    number integer primary key,
    id text not null unique,
    task integer not null references tasks,
    data text not null
);
create index requests_of_task on requests (task);

create table messages (
    number integer primary key,
    id text not null unique,
    task integer not null references tasks,
    direction text not null,
    data text not null
);
create index messages_of_task on messages (task);

-- `folder` is the number of a task for what stands below its `/.tasks/{id}/`, and minus the number of the
-- session for anything else: the many small results then lie side by side in the order of their tasks.
create table files (
    folder integer not null,
    path text not null,
    media_type text not null,
    size integer not null,
    created_at integer not null,
    task_id text,
    content blob not null,
    primary key (folder, path)
) without rowid;

-- How far a task's output goes, in bytes of UTF-8 over all its streams, and the oldest that is kept.
create table outputs (
    task integer primary key references tasks,
    first integer not null,
    next integer not null
);
create table output (
    number integer primary key,
    task integer not null references tasks,
    start integer not null,
    size integer not null,
    stream text not null,
    at integer not null,
    text text not null
);
create index output_of_task on output (task, start);

create table transcript (
    session integer not null references sessions,
    number integer not null,
    task_id text not null,
    iteration integer not null,
    message text not null
);
create unique index transcript_of_session on transcript (session, number);

create table inbox (
    session integer not null references sessions,
    task_id text not null,
    seq integer not null,
    reason text not null,
    body text not null,
    created_at integer not null,
    primary key (session, task_id)
) without rowid;

create table workers (
    id text primary key,
    card text not null,
    beat integer not null,
    beat_at integer not null
) without rowid;

-- Slots and rates behind a `concurrency_key`; a claim takes them, and freeing one readies the next of its key.
create table limits (
    key text primary key,
    capacity integer not null,
    taken integer not null default 0
) without rowid;
create table rates (
    key text primary key,
    capacity integer not null,
    span integer not null,
    tokens real not null,
    counted_at integer not null
) without rowid;
