-- The statements that only SQLite has in this form, by name; the others are in the folder above. `{rows:N}` stands for
-- some rows of N parameters each. Lists are read as one JSON array in one row: each row
-- fetched gives up the interpreter's lock and has to win it back, which beside a busy event loop costs more
-- than the query.


-- === what a transaction looks up before it writes ===

-- task_heads --
-- What verdicts and fences need to know of tasks, by id.
select json_group_array(json_array(
    t.number, t.id, s.id, t.state, t.version, t.attempt, t.worker_id, t.due_at, t.rank,
    ifnull(t.core ->> 'priority', t.priority), t.live, t.active_at, t.active_attempt
))
from tasks t join sessions s on s.number = t.session
where t.id in (select value from json_each(?));

-- session_heads --
-- The counters of sessions, by id.
select json_group_array(json_array(
    number, id, seq, transcript, inbox, updated_at, agent is not null, closed_at is not null
))
from sessions
where id in (select value from json_each(?));

-- lines --
-- Where these lines end, by route and owner.
select json_group_array(json_array(route, owner, place))
from json_each(?) line join lines on owner = line.value ->> 1 and route = line.value ->> 0;

-- keys --
-- Which of these (session id, idempotency key) pairs are taken, and by which task.
select json_group_array(json_array(s.id, t.idempotency_key, t.id))
from json_each(?) pair
join sessions s on s.id = pair.value ->> 0
join tasks t on t.session = s.number and t.idempotency_key = pair.value ->> 1;

-- debounced --
-- Which of these (session id, debounce key) pairs stand for a task that has not started, and for which.
select json_group_array(json_array(s.id, t.debounce_key, t.id))
from json_each(?) pair
join sessions s on s.id = pair.value ->> 0
join tasks t on t.session = s.number and t.debounce_key = pair.value ->> 1
where t.state = 'queued' and t.started_at is null;

-- held_of_keys --
-- How many tasks of these concurrency keys are held, and what of their rates is spent.
select json_group_array(json_array(
    value,
    (select count(*) from tasks where concurrency_key = value and worker_id is not null),
    (select json(spent) from rates where key = value)
))
from json_each(?);

-- gates --
-- All limits, and all pauses with the number of their session; one that is over is being lifted.
select json_array(
    (select json_group_array(json_array(key, capacity, rate, span)) from limits),
    (
        select json_group_array(json_array(p.scope, p.name, p.at, p.by, p.reason, p.is_over, s.number))
        from pauses p left join sessions s on p.scope = 'session' and s.id = p.name
    )
);

-- pending_follow_ups --
-- Which of these follow-ups still wait.
select json_group_array(id) from follow_ups where id in (select value from json_each(?));

-- watchers --
-- Who watches these tasks, in the order in which they asked.
select json_group_array(json_array(awaited, watcher))
from (select awaited, watcher from watches where awaited in (select value from json_each(?)) order by number);

-- live_children --
-- The children of these tasks that have not ended, in the order of their creation.
select json_group_array(json_array(parent_task_id, id, detached))
from (
    select parent_task_id, id, detached
    from tasks
    where parent_task_id in (select value from json_each(?)) and state in ('queued', 'running', 'awaiting_input')
    order by number
);

-- live_in_session --
-- The tasks of a session, by number, that have not ended and end with it. Looks at all of them.
select json_group_array(id)
from (
    select id from tasks
    where session = ? and not detached and state in ('queued', 'running', 'awaiting_input')
    order by id
);

-- meters --
-- Those of these meters that there are.
select json_group_array(json_array(name, json(state))) from meters where name in (select value from json_each(?));

-- reservations --
-- The open model calls of these tasks, by id.
select json_group_array(json_array(t.id, r.attempt, r.ordinal, json(r.amounts)))
from tasks t join reservations r on r.task = t.number
where t.id in (select value from json_each(?));

-- lock_index --
-- Where the index stands.
select position from indexed;

-- numbers_of --
select json_group_array(json_array(id, number)) from tasks where id in (select value from json_each(?));

-- passing_terms --
select json_group_array(json_array(task, json(terms)))
from passing_terms where task in (select value from json_each(?));

-- terms_at --
-- Who has these terms in these blocks. Bytes are no JSON.
select json_group_array(json_array(block, term, hex(tasks)))
from json_each(?) wanted join terms on block = wanted.value ->> 0 and term = wanted.value ->> 1;

