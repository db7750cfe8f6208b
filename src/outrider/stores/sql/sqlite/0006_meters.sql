-- tolerated
-- What may still be spent, asked and tried: meters by name (JSON, by the kind of the name), and the model calls that are
-- under way in attempts that are held. A program from before reserves nothing, and ends attempts without settling: it
-- knows no budgets.

create table meters (
    name text primary key,
    state text not null
) without rowid;

create table reservations (
    task integer not null references tasks,
    attempt integer not null,
    ordinal integer not null,
    amounts text not null,
    primary key (task, attempt, ordinal)
) without rowid;

alter table sessions add column budget text;
