-- The statements that are the same in both dialects, by name. `{task}` stands for the columns of a whole task; `{texts}`
-- and `{numbers}` say that what stands before them is one of a parameter that is a JSON array.


-- === what a transaction writes ===

-- delete_follow_ups --
delete from follow_ups where id {numbers};

-- delete_watches --
delete from watches where awaited {texts};

-- forget_steps --
-- Those whose position is in a range: those that start with a prefix.
delete from steps where task = ? and position >= ? and position < ?;

-- delete_file --
delete from files where folder = ? and path = ?;

-- trim_output --
-- Drop the pieces that lie wholly before an offset. What begins after it is not looked at: it may be a great many.
delete from output where task = ?1 and start <= ?2 and start + size <= ?2;

-- first_output --
select min(start) from output where task = ?;

-- lease_inbox --
update inbox
set leased_until = ?, deliveries = deliveries + 1
where session = (select number from sessions where id = ?) and task_id {texts};

-- renew_inbox --
update inbox
set leased_until = ?
where session = (select number from sessions where id = ?) and task_id {texts};

-- delete_inbox --
delete from inbox where session = (select number from sessions where id = ?) and task_id {texts};

-- renew_worker --
update workers set beat = beat + 1, beat_at = ? where id = ?;

-- delete_worker --
delete from workers where id = ?;


-- copy_transcript --
-- Into a session, by number, from another one: its first so many entries.
insert into transcript (session, number, task_id, iteration, message)
select ?1, number, task_id, iteration, message from transcript where session = ?2 and number <= ?3;

-- copy_files --
insert into files (folder, path, media_type, size, created_at, task_id, content)
select ?1, path, media_type, size, created_at, task_id, content from files where folder = ?2;

-- close_session --
-- Since a moment, or with NULL no more.
update sessions set closed_at = ? where number = ?;

-- description --
select title, labels from sessions where number = ?;

-- describe_session --
update sessions set title = ?, labels = ? where number = ?;

-- move_index --
update indexed set position = ?;

-- delete_passing_terms --
delete from passing_terms where task {numbers};

-- listed_in --
-- Whether any task of a range of numbers is there.
select exists (select 1 from tasks where number between ? and ?);

-- delete_block --
delete from blocks where block = ?;

-- delete_terms_of_block --
delete from terms where block = ?;

-- leave_index --
delete from unlisted where task {numbers};


-- === claims ===

-- set_aside --
-- Out of the way of the claims that follow, for a reason.
update tasks set readiness = 'blocked', blocked_by = ? where number {numbers};

-- prune_rates --
delete from rates where key {texts};

-- upsert_limit --
insert into limits (key, capacity, rate, span)
values (?, ?, ?, ?)
on conflict (key) do update set capacity = excluded.capacity, rate = excluded.rate, span = excluded.span;

-- delete_limit --
delete from limits where key = ?;

-- upsert_pause --
insert into pauses (scope, name, at, by, reason, is_over)
values (?, ?, ?, ?, ?, 0)
on conflict (scope, name) do update set
    at = excluded.at, by = excluded.by, reason = excluded.reason, is_over = 0;

-- end_pause --
update pauses set is_over = 1 where scope = ? and name = ?;

-- delete_pause --
delete from pauses where scope = ? and name = ?;

-- first_deadline --
select min(next_deadline_at) from tasks where next_deadline_at is not null;

-- first_opening --
select min(opens_at) from rates where opens_at is not null;

-- tasks_by_number --
select {task}
from tasks t join sessions s on s.number = t.session join inputs i on i.task = t.number
where t.number {numbers};


-- === pruning ===

-- prune_events --
delete from events where task {numbers};

-- prune_steps --
delete from steps where task {numbers};

-- prune_attempts --
delete from attempts where task {numbers};

-- prune_requests --
delete from requests where task {numbers};

-- prune_messages --
delete from messages where task {numbers};

-- prune_output --
delete from output where task {numbers};

-- prune_outputs --
delete from outputs where task {numbers};

-- prune_files --
-- Of tasks by number, of sessions by minus their number.
delete from files where folder {numbers};

-- prune_inbox --
delete from inbox where session = ? and task_id {texts};

-- prune_inputs --
delete from inputs where task {numbers};

-- prune_meters --
delete from meters
where name in (select 'task:' || id from tasks where number {numbers});

-- prune_passing_terms --
delete from passing_terms where task {numbers};