-- terms_of_block --
select json_group_array(json_array(block, term, hex(tasks))) from terms where block = ?;

-- unlisted --
select json_group_array(task) from (select task from unlisted order by task limit ?);

-- last_numbers --
-- The newest numbers given out, which are never given twice.
select
    ifnull((select seq from sqlite_sequence where name = 'tasks'), 0),
    ifnull((select seq from sqlite_sequence where name = 'sessions'), 0);

-- ends_of_output --
-- Where the output of these tasks, by number, begins and ends.
select json_group_array(json_array(task, first, next)) from outputs where task in (select value from json_each(?));


-- === what a transaction writes ===

-- insert_sessions --
insert into sessions (
    number, id, organization_id, root_session_id, parent_session_id, parent_task_id, agent, title, labels,
    seq, transcript, inbox, created_at, updated_at, budget, forked_from
)
values {rows:16};

-- update_sessions --
update sessions
set seq = v.column2, transcript = v.column3, inbox = v.column4, updated_at = v.column5
from (values {rows:5}) as v
where sessions.number = v.column1;

-- update_drivers --
update sessions set driver_task_id = v.column2 from (values {rows:2}) as v where sessions.number = v.column1;

-- take_inbox --
-- What was written anew since it was read has another number.
delete from inbox where (session, task_id, seq) in (values {rows:3});

-- receivable --
select json_group_array(json_array(seq, task_id, reason, json(body), created_at, deliveries))
from (
    select *
    from inbox
    where session = (select number from sessions where id = ?) and (leased_until is null or leased_until <= ?)
    order by seq
    limit ?
);

-- deliveries --
select json_group_array(json_array(task_id, seq, deliveries))
from inbox
where session = (select number from sessions where id = ?) and task_id in (select value from json_each(?));

-- insert_tasks --
insert into tasks (
    number, id, session, organization_id, root_session_id, parent_task_id, kind, route, priority, concurrency_key,
    idempotency_key, debounce_key, detached, created_at, state, version, attempt, failures, worker_id, attempt_started_at, due_at,
    readiness, next_deadline_at, started_at, finished_at, finished_by, updated_at, blocked_by, rank, core, outcome,
    live
)
values {rows:32};

-- insert_inputs --
insert into inputs (task, data) values {rows:2};

-- update_tasks --
update tasks
set
    state = v.column2, version = v.column3, attempt = v.column4, failures = v.column5, worker_id = v.column6,
    attempt_started_at = v.column7, due_at = v.column8, readiness = v.column9, next_deadline_at = v.column10,
    started_at = v.column11, finished_at = v.column12, finished_by = v.column13, updated_at = v.column14,
    blocked_by = v.column15, rank = v.column16, core = v.column17, outcome = v.column18
from (values {rows:18}) as v
where tasks.number = v.column1;

-- update_live --
update tasks
set live = v.column2, active_at = v.column3, active_attempt = v.column4
from (values {rows:4}) as v
where tasks.number = v.column1;

-- update_counts --
update counts set tasks = tasks + v.column2 from (values {rows:2}) as v where state = v.column1;

-- insert_events --
insert into events (session, seq, task, type, at, data) values {rows:6};

-- insert_follow_ups --
insert into follow_ups (task_id, event) values {rows:2};

-- insert_watches --
insert into watches (awaited, watcher) values {rows:2} on conflict do nothing;

-- upsert_steps --
insert into steps (task, position, ordinal, verb, attempt, created_at, done, value)
values {rows:8}
on conflict (task, position) do update set
    ordinal = excluded.ordinal, verb = excluded.verb, attempt = excluded.attempt, created_at = excluded.created_at,
    done = excluded.done, value = excluded.value;

-- insert_attempts --
insert into attempts (task, attempt, worker_id, started_at, ended_at, ending, error) values {rows:7};

-- upsert_terms --
insert into terms (block, term, tasks) values {rows:3} on conflict (block, term) do update set tasks = excluded.tasks;

-- delete_terms --
delete from terms where (block, term) in (select value ->> 0, value ->> 1 from json_each(?));

-- upsert_blocks --
insert into blocks (block, first_id, last_id, first_at, last_at)
values {rows:5}
on conflict (block) do update set
    first_id = min(first_id, excluded.first_id), last_id = max(last_id, excluded.last_id),
    first_at = min(first_at, excluded.first_at), last_at = max(last_at, excluded.last_at);

