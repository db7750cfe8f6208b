-- tolerated
-- Small records that no task needs to run: API keys, webhooks, policies, how far followers have come. `organization_id`
-- is empty for what is of the whole installation, `key` a second name.

create table documents (
    collection text not null,
    id text not null,
    organization_id text not null,
    key text,
    due_at integer,
    version integer not null,
    data text not null,
    primary key (collection, id)
) without rowid;
create unique index documents_by_key on documents (collection, key) where key is not null;
create index documents_of_organization on documents (collection, organization_id, id);
create index documents_due on documents (collection, due_at) where due_at is not null;
