-- tolerated
-- The fifth of SQLite: where the queue of each route has come to, and where the lines of organizations and sessions end.

create table lines (
    owner text collate "C" not null,
    route text collate "C" not null,
    place bigint not null,
    primary key (owner, route)
) with (fillfactor = 50);

-- What waits already is what is next.
insert into lines (owner, route, place)
select '', route, min(rank) - 1 from tasks where readiness = 'ready' group by route;
