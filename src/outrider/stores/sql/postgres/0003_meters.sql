-- tolerated
-- The sixth of SQLite: what may still be spent, asked and tried, and the model calls that are under way.

create table meters (
    name text collate "C" primary key,
    state text not null
) with (fillfactor = 50);

create table reservations (
    task bigint not null,
    attempt bigint not null,
    ordinal bigint not null,
    amounts text not null,
    primary key (task, attempt, ordinal)
) with (fillfactor = 50);

alter table sessions add column budget text;