-- unlist --
-- They leave the index later: see `Batch.index`.
insert into unlisted (task)
select number from tasks where number {numbers}
on conflict do nothing;

-- prune_tasks --
delete from tasks where number {numbers};

-- prune_session_events --
delete from events where session {numbers};

-- prune_transcript --
delete from transcript where session {numbers};

-- prune_session_inbox --
delete from inbox where session {numbers};

-- prune_pauses --
delete from pauses
where scope = 'session' and name in (select id from sessions where number {numbers});

-- prune_grants --
delete from grants where session_id in (select id from sessions where number {numbers});

-- upsert_grant --
-- The newest word holds: one that was taken back is not given again by who only repeats it.
insert into grants (session_id, tool, is_allowed, at, by, via, task_id)
values (?, ?, ?, ?, ?, ?, ?)
on conflict (session_id, tool) do update set
    is_allowed = excluded.is_allowed, at = excluded.at, by = excluded.by, via = excluded.via, task_id = excluded.task_id
where grants.at < excluded.at;

-- prune_lines --
delete from lines
where owner in (select 's:' || id from sessions where number {numbers});

-- prune_session_meters --
delete from meters
where
    name in (select 'session:' || id from sessions where number {numbers:1})
    or name in (select 'tree:' || id from sessions where number {numbers:1});

-- prune_sessions --
delete from sessions where number {numbers};


-- === views ===

-- tasks_by_id --
select {task}
from tasks t join sessions s on s.number = t.session join inputs i on i.task = t.number
where t.id {texts};

-- tasks_by_key --
select {task}
from tasks t join sessions s on s.number = t.session join inputs i on i.task = t.number
where t.session = (select number from sessions where id = ?) and t.idempotency_key {texts};

-- indexed --
select position from indexed;

-- count_in_session --
-- How many tasks a session has, up to a number.
select count(*)
from (select 1 from tasks where session = (select number from sessions where id = ?) limit ?) few;

-- count_below_root --
select count(*) from (select 1 from tasks where root_session_id = ? limit ?) few;

-- count_of_parent --
select count(*) from (select 1 from tasks where parent_task_id = ? limit ?) few;

-- in_session --
session = (select number from sessions where id = ?)

-- in_states --
state {texts}

-- children --
select {task}
from tasks t join sessions s on s.number = t.session join inputs i on i.task = t.number
where t.parent_task_id = ?;

-- active_at --
select active_at from tasks where id = ? and active_attempt = attempt;

-- overdue --
select {task}
from (select * from tasks where next_deadline_at <= ? order by next_deadline_at, id limit ?) t
join sessions s on s.number = t.session join inputs i on i.task = t.number;

-- session --
select
    id, organization_id, root_session_id, parent_session_id, parent_task_id, agent, title, labels, driver_task_id,
    seq, created_at, updated_at, budget, closed_at, forked_from
from sessions
where id = ?;

-- usage --
-- What the tasks of a session reported, together: requests, tokens in, out and cached, cost.
{usage}
from tasks
where session = (select number from sessions where id = ?) and live is not null;

-- usage_of_tree --
-- The same of a root session and all below.
{usage}
from (
    select live
    from tasks
    where session = (select number from sessions where id = ?1) and root_session_id is null and live is not null
    union all
    select live from tasks where root_session_id = ?1 and live is not null
) found;

-- receivable_at --
-- When somebody can receive something: 0 for at once. The entries that are not free are no more than are being worked on.
select case
    when exists (select 1 from inbox where session = s.number and (leased_until is null or leased_until <= ?2)) then 0
    else (select min(leased_until) from inbox where session = s.number)
end
from sessions s
where s.id = ?1;

-- first_seq --
select first_seq from sessions where id = ?;

-- file --
-- By the folder of a task, where the path lies in one, and else among the session's own.
select content
from files
where folder = (
    select t.number from tasks t join sessions s on s.number = t.session where t.id = ?2 and s.id = ?1
) and path = ?3
union all
select content from files where folder = -(select number from sessions where id = ?1) and path = ?4
limit 1;


-- === for people: these look at everything that they tell of ===

-- ahead --
-- How many ready tasks of its route stand before a ready one.
select (
    select count(*)
    from tasks before
    where
        before.route = own.route
        and before.readiness = 'ready'
        and before.rank <= own.rank
        and (before.rank < own.rank or before.number < own.number)
)
from tasks own
where own.id = ? and own.readiness = 'ready';