-- upsert_passing_terms --
insert into passing_terms (task, terms) values {rows:2} on conflict (task) do update set terms = excluded.terms;

-- grants --
-- What was said of the tools of these sessions, by session and name.
select json_group_array(json_array(session_id, tool, is_allowed, at, by, via, task_id))
from (
    select * from grants where session_id in (select value from json_each(?)) order by session_id, tool
);

-- document_versions --
-- Of these (collection, id).
select json_group_array(json_array(d.collection, d.id, d.version))
from json_each(?) name join documents d on d.collection = name.value ->> 0 and d.id = name.value ->> 1;

-- document_keys --
-- Who has these (collection, key).
select json_group_array(json_array(d.collection, d.id))
from json_each(?) name join documents d on d.collection = name.value ->> 0 and d.key = name.value ->> 1;

-- delete_documents --
delete from documents
where (collection, id) in (select value ->> 0, value ->> 1 from json_each(?));

-- loosen_documents --
-- Take the keys of these (collection, id), which are about to be given out anew.
update documents
set key = null
where (collection, id) in (select value ->> 0, value ->> 1 from json_each(?)) and key is not null;

-- upsert_documents --
insert into documents (collection, id, organization_id, key, due_at, version, data)
values {rows:7}
on conflict (collection, id) do update set
    organization_id = excluded.organization_id, key = excluded.key, due_at = excluded.due_at,
    version = excluded.version, data = excluded.data;

-- document_where --
select json_group_array(json_array(collection, id, data, organization_id, key, due_at, version))
from (select * from documents where {conditions} order by id {direction} limit ?);

-- due_documents --
select json_group_array(json_array(collection, id, data, organization_id, key, due_at, version))
from (select * from documents where {conditions} order by due_at {direction}, id limit ?);

-- first_due_document --
select min(due_at) from documents where collection = ? and due_at is not null;

-- upsert_meters --
insert into meters (name, state) values {rows:2} on conflict (name) do update set state = excluded.state;

-- insert_reservations --
insert into reservations (task, attempt, ordinal, amounts) values {rows:4};

-- delete_reservations --
-- By task, attempt and ordinal.
delete from reservations
where (task, attempt, ordinal) in (select value ->> 0, value ->> 1, value ->> 2 from json_each(?));

-- upsert_requests --
insert into requests (id, task, data) values {rows:3} on conflict (id) do update set data = excluded.data;

-- insert_messages --
insert into messages (id, task, direction, data) values {rows:4};

-- upsert_files --
insert into files (folder, path, media_type, size, created_at, task_id, content)
values {rows:7}
on conflict (folder, path) do update set
    media_type = excluded.media_type, size = excluded.size, created_at = excluded.created_at,
    task_id = excluded.task_id, content = excluded.content;

-- upsert_outputs --
insert into outputs (task, first, next)
values {rows:3}
on conflict (task) do update set first = excluded.first, next = excluded.next;

-- insert_output --
insert into output (task, start, size, stream, at, text) values {rows:6};

-- insert_transcript --
insert into transcript (session, number, task_id, iteration, message) values {rows:5};

-- upsert_inbox --
-- News that nobody has received yet, whoever has the ones before.
insert into inbox (session, task_id, seq, reason, body, created_at)
values {rows:6}
on conflict (session, task_id) do update set
    seq = excluded.seq, reason = excluded.reason, body = excluded.body, created_at = excluded.created_at,
    leased_until = null, deliveries = 0;

-- upsert_worker --
insert into workers (id, card, beat, beat_at)
values (?, ?, 0, ?)
on conflict (id) do update set card = excluded.card, beat = 0, beat_at = excluded.beat_at;


-- === claims ===

-- come --
-- Make ready what is due by now on these routes, oldest first on each, and not without bound. Each stands where the
-- turn of its route has come to by now; see `rank_of_resumed`.
update tasks
set
    readiness = 'ready',
    rank = rank - due_at + ifnull(
        (select max(place + 1, min(due_at, place + 1 + ?)) from lines where lines.owner = '' and lines.route = tasks.route),
        due_at
    )
where number in (
    select number
    from tasks
    where route in (select value from json_each(?)) and readiness = 'timed' and due_at <= ?
    limit ?
)
returning number, rank;

