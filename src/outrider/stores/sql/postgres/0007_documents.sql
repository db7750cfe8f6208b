-- tolerated
-- The tenth of SQLite: small records that no task needs to run.

create table documents (
    collection text collate "C" not null,
    id text collate "C" not null,
    organization_id text collate "C" not null,
    key text collate "C",
    due_at bigint,
    version bigint not null,
    data text not null,
    primary key (collection, id)
);
create unique index documents_by_key on documents (collection, key) where key is not null;
create index documents_of_organization on documents (collection, organization_id, id);
create index documents_due on documents (collection, due_at) where due_at is not null;
