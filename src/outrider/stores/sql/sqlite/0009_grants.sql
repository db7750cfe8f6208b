-- tolerated
-- The tools that need no more approval in a session, for somebody said so, and when that was taken back. A program from
-- before asks for each call.

create table grants (
    session_id text not null,
    tool text not null,
    is_allowed integer not null,
    at integer not null,
    by text,
    via text,
    task_id text,
    primary key (session_id, tool)
) without rowid;