-- look --
-- All that a claim has to know, at once, of these routes: the first ready tasks of each (rank, number, due_at, key,
-- session); when the first timed one is due; the earliest deadline of any task; whether follow-ups wait; when a start
-- returns to a rate that holds tasks back. The index ends with the number, so each route's are in this order; one sort
-- over all would walk through everything that is ready.
select json_array(
    (
        select json_group_array(json((
            select json_group_array(json_array(rank, number, due_at, concurrency_key, session))
            from (
                select rank, number, due_at, concurrency_key, session
                from tasks
                where route = served.value and readiness = 'ready'
                order by rank, number
                limit ?2
            )
        )))
        from json_each(?1) served
    ),
    (
        select min((select min(due_at) from tasks where route = served.value and readiness = 'timed'))
        from json_each(?1) served
    ),
    (select min(next_deadline_at) from tasks where next_deadline_at is not null),
    exists (select 1 from follow_ups),
    (select min(opens_at) from rates where opens_at is not null)
);

-- open_key --
-- The first tasks of a key on each route that were set aside may be claimed again: at most so many of each.
update tasks
set readiness = 'ready', blocked_by = null
where number in (
    with recursive waiting (route) as (
        select min(route) from tasks where concurrency_key = ?1 and blocked_by = 'limit'
        union all
        select (
            select min(route) from tasks where concurrency_key = ?1 and blocked_by = 'limit' and route > waiting.route
        )
        from waiting
        where waiting.route is not null
    )
    select first.value
    from waiting, json_each((
        select json_group_array(number)
        from (
            select number
            from tasks
            where concurrency_key = ?1 and blocked_by = 'limit' and route = waiting.route
            order by rank, number
            limit ?2
        )
    )) first
    where waiting.route is not null
)
returning number;

-- open_session --
-- Tasks that were set aside while their session was paused may be claimed again: at most so many.
update tasks
set readiness = 'ready', blocked_by = null
where number in (select number from tasks where session = ? and blocked_by = 'paused' limit ?)
returning number;

-- waiting_keys --
-- The keys, from one on and up to another, under which tasks were set aside.
with recursive waiting (key) as (
    select min(concurrency_key) from tasks where blocked_by = 'limit' and concurrency_key >= ?1 and concurrency_key < ?2
    union all
    select (
        select min(concurrency_key)
        from tasks
        where blocked_by = 'limit' and concurrency_key > waiting.key and concurrency_key < ?2
    )
    from waiting
    where waiting.key is not null
)
select json_group_array(key) from waiting where key is not null;

-- opening_keys --
-- The keys to whose rate a start has returned by now.
select json_group_array(key) from (select key from rates where opens_at <= ? order by opens_at limit ?);

-- upsert_lines --
insert into lines (route, owner, place)
values {rows:3}
on conflict (owner, route) do update set place = max(lines.place, excluded.place);

-- upsert_rates --
insert into rates (key, spent, opens_at)
values {rows:3}
on conflict (key) do update set spent = excluded.spent, opens_at = excluded.opens_at;

-- prunable_rates --
-- What is spent of the rates of these tasks' keys, of those that nobody waits for.
select json_group_array(json_array(key, json(spent))) from rates
where opens_at is null and key in (
    select concurrency_key from tasks
    where number in (select value from json_each(?)) and concurrency_key is not null
);

-- ready_by --
-- The same first ready tasks without those that are due after a moment.
select json_group_array(json((
    select json_group_array(json_array(rank, number, due_at, concurrency_key, session))
    from (
        select rank, number, due_at, concurrency_key, session
        from tasks
        where route = served.value and readiness = 'ready' and due_at <= ?3
        order by rank, number
        limit ?2
    )
)))
from json_each(?1) served;

-- ready_later --
-- When the first of those is due.
select min((
    select min(due_at) from tasks where route = served.value and readiness = 'ready' and due_at > ?2
))
from json_each(?1) served;


-- === pruning ===

-- prunable --
-- Of these tasks those that have ended, each with its session, whether that has yet to be told of it, and how many
-- rows it has in the tables that grow.
select json_group_array(json_array(
    t.number, t.id, t.session, s.id, t.state,
    exists (select 1 from inbox where session = t.session and task_id = t.id),
    1 + (select count(*) from events where task = t.number) + (select count(*) from steps where task = t.number)
    + (select count(*) from output where task = t.number)
))
from tasks t join sessions s on s.number = t.session
where t.id in (select value from json_each(?)) and t.finished_at is not null;

