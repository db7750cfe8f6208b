-- tolerated
-- Where the queue of each route has come to (`owner` is empty), and where the lines of an organization (`o:` and its id)
-- and of a session (`s:` and its id) end on it. It takes the place of `tail` of the sessions, which stays for programs
-- from before.

create table lines (
    owner text not null,
    route text not null,
    place integer not null,
    primary key (owner, route)
) without rowid;

-- What waits already is what is next.
insert into lines (owner, route, place)
select '', route, min(rank) - 1 from tasks where readiness = 'ready' group by route;
