-- The statements that only PostgreSQL has in this form, by name; the others are in the folder above. Names and parameters
-- are those of SQLite. `{rows:…}` stands for rows with columns of these types. Documents are text; where one is searched,
-- a NUL in it is shown as another character, since no text of PostgreSQL may hold one.
--
-- Who waits for locks takes them in this order, and each kind by number: limits and pauses, tasks, follow-ups,
-- concurrency keys, meters, sessions. What is locked out of turn is skipped where somebody else holds it.


-- === the transaction ===

-- lock_gates_shared --
select pg_advisory_xact_lock_shared(8390880602276358242);

-- lock_gates --
select pg_advisory_xact_lock(8390880602276358242);


-- new_writer --
insert into writers (number, at) values (0, ?) returning id;

-- lock_documents --
select pg_advisory_xact_lock(8390880602276358243);

-- lock_writer --
-- Until the end of the transaction; who asks how it ended waits for that. Writers of another schema of this database
-- have the same numbers.
select pg_advisory_xact_lock(1869968498, ?::integer # hashtext(current_schema()));

-- end_silent --
-- The transactions of writers who have said nothing for so many seconds: they were stopped, or cut off. The server looks
-- after such ones itself (`idle_in_transaction_session_timeout`), but not while more of a pipeline may come.
select pg_terminate_backend(activity.pid)
from pg_locks lock
join pg_stat_activity activity on activity.pid = lock.pid
where
    lock.locktype = 'advisory' and lock.classid = 1869968498 and lock.objsubid = 2 and lock.granted
    and activity.datname = current_database() and activity.wait_event = 'ClientRead'
    and activity.state_change < clock_timestamp() - make_interval(secs => ?);

-- mark --
-- A transaction that has written nothing so far leaves no mark: it would wait for the disk only for that.
insert into writers (id, number, at)
select ?::integer, ?::bigint, ?::bigint where pg_current_xact_id_if_assigned() is not null
on conflict (id) do update set number = excluded.number, at = excluded.at;

-- marked --
-- Locked, so that this transaction is one that a synchronous standby has to have: where the server was restarted while it
-- waited for one, what is read here may not be there yet.
select number from writers where id = ?::integer for update;

-- moment --
select (extract(epoch from clock_timestamp()) * 1000000)::bigint, pg_backend_pid();

-- written --
-- What differs as soon as any other writer has committed something, or is new.
select
    (extract(epoch from clock_timestamp()) * 1000000)::bigint,
    coalesce(
        (
            select hashtextextended(string_agg(id || ':' || number, ' ' order by id), 0)
            from writers
            where id <> ?::integer
        ),
        0
    );

-- forget_writers --
delete from writers where id = ?::integer or at < ?;


-- === what a transaction looks up before it writes ===

-- task_heads --
select
    t.number, t.id, s.id, t.state, t.version, t.attempt, t.worker_id, t.due_at, t.rank,
    coalesce((replace(t.core, '\u0000', '\u0001')::json ->> 'priority')::bigint, t.priority), t.live, t.active_at, t.active_attempt
from tasks t join sessions s on s.number = t.session
where t.id {texts}
order by t.number
for update of t;

-- session_heads --
select
    number, id, seq, transcript, inbox, updated_at, agent is not null, closed_at is not null
from sessions
where id {texts};

-- lines --
select route, owner, place
from json_array_elements(?::json) line join lines on owner = line ->> 1 and route = line ->> 0;

-- keys --
select s.id, t.idempotency_key, t.id
from json_array_elements(?::json) pair
join sessions s on s.id = pair ->> 0
join tasks t on t.session = s.number and t.idempotency_key = pair ->> 1;

-- debounced --
select s.id, t.debounce_key, t.id
from json_array_elements(?::json) pair
join sessions s on s.id = pair ->> 0
join tasks t on t.session = s.number and t.debounce_key = pair ->> 1
where t.debounce_key is not null and t.state = 'queued' and t.started_at is null;

-- live_in_session --
select id from tasks
where session = ? and not detached and state in ('queued', 'running', 'awaiting_input')
order by id;

-- add_keys --
insert into rates (key, spent)
select key, '[]' from json_array_elements_text(?::json) key order by key collate "C"
on conflict do nothing
returning key;

-- lock_keys --
select key from rates where key {texts} order by key for update;

-- held_of_keys --
select
    r.key, (select count(*) from tasks t where t.concurrency_key = r.key and t.worker_id is not null), r.spent
from rates r
where r.key {texts};

-- add_meters --
insert into meters (name, state)
select name, 'null' from json_array_elements_text(?::json) name order by name collate "C"
on conflict do nothing;

-- lock_meters --
select name, state::json from meters where name {texts} order by name for update;

-- meters --
select name, state::json from meters where name {texts};

-- reservations --
select t.id, r.attempt, r.ordinal, r.amounts::json
from tasks t join reservations r on r.task = t.number
where t.id {texts};

-- gates --
select json_build_array(
    (select coalesce(json_agg(json_build_array(key, capacity, rate, span)), '[]') from limits),
    (
        select coalesce(json_agg(json_build_array(p.scope, p.name, p.at, p.by, p.reason, p.is_over, s.number)), '[]')
        from pauses p left join sessions s on p.scope = 'session' and s.id = p.name
    )
);

-- pending_follow_ups --
select id from follow_ups where id {numbers} order by id for update;

-- watchers --
select awaited, watcher from watches where awaited {texts} order by number;

-- live_children --
select parent_task_id, id, detached
from tasks
where parent_task_id {texts} and state in ('queued', 'running', 'awaiting_input')
order by number;

-- new_task_numbers --
select nextval('task_numbers');

-- new_session_numbers --
select nextval('session_numbers');

-- ends_of_output --
select task, first, next from outputs where task {numbers};


-- === what a transaction writes ===

-- lock_index --
select position from indexed for update;

-- numbers_of --
select id, number from tasks where id {texts};

-- passing_terms --
select task, terms::json from passing_terms where task {numbers};

-- terms_at --
select t.block, t.term, t.tasks
from json_array_elements(?::json) wanted
join terms t on t.block = (wanted ->> 0)::bigint and t.term = wanted ->> 1;

-- terms_of_block --
select block, term, tasks from terms where block = ?;

-- unlisted --
select task from unlisted order by task limit ?;

-- insert_sessions --
insert into sessions (
    number, id, organization_id, root_session_id, parent_session_id, parent_task_id, agent, title, labels,
    seq, transcript, inbox, created_at, updated_at, budget, forked_from
)
select *
from {rows:bigint,text,text,text,text,text,text,text,text,bigint,bigint,bigint,bigint,bigint,text,text};

-- write_log --
-- What is added to the counters of sessions, which come by number; then what is numbered by them, each after where its
-- session stood. An entry says its session's place among those, so that none has to be looked for. A session that is
-- gone, or was closed where it has to be open, leaves no number, which is refused.
with locked as (
    select number from sessions where number = any(?1::bigint[]) order by number for update
), counted as (
    update sessions s
    set
        seq = s.seq + v.column2, transcript = s.transcript + v.column3, inbox = s.inbox + v.column4,
        updated_at = greatest(s.updated_at, v.column5)
    from {rows:bigint,bigint,bigint,bigint,bigint,boolean}
    where
        s.number = v.column1 and (select count(*) from locked) > 0
        and (not v.column6 or s.closed_at is null)
    returning
        s.number, s.seq - v.column2 as seq, s.transcript - v.column3 as transcript, s.inbox - v.column4 as inbox
), stood as (
    select
        array_agg(seq order by number) as seq, array_agg(transcript order by number) as transcript,
        array_agg(inbox order by number) as inbox
    from counted
    having count(*) = cardinality(?1::bigint[])
), told as (
    insert into events (position, session, seq, task, type, at, data)
    select
        origin.position + (pg_current_xact_id()::text::bigint << 20) + v.column1, v.column3,
        stood.seq[v.column2] + v.column4, v.column5, v.column6, v.column7, v.column8
    from {rows:bigint,bigint,bigint,bigint,bigint,text,bigint,text}
    cross join origin
    left join stood on true
), written as (
    insert into transcript (session, number, task_id, iteration, message)
    select v.column2, stood.transcript[v.column1] + v.column3, v.column4, v.column5, v.column6
    from {rows:bigint,bigint,bigint,text,bigint,text}
    left join stood on true
)
insert into inbox (session, task_id, seq, reason, body, created_at)
select v.column2, v.column3, stood.inbox[v.column1] + v.column4, v.column5, v.column6::json, v.column7
from {rows:bigint,bigint,text,bigint,text,text,bigint}
left join stood on true
on conflict (session, task_id) do update set
    seq = excluded.seq, reason = excluded.reason, body = excluded.body, created_at = excluded.created_at,
    leased_until = null, deliveries = 0;

-- update_drivers --
update sessions s set driver_task_id = v.column2 from {rows:bigint,text} where s.number = v.column1;

-- take_inbox --
-- What was written anew since it was read has another number.
delete from inbox i
using {rows:bigint,text,bigint}
where i.session = v.column1 and i.task_id = v.column2 and i.seq = v.column3;

-- receivable --
-- Their session is locked, so nobody else is at them.
select seq, task_id, reason, body, created_at, deliveries
from inbox
where session = (select number from sessions where id = ?) and (leased_until is null or leased_until <= ?)
order by seq
limit ?;

-- deliveries --
select task_id, seq, deliveries
from inbox
where session = (select number from sessions where id = ?) and task_id {texts};

-- insert_tasks --
insert into tasks (
    number, id, session, organization_id, root_session_id, parent_task_id, kind, route, priority, concurrency_key,
    idempotency_key, debounce_key, detached, created_at, state, version, attempt, failures, worker_id,
    attempt_started_at, due_at, readiness, next_deadline_at, started_at, finished_at, finished_by, updated_at,
    blocked_by, rank, core, outcome, live
)
select *
from {rows:bigint,text,bigint,text,text,text,text,text,bigint,text,text,text,boolean,bigint,text,bigint,bigint,bigint,text,bigint,bigint,text,bigint,bigint,bigint,bigint,bigint,text,bigint,text,text,text};

-- insert_inputs --
insert into inputs (task, data, labels)
select column1, column2, column3::jsonb from {rows:bigint,text,text};

-- update_tasks --
update tasks
set
    state = v.column2, version = v.column3, attempt = v.column4, failures = v.column5, worker_id = v.column6,
    attempt_started_at = v.column7, due_at = v.column8, readiness = v.column9, next_deadline_at = v.column10,
    started_at = v.column11, finished_at = v.column12, finished_by = v.column13, updated_at = v.column14,
    blocked_by = v.column15, rank = v.column16, core = v.column17, outcome = v.column18
from {rows:bigint,text,bigint,bigint,bigint,text,bigint,bigint,text,bigint,bigint,bigint,bigint,bigint,text,bigint,text,text}
where tasks.number = v.column1;

-- update_live --
update tasks
set live = v.column2, active_at = v.column3, active_attempt = v.column4
from {rows:bigint,text,bigint,bigint}
where tasks.number = v.column1;

-- update_counts --
insert into counts (state, shard, tasks)
select column1, pg_backend_pid() % 64, column2 from {rows:text,bigint} order by column1
on conflict (state, shard) do update set tasks = counts.tasks + excluded.tasks;

-- insert_follow_ups --
insert into follow_ups (task_id, event) select column1, column2::json from {rows:text,text};

-- insert_watches --
insert into watches (awaited, watcher) select * from {rows:text,text} on conflict do nothing;

-- upsert_steps --
insert into steps (task, position, ordinal, verb, attempt, created_at, done, value)
select * from {rows:bigint,text,bigint,text,bigint,bigint,boolean,text}
on conflict (task, position) do update set
    ordinal = excluded.ordinal, verb = excluded.verb, attempt = excluded.attempt, created_at = excluded.created_at,
    done = excluded.done, value = excluded.value;

-- insert_attempts --
insert into attempts (task, attempt, worker_id, started_at, ended_at, ending, error)
select * from {rows:bigint,bigint,text,bigint,bigint,text,text};

-- upsert_terms --
insert into terms (block, term, tasks)
select * from {rows:bigint,text,bytea}
on conflict (block, term) do update set tasks = excluded.tasks;

-- delete_terms --
delete from terms t
using json_array_elements(?::json) going
where t.block = (going ->> 0)::bigint and t.term = going ->> 1;

-- upsert_blocks --
insert into blocks (block, first_id, last_id, first_at, last_at)
select * from {rows:bigint,text,text,bigint,bigint}
on conflict (block) do update set
    first_id = least(blocks.first_id, excluded.first_id), last_id = greatest(blocks.last_id, excluded.last_id),
    first_at = least(blocks.first_at, excluded.first_at), last_at = greatest(blocks.last_at, excluded.last_at);

-- upsert_passing_terms --
insert into passing_terms (task, terms)
select * from {rows:bigint,text}
on conflict (task) do update set terms = excluded.terms;

-- grants --
select session_id, tool, is_allowed, at, by, via, task_id from grants where session_id {texts} order by session_id, tool;

-- document_versions --
select d.collection, d.id, d.version
from json_array_elements(?::json) name
join documents d on d.collection = name ->> 0 and d.id = name ->> 1;

-- document_keys --
select d.collection, d.id
from json_array_elements(?::json) name
join documents d on d.collection = name ->> 0 and d.key = name ->> 1;

-- delete_documents --
delete from documents d
using json_array_elements(?::json) name
where d.collection = name ->> 0 and d.id = name ->> 1;

-- loosen_documents --
update documents d
set key = null
from json_array_elements(?::json) name
where d.collection = name ->> 0 and d.id = name ->> 1 and d.key is not null;

-- upsert_documents --
insert into documents (collection, id, organization_id, key, due_at, version, data)
select * from {rows:text,text,text,text,bigint,bigint,text}
on conflict (collection, id) do update set
    organization_id = excluded.organization_id, key = excluded.key, due_at = excluded.due_at,
    version = excluded.version, data = excluded.data;

-- document_where --
select collection, id, data, organization_id, key, due_at, version
from documents
where {conditions}
order by id {direction}
limit ?;

-- due_documents --
select collection, id, data, organization_id, key, due_at, version
from documents
where {conditions}
order by due_at {direction}, id
limit ?;

-- first_due_document --
select min(due_at) from documents where collection = ? and due_at is not null;

-- upsert_meters --
insert into meters (name, state)
select * from {rows:text,text}
on conflict (name) do update set state = excluded.state;

-- insert_reservations --
insert into reservations (task, attempt, ordinal, amounts) select * from {rows:bigint,bigint,bigint,text};

-- delete_reservations --
delete from reservations
where (task, attempt, ordinal) in (
    select (each ->> 0)::bigint, (each ->> 1)::bigint, (each ->> 2)::bigint from json_array_elements(?::json) each
);

-- upsert_requests --
insert into requests (id, task, data)
select column1, column2, column3::json from {rows:text,bigint,text}
on conflict (id) do update set data = excluded.data;

-- insert_messages --
insert into messages (id, task, direction, data)
select column1, column2, column3, column4::json from {rows:text,bigint,text,text};

-- upsert_files --
insert into files (folder, path, media_type, size, created_at, task_id, content)
select * from {rows:bigint,text,text,bigint,bigint,text,bytea}
on conflict (folder, path) do update set
    media_type = excluded.media_type, size = excluded.size, created_at = excluded.created_at,
    task_id = excluded.task_id, content = excluded.content;

-- upsert_outputs --
insert into outputs (task, first, next)
select * from {rows:bigint,bigint,bigint}
on conflict (task) do update set first = excluded.first, next = excluded.next;

-- insert_output --
insert into output (task, start, size, stream, at, text)
select column1, column2, column3, column4, column5, column6::json from {rows:bigint,bigint,bigint,text,bigint,string};

-- upsert_worker --
insert into workers (id, card, beat, beat_at)
values (?, ?::json, 0, ?)
on conflict (id) do update set card = excluded.card, beat = 0, beat_at = excluded.beat_at;


-- === claims ===

-- come --
update tasks
set
    readiness = 'ready',
    rank = rank - due_at + coalesce(
        (
            select greatest(place + 1, least(due_at, place + 1 + ?::bigint))
            from lines
            where lines.owner = '' and lines.route = tasks.route
        ),
        due_at
    )
where number in (
    select number
    from tasks
    where route {texts} and readiness = 'timed' and due_at <= ?
    order by route, due_at
    limit ?
    for update skip locked
)
returning number, rank;

-- ready --
-- The first ready tasks of each route that nobody else is at, locked.
select r.rank, r.number, r.due_at, r.concurrency_key, r.session
from json_array_elements_text(?1::json) route
cross join lateral (
    select rank, number, due_at, concurrency_key, session
    from tasks
    where tasks.route = route.value and readiness = 'ready'
    order by rank, number
    limit ?2
    for update skip locked
) r;

-- ready_by --
-- The same without those that are due after a moment.
select r.rank, r.number, r.due_at, r.concurrency_key, r.session
from json_array_elements_text(?1::json) route
cross join lateral (
    select rank, number, due_at, concurrency_key, session
    from tasks
    where tasks.route = route.value and readiness = 'ready' and due_at <= ?3
    order by rank, number
    limit ?2
    for update skip locked
) r;

-- look --
-- When the first timed task of these routes is due; the earliest deadline of any task; whether follow-ups wait; when a
-- start returns to a rate that holds tasks back.
select
    (
        select min((select min(due_at) from tasks where route = served.value and readiness = 'timed'))
        from json_array_elements_text(?1::json) served
    ),
    (select min(next_deadline_at) from tasks where next_deadline_at is not null),
    exists (select 1 from follow_ups),
    (select min(opens_at) from rates where opens_at is not null);

-- open_key --
update tasks
set readiness = 'ready', blocked_by = null
where number = any(array(
    with recursive waiting (route) as (
        select min(route) from tasks where concurrency_key = ?1 and blocked_by = 'limit'
        union all
        select (
            select min(route) from tasks where concurrency_key = ?1 and blocked_by = 'limit' and route > waiting.route
        )
        from waiting
        where waiting.route is not null
    )
    select first.number
    from waiting
    cross join lateral (
        select number
        from tasks
        where concurrency_key = ?1 and blocked_by = 'limit' and route = waiting.route
        order by rank, number
        limit ?2
        for update skip locked
    ) first
    where waiting.route is not null
))
returning number;

-- open_session --
update tasks
set readiness = 'ready', blocked_by = null
where number = any(array(
    select number from tasks where session = ? and blocked_by = 'paused' limit ? for update skip locked
))
returning number;

-- waiting_keys --
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
select key from waiting where key is not null;

-- opening_keys --
select key from rates where opens_at <= ? order by opens_at limit ?;

-- upsert_lines --
-- Everybody moves the turn of a busy route, and nobody may wait for it: what another is at is left to the next.
with moved as (
    select column1 as route, column2 as owner, column3 as place from {rows:text,text,bigint}
), free as (
    select l.route, l.owner
    from lines l join moved m on m.owner = l.owner and m.route = l.route
    for update of l skip locked
), told as (
    update lines l
    set place = greatest(l.place, m.place)
    from free join moved m on m.owner = free.owner and m.route = free.route
    where l.owner = free.owner and l.route = free.route
)
insert into lines (route, owner, place)
select route, owner, place
from moved
where not exists (select 1 from lines l where l.owner = moved.owner and l.route = moved.route)
order by owner, route
on conflict (owner, route) do nothing;

-- upsert_rates --
insert into rates (key, spent, opens_at)
select column1, column2::json, column3 from {rows:text,text,bigint}
on conflict (key) do update set spent = excluded.spent, opens_at = excluded.opens_at;

-- prunable_rates --
select key, spent from rates
where opens_at is null and key in (
    select concurrency_key from tasks where number {numbers} and concurrency_key is not null
)
order by key
for update skip locked;

-- ready_later --
select min((
    select min(due_at) from tasks where route = served.value and readiness = 'ready' and due_at > ?2
))
from json_array_elements_text(?1::json) served;


-- === pruning ===

-- prunable --
select
    t.number, t.id, t.session, s.id, t.state,
    exists (select 1 from inbox where session = t.session and task_id = t.id),
    1 + (select count(*) from events where task = t.number) + (select count(*) from steps where task = t.number)
    + (select count(*) from output where task = t.number)
from tasks t join sessions s on s.number = t.session
where t.id {texts} and t.finished_at is not null
order by t.number
for update of t skip locked;

-- lock_session --
select number from sessions where id = ? for update;

-- kept_sessions --
-- Those of the sessions that are there, once they are locked.
select number from sessions where number {numbers:1};

-- lock_sessions --
select number from sessions
where
    id {texts:1}
    or parent_task_id {texts:2}
    or number {numbers:3}
order by number
for update;

-- move_first_seq --
update sessions
set first_seq = greatest(first_seq, gone.seq + 1)
from (select session, max(seq) as seq from events where task {numbers} group by session) as gone
where sessions.number = gone.session;

-- prune_follow_ups --
delete from follow_ups
where task_id {texts:1} and task_id not in (select id from tasks where id {texts:1});

-- empty_sessions --
select number, id
from (
    select number, id from sessions where id {texts:1}
    union
    select number, id from sessions where parent_task_id {texts:2}
    union
    select number, id from sessions
    where
        number {numbers:3}
        and parent_task_id is not null
        and not exists (select 1 from tasks where id = sessions.parent_task_id)
) found
where not exists (select 1 from tasks where session = found.number);


-- === views ===

-- task_ids --
select id from tasks
where
    (substr(id, 1, length(?1)) = ?1 or right(id, length(?1)) = ?1)
    and (?3::text is null or organization_id = ?3)
    and (?4::text is null or coalesce(root_session_id, (select s.id from sessions s where s.number = session)) = ?4)
order by id
limit ?2;

-- tasks_where --
select {task}
from (
    select *
    from tasks
    where {conditions}
    order by id {direction}
    limit least(?::bigint, coalesce((select sum(tasks) from counts where state {texts}), 0)::bigint)
) t
join sessions s on s.number = t.session join inputs i on i.task = t.number;

-- tasks_among --
select {task}
from (
    select number as found
    from tasks
    where {conditions} and number {numbers}
    order by id {direction}
    limit ?::bigint
) page
join tasks t on t.number = found
join sessions s on s.number = t.session join inputs i on i.task = t.number;

-- not_indexed --
select count(*) from (select from events where position > ? limit ?) found;

-- moved_since --
select distinct task
from events
where position > ? and task is not null and type in ('task.created', 'task.updated', 'task.progress');

-- unindexed --
-- Only what no transaction that is still open can come before.
select position, case when type in ('task.created', 'task.updated', 'task.progress') then task end
from events
where
    position > ?
    and position < (select position from origin) + (pg_snapshot_xmin(pg_current_snapshot())::text::bigint << 20)
order by position
limit ?;

-- blocks --
select block, first_id, last_id, first_at, last_at from blocks;

-- terms --
select block, term, tasks
from terms
where block {numbers} and term {texts};

-- terms_between --
select block, term, tasks
from terms
where block {numbers} and term >= ? and term < ?;

-- labelled --
exists (select 1 from inputs i where i.task = tasks.number and i.labels ->> ? = ?)

-- held_by --
select id, attempt, version from tasks where worker_id = ?;

-- holders --
select worker_id, count(*) from tasks where worker_id is not null group by worker_id;

-- follow_ups --
select id, task_id, event from follow_ups order by id limit ?;

-- follow_ups_of --
select id, task_id, event from follow_ups where task_id {texts} order by id limit ?;

-- sessions --
select
    id, organization_id, root_session_id, parent_session_id, parent_task_id, agent, title, labels, driver_task_id,
    seq, created_at, updated_at, budget, closed_at, forked_from
from sessions
where
    (?1::text is null or id < ?1)
    and (?3::text is null or organization_id = ?3)
    and (?4::text is null or root_session_id = ?4)
order by id desc
limit ?2;

-- steps --
select position, ordinal, verb, attempt, created_at, value, done
from steps
where task = (select number from tasks where id = ?)
order by number;

-- steps_without_values --
select position, ordinal, verb, attempt, created_at, null, done
from steps
where task = (select number from tasks where id = ?)
order by number;

-- attempts --
select attempt, worker_id, started_at, ended_at, ending, error
from attempts
where task = (select number from tasks where id = ?)
order by attempt;

-- requests --
select data from requests where task = (select number from tasks where id = ?) order by number;

-- request --
select data::text from requests where id = ?;

-- messages --
select data
from messages
where
    task = (select number from tasks where id = ?1)
    and (?2::text is null or direction = ?2)
    and number > case when ?3::text is null then 0 else (select number from messages where id = ?3) end
order by number
limit ?4;

-- events --
select e.position, e.seq, t.id, e.type, e.at, e.data, i.data
from (
    select * from events where session = (select number from sessions where id = ?) and seq > ? order by seq limit ?
) e
left join tasks t on t.number = e.task
left join inputs i on i.task = e.task and e.type = 'task.created';

-- events_of_task --
select e.position, e.seq, t.id, e.type, e.at, e.data, i.data
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
-- Before that of any entry that is not committed yet.
select greatest((select position from origin), coalesce((
    select max(position) from events
    where position < (select position from origin) + (pg_snapshot_xmin(pg_current_snapshot())::text::bigint << 20)
), 0));

-- horizon --
-- All below is committed; what is given out from now on comes after it, also where the newest entries were deleted.
select position + (pg_snapshot_xmin(pg_current_snapshot())::text::bigint << 20) - 1 from origin;

-- heads --
select s.id, s.seq, e.position, s.organization_id, s.root_session_id
from sessions s left join events e on e.session = s.number and e.seq = s.seq
where s.id {texts};

-- news --
-- Only what no transaction that is still open can come before.
select e.position, s.id, e.seq, t.id
from (
    select position, session, seq, task
    from events
    where
        position > ?
        and position < (select position from origin) + (pg_snapshot_xmin(pg_current_snapshot())::text::bigint << 20)
    order by position
    limit ?
) e
join sessions s on s.number = e.session
left join tasks t on t.number = e.task;

-- log --
-- The next entries of all sessions; without its data what is not of that organization.
select
    e.position, s.id, e.seq, t.id, e.type, e.at,
    case when ?3::text is null or s.organization_id = ?3 then e.data end, i.data
from (
    select *
    from events
    where
        position > ?1
        and position < (select position from origin) + (pg_snapshot_xmin(pg_current_snapshot())::text::bigint << 20)
    order by position
    limit ?2
) e
join sessions s on s.number = e.session
left join tasks t on t.number = e.task
left join inputs i on i.task = e.task and e.type = 'task.created';

-- output --
select json_build_array(o.first, o.next, (
    select coalesce(json_agg(json_build_array(stream, start, size, text, at)), '[]')
    from (
        select stream, start, size, text, at
        from output
        where
            task = o.task
            and start >= coalesce(
                (select start from output where task = o.task and start <= ?2 order by start desc limit 1), 0
            )
            and start + size > ?2
        order by start, number
        limit ?3
    ) pieces
))
from outputs o
where o.task = (select number from tasks where id = ?1);

-- own_files --
-- What tells those of a folder apart.
select path, size, created_at from files where folder = ?;

-- files --
select path, media_type, size, created_at, task_id
from (
    select path, media_type, size, created_at, task_id
    from files
    where folder = -(select number from sessions where id = ?1) and path >= ?2 and path < ?3
    union all
    select '/.tasks/' || t.id || '/' || f.path as path, f.media_type, f.size, f.created_at, f.task_id
    from tasks t join files f on f.folder = t.number
    where t.session = (select number from sessions where id = ?1) and t.id >= ?4 and t.id <= ?5
) found
where path >= ?2 and path < ?3 and path <> ?7
order by path
limit ?6;

-- transcript --
select number, task_id, iteration, message
from transcript
where session = (select number from sessions where id = ?) and number > ?
order by number
limit ?;

-- last_entry --
select coalesce(max(number), 0)
from (
    select number from transcript
    where
        session = (select number from sessions where id = ?1)
        and (?2::text is null or task_id = ?2)
        and (?3::bigint is null or iteration <= ?3)
    order by number desc
    limit 1
) found;

-- inbox --
select seq, task_id, reason, body, created_at, deliveries, leased_until
from inbox
where session = (select number from sessions where id = ?)
order by seq
limit ?;

-- ended --
select id from tasks where {conditions} order by finished_at {direction}, number {direction} limit ?;

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
select
    id, organization_id, root_session_id, parent_session_id, parent_task_id, agent, title, labels, driver_task_id,
    seq, created_at, updated_at, budget, closed_at, forked_from
from sessions
where parent_task_id {texts};

-- workers --
select card, beat, beat_at from workers;

-- counts --
select state, sum(tasks)::bigint from counts group by state;

-- keys_in_use --
select concurrency_key from tasks where concurrency_key is not null and worker_id is not null
union
select concurrency_key from tasks where concurrency_key is not null and blocked_by = 'limit';

-- uses --
select
    key.value,
    (select count(*) from tasks where concurrency_key = key.value and worker_id is not null),
    (select count(*) from tasks where concurrency_key = key.value and blocked_by = 'limit'),
    (select spent from rates where rates.key = key.value)
from json_array_elements_text(?::json) key
order by key.value collate "C";


-- === for people: these look at everything that they tell of ===

-- applied --
select number, checksum, tolerated from migrations;

-- waiting --
select route, readiness, blocked_by, count(*), min(due_at)
from tasks
where readiness is not null
group by route, readiness, blocked_by
order by route, readiness, blocked_by nulls first;

-- ended_by_kind --
select
    kind, state, replace(outcome, '\u0000', '\u0001')::json -> 'error' ->> 'kind' as error, count(*),
    trunc(avg(started_at - created_at))::bigint, max(started_at - created_at),
    trunc(avg(finished_at - started_at))::bigint, max(finished_at - started_at)
from tasks
where finished_at >= ?
group by kind, state, error
order by kind, state, error nulls first;

-- storage --
select pg_database_size(current_database());

-- miscounted --
select there.state, coalesce(told.tasks, 0), there.tasks
from (
    select state, sum(tasks)::bigint as tasks
    from (select state, count(*) as tasks from tasks group by state union all select state, 0 from counts) found
    group by state
) there
left join (select state, sum(tasks)::bigint as tasks from counts group by state) told on told.state = there.state
where coalesce(told.tasks, 0) <> there.tasks;

-- invalid_indexes --
-- Those whose making was broken off.
select indexrelid::regclass::text
from pg_index i join pg_class c on c.oid = i.indexrelid
where not i.indisvalid and c.relnamespace = current_schema()::regnamespace
order by 1;

-- has_amcheck --
select exists (select 1 from pg_extension where extname = 'amcheck');

-- indexes --
select i.indexrelid::bigint, i.indexrelid::regclass::text
from pg_index i join pg_class c on c.oid = i.indexrelid
where i.indisvalid and c.relnamespace = current_schema()::regnamespace
order by 2;

-- compare_index --
-- Whether it is in order, and has all that its table has.
select bt_index_check(index => ?::bigint::oid::regclass, heapallindexed => true);