-- move_first_seq --
-- The log of a session is whole from after the newest entry that goes.
update sessions
set first_seq = max(first_seq, gone.seq + 1)
from (
    select session, max(seq) as seq from events where task in (select value from json_each(?)) group by session
) as gone
where sessions.number = gone.session;

-- prune_follow_ups --
-- Those for tasks that do not exist, of these.
delete from follow_ups
where task_id in (select value from json_each(?1) where value not in (
    select id from tasks where id in (select value from json_each(?1))
));

-- empty_sessions --
-- Sessions without tasks: of these ids (1); opened by one of these tasks (2); or of these numbers (3), where the task
-- that opened it is gone.
select json_group_array(json_array(number, id))
from (
    select number, id from sessions where id in (select value from json_each(?1))
    union
    select number, id from sessions where parent_task_id in (select value from json_each(?2))
    union
    select number, id from sessions
    where
        number in (select value from json_each(?3))
        and parent_task_id is not null
        and not exists (select 1 from tasks where id = sessions.parent_task_id)
) found
where not exists (select 1 from tasks where session = found.number);


-- === views ===

-- task_ids --
-- Looks at every id, in the index on them and nowhere else; no LIKE, whose wildcards an id may contain.
select json_group_array(id) from (
    select id from tasks
    where
        (substr(id, 1, length(?1)) = ?1 or substr(id, -length(?1), length(?1)) = ?1)
        and (?3 is null or organization_id = ?3)
        and (?4 is null or ifnull(root_session_id, (select id from sessions where number = session)) = ?4)
    order by id limit ?2
);

-- tasks_where --
-- A page of tasks; the conditions and the order are filled in by `views.list_tasks`, from its own texts only. There are
-- no more than `counts` says of these states: who asks for the few that live need not go through all that ended.
select {task}
from (
    select *
    from tasks
    where {conditions}
    order by id {direction}
    limit min(?, ifnull((select sum(tasks) from counts where state in (select value from json_each(?))), 0))
) t
join sessions s on s.number = t.session join inputs i on i.task = t.number;

-- tasks_among --
-- A page of these tasks that meet conditions, found by their numbers: in the order of ids it might look at all there are.
select {task}
from (
    select number as found
    from tasks
    where {conditions} and number in (select value from json_each(?))
    order by +id {direction}
    limit ?
)
join tasks t on t.number = found
join sessions s on s.number = t.session join inputs i on i.task = t.number;

-- not_indexed --
-- How many log entries the index has not taken in, up to a number.
select count(*) from (select 1 from events where position > ? limit ?);

-- moved_since --
-- The tasks that moved after a position.
select json_group_array(distinct task)
from events
where position > ? and type in ('task.created', 'task.updated', 'task.progress');

-- unindexed --
-- The next log entries after a position, with the tasks that moved.
select json_group_array(json_array(
    position, case when type in ('task.created', 'task.updated', 'task.progress') then task end
))
from (select position, task, type from events where position > ? order by position limit ?);

-- blocks --
select json_group_array(json_array(block, first_id, last_id, first_at, last_at)) from blocks;

-- terms --
-- Who has these terms in these blocks.
select json_group_array(json_array(block, term, hex(tasks)))
from terms
where block in (select value from json_each(?)) and term in (select value from json_each(?));

-- terms_between --
-- Who has any term of a range in these blocks.
select json_group_array(json_array(block, term, hex(tasks)))
from terms
where block in (select value from json_each(?)) and term >= ? and term < ?;

-- labelled --
exists (select 1 from inputs i, json_each(i.data, '$.labels') label
where i.task = tasks.number and label.key = ? and label.value = ?)

-- held_by --
select json_group_array(json_array(id, attempt, version)) from tasks where worker_id = ?;

-- holders --
select json_group_array(json_array(worker_id, held))
from (select worker_id, count(*) as held from tasks where worker_id is not null group by worker_id);

-- follow_ups --
select json_group_array(json_array(id, task_id, json(event)))
from (select id, task_id, event from follow_ups order by id limit ?);

-- follow_ups_of --
select json_group_array(json_array(id, task_id, json(event)))
from (
    select id, task_id, event
    from follow_ups
    where task_id in (select value from json_each(?))
    order by id
    limit ?
);

