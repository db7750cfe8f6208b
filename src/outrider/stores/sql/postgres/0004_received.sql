-- tolerated
-- The seventh of SQLite: what an outside agent has received and not acknowledged.

alter table inbox add column leased_until bigint;
alter table inbox add column deliveries bigint not null default 0;
create index inbox_in_order on inbox (session, seq);
