-- tolerated
-- What an outside agent has received and not acknowledged: until when it is kept for that agent, and how often this
-- entry was handed out, which with `seq` makes a receipt. A program from before writes news over an entry and leaves both:
-- those news come once the lease is over.

alter table inbox add column leased_until integer;
alter table inbox add column deliveries integer not null default 0;
create index inbox_in_order on inbox (session, seq);