-- sessions --
-- Newest first, before an id; every id is smaller than a blob.
select json_group_array(json_array(
    id, organization_id, root_session_id, parent_session_id, parent_task_id, agent, title, labels, driver_task_id,
    seq, created_at, updated_at, budget, closed_at, forked_from
))
from (
    select *
    from sessions
    where
        id < ifnull(?1, x'') and (?3 is null or organization_id = ?3) and (?4 is null or root_session_id = ?4)
    order by id desc
    limit ?2
);

-- steps --
select json_group_array(json_array(position, ordinal, verb, attempt, created_at, value, done))
from (select * from steps where task = (select number from tasks where id = ?) order by number);

-- steps_without_values --
select json_group_array(json_array(position, ordinal, verb, attempt, created_at, null, done))
from (
    select position, ordinal, verb, attempt, created_at, done
    from steps where task = (select number from tasks where id = ?) order by number
);

-- attempts --
select json_group_array(json_array(attempt, worker_id, started_at, ended_at, ending, error))
from (select * from attempts where task = (select number from tasks where id = ?) order by attempt);

-- requests --
select json_group_array(json(data))
from (select data from requests where task = (select number from tasks where id = ?) order by number);

-- request --
select data from requests where id = ?;

-- messages --
-- A task's thread: its id, the direction or NULL, and the id of the message to go on after, twice.
select json_group_array(json(data))
from (
    select data
    from messages
    where
        task = (select number from tasks where id = ?1)
        and (?2 is null or direction = ?2)
        and number > case when ?3 is null then 0 else (select number from messages where id = ?3) end
    order by number
    limit ?4
);

-- events --
select json_group_array(json_array(e.position, e.seq, t.id, e.type, e.at, e.data, i.data))
from (
    select * from events where session = (select number from sessions where id = ?) and seq > ? order by seq limit ?
) e
left join tasks t on t.number = e.task
left join inputs i on i.task = e.task and e.type = 'task.created';

-- events_of_task --
select json_group_array(json_array(e.position, e.seq, t.id, e.type, e.at, e.data, i.data))
from (
    select *
    from events
    where
        task = (select number from tasks where id = ?)
        and session = (select number from sessions where id = ?)
        and seq > ?
    order by seq
    limit ?
) e
left join tasks t on t.number = e.task
left join inputs i on i.task = e.task and e.type = 'task.created';

-- position --
-- Also where the newest entry was pruned.
select ifnull((select seq from sqlite_sequence where name = 'events'), 0);

-- horizon --
select ifnull((select seq from sqlite_sequence where name = 'events'), 0);

-- heads --
select json_group_array(json_array(s.id, s.seq, e.position, s.organization_id, s.root_session_id))
from sessions s left join events e on e.session = s.number and e.seq = s.seq
where s.id in (select value from json_each(?));

-- news --
select json_group_array(json_array(e.position, s.id, e.seq, t.id))
from (select position, session, seq, task from events where position > ? order by position limit ?) e
join sessions s on s.number = e.session
left join tasks t on t.number = e.task;

-- log --
-- The next entries of all sessions; without its data what is not of that organization.
select json_group_array(json_array(
    e.position, s.id, e.seq, t.id, e.type, e.at,
    case when ?3 is null or s.organization_id = ?3 then e.data end, i.data
))
from (select * from events where position > ?1 order by position limit ?2) e
join sessions s on s.number = e.session
left join tasks t on t.number = e.task
left join inputs i on i.task = e.task and e.type = 'task.created';

-- output --
-- The oldest byte kept, the end, and the pieces from the one that holds a byte on.
select json_array(o.first, o.next, (
    select json_group_array(json_array(stream, start, size, text, at))
    from (
        select stream, start, size, text, at
        from output
        where
            task = o.task
            and start >= ifnull(
                (select start from output where task = o.task and start <= ?2 order by start desc limit 1), 0
            )
            and start + size > ?2
        order by start, number
        limit ?3
    )
))
from outputs o
where o.task = (select number from tasks where id = ?1);

-- own_files --
-- What tells those of a folder apart.
select json_group_array(json_array(path, size, created_at)) from files where folder = ?;

