-- tolerated
-- The ninth of SQLite: the tools that need no more approval in a session.

create table grants (
    session_id text collate "C" not null,
    tool text collate "C" not null,
    is_allowed integer not null,
    at bigint not null,
    by text,
    via text,
    task_id text,
    primary key (session_id, tool)
);
