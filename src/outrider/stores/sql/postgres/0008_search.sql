-- tolerated
-- The eleventh of SQLite: which tasks have a term, for blocks of 2,048 by their numbers.

create table indexed (
    position bigint not null
) with (fillfactor = 50);
insert into indexed (position) values (0);

create table terms (
    block bigint not null,
    term text collate "C" not null,
    tasks bytea not null,
    primary key (block, term)
) with (fillfactor = 80);
-- Short enough to stay in the row: what is read is many of them.
alter table terms alter column tasks set storage plain;

create table blocks (
    block bigint primary key,
    first_id text collate "C" not null,
    last_id text collate "C" not null,
    first_at bigint not null,
    last_at bigint not null
) with (fillfactor = 50);

create table passing_terms (
    task bigint primary key,
    terms text not null
);

create table unlisted (
    task bigint primary key
);