-- files --
-- Below a prefix and after a path: the session's own files, and those in the folders of its tasks, whose ids are in a
-- range too.
select json_group_array(json_array(path, media_type, size, created_at, task_id))
from (
    select path, media_type, size, created_at, task_id
    from (
        select path, media_type, size, created_at, task_id
        from files
        where folder = -(select number from sessions where id = ?1) and path >= ?2 and path < ?3
        union all
        select '/.tasks/' || t.id || '/' || f.path as path, f.media_type, f.size, f.created_at, f.task_id
        from tasks t join files f on f.folder = t.number
        where t.session = (select number from sessions where id = ?1) and t.id >= ?4 and t.id <= ?5
    )
    where path >= ?2 and path < ?3 and path <> ?7
    order by path
    limit ?6
);

-- transcript --
select json_group_array(json_array(number, task_id, iteration, message))
from (
    select number, task_id, iteration, message
    from transcript
    where session = (select number from sessions where id = ?) and number > ?
    order by number
    limit ?
);

-- last_entry --
select ifnull(max(number), 0)
from (
    select number from transcript
    where
        session = (select number from sessions where id = ?1)
        and (?2 is null or task_id = ?2)
        and (?3 is null or iteration <= ?3)
    order by number desc
    limit 1
);

-- inbox --
select json_group_array(json_array(seq, task_id, reason, json(body), created_at, deliveries, leased_until))
from (select * from inbox where session = (select number from sessions where id = ?) order by seq limit ?);

-- ended --
-- The longest ended first; the conditions are filled in by `views.ended`, from its own texts only.
select json_group_array(id)
from (select id from tasks where {conditions} order by finished_at {direction}, number {direction} limit ?);

-- unpinned --
not exists (
    select 1 from documents pin
    where
        pin.collection = 'pin'
        and pin.id in (
            tasks.id, tasks.root_session_id, (select own.id from sessions own where own.number = tasks.session)
        )
)

-- newest_ended --
select finished_at
from tasks
where organization_id = ? and finished_at is not null
order by finished_at desc
limit 1 offset ?;

-- child_sessions --
select json_group_array(json_array(
    id, organization_id, root_session_id, parent_session_id, parent_task_id, agent, title, labels, driver_task_id,
    seq, created_at, updated_at, budget, closed_at, forked_from
))
from sessions
where parent_task_id in (select value from json_each(?));

-- workers --
select json_group_array(json_array(json(card), beat, beat_at)) from workers;

-- counts --
select json_group_array(json_array(state, tasks)) from counts;

-- keys_in_use --
-- The concurrency keys under which anything is held or set aside.
select json_group_array(concurrency_key)
from (
    select concurrency_key from tasks where concurrency_key is not null and worker_id is not null
    union
    select concurrency_key from tasks where concurrency_key is not null and blocked_by = 'limit'
);

-- uses --
-- Of these keys: what is held, what is set aside, what of the rate is spent.
select json_group_array(json_array(
    value,
    (select count(*) from tasks where concurrency_key = value and worker_id is not null),
    (select count(*) from tasks where concurrency_key = value and blocked_by = 'limit'),
    (select json(spent) from rates where key = value)
))
from (select value from json_each(?) order by value);


-- === for people: these look at everything that they tell of ===

-- applied --
-- The migrations of the schema.
select json_group_array(json_array(number, checksum, tolerated)) from migrations;

-- waiting --
-- What wants a worker, by route and by what holds it back.
select json_group_array(json_array(route, readiness, blocked_by, waiting, oldest))
from (
    select route, readiness, blocked_by, count(*) as waiting, min(due_at) as oldest
    from tasks
    where readiness is not null
    group by route, readiness, blocked_by
    order by route, readiness, blocked_by
);

-- ended_by_kind --
-- What ended since a moment, by kind and by how it ended.
select json_group_array(json_array(kind, state, error, ended, waited, waited_most, ran, ran_most))
from (
    select
        kind, state, outcome ->> '$.error.kind' as error, count(*) as ended,
        cast(avg(started_at - created_at) as integer) as waited, max(started_at - created_at) as waited_most,
        cast(avg(finished_at - started_at) as integer) as ran, max(finished_at - started_at) as ran_most
    from tasks
    where finished_at >= ?
    group by kind, state, error
    order by kind, state, error
);

-- storage --
select page_count, freelist_count, page_size from pragma_page_count, pragma_freelist_count, pragma_page_size;

-- quick_integrity --
pragma quick_check(20);

-- integrity --
pragma integrity_check(20);

-- miscounted --
select json_group_array(json_array(c.state, c.tasks, found))
from (select state, tasks, (select count(*) from tasks t where t.state = counts.state) as found from counts) c
where c.tasks <> c.found;
