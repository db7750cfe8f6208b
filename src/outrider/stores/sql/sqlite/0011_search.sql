-- tolerated
-- What lists go by: which tasks have a term (a state, kind, label, word ...), for blocks of 2,048 by their numbers. It
-- follows the log and stands at `position`; nothing of it is written with a transition. All of it can be made anew. A
-- program from before leaves the words of what it deletes in it; they find nothing.

create table indexed (
    position integer not null
);
insert into indexed (position) values (0);

-- `tasks` are the places in the block: two bytes each, or from 128 on 256 bytes with a bit for each.
create table terms (
    block integer not null,
    term text not null,
    tasks blob not null,
    primary key (block, term)
) without rowid;

-- No task of a block has an id or a time of creation outside of these.
create table blocks (
    block integer primary key,
    first_id text not null,
    last_id text not null,
    first_at integer not null,
    last_at integer not null
);

-- The terms of a task that may go again.
create table passing_terms (
    task integer primary key references tasks,
    terms text not null
);

-- Tasks that were deleted and have not left the index yet.
create table unlisted (
    task integer primary key
);
