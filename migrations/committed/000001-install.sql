--! Previous: -
--! Hash: sha1:a425381cfdfd48b4b540f7fab7e2e7d5e4cf6b4b
--! Message: install

-- The schema may have been created beforehand, by an administrator, for a role that may not create
-- schemas. `create schema if not exists` would ask for that privilege all the same.
do $$
begin
  if pg_catalog.to_regnamespace('once') is null then
    create schema once;
  end if;
end
$$;

--! Included schema.sql
-- Every object of the schema, in the order in which they depend on each other.
--! Included identity/schema_version.sql
-- The version of this schema: the number of the newest migration in it. A client compares it with the
-- version it was written for, so every migration replaces this function.
create function once.schema_version() returns integer
language sql immutable parallel safe
set search_path = ''
as $$ select 1 $$;

comment on function once.schema_version() is
  'The number of the newest pgonce migration installed in this database.';
revoke all on function once.schema_version() from public;
--! EndIncluded identity/schema_version.sql
--! Included identity/identity.sql
-- One row that names this database. The id stands in every gid, so that a branch can say which database
-- decides about it. The fingerprint (cluster and database oid) tells an original from a copy: a database
-- made by CREATE DATABASE … TEMPLATE or from a dump carries the id too, but must not answer for the
-- original, since it knows nothing of transactions that are still running there.
create table once.identity (
  singleton boolean primary key default true check (singleton),
  id uuid not null default gen_random_uuid(),
  system_identifier bigint not null,
  database_oid oid not null,
  -- The newest home xid whose decision was forgotten: once.outcome() answers exactly above it.
  forgotten_xid xid8 not null default '0',
  created_at timestamptz not null default now()
);

insert into once.identity (system_identifier, database_oid)
select c.system_identifier, d.oid
  from pg_catalog.pg_control_system() c, pg_catalog.pg_database d
 where d.datname = current_database();

comment on table once.identity is
  'One row: the id of this database in gids, and the fingerprint that tells an original from a copy.';
--! EndIncluded identity/identity.sql
--! Included identity/intervention.sql
-- What people did by hand: every function that overrules the protocol writes here first, in the same
-- transaction, so that nobody has to remember who moved an offset and why.
create table once.intervention (
  intervention_id bigint generated always as identity primary key,
  happened_at timestamptz not null default now(),
  login name not null default session_user,
  action text not null,
  subject jsonb not null,
  reason text not null check (reason <> '')
);

comment on table once.intervention is
  'Every manual override (offset reset, watermark moved, identity changed, outcome forgotten): who, when, why.';

-- Internal: records one intervention; refuses an empty reason, because "why" is the only part that
-- cannot be found out later.
create function once.record_intervention(action text, subject jsonb, reason text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  if coalesce(record_intervention.reason, '') = '' then
    raise exception 'a reason is required for %', record_intervention.action
      using errcode = 'ONARG',
            detail = 'Got an empty reason.',
            hint = 'Say why in the argument "reason"; it is kept in once.intervention.';
  end if;
  insert into once.intervention (action, subject, reason)
  values (record_intervention.action, record_intervention.subject, record_intervention.reason);
end
$$;

comment on function once.record_intervention(text, jsonb, text) is
  'Internal: writes a row to once.intervention.';
revoke all on function once.record_intervention(text, jsonb, text) from public;
--! EndIncluded identity/intervention.sql
--! Included identity/check_name.sql
-- Names (producer, scope, group, topic, owner) are keys of B-tree indexes, whose entries cannot exceed
-- 2.7 kB, so they are bounded: 1 to 200 characters. Anything else may stand in them.
create function once.check_name(what text, value text) returns void
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
  if check_name.value is null or length(check_name.value) not between 1 and 200 then
    raise exception 'bad %: %', check_name.what,
        case when check_name.value is null then 'null' else quote_literal(left(check_name.value, 40)) end
      using errcode = 'ONARG',
            detail = format('Expected 1 to 200 characters, got %s.',
                            coalesce(length(check_name.value)::text, 'null')),
            hint = 'Use a short stable name; for long or secret ids use the key ledger, which keeps a digest.';
  end if;
end
$$;

comment on function once.check_name(text, text) is
  'Internal: raises ONARG unless a name has 1 to 200 characters.';
revoke all on function once.check_name(text, text) from public;
--! EndIncluded identity/check_name.sql
--! Included identity/check_primary.sql
-- Internal: raises on a standby. It may lag behind, so neither a row that is missing there nor one that is
-- still there proves anything.
create function once.check_primary() returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  if pg_is_in_recovery() then
    raise exception 'this server is a standby; only the primary decides'
      using errcode = 'ONSTB', detail = 'A standby may lag behind, so a missing row proves nothing here.',
            hint = 'Connect to the primary (target_session_attrs=read-write).';
  end if;
end
$$;

comment on function once.check_primary() is 'Internal: raises ONSTB on a standby.';
revoke all on function once.check_primary() from public;
--! EndIncluded identity/check_primary.sql
--! Included identity/home_id.sql
-- The id of this database, after checking that the database is the one that the id was made for. The
-- check is the safety of "ask the home": a copy that answered would call every running transaction
-- aborted. A promoted standby has the same fingerprint and the same transactions: it may answer.
create function once.home_id() returns uuid
language plpgsql stable
set search_path = ''
as $$
declare
  v_identity once.identity;
  v_system_identifier bigint;
  v_database_oid oid;
begin
  select i.* into v_identity from once.identity i;
  select c.system_identifier into v_system_identifier from pg_catalog.pg_control_system() c;
  select d.oid into v_database_oid from pg_catalog.pg_database d where d.datname = current_database();
  if v_identity.system_identifier is distinct from v_system_identifier
     or v_identity.database_oid is distinct from v_database_oid then
    raise exception 'database % is a copy: its pgonce identity % was made for another database',
        quote_ident(current_database()), v_identity.id
      using errcode = 'ONCPY',
            detail = format('Made for system %s, database oid %s; this is system %s, database oid %s.',
                            v_identity.system_identifier, v_identity.database_oid,
                            v_system_identifier, v_database_oid),
            hint = 'If the original lives on: select once.renew_identity(''copied''). '
                   'If this database replaces it for good (dump and restore, pg_upgrade): '
                   'select once.adopt_identity(''moved'').';
  end if;
  return v_identity.id;
end
$$;

comment on function once.home_id() is
  'The id of this database as it stands in gids; raises ONCPY in a copied database.';
revoke all on function once.home_id() from public;
--! EndIncluded identity/home_id.sql
--! Included ledger/ensure_durable.sql
-- Whoever claims a message tells somebody (a broker, a webhook's sender) that it is done once the
-- transaction commits. Under synchronous_commit = off that commit can be lost in a crash after the
-- sender was told, and nobody sends the message again. So a claiming transaction waits for its flush.
create function once.ensure_durable() returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end
$$;

comment on function once.ensure_durable() is
  'Internal: turns synchronous_commit on for the current transaction if it is off.';
revoke all on function once.ensure_durable() from public;
--! EndIncluded ledger/ensure_durable.sql
--! Included ledger/producer.sql
-- The ledger by sequence: one compact row a producer. Everything up to the watermark was processed, and
-- so was everything in "ahead"; what lies between is a gap that may still arrive. An ordered stream
-- keeps "ahead" empty, so its row never grows.
create table once.producer (
  producer text primary key check (length(producer) between 1 and 200),
  epoch integer not null default 0 check (epoch >= 0),
  watermark bigint not null default -1 check (watermark >= -1),
  ahead int8multirange not null default '{}',
  max_gaps integer not null default 1000 check (max_gaps between 0 and 100000)
)
-- Every claim updates the row; free space on the page keeps those updates HOT, without index entries.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on table once.producer is
  'Ledger by sequence, one row a producer: epoch, watermark (all up to it processed) and ranges processed ahead of it.';

create view once.producers as
select p.producer, p.epoch, p.watermark,
       (select count(*) from unnest(p.ahead)) as gaps,
       coalesce(upper(p.ahead) - 1, p.watermark) as highest,
       p.max_gaps
  from once.producer p;

comment on view once.producers is
  'Per producer: epoch, watermark, how many gaps are open, the highest sequence claimed, the limit of gaps.';
--! EndIncluded ledger/producer.sql
--! Included ledger/claim_batch.sql
-- Claims a batch of sequences of one producer and returns those that are new, once each, ascending.
-- The producer's row is locked until the caller's transaction ends, so two claims of one sequence can
-- never both be new: the second waits, then sees the first, or takes over if it rolled back.
create function once.claim_batch(
  producer text,
  sequences bigint[],
  epoch integer default 0,
  strict boolean default false
) returns setof bigint
language plpgsql volatile
set search_path = ''
as $$
declare
  v_row once.producer;
  v_first bigint := claim_batch.sequences[1];
  v_last bigint := claim_batch.sequences[cardinality(claim_batch.sequences)];
  v_bad bigint;
  v_incoming int8multirange;
  v_fresh int8multirange;
  v_ahead int8multirange;
  v_watermark bigint;
  v_gaps bigint;
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;

  -- The fast path: an ascending batch without holes that follows the watermark. One update decides.
  if v_first >= 0 and v_last >= v_first and v_last < 9223372036854775807
     and v_last - v_first + 1 = cardinality(claim_batch.sequences)
     and claim_batch.sequences = array(select generate_series(v_first, v_last)) then
    update once.producer p
       set watermark = v_last
     where p.producer = claim_batch.producer
       and p.epoch = claim_batch.epoch
       and p.watermark = v_first - 1
       and isempty(p.ahead);
    if found then
      return query select unnest(claim_batch.sequences);
      return;
    end if;
  end if;

  if claim_batch.sequences is null or claim_batch.epoch is null or claim_batch.strict is null then
    raise exception 'null is not allowed as sequences, epoch or strict'
      using errcode = 'ONARG',
            detail = format('Got sequences %s, epoch %s, strict %s.', claim_batch.sequences is not null,
                            claim_batch.epoch, claim_batch.strict),
            hint = 'Pass an array of sequences, for example array[41, 42].';
  end if;
  perform once.check_name('producer', claim_batch.producer);
  if claim_batch.epoch < 0 then
    raise exception 'bad epoch: %', claim_batch.epoch
      using errcode = 'ONARG', detail = 'Expected 0 to 2147483647.',
            hint = 'Epochs count up from 0; a restarted producer takes the next one.';
  end if;
  if exists (select from unnest(claim_batch.sequences) s where s is null) then
    raise exception 'bad sequence: null'
      using errcode = 'ONARG', detail = 'The array of sequences contains a null.',
            hint = 'Give every message of the batch its sequence.';
  end if;
  -- 2^63-1 is left out because a range that contains it has no upper bound in bigint.
  select s into v_bad from unnest(claim_batch.sequences) s where s < 0 or s = 9223372036854775807 limit 1;
  if found then
    raise exception 'bad sequence: %', v_bad
      using errcode = 'ONARG', detail = 'Expected 0 to 9223372036854775806.',
            hint = 'Count messages of a producer up from 0.';
  end if;
  if cardinality(claim_batch.sequences) = 0 then
    return;
  end if;

  select p.* into v_row from once.producer p where p.producer = claim_batch.producer for update;
  if not found then
    insert into once.producer (producer, epoch)
    values (claim_batch.producer, claim_batch.epoch)
    on conflict do nothing;
    -- Read again: if somebody else inserted it, we waited for them and must see what they claimed.
    select p.* into strict v_row from once.producer p where p.producer = claim_batch.producer for update;
  end if;

  if claim_batch.epoch < v_row.epoch then
    raise exception 'producer % is fenced: epoch % is older than %',
        quote_literal(claim_batch.producer), claim_batch.epoch, v_row.epoch
      using errcode = 'ONFEN',
            detail = 'A newer incarnation of this producer has claimed already; nothing was claimed.',
            hint = 'Stop this producer. A successor must use an epoch of at least the current one.';
  end if;

  select range_agg(int8range(s, s, '[]')) into v_incoming from unnest(claim_batch.sequences) s;
  v_fresh := v_incoming - v_row.ahead - int8multirange(int8range(null, v_row.watermark, '[]'));

  v_ahead := v_row.ahead + v_fresh;
  v_watermark := v_row.watermark;
  if lower(v_ahead) = v_watermark + 1 then
    select upper(r) - 1 into v_watermark from unnest(v_ahead) r order by r limit 1;
    v_ahead := v_ahead - int8multirange(int8range(null, v_watermark, '[]'));
  end if;

  -- Strict: the watermark must reach the last new one. What was processed ahead of it is no gap.
  if claim_batch.strict and upper(v_fresh) - 1 > v_watermark then
    v_bad := lower(v_fresh - int8multirange(int8range(null, v_watermark, '[]')));
    raise exception 'producer % is out of order: expected sequence %, got %',
        quote_literal(claim_batch.producer), v_watermark + 1, v_bad
      using errcode = 'ONGAP',
            detail = 'In strict mode the new sequences must follow the watermark without a gap; nothing was claimed.',
            hint = format('Deliver the missing messages first, or skip them: '
                          'select once.set_watermark(%L, %s, ''reason'').', claim_batch.producer, v_bad - 1);
  end if;

  select count(*) into v_gaps from unnest(v_ahead);
  -- A claim that closes a gap is welcome even where the limit is exceeded.
  if v_gaps > v_row.max_gaps and v_gaps > (select count(*) from unnest(v_row.ahead)) then
    raise exception 'producer % would have % gaps, the limit is %',
        quote_literal(claim_batch.producer), v_gaps, v_row.max_gaps
      using errcode = 'ONMAX',
            detail = format('Every sequence up to %s is processed; %s separate ranges lie above it. '
                            'Nothing was claimed.', v_row.watermark, v_gaps),
            hint = format('Deliver the missing messages, or give them up: '
                          'select once.set_watermark(%L, %s, ''reason''). Ids without order belong in the key ledger.',
                          claim_batch.producer, lower(v_ahead) - 1);
  end if;

  update once.producer p
     set watermark = v_watermark,
         ahead = v_ahead,
         epoch = claim_batch.epoch
   where p.producer = claim_batch.producer
     and (p.watermark, p.ahead, p.epoch) is distinct from (v_watermark, v_ahead, claim_batch.epoch);

  return query
  select s from unnest(v_fresh) r, generate_series(lower(r), upper(r) - 1) s order by s;
end
$$;

comment on function once.claim_batch(text, bigint[], integer, boolean) is
  'Claims sequences of a producer and returns the new ones, once each: select * from once.claim_batch(''shop-7'', array[41, 42]).';
revoke all on function once.claim_batch(text, bigint[], integer, boolean) from public;
--! EndIncluded ledger/claim_batch.sql
--! Included ledger/claim.sql
-- Claims one message of an ordered producer. The answer is 'claimed' (process it, in this transaction)
-- or 'duplicate' (somebody did). An error would abort the caller's transaction, so a duplicate is none.
create function once.claim(
  producer text,
  sequence bigint,
  epoch integer default 0,
  strict boolean default false,
  out status text
)
language plpgsql volatile
set search_path = ''
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;

  -- The fast path: the next message of an ordered stream is one update of one row.
  if claim.sequence >= 0 and claim.sequence < 9223372036854775807 then
    update once.producer p
       set watermark = claim.sequence
     where p.producer = claim.producer
       and p.epoch = claim.epoch
       and p.watermark = claim.sequence - 1
       and isempty(p.ahead);
    if found then
      claim.status := 'claimed';
      return;
    end if;
  end if;

  perform from once.claim_batch(claim.producer, array[claim.sequence], claim.epoch, claim.strict);
  claim.status := case when found then 'claimed' else 'duplicate' end;
end
$$;

comment on function once.claim(text, bigint, integer, boolean) is
  'Claims one message by producer and sequence: select once.claim(''shop-7'', 41) answers claimed or duplicate.';
revoke all on function once.claim(text, bigint, integer, boolean) from public;
--! EndIncluded ledger/claim.sql
--! Included ledger/set_watermark.sql
-- For operators: counts everything up to a sequence as processed. Closes gaps whose messages will never
-- come, and starts a stream in the middle. Never moves back: a message that was processed stays so.
create function once.set_watermark(producer text, sequence bigint, reason text) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
  v_row once.producer;
  v_ahead int8multirange;
  v_watermark bigint;
begin
  perform once.ensure_durable();
  perform once.check_name('producer', set_watermark.producer);
  if set_watermark.sequence is null or set_watermark.sequence < 0
     or set_watermark.sequence = 9223372036854775807 then
    raise exception 'bad sequence: %', coalesce(set_watermark.sequence::text, 'null')
      using errcode = 'ONARG', detail = 'Expected 0 to 9223372036854775806.',
            hint = 'Name the last sequence that counts as processed.';
  end if;
  insert into once.producer (producer) values (set_watermark.producer) on conflict do nothing;
  select p.* into strict v_row from once.producer p where p.producer = set_watermark.producer for update;
  if set_watermark.sequence <= v_row.watermark then
    raise exception 'the watermark of producer % is % already', quote_literal(set_watermark.producer), v_row.watermark
      using errcode = 'ONARG',
            detail = format('Got %s; a watermark never moves back, or messages would take effect twice.',
                            set_watermark.sequence),
            hint = 'Name a sequence above the watermark; see once.producers.';
  end if;
  perform once.record_intervention('set_watermark',
    jsonb_build_object('producer', set_watermark.producer, 'from', v_row.watermark, 'to', set_watermark.sequence),
    set_watermark.reason);
  v_ahead := v_row.ahead + int8multirange(int8range(v_row.watermark + 1, set_watermark.sequence, '[]'));
  v_watermark := v_row.watermark;
  if not isempty(v_ahead) and lower(v_ahead) = v_row.watermark + 1 then
    select upper(r) - 1 into v_watermark from unnest(v_ahead) r order by r limit 1;
  end if;
  update once.producer p
     set watermark = v_watermark,
         ahead = v_ahead - int8multirange(int8range(null, v_watermark, '[]'))
   where p.producer = set_watermark.producer;
end
$$;

comment on function once.set_watermark(text, bigint, text) is
  'Operator: counts all sequences of a producer up to this one as processed, and records who and why.';
revoke all on function once.set_watermark(text, bigint, text) from public;
--! EndIncluded ledger/set_watermark.sql
--! Included ledger/scope.sql
-- The scopes of the ledger by key, with their retention. The horizon is stored and only moves forward:
-- a key older than it is answered 'expired' for ever, whatever the clock or the retention say later.
create table once.scope (
  scope_id integer generated always as identity primary key,
  scope text not null unique check (length(scope) between 1 and 200),
  retention interval check (retention >= interval '0'),
  horizon timestamptz
);

comment on table once.scope is
  'Scopes of the key ledger: retention (null: keep for ever) and horizon (older keys are answered expired).';
--! EndIncluded ledger/scope.sql
--! Included ledger/message.sql
-- The ledger by key. A key is kept as the first 16 bytes of SHA-256 over scope and key: constant size
-- for any key, no index limit, and no personal data in the ledger. A collision needs some 2^64 keys.
--
-- A key lives in the partition of the day (UTC) of its own message, never of its arrival: the same
-- message always meets its first claim there, so a unique index a partition is enough, and retention is
-- dropping a partition. Keys with no time live in one partition apart and are swept in batches.
--
-- The columns are ordered and sized to fit a row with neither hash nor result into 48 bytes.
create table once.message (
  digest uuid not null,
  scope_id integer not null,
  day date,
  claimed_on date,
  payload_hash bytea,
  result jsonb
) partition by list (day);

comment on table once.message is
  'Ledger by key: digest of (scope, key), the message''s own day (null: no time), optional payload hash and result.';

create table once.message_timeless partition of once.message (
  claimed_on not null default (now() at time zone 'UTC')::date,
  unique (digest)
) for values in (null);

comment on table once.message_timeless is
  'Keys whose messages carry no time, with the day of their claim; once.sweep() deletes the oldest in batches.';

-- How far the sweep of the timeless keys has come. It reads the table once a day from front to back, a
-- stretch of blocks a call. No index serves it: a B-tree would cost 16 bytes a key, and the ranges of a
-- BRIN index never narrow again, so that once freed space is reused every one of them matches.
create table once.timeless_sweep (
  singleton boolean primary key default true check (singleton),
  next_block bigint not null default 0,
  finished_on date not null default '-infinity'
);

insert into once.timeless_sweep default values;

comment on table once.timeless_sweep is
  'One row: where once.sweep() goes on among the timeless keys, and the day (UTC) of its last complete pass.';

-- The first day that was not dropped. Locking the row puts creators and droppers of partitions in one
-- queue; reading it under that lock means a dropped day is never created again.
create table once.message_floor (
  singleton boolean primary key default true check (singleton),
  day date not null
);

insert into once.message_floor (day) values ('-infinity');

comment on table once.message_floor is
  'One row: the first day whose partition was not dropped; older messages are answered expired.';
--! EndIncluded ledger/message.sql
--! Included ledger/message_digest.sql
-- The identity of a key: no text contains a zero byte, so (scope, key) cannot be cut in two ways.
create function once.message_digest(scope text, key text) returns uuid
language sql immutable strict parallel safe
set search_path = ''
as $$
  select encode(substring(sha256(
           convert_to(message_digest.scope, 'UTF8') || '\x00'::bytea || convert_to(message_digest.key, 'UTF8')
         ) for 16), 'hex')::uuid
$$;

comment on function once.message_digest(text, text) is
  'The first 16 bytes of SHA-256 over scope, a zero byte and key: how the ledger remembers a key.';
revoke all on function once.message_digest(text, text) from public;
--! EndIncluded ledger/message_digest.sql
--! Included ledger/message_time.sql
-- The time that a key itself carries: a UUIDv7 (RFC 9562, 5.7) says so in its version bits; a ULID is 26
-- characters of Crockford base32 with 48 bits of milliseconds first. Other keys of 26 such characters
-- exist, so a ULID counts only with a time between 2010 and 2100. The answer depends on nothing but the
-- key: if it depended on the clock, one key could land in two partitions.
create function once.message_time(key text) returns timestamptz
language plpgsql immutable strict parallel safe
set search_path = ''
as $$
declare
  v_milliseconds bigint := 0;
  v_time timestamptz;
begin
  if message_time.key ~* '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' then
    v_milliseconds := ('x' || lpad(left(replace(message_time.key, '-', ''), 12), 16, '0'))::bit(64)::bigint;
  elsif message_time.key ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' then
    for i in 1..10 loop
      v_milliseconds := v_milliseconds * 32
        + strpos('0123456789ABCDEFGHJKMNPQRSTVWXYZ', substr(message_time.key, i, 1)) - 1;
    end loop;
  else
    return null;
  end if;
  if v_milliseconds not between 1262304000000 and 4102444799999 then  -- 2010-01-01 to 2100-01-01
    return null;
  end if;
  return timestamptz '1970-01-01 00:00:00+00' + v_milliseconds * interval '1 millisecond';
end
$$;

comment on function once.message_time(text) is
  'The time in a UUIDv7 or ULID (2010 to 2100), else null.';
revoke all on function once.message_time(text) from public;
--! EndIncluded ledger/message_time.sql
--! Included ledger/ensure_partition.sql
-- Makes sure that the partition of a day exists; false if that day was dropped, so its messages are
-- expired. SECURITY DEFINER, unlike everything else here, because a claim must be able to create a
-- missing partition and an application must not own the ledger. Its search_path names pg_temp, last: else
-- Postgres looks for types there first, and a caller's own type "date" would run code as our owner.
--
-- Creators and droppers take the floor row's lock first. So nobody creates a partition twice, and a day
-- at or above the floor cannot be dropped while we create it. Under REPEATABLE READ a floor that moved
-- after the snapshot is a serialization failure, never a stale answer. The partition is attached rather
-- than created in place because ATTACH lets other claims go on.
create function once.ensure_partition(day date) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := 'message_' || to_char(ensure_partition.day, 'YYYYMMDD');
  v_floor date;
  v_partitions bigint;
begin
  -- to_char would also render infinity and years beyond four digits; nothing but a plain day may be a name.
  if ensure_partition.day is null or ensure_partition.day not between '1970-01-01' and '2099-12-31' then
    raise exception 'bad day: %', coalesce(ensure_partition.day::text, 'null')
      using errcode = 'ONARG', detail = 'Expected a day between 1970-01-01 and 2099-12-31.',
            hint = 'Is the time in seconds where milliseconds were meant, or the reverse?';
  end if;
  select f.day into strict v_floor from once.message_floor f for update;
  if ensure_partition.day < v_floor then
    return false;
  end if;
  -- ATTACH takes this lock too. Taken here it makes us hear of a partition that was created while we
  -- waited, which to_regclass would not know of.
  lock table only once.message in share update exclusive mode;
  if to_regclass('once.' || v_name) is not null then
    return true;
  end if;
  select count(*) into v_partitions from pg_catalog.pg_inherits i where i.inhparent = 'once.message'::regclass;
  if v_partitions > 4000 then
    raise exception 'the key ledger has % partitions, the limit is 4000', v_partitions
      using errcode = 'ONMAX',
            detail = 'Each day that a message carries is a partition.',
            hint = 'Set a retention for every scope (select once.set_retention(''scope'', ''30 days'')) and run once.sweep().';
  end if;
  execute format('create table once.%I (like once.message including defaults, unique (digest))', v_name);
  execute format('alter table once.message attach partition once.%I for values in (%L)', v_name, ensure_partition.day);
  return true;
end
$$;

comment on function once.ensure_partition(date) is
  'Creates the key ledger''s partition of a day if it is missing; false if that day was dropped already.';
revoke all on function once.ensure_partition(date) from public;
--! EndIncluded ledger/ensure_partition.sql
--! Included ledger/open_scope.sql
-- Internal: the scope's row, made at first use.
create function once.open_scope(scope text) returns once.scope
language plpgsql volatile
set search_path = ''
as $$
declare
  v_scope once.scope;
begin
  select s.* into v_scope from once.scope s where s.scope = open_scope.scope;
  if not found then
    perform once.check_name('scope', open_scope.scope);
    insert into once.scope (scope) values (open_scope.scope) on conflict do nothing;
    select s.* into strict v_scope from once.scope s where s.scope = open_scope.scope;
  end if;
  return v_scope;
end
$$;

comment on function once.open_scope(text) is 'Internal: the row of a scope, created at first use.';
revoke all on function once.open_scope(text) from public;
--! EndIncluded ledger/open_scope.sql
--! Included ledger/claim_key_batch.sql
-- Claims messages by key: webhook deliveries, payments, anything with an id but no order. Answers one
-- row a key, in the order of the array: 'claimed' (the first of its key, ever), 'duplicate' (with the
-- first one's result, if it kept one) or 'expired' (older than the scope's horizon).
--
-- Why a key cannot be claimed twice: its partition follows from the message alone, and that partition
-- has a unique index. If the partition was dropped between our reading of the horizon and our insert,
-- then it is missing, and creating it is refused below the floor (once.ensure_partition).
create function once.claim_key_batch(
  scope text,
  keys text[],
  occurred_at timestamptz[] default null,
  payload_hashes bytea[] default null
) returns table (ordinal integer, key text, status text, result jsonb)
language plpgsql volatile
set search_path = ''
as $$
declare
  v_scope once.scope;
  v_days date[];
  v_dropped date[] := '{}';
  v_claimed integer[];
  v_mismatch text;
  v_day date;
  v_digests uuid[];
  v_key_days date[];
  v_expired boolean[];
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;
  if claim_key_batch.keys is null then
    raise exception 'null is not allowed as keys'
      using errcode = 'ONARG', detail = 'Expected an array of keys.', hint = 'Pass array[''key'', …].';
  end if;
  if cardinality(claim_key_batch.occurred_at) <> cardinality(claim_key_batch.keys)
     or cardinality(claim_key_batch.payload_hashes) <> cardinality(claim_key_batch.keys) then
    raise exception 'the arrays differ in length: % keys, % times, % payload hashes',
        cardinality(claim_key_batch.keys), coalesce(cardinality(claim_key_batch.occurred_at)::text, 'no'),
        coalesce(cardinality(claim_key_batch.payload_hashes)::text, 'no')
      using errcode = 'ONARG', detail = 'Element n of each array belongs to key n.',
            hint = 'Pass arrays of the same length, or leave the optional ones out.';
  end if;
  if exists (select from unnest(claim_key_batch.keys) k where k is null or k = '') then
    raise exception 'bad key: null or empty'
      using errcode = 'ONARG', detail = 'Expected text of at least one character.',
            hint = 'Give every message its id.';
  end if;
  if exists (select from unnest(claim_key_batch.occurred_at) t
              where t < '1970-01-01 00:00:00+00' or t >= '2100-01-01 00:00:00+00') then
    raise exception 'bad occurred_at: %', (select t from unnest(claim_key_batch.occurred_at) t
        where t < '1970-01-01 00:00:00+00' or t >= '2100-01-01 00:00:00+00' limit 1)
      using errcode = 'ONARG', detail = 'Expected a time between 1970 and 2100.',
            hint = 'Is the time in milliseconds where seconds were meant, or the reverse?';
  end if;

  v_scope := once.open_scope(claim_key_batch.scope);

  select array_agg(once.message_digest(claim_key_batch.scope, i.key) order by i.n),
         array_agg((i.at at time zone 'UTC')::date order by i.n),
         array_agg(coalesce(i.at < v_scope.horizon, false) order by i.n)
    into v_digests, v_key_days, v_expired
    from (select k.n, k.key, coalesce(claim_key_batch.occurred_at[k.n], once.message_time(k.key)) as at
            from unnest(claim_key_batch.keys) with ordinality k (key, n)) i;

  -- Days in one order for everybody, so that two batches cannot wait for each other's partitions.
  for v_day in
    select distinct d.day from unnest(v_key_days, v_expired) d (day, expired)
     where d.day is not null and not d.expired
       and to_regclass('once.message_' || to_char(d.day, 'YYYYMMDD')) is null
     order by d.day
  loop
    if not once.ensure_partition(v_day) then
      v_dropped := v_dropped || v_day;
    end if;
  end loop;

  -- Likewise the keys in one order. Of repeated keys the first is inserted; a conflict waits for the
  -- other transaction to end.
  with first as (
    select distinct on (i.digest, i.day) i.n::integer as n, i.digest, i.day, claim_key_batch.payload_hashes[i.n] as hash
      from unnest(v_digests, v_key_days, v_expired) with ordinality i (digest, day, expired, n)
     where not i.expired and (i.day is null or i.day <> all (v_dropped))
     order by i.digest, i.day, i.n
  ), inserted as (
    insert into once.message as m (digest, scope_id, day, claimed_on, payload_hash)
    select f.digest, v_scope.scope_id, f.day,
           case when f.day is null then (now() at time zone 'UTC')::date end, f.hash
      from first f
     order by f.digest, f.day
    on conflict do nothing
    returning m.digest, m.day
  )
  select coalesce(array_agg(f.n), '{}') into v_claimed
    from inserted i join first f on f.digest = i.digest and f.day is not distinct from i.day;

  if claim_key_batch.payload_hashes is not null then
    select i.key into v_mismatch
      from unnest(claim_key_batch.keys, v_digests, v_key_days, claim_key_batch.payload_hashes) i (key, digest, day, hash)
      join once.message m on m.digest = i.digest and m.day is not distinct from i.day
     where m.payload_hash <> i.hash
     limit 1;
    if found then
      raise exception 'key % came again with another payload', quote_literal(left(v_mismatch, 100))
        using errcode = 'ONPAY',
              detail = format('Scope %L: the payload hash differs from that of the first claim.', claim_key_batch.scope),
              hint = 'Two different messages share one key: fix the sender, or choose a key that tells them apart.';
    end if;
  end if;

  return query
  select i.n::integer, i.key,
         case when i.n = any (v_claimed) then 'claimed'
              when i.expired or i.day = any (v_dropped) then 'expired'
              else 'duplicate' end,
         case when i.n = any (v_claimed) then null
              else (select m.result from once.message m
                     where m.digest = i.digest and m.day = i.day
                     union all
                    select m.result from once.message_timeless m
                     where i.day is null and m.digest = i.digest) end
    from unnest(claim_key_batch.keys, v_digests, v_key_days, v_expired) with ordinality i (key, digest, day, expired, n)
   order by i.n;
end
$$;

comment on function once.claim_key_batch(text, text[], timestamptz[], bytea[]) is
  'Claims messages by key, one answer a key (claimed, duplicate, expired): select * from once.claim_key_batch(''stripe'', array[''evt_1'']).';
revoke all on function once.claim_key_batch(text, text[], timestamptz[], bytea[]) from public;
--! EndIncluded ledger/claim_key_batch.sql
--! Included ledger/claim_key.sql
-- Claims one message by key; see once.claim_key_batch for the answers and why they hold.
create function once.claim_key(
  scope text,
  key text,
  occurred_at timestamptz default null,
  payload_hash bytea default null,
  out status text,
  out result jsonb
)
language plpgsql volatile
set search_path = ''
as $$
declare
  v_scope once.scope;
  v_time timestamptz := coalesce(claim_key.occurred_at, once.message_time(claim_key.key));
  v_day date := (v_time at time zone 'UTC')::date;
  v_digest uuid := once.message_digest(claim_key.scope, claim_key.key);
begin
  select s.* into v_scope from once.scope s where s.scope = claim_key.scope;
  -- The fast path: a known scope, a key that is not past the horizon, a partition that exists. Whether it
  -- does is asked within the insert, whose lock on the ledger keeps the sweep from dropping it meanwhile.
  if found and claim_key.key <> '' and (v_time < v_scope.horizon) is not true
     and (v_day between '1970-01-01' and '2099-12-31') is not false then
    if current_setting('synchronous_commit') = 'off' then
      perform once.ensure_durable();
    end if;
    insert into once.message (digest, scope_id, day, claimed_on, payload_hash)
    select v_digest, v_scope.scope_id, v_day,
           case when v_day is null then (now() at time zone 'UTC')::date end, claim_key.payload_hash
     where v_day is null or to_regclass('once.message_' || to_char(v_day, 'YYYYMMDD')) is not null
    on conflict do nothing;
    if found then
      claim_key.status := 'claimed';
      return;
    end if;
  end if;

  select b.status, b.result into claim_key.status, claim_key.result
    from once.claim_key_batch(claim_key.scope, array[claim_key.key],
           case when claim_key.occurred_at is not null then array[claim_key.occurred_at] end,
           case when claim_key.payload_hash is not null then array[claim_key.payload_hash] end) b;
end
$$;

comment on function once.claim_key(text, text, timestamptz, bytea) is
  'Claims one message by scope and key: select * from once.claim_key(''stripe'', ''evt_1'') answers claimed, duplicate or expired.';
revoke all on function once.claim_key(text, text, timestamptz, bytea) from public;
--! EndIncluded ledger/claim_key.sql
--! Included ledger/keep_result.sql
-- Keeps the result of a message beside its claim, so that a duplicate gets the first one's answer. Kept
-- once: a result that duplicates may have been given already is never replaced.
create function once.keep_result(scope text, key text, result jsonb, occurred_at timestamptz default null) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
  v_day date := (coalesce(keep_result.occurred_at, once.message_time(keep_result.key)) at time zone 'UTC')::date;
  v_digest uuid := once.message_digest(keep_result.scope, keep_result.key);
begin
  if v_day is null then
    update once.message_timeless m set result = keep_result.result
     where m.digest = v_digest and m.result is null;
  else
    update once.message m set result = keep_result.result
     where m.day = v_day and m.digest = v_digest and m.result is null;
  end if;
  if not found then
    raise exception 'no claim of key % in scope % waits for a result',
        quote_literal(left(keep_result.key, 100)), quote_literal(keep_result.scope)
      using errcode = 'ONARG',
            detail = 'Either the key is not claimed, or its result is kept already, or occurred_at differs from the claim''s.',
            hint = 'Call once.claim_key(…) first, in the same transaction, and keep one result.';
  end if;
end
$$;

comment on function once.keep_result(text, text, jsonb, timestamptz) is
  'Keeps the result of a claimed key for its duplicates; call it in the claiming transaction.';
revoke all on function once.keep_result(text, text, jsonb, timestamptz) from public;
--! EndIncluded ledger/keep_result.sql
--! Included ledger/set_retention.sql
-- How long a scope remembers its keys; null: for ever. Takes effect at the next once.sweep(). A longer
-- retention does not bring back what is past the horizon already.
create function once.set_retention(scope text, retention interval) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  -- The upper limit keeps now() - retention within what a timestamp can hold.
  if set_retention.retention not between interval '0' and interval '1000 years' then
    raise exception 'bad retention: %', set_retention.retention
      using errcode = 'ONARG', detail = 'Expected an interval from 0 to 1000 years, or null for ever.',
            hint = 'For example: select once.set_retention(''stripe'', ''30 days'').';
  end if;
  perform once.open_scope(set_retention.scope);
  update once.scope s set retention = set_retention.retention where s.scope = set_retention.scope;
  update once.timeless_sweep w set next_block = 0, finished_on = '-infinity';
end
$$;

comment on function once.set_retention(text, interval) is
  'Sets how long a scope of the key ledger remembers its keys (null: for ever); applied by once.sweep().';
revoke all on function once.set_retention(text, interval) from public;
--! EndIncluded ledger/set_retention.sql
--! Included ledger/sweep.sql
-- One bounded step of retention: moves the horizons of scopes that have a retention, creates the
-- partitions of the next days, drops the partitions that are past every scope's horizon, deletes one
-- batch of timeless keys. Call it again, each time in a transaction of its own, while a row says more.
--
-- It never holds claims up for long: a drop that does not get its lock within 200 ms is left to the
-- next call, and deletes skip rows that are locked. SECURITY DEFINER because it creates and drops tables.
create function once.sweep(batch_size integer default 5000)
returns table (action text, scope text, detail text, count bigint, more boolean)
language plpgsql volatile security definer
set search_path = ''
as $$
declare
  v_scope once.scope;
  v_horizon timestamptz;
  v_floor date;
  v_new_floor date;
  v_day date;
  v_created date[] := '{}';
  v_doomed date[] := '{}';
  v_done boolean := false;
  v_lock_timeout text := current_setting('lock_timeout');
  v_count bigint;
  v_left integer := sweep.batch_size;
begin
  if sweep.batch_size is null or sweep.batch_size not between 1 and 1000000 then
    raise exception 'bad batch_size: %', coalesce(sweep.batch_size::text, 'null')
      using errcode = 'ONARG', detail = 'Expected 1 to 1000000 keys.', hint = 'Leave it out for 5000.';
  end if;

  for v_scope in select s.* from once.scope s where s.retention is not null order by s.scope_id loop
    v_horizon := greatest(v_scope.horizon, now() - v_scope.retention);
    update once.scope s set horizon = v_horizon where s.scope_id = v_scope.scope_id;
    return query select 'horizon', v_scope.scope,
      'older than ' || to_char(v_horizon at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' is expired', 0::bigint, false;
  end loop;

  begin
    perform set_config('lock_timeout', '200ms', true);
    -- The queue of creators and droppers: see once.ensure_partition.
    select f.day into strict v_floor from once.message_floor f for update;

    if exists (select from once.scope) then
      for v_day in select (now() at time zone 'UTC')::date + n from generate_series(0, 2) n loop
        if to_regclass('once.message_' || to_char(v_day, 'YYYYMMDD')) is null and once.ensure_partition(v_day) then
          v_created := v_created || v_day;
        end if;
      end loop;
    end if;

    -- A scope that keeps for ever keeps every partition; a new scope starts at the floor.
    select (min(coalesce(s.horizon, '-infinity')) at time zone 'UTC')::date into v_new_floor from once.scope s;
    if v_new_floor > v_floor then
      select coalesce(array_agg(d.day order by d.day), '{}') into v_doomed
        from (select to_date(right(c.relname, 8), 'YYYYMMDD') as day
                from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
               where i.inhparent = 'once.message'::regclass and c.relname ~ '^message_[0-9]{8}$') d
       where d.day < v_new_floor;
      foreach v_day in array v_doomed[1:10] loop
        execute format('drop table once.%I', 'message_' || to_char(v_day, 'YYYYMMDD'));
      end loop;
      update once.message_floor f set day = coalesce(v_doomed[11], v_new_floor);
    end if;
    v_done := true;
  exception when lock_not_available then
    null;
  end;
  perform set_config('lock_timeout', v_lock_timeout, true);

  if v_done then
    return query select 'create', null::text, 'partition of ' || d, 1::bigint, false from unnest(v_created) d;
    return query select 'drop', null::text, 'partition of ' || d, 1::bigint, cardinality(v_doomed) > 10
                   from unnest(v_doomed[1:10]) d;
  else
    return query select 'busy', null::text, 'partitions are in use, left to the next sweep', 0::bigint, false;
  end if;

  for v_scope in select s.* from once.scope s where s.retention is not null order by s.scope_id loop
    exit when v_left = 0;
    with doomed as (
      select m.ctid from once.message_timeless m
       where m.scope_id = v_scope.scope_id
         and m.claimed_on < ((now() - v_scope.retention) at time zone 'UTC')::date
       limit v_left
         for update skip locked
    )
    delete from once.message_timeless m using doomed d where m.ctid = d.ctid;
    get diagnostics v_count = row_count;
    v_left := v_left - v_count;
    if v_count > 0 then
      return query select 'delete', v_scope.scope, 'keys without time'::text, v_count, v_left = 0;
    end if;
  end loop;
end
$$;

comment on function once.sweep(integer) is
  'One step of retention (horizons, partitions, timeless keys): select * from once.sweep(); again while a row says more.';
revoke all on function once.sweep(integer) from public;
--! EndIncluded ledger/sweep.sql
--! Included offset/consumer_offset.sql
-- Where each consumer group stands, kept beside the results so that both move in one commit. A position
-- is the next message to read (as Kafka's committed offset): a bigint, or an opaque token for sources
-- that have no number (an LSN, a file and line).
create table once.consumer_offset (
  consumer_group text not null check (length(consumer_group) between 1 and 200),
  topic text not null check (length(topic) between 1 and 200),
  partition integer not null check (partition >= 0),
  "position" bigint,
  token text,
  epoch integer not null default 0,
  owner text check (length(owner) between 1 and 200),
  taken_at timestamptz,
  updated_at timestamptz not null default now(),
  primary key (consumer_group, topic, partition),
  check (num_nonnulls("position", token) <= 1)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on table once.consumer_offset is
  'Position of each consumer group in each partition (the next message to read), with the epoch that fences old owners.';

-- Where each partition ends, as far as somebody told us: the other half of the lag.
create table once.topic_end (
  topic text not null check (length(topic) between 1 and 200),
  partition integer not null check (partition >= 0),
  end_position bigint not null,
  updated_at timestamptz not null default now(),
  primary key (topic, partition)
);

comment on table once.topic_end is
  'The end of each partition (the position after its last message), as reported by once.report_end().';

-- The lag is unknown (null) before the first move, for a token, and where nobody reported the end.
create view once.lag as
select o.consumer_group, o.topic, o.partition, o."position", o.token, e.end_position,
       case when e.end_position < o."position" then 0 else e.end_position - o."position" end as lag,
       o.epoch, o.owner, o.taken_at, o.updated_at, now() - o.updated_at as idle
  from once.consumer_offset o
  left join once.topic_end e using (topic, partition);

comment on view once.lag is
  'Per group and partition: position, reported end, lag in messages, owner, epoch, time since the position moved.';
--! EndIncluded offset/consumer_offset.sql
--! Included offset/take_partition.sql
-- Takes a partition for a consumer: bumps the epoch, which fences whoever had it, and returns where to
-- go on. Call it in a transaction of its own, before the first message.
create function once.take_partition(
  consumer_group text,
  topic text,
  partition integer,
  owner text default null,
  out epoch integer,
  out "position" bigint,
  out token text
)
language plpgsql volatile
set search_path = ''
as $$
begin
  -- An epoch that was lost in a crash would be given out twice.
  perform once.ensure_durable();
  perform once.check_name('consumer_group', take_partition.consumer_group);
  perform once.check_name('topic', take_partition.topic);
  if take_partition.owner is not null then
    perform once.check_name('owner', take_partition.owner);
  end if;
  if take_partition.partition is null or take_partition.partition < 0 then
    raise exception 'bad partition: %', coalesce(take_partition.partition::text, 'null')
      using errcode = 'ONARG', detail = 'Expected 0 to 2147483647.', hint = 'A source without partitions uses 0.';
  end if;
  insert into once.consumer_offset as o (consumer_group, topic, partition, epoch, owner, taken_at)
  values (take_partition.consumer_group, take_partition.topic, take_partition.partition, 1, take_partition.owner, now())
  on conflict on constraint consumer_offset_pkey do update
     set epoch = o.epoch + 1, owner = excluded.owner, taken_at = excluded.taken_at
  returning o.epoch, o."position", o.token
  into take_partition.epoch, take_partition."position", take_partition.token;
end
$$;

comment on function once.take_partition(text, text, integer, text) is
  'Takes a partition: fences the previous owner and returns the new epoch and the position to go on from (null: from the start).';
revoke all on function once.take_partition(text, text, integer, text) from public;
--! EndIncluded offset/take_partition.sql
--! Included offset/explain_offset.sql
-- Internal: says why a position could not be moved. Called after the compare-and-set found no row.
create function once.explain_offset(
  consumer_group text, topic text, partition integer, epoch integer, expected text, next text
) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
  v_row once.consumer_offset;
  v_name text := format('group %L, topic %L, partition %s', explain_offset.consumer_group,
                        explain_offset.topic, coalesce(explain_offset.partition::text, 'null'));
begin
  select o.* into v_row from once.consumer_offset o
   where o.consumer_group = explain_offset.consumer_group
     and o.topic = explain_offset.topic
     and o.partition = explain_offset.partition;
  if not found then
    raise exception '% was never taken', v_name
      using errcode = 'ONTKN', detail = 'A position can be moved only by the owner of the partition.',
            hint = format('select * from once.take_partition(%L, %L, %s)', explain_offset.consumer_group,
                          explain_offset.topic, coalesce(explain_offset.partition::text, '0'));
  elsif v_row.epoch is distinct from explain_offset.epoch then
    raise exception '% is fenced: epoch % is not the current epoch %', v_name,
        coalesce(explain_offset.epoch::text, 'null'), v_row.epoch
      using errcode = 'ONFEN',
            detail = format('The partition was taken at %s by %s; nothing was moved.', v_row.taken_at,
                            coalesce(quote_literal(v_row.owner), 'an unnamed owner')),
            hint = 'Stop this consumer, or take the partition again and read on from the position it returns.';
  end if;
  raise exception '% is at %, not at the expected %', v_name,
      coalesce(v_row."position"::text, quote_literal(v_row.token), 'its start'),
      coalesce(explain_offset.expected, 'its start')
    using errcode = 'ONCAS',
          detail = format('The move to %s was not made.', coalesce(explain_offset.next, 'null')),
          hint = 'Somebody with the same epoch moved it, or this move was made already: read once.read_offset(…) and go on from there.';
end
$$;

comment on function once.explain_offset(text, text, integer, integer, text, text) is
  'Internal: raises ONTKN, ONFEN or ONCAS for a position that could not be moved.';
revoke all on function once.explain_offset(text, text, integer, integer, text, text) from public;
--! EndIncluded offset/explain_offset.sql
--! Included offset/advance.sql
-- Moves a numeric position: compare and set, in the transaction that holds the results. Needs the
-- current epoch and the position that the caller believes in (null: the start).
create function once.advance(
  consumer_group text, topic text, partition integer, epoch integer, expected bigint, next bigint
) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;
  if advance.next is null or advance.next < 0 or advance.next < advance.expected then
    raise exception 'bad position: % after %', coalesce(advance.next::text, 'null'),
        coalesce(advance.expected::text, 'the start')
      using errcode = 'ONARG', detail = 'Expected a number of at least 0 that does not move back.',
            hint = 'To go back on purpose: select once.reset_offset(…, reason => ''…'').';
  end if;
  update once.consumer_offset o
     set "position" = advance.next, updated_at = now()
   where o.consumer_group = advance.consumer_group
     and o.topic = advance.topic
     and o.partition = advance.partition
     and o.epoch = advance.epoch
     and o."position" is not distinct from advance.expected
     and o.token is null;
  if not found then
    perform once.explain_offset(advance.consumer_group, advance.topic, advance.partition, advance.epoch,
                                advance.expected::text, advance.next::text);
  end if;
end
$$;

comment on function once.advance(text, text, integer, integer, bigint, bigint) is
  'Moves a position from expected to next (the next message to read) if the epoch is current; else ONFEN, ONCAS or ONTKN.';
revoke all on function once.advance(text, text, integer, integer, bigint, bigint) from public;
--! EndIncluded offset/advance.sql
--! Included offset/advance_token.sql
-- Moves an opaque position; as once.advance, but a token has no order, so nothing is said of moving back.
create function once.advance_token(
  consumer_group text, topic text, partition integer, epoch integer, expected text, next text
) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;
  if advance_token.next is null then
    raise exception 'bad token: null'
      using errcode = 'ONARG', detail = 'Expected text.', hint = 'Pass the position after the message, as the source writes it.';
  end if;
  update once.consumer_offset o
     set token = advance_token.next, updated_at = now()
   where o.consumer_group = advance_token.consumer_group
     and o.topic = advance_token.topic
     and o.partition = advance_token.partition
     and o.epoch = advance_token.epoch
     and o.token is not distinct from advance_token.expected
     and o."position" is null;
  if not found then
    perform once.explain_offset(advance_token.consumer_group, advance_token.topic, advance_token.partition,
                                advance_token.epoch, advance_token.expected, advance_token.next);
  end if;
end
$$;

comment on function once.advance_token(text, text, integer, integer, text, text) is
  'Moves an opaque position from expected to next if the epoch is current; else ONFEN, ONCAS or ONTKN.';
revoke all on function once.advance_token(text, text, integer, integer, text, text) from public;
--! EndIncluded offset/advance_token.sql
--! Included offset/read_offset.sql
-- Reads a position without taking the partition.
create function once.read_offset(consumer_group text, topic text, partition integer)
returns table ("position" bigint, token text, epoch integer, owner text, updated_at timestamptz)
language sql stable
set search_path = ''
as $$
  select o."position", o.token, o.epoch, o.owner, o.updated_at
    from once.consumer_offset o
   where o.consumer_group = read_offset.consumer_group
     and o.topic = read_offset.topic
     and o.partition = read_offset.partition
$$;

comment on function once.read_offset(text, text, integer) is
  'The position, epoch and owner of a partition; no row if it was never taken.';
revoke all on function once.read_offset(text, text, integer) from public;
--! EndIncluded offset/read_offset.sql
--! Included offset/reset_offset.sql
-- For operators: sets a position by hand, also backwards. Bumps the epoch, so that a consumer which is
-- still running is fenced rather than surprised, and records who and why. Messages that the ledger
-- knows stay duplicates: going back does not make them take effect again.
create function once.reset_offset(
  consumer_group text, topic text, partition integer, "position" bigint, reason text, token text default null
) returns integer
language plpgsql volatile
set search_path = ''
as $$
declare
  v_old once.consumer_offset;
  v_epoch integer;
begin
  if reset_offset."position" < 0 or num_nonnulls(reset_offset."position", reset_offset.token) = 2 then
    raise exception 'bad position: %, token %', reset_offset."position", quote_nullable(reset_offset.token)
      using errcode = 'ONARG', detail = 'Expected a number of at least 0, or a token, or neither (the start).',
            hint = 'For example: select once.reset_offset(''group'', ''topic'', 0, 42, ''replay after bug 17'').';
  end if;
  perform once.ensure_durable();
  select o.* into v_old from once.consumer_offset o
   where o.consumer_group = reset_offset.consumer_group
     and o.topic = reset_offset.topic
     and o.partition = reset_offset.partition
     for update;
  if not found then
    perform once.explain_offset(reset_offset.consumer_group, reset_offset.topic, reset_offset.partition, null, null, null);
  end if;
  perform once.record_intervention('reset_offset', jsonb_build_object(
    'consumer_group', v_old.consumer_group, 'topic', v_old.topic, 'partition', v_old.partition,
    'from', coalesce(v_old."position"::text, v_old.token),
    'to', coalesce(reset_offset."position"::text, reset_offset.token)), reset_offset.reason);
  update once.consumer_offset o
     set "position" = reset_offset."position",
         token = reset_offset.token,
         epoch = o.epoch + 1,
         owner = null,
         updated_at = now()
   where o.consumer_group = v_old.consumer_group and o.topic = v_old.topic and o.partition = v_old.partition
  returning o.epoch into v_epoch;
  return v_epoch;
end
$$;

comment on function once.reset_offset(text, text, integer, bigint, text, text) is
  'Operator: sets a position by hand, fences the running consumer, records who and why; returns the new epoch.';
revoke all on function once.reset_offset(text, text, integer, bigint, text, text) from public;
--! EndIncluded offset/reset_offset.sql
--! Included offset/report_end.sql
-- Tells where a partition ends, for once.lag. Never moves back, so reports may arrive in any order.
create function once.report_end(topic text, partition integer, end_position bigint) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_name('topic', report_end.topic);
  if report_end.partition is null or report_end.partition < 0 or report_end.end_position is null
     or report_end.end_position < 0 then
    raise exception 'bad end of partition %: %', coalesce(report_end.partition::text, 'null'),
        coalesce(report_end.end_position::text, 'null')
      using errcode = 'ONARG', detail = 'Expected a partition and a position of at least 0.',
            hint = 'The end is the position after the last message (Kafka''s log end offset).';
  end if;
  insert into once.topic_end as e (topic, partition, end_position)
  values (report_end.topic, report_end.partition, report_end.end_position)
  on conflict on constraint topic_end_pkey do update
     set end_position = excluded.end_position, updated_at = excluded.updated_at
   where e.end_position < excluded.end_position;
end
$$;

comment on function once.report_end(text, integer, bigint) is
  'Reports the end of a partition (the position after its last message) for the view once.lag.';
revoke all on function once.report_end(text, integer, bigint) from public;
--! EndIncluded offset/report_end.sql
--! Included transaction/global_transaction.sql
-- The decisions. A row is inserted by the home's own transaction, so it is visible exactly if that
-- transaction committed: the row is the decision, and there is no other log.
create table once.global_transaction (
  transaction_id uuid primary key,
  -- The home's own transaction, as it stands in every gid. Never given, so nobody can decide for another.
  home_xid xid8 not null default pg_current_xact_id(),
  -- The other participants: the name in their gid and the identity of their database, in the same order.
  participants text[] not null,
  participant_homes uuid[] not null,
  decided_at timestamptz not null default clock_timestamp(),
  -- When every participant's evidence had been seen; null: not yet.
  proven_at timestamptz,
  check (cardinality(participants) = cardinality(participant_homes))
);

-- What the clean-up still has to look at, oldest first; and what it may forget.
create index global_transaction_unproven on once.global_transaction (decided_at, transaction_id) where proven_at is null;
create index global_transaction_proven on once.global_transaction (proven_at) where proven_at is not null;

comment on table once.global_transaction is
  'Home: one row a committed global transaction, until every branch is proven to have committed.';
--! EndIncluded transaction/global_transaction.sql
--! Included transaction/evidence.sql
-- What a branch leaves behind: inserted in the branch's own transaction, so it exists exactly if the
-- branch committed. "Prepared transaction does not exist" proves nothing; this does.
create table once.evidence (
  transaction_id uuid primary key,
  home uuid not null,
  participant text not null,
  recorded_at timestamptz not null default clock_timestamp()
);

comment on table once.evidence is
  'Participant: one row a committed branch, until the home has marked the transaction proven.';
--! EndIncluded transaction/evidence.sql
--! Included transaction/heuristic.sql
-- Losses: one side committed, the other did not, and no protocol can repair that any more. Found by the
-- audit, kept until a person acknowledges them.
create table once.heuristic (
  transaction_id uuid not null,
  participant text not null,
  home uuid not null,
  kind text not null check (kind in ('lost decision', 'lost branch')),
  found_at timestamptz not null default now(),
  found_by name not null default session_user,
  acknowledged_at timestamptz,
  primary key (transaction_id, participant, kind)
);

comment on table once.heuristic is
  'Losses found by the audit. lost branch: the home committed, the participant did not. lost decision: the reverse.';
--! EndIncluded transaction/heuristic.sql
--! Included transaction/open.sql
-- Marks the current transaction as part of a global one and bounds what it may hold up: a coordinator
-- that vanishes without closing its connection cannot keep locks longer than the idle timeout. The mark
-- is local to the transaction, so it tells later whether the handler ended our transaction or left
-- another role in force. Timeouts in milliseconds; 0: none; null: as the session has it.
create function once.open(transaction_id uuid, lock_timeout integer default null, idle_timeout integer default null)
returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform set_config('once.transaction', open.transaction_id || ' ' || current_user, true);
  if open.lock_timeout is not null then
    perform set_config('lock_timeout', open.lock_timeout::text, true);
  end if;
  if open.idle_timeout is not null then
    perform set_config('idle_in_transaction_session_timeout', open.idle_timeout::text, true);
  end if;
  if current_setting('synchronous_commit') = 'off' then
    perform once.ensure_durable();
  end if;
end
$$;

comment on function once.open(uuid, integer, integer) is
  'First statement of a branch: marks the transaction with its global id and sets its lock and idle timeouts (ms).';
revoke all on function once.open(uuid, integer, integer) from public;
--! EndIncluded transaction/open.sql
--! Included transaction/check_open.sql
-- Raises unless the current transaction is the one that once.open marked, still under the role it began
-- with. Without this a handler that runs COMMIT would be taken for one that wrote nothing.
create function once.check_open(transaction_id uuid) returns void
language plpgsql stable
set search_path = ''
as $$
declare
  v_mark text := coalesce(current_setting('once.transaction', true), '');
begin
  if v_mark = check_open.transaction_id || ' ' || current_user then
    return;
  end if;
  if v_mark not like check_open.transaction_id || ' %' then
    raise exception 'the handler ended the transaction it was given'
      using errcode = 'ONEND',
            detail = format('Transaction %s is not open any more; what its handler committed stays committed.',
                            check_open.transaction_id),
            hint = 'Remove COMMIT, ROLLBACK or PREPARE TRANSACTION from the handler: return to commit, throw to roll back.';
  end if;
  raise exception 'the handler changed the role to %', quote_ident(current_user)
    using errcode = 'ONROL',
          detail = format('The transaction began as %s; a prepared transaction belongs to the role that prepares it.',
                          substr(v_mark, 38)),
          hint = 'Run RESET ROLE before the handler returns.';
end
$$;

comment on function once.check_open(uuid) is
  'Raises ONEND if the marked transaction is over, ONROL if the role changed.';
revoke all on function once.check_open(uuid) from public;
--! EndIncluded transaction/check_open.sql
--! Included transaction/vote.sql
-- A participant's vote, right before PREPARE TRANSACTION: false if this branch wrote nothing (commit it
-- plainly, it needs no gid); else true, and the evidence stands in the branch's own transaction.
create function once.vote(transaction_id uuid, home uuid, participant text) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_open(vote.transaction_id);
  if pg_current_xact_id_if_assigned() is null then
    return false;
  end if;
  -- A second vote of one transaction names another home: the first candidate had written nothing.
  insert into once.evidence as e (transaction_id, home, participant)
  values (vote.transaction_id, vote.home, vote.participant)
  on conflict on constraint evidence_pkey do update set home = excluded.home, participant = excluded.participant;
  return true;
end
$$;

comment on function once.vote(uuid, uuid, text) is
  'Participant, before PREPARE: false if it wrote nothing; else inserts the evidence of the branch and returns true.';
revoke all on function once.vote(uuid, uuid, text) from public;
--! EndIncluded transaction/vote.sql
--! Included transaction/begin_global.sql
-- The home's part, right before the others prepare: records the decision that its own COMMIT will make,
-- and returns its xid for the gids; null if the home wrote nothing (choose another home).
--
-- synchronous_commit: a visible row must be a durable one. Otherwise a recoverer could see it, commit a
-- branch, and the home forget its decision in a crash.
create function once.begin_global(transaction_id uuid, participants text[], participant_homes uuid[]) returns xid8
language plpgsql volatile
set search_path = ''
as $$
declare
  v_xid xid8;
begin
  perform once.check_open(begin_global.transaction_id);
  v_xid := pg_current_xact_id_if_assigned();
  if v_xid is null then
    return null;
  end if;
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- home_xid is left to its default, so that nobody needs the right to choose one: see once.decide.
  insert into once.global_transaction (transaction_id, participants, participant_homes)
  values (begin_global.transaction_id, begin_global.participants, begin_global.participant_homes);
  return v_xid;
end
$$;

comment on function once.begin_global(uuid, text[], uuid[]) is
  'Home, before the others prepare: inserts the decision row and returns the home''s xid for the gids (null: nothing written).';
revoke all on function once.begin_global(uuid, text[], uuid[]) from public;
--! EndIncluded transaction/begin_global.sql
--! Included transaction/narrow_global.sql
-- Takes participants that turned out to have written nothing out of the current transaction's own
-- decision row, or the row itself and this branch's evidence if nobody else is left (one-phase commit).
-- SECURITY DEFINER so that an application needs no right to change decisions: it reaches only rows
-- that the current transaction inserted. For its search_path see once.ensure_partition.
create function once.narrow_global(transaction_id uuid, participants text[], participant_homes uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if narrow_global.participants is null or narrow_global.participant_homes is null then
    raise exception 'null is not allowed as participants or participant_homes'
      using errcode = 'ONARG', detail = 'Null would be taken for "nobody is left", which removes the decision.',
            hint = 'Pass empty arrays if every other participant wrote nothing.';
  end if;
  if cardinality(narrow_global.participants) > 0 then
    update once.global_transaction g
       set participants = narrow_global.participants,
           participant_homes = narrow_global.participant_homes
     where g.transaction_id = narrow_global.transaction_id
       and g.home_xid = pg_current_xact_id_if_assigned();
  else
    delete from once.global_transaction g
     where g.transaction_id = narrow_global.transaction_id
       and g.home_xid = pg_current_xact_id_if_assigned();
  end if;
  delete from once.evidence e
   where e.transaction_id = narrow_global.transaction_id
     and e.xmin = pg_current_xact_id_if_assigned()::xid;
end
$$;

comment on function once.narrow_global(uuid, text[], uuid[]) is
  'Corrects the current transaction''s own decision row to the participants that wrote; none left: removes it.';
revoke all on function once.narrow_global(uuid, text[], uuid[]) from public;
--! EndIncluded transaction/narrow_global.sql
--! Included transaction/check_home.sql
-- Internal: raises unless this database may answer for a home, now, in this transaction.
create function once.check_home(home uuid) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_primary();
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'a decision cannot be read under %', current_setting('transaction_isolation')
      using errcode = 'ONISO',
            detail = 'The row must be read with a snapshot newer than the transaction''s status.',
            hint = 'begin transaction isolation level read committed;';
  end if;
  if once.home_id() is distinct from check_home.home then
    raise exception 'this database is %, not the home %', once.home_id(), coalesce(check_home.home::text, 'null')
      using errcode = 'ONIDN', detail = 'Only the database whose identity stands in the gid decides.',
            hint = 'Find it: select id from once.identity in each database.';
  end if;
end
$$;

comment on function once.check_home(uuid) is
  'Internal: raises ONSTB on a standby, ONISO under a frozen snapshot, ONIDN in another database.';
revoke all on function once.check_home(uuid) from public;
--! EndIncluded transaction/check_home.sql
--! Included transaction/decide.sql
-- What became of a global transaction, asked at its home:
--   committed  the decision row is visible: commit the branch
--   aborted    the home's transaction is over and left no row: roll the branch back
--   pending    the home's transaction still runs: ask again
--
-- Order is everything. First the status, then the row: the home commits its row before it stops being in
-- progress, so "over" followed by "no row" is conclusive; the other way round, it could commit between
-- the two readings. Hence VOLATILE and READ COMMITTED, where each statement takes a new snapshot.
--
-- The status answers "is it over?" and nothing else. Its 'committed' must not be believed: an xid that
-- was never flushed is given to a stranger after a crash, whose outcome it then tells. A stranger's xid
-- in progress only delays the answer.
create function once.decide(home uuid, transaction_id uuid, home_xid xid8) returns text
language plpgsql volatile
set search_path = ''
as $$
declare
  v_over boolean;
begin
  perform once.check_home(decide.home);
  if decide.transaction_id is null or decide.home_xid is null then
    raise exception 'transaction_id and home_xid must not be null'
      using errcode = 'ONARG', detail = 'Both stand in the gid.', hint = 'select * from once.in_doubt';
  end if;
  begin
    v_over := coalesce(pg_xact_status(decide.home_xid), 'too old') <> 'in progress';
  exception when invalid_parameter_value then
    v_over := true;  -- an xid that was lost in a crash before anything of it was flushed
  end;
  -- The xid too: a row with this id that another transaction inserted (anybody can read the id in the gid)
  -- is no decision.
  if exists (select from once.global_transaction g
              where g.transaction_id = decide.transaction_id and g.home_xid = decide.home_xid) then
    return 'committed';
  end if;
  return case when v_over then 'aborted' else 'pending' end;
end
$$;

comment on function once.decide(uuid, uuid, xid8) is
  'Home: committed, aborted or pending, for a branch in doubt (arguments from its gid). Conclusive at any moment.';
revoke all on function once.decide(uuid, uuid, xid8) from public;
--! EndIncluded transaction/decide.sql
--! Included transaction/outcome.sql
-- What became of a global transaction, asked by an application that lost the connection. As once.decide,
-- but the question may come long after the last branch was finished and the row forgotten. A branch in
-- doubt keeps its row; an application's question does not. So an absent row means 'aborted' only for
-- transactions newer than every forgotten one, else 'forgotten': committed and cleaned up, or aborted.
create function once.outcome(home uuid, transaction_id uuid, home_xid xid8) returns text
language plpgsql volatile
set search_path = ''
as $$
declare
  v_decision text := once.decide(outcome.home, outcome.transaction_id, outcome.home_xid);
begin
  -- Read after the row: a row that was forgotten before we looked for it has raised the mark before.
  if v_decision = 'aborted' and (select i.forgotten_xid >= outcome.home_xid from once.identity i) then
    return 'forgotten';
  end if;
  return v_decision;
end
$$;

comment on function once.outcome(uuid, uuid, xid8) is
  'Home: committed, aborted, pending or forgotten (cleaned up too long ago to tell) for an application''s question.';
revoke all on function once.outcome(uuid, uuid, xid8) from public;
--! EndIncluded transaction/outcome.sql
--! Included transaction/in_doubt.sql
-- This database's prepared transactions that carry our prefix. A gid proves nothing, anybody who may
-- connect can choose one; ours are recognised by gid, owner and database together: every branch of ours
-- inserted evidence, so its owner must be able to.
create view once.in_doubt as
select p.gid,
       (g.part)[2]::uuid as transaction_id,
       (g.part)[1]::uuid as home,
       (g.part)[3] as home_xid,
       (g.part)[4] as participant,
       p.owner,
       p.prepared as prepared_at,
       clock_timestamp() - p.prepared as age,
       coalesce(g.part is not null and r.oid is not null
                and has_function_privilege(r.oid, 'once.vote(uuid, uuid, text)', 'execute')
                and has_schema_privilege(r.oid, 'once', 'usage'), false) as ours,
       -- Only the owner or a superuser finishes it; a member must SET ROLE, since 16 a privilege of its own.
       coalesce(pg_has_role(current_user, r.oid, case when current_setting('server_version_num')::integer >= 160000
                                                      then 'set' else 'member' end), false) as can_finish
  from pg_catalog.pg_prepared_xacts p
  left join pg_catalog.pg_roles r on r.rolname = p.owner
 cross join lateral (
   select regexp_match(p.gid, '^once:1:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([0-9]{1,19}):([A-Za-z0-9._-]{1,63})$') as part
 ) g
 where p.database = current_database()
   and p.gid like 'once:%';

comment on view once.in_doubt is
  'Prepared transactions of this database with pgonce''s prefix: gid taken apart, owner, age, whether it is ours and whether you may finish it.';
--! EndIncluded transaction/in_doubt.sql
--! Included transaction/unproven.sql
-- Forgetting, step 1 (home): decisions whose branches are not proven yet, oldest first, a page at a time.
create function once.unproven(
  batch_size integer default 1000,
  after_decided_at timestamptz default '-infinity',
  after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, participants text[], participant_homes uuid[], decided_at timestamptz)
language sql stable
set search_path = ''
as $$
  select g.transaction_id, g.participants, g.participant_homes, g.decided_at
    from once.global_transaction g
   where g.proven_at is null
     and (g.decided_at, g.transaction_id) > (unproven.after_decided_at, unproven.after_id)
   order by g.decided_at, g.transaction_id
   limit unproven.batch_size
$$;

comment on function once.unproven(integer, timestamptz, uuid) is
  'Home: decisions whose branches are not all proven, oldest first, after the given one.';
revoke all on function once.unproven(integer, timestamptz, uuid) from public;
--! EndIncluded transaction/unproven.sql
--! Included transaction/find_evidence.sql
-- Forgetting, step 2 (participant): which of these transactions committed their branch here.
create function once.find_evidence(transaction_ids uuid[]) returns setof uuid
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_primary();
  return query
  select e.transaction_id from once.evidence e where e.transaction_id = any (find_evidence.transaction_ids);
end
$$;

comment on function once.find_evidence(uuid[]) is
  'Participant: those of the given transactions whose branch committed in this database.';
revoke all on function once.find_evidence(uuid[]) from public;
--! EndIncluded transaction/find_evidence.sql
--! Included transaction/mark_proven.sql
-- Forgetting, step 3 (home): every participant's evidence of these transactions was seen. Must be
-- durable before any evidence goes, or a crash would leave a decision that nothing proves.
create function once.mark_proven(transaction_ids uuid[]) returns bigint
language plpgsql volatile
set search_path = ''
as $$
declare
  v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  update once.global_transaction g
     set proven_at = clock_timestamp()
   where g.transaction_id = any (mark_proven.transaction_ids)
     and g.proven_at is null;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function once.mark_proven(uuid[]) is
  'Home: marks decisions whose evidence was seen at every participant; returns how many were new.';
revoke all on function once.mark_proven(uuid[]) from public;
--! EndIncluded transaction/mark_proven.sql
--! Included transaction/proven.sql
-- Forgetting, step 4 (home): proven decisions that nobody is likely to ask about any more. The time only
-- decides when to look; a question that comes later is answered 'forgotten', never wrongly.
create function once.proven(batch_size integer default 1000, keep interval default '10 minutes')
returns table (transaction_id uuid, participants text[], participant_homes uuid[])
language sql stable
set search_path = ''
as $$
  select g.transaction_id, g.participants, g.participant_homes
    from once.global_transaction g
   where g.proven_at <= now() - proven.keep
   order by g.proven_at
   limit proven.batch_size
$$;

comment on function once.proven(integer, interval) is
  'Home: proven decisions older than keep (10 minutes), whose evidence may be deleted.';
revoke all on function once.proven(integer, interval) from public;
--! EndIncluded transaction/proven.sql
--! Included transaction/delete_evidence.sql
-- Forgetting, step 5 (participant): the home has marked these proven. Durable, or the evidence could come
-- back in a crash after its home row went, and look like a lost decision.
create function once.delete_evidence(home uuid, transaction_ids uuid[]) returns bigint
language plpgsql volatile
set search_path = ''
as $$
declare
  v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  delete from once.evidence e
   where e.transaction_id = any (delete_evidence.transaction_ids)
     and e.home = delete_evidence.home;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function once.delete_evidence(uuid, uuid[]) is
  'Participant: deletes evidence of transactions that their home has marked proven.';
revoke all on function once.delete_evidence(uuid, uuid[]) from public;
--! EndIncluded transaction/delete_evidence.sql
--! Included transaction/forget_proven.sql
-- Forgetting, step 6 (home): the evidence is gone everywhere, so is the row. Raises the mark that makes
-- once.outcome say 'forgotten' from now on; unproven rows are never touched.
create function once.forget_proven(transaction_ids uuid[]) returns bigint
language plpgsql volatile
set search_path = ''
as $$
declare
  v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  with gone as (
    delete from once.global_transaction g
     where g.transaction_id = any (forget_proven.transaction_ids)
       and g.proven_at is not null
    returning g.home_xid
  ), mark as (
    update once.identity i
       set forgotten_xid = greatest(i.forgotten_xid, (select max(g.home_xid) from gone g))
     where exists (select from gone)
  )
  select count(*) into v_count from gone;
  return v_count;
end
$$;

comment on function once.forget_proven(uuid[]) is
  'Home: deletes proven decisions whose evidence is gone; returns how many.';
revoke all on function once.forget_proven(uuid[]) from public;
--! EndIncluded transaction/forget_proven.sql
--! Included transaction/evidence_page.sql
-- The audit's page of evidence (participant): every branch that committed here and is not forgotten.
create function once.evidence_page(
  batch_size integer default 1000,
  after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, home uuid, participant text)
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_primary();
  return query
  select e.transaction_id, e.home, e.participant
    from once.evidence e
   where e.transaction_id > evidence_page.after_id
   order by e.transaction_id
   limit evidence_page.batch_size;
end
$$;

comment on function once.evidence_page(integer, uuid) is
  'Participant: a page of the evidence in this database, by transaction id.';
revoke all on function once.evidence_page(integer, uuid) from public;
--! EndIncluded transaction/evidence_page.sql
--! Included transaction/find_decisions.sql
-- The audit's question to a home: which of these decisions do you still have, and are they proven?
create function once.find_decisions(transaction_ids uuid[]) returns table (transaction_id uuid, proven boolean)
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_home(once.home_id());
  return query
  select g.transaction_id, g.proven_at is not null
    from once.global_transaction g
   where g.transaction_id = any (find_decisions.transaction_ids);
end
$$;

comment on function once.find_decisions(uuid[]) is
  'Home: those of the given transactions that have a decision row here, and whether it is proven.';
revoke all on function once.find_decisions(uuid[]) from public;
--! EndIncluded transaction/find_decisions.sql
--! Included transaction/record_heuristic.sql
-- Records a loss that the audit found; once, however many auditors find it. True if it is new.
create function once.record_heuristic(transaction_id uuid, participant text, home uuid, kind text) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
  insert into once.heuristic (transaction_id, participant, home, kind)
  values (record_heuristic.transaction_id, record_heuristic.participant, record_heuristic.home, record_heuristic.kind)
  on conflict do nothing;
  return found;
end
$$;

comment on function once.record_heuristic(uuid, text, uuid, text) is
  'Records that a decision (lost decision) or a branch (lost branch) was lost; true if it was not known yet.';
revoke all on function once.record_heuristic(uuid, text, uuid, text) from public;
--! EndIncluded transaction/record_heuristic.sql
--! Included transaction/forget.sql
-- For operators: acknowledges a loss after it was looked into. Removes what is left of the transaction in
-- this database, so that the audit is silent about it, and keeps the record of who and why. Raises the
-- mark of once.outcome as once.forget_proven does: a decision that was removed must not look aborted.
create function once.forget(transaction_id uuid, reason text) returns bigint
language plpgsql volatile
set search_path = ''
as $$
declare
  v_count bigint;
begin
  update once.heuristic h set acknowledged_at = now()
   where h.transaction_id = forget.transaction_id and h.acknowledged_at is null;
  get diagnostics v_count = row_count;
  if v_count = 0 then
    raise exception 'transaction % has no loss to acknowledge here', coalesce(forget.transaction_id::text, 'null')
      using errcode = 'ONARG', detail = 'Only losses that the audit has recorded can be forgotten by hand.',
            hint = 'select * from once.heuristic where acknowledged_at is null';
  end if;
  perform once.record_intervention('forget', jsonb_build_object('transaction_id', forget.transaction_id), forget.reason);
  perform once.ensure_durable();
  with gone as (
    delete from once.global_transaction g where g.transaction_id = forget.transaction_id returning g.home_xid
  )
  update once.identity i set forgotten_xid = greatest(i.forgotten_xid, g.home_xid) from gone g;
  delete from once.evidence e where e.transaction_id = forget.transaction_id;
  return v_count;
end
$$;

comment on function once.forget(uuid, text) is
  'Operator: acknowledges a recorded loss, removes what is left of the transaction here, records who and why.';
revoke all on function once.forget(uuid, text) from public;
--! EndIncluded transaction/forget.sql
--! Included identity/renew_identity.sql
-- For a copy of a database whose original lives on: takes a new id. Decisions and evidence in the copy
-- belong to transactions of the original, so they go; ledgers and offsets stay, they are this
-- database's own history.
create function once.renew_identity(reason text) returns uuid
language plpgsql volatile
set search_path = ''
as $$
declare
  v_old uuid;
  v_new uuid := gen_random_uuid();
begin
  select i.id into v_old from once.identity i for update;
  perform once.record_intervention('renew_identity', jsonb_build_object('old', v_old, 'new', v_new),
                                   renew_identity.reason);
  perform once.ensure_durable();
  delete from once.global_transaction;
  delete from once.evidence;
  delete from once.heuristic;
  update once.identity i
     set id = v_new,
         system_identifier = c.system_identifier,
         database_oid = d.oid,
         forgotten_xid = '0',
         created_at = now()
    from pg_catalog.pg_control_system() c, pg_catalog.pg_database d
   where d.datname = current_database();
  return v_new;
end
$$;

comment on function once.renew_identity(text) is
  'Gives a copied database an identity of its own and drops the original''s decisions and evidence from it.';
revoke all on function once.renew_identity(text) from public;
--! EndIncluded identity/renew_identity.sql
--! Included identity/adopt_identity.sql
-- For a database that replaces its original for good (dump and restore, pg_upgrade): keeps the id, so
-- that branches which name it as their home still find their decision here.
create function once.adopt_identity(reason text) returns uuid
language plpgsql volatile
set search_path = ''
as $$
declare
  v_id uuid;
begin
  select i.id into v_id from once.identity i for update;
  perform once.record_intervention('adopt_identity', jsonb_build_object('id', v_id), adopt_identity.reason);
  perform once.ensure_durable();
  update once.identity i
     set system_identifier = c.system_identifier,
         database_oid = d.oid
    from pg_catalog.pg_control_system() c, pg_catalog.pg_database d
   where d.datname = current_database();
  return v_id;
end
$$;

comment on function once.adopt_identity(text) is
  'Keeps the identity in a database that has replaced its original for good (dump and restore, pg_upgrade).';
revoke all on function once.adopt_identity(text) from public;
--! EndIncluded identity/adopt_identity.sql
--! Included roles/check_role.sql
-- Internal: raises unless a role of this name exists.
create function once.check_role(role text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
  if not exists (select from pg_catalog.pg_roles r where r.rolname = check_role.role) then
    raise exception 'no role named %', coalesce(quote_literal(check_role.role), 'null')
      using errcode = 'ONARG', detail = 'Expected the name of an existing role, without quotes.',
            hint = format('create role %I login', coalesce(check_role.role, 'shop'));
  end if;
end
$$;

comment on function once.check_role(text) is 'Internal: raises ONARG unless the role exists.';
revoke all on function once.check_role(text) from public;
--! EndIncluded roles/check_role.sql
--! Included roles/grant_app.sql
-- What an application needs to claim, to move offsets and to take part in global transactions. It can add
-- keys, never take one back, and cannot touch anybody's decisions; the counters of producers and offsets
-- it must be trusted with, since it updates them.
create function once.grant_app(role text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_role(grant_app.role);
  execute format($grant$
    grant usage on schema once to %1$I;
    grant select on once.identity, once.scope, once.message_floor, once.global_transaction, once.evidence,
                    once.producers, once.lag, once.in_doubt to %1$I;
    grant select, insert (producer, epoch), update (epoch, watermark, ahead) on once.producer to %1$I;
    grant select, insert (consumer_group, topic, partition, epoch, owner, taken_at),
          update ("position", token, epoch, owner, taken_at, updated_at) on once.consumer_offset to %1$I;
    grant select, insert (topic, partition, end_position), update (end_position, updated_at)
          on once.topic_end to %1$I;
    grant select, insert on once.message, once.message_timeless to %1$I;
    grant update (result) on once.message, once.message_timeless to %1$I;
    grant insert (scope) on once.scope to %1$I;
    grant insert (transaction_id, participants, participant_homes) on once.global_transaction to %1$I;
    grant insert (transaction_id, home, participant), update (home, participant) on once.evidence to %1$I;
    grant execute on function
      once.schema_version(), once.home_id(), once.check_primary(), once.check_name(text, text), once.ensure_durable(),
      once.claim(text, bigint, integer, boolean), once.claim_batch(text, bigint[], integer, boolean),
      once.message_digest(text, text), once.message_time(text), once.ensure_partition(date), once.open_scope(text),
      once.claim_key(text, text, timestamptz, bytea), once.claim_key_batch(text, text[], timestamptz[], bytea[]),
      once.keep_result(text, text, jsonb, timestamptz),
      once.take_partition(text, text, integer, text), once.read_offset(text, text, integer),
      once.explain_offset(text, text, integer, integer, text, text),
      once.advance(text, text, integer, integer, bigint, bigint),
      once.advance_token(text, text, integer, integer, text, text), once.report_end(text, integer, bigint),
      once.open(uuid, integer, integer), once.check_open(uuid), once.vote(uuid, uuid, text),
      once.begin_global(uuid, text[], uuid[]), once.narrow_global(uuid, text[], uuid[]),
      once.check_home(uuid), once.decide(uuid, uuid, xid8), once.outcome(uuid, uuid, xid8),
      once.find_evidence(uuid[])
    to %1$I
  $grant$, grant_app.role);
end
$$;

comment on function once.grant_app(text) is
  'Lets a role claim, move offsets and take part in global transactions: select once.grant_app(''shop'').';
revoke all on function once.grant_app(text) from public;
--! EndIncluded roles/grant_app.sql
--! Included roles/grant_recover.sql
-- What a recoverer needs: to see branches in doubt, ask for decisions, forget by the handshake, audit,
-- and sweep the key ledger. It can finish branches only of roles that it is a member of (Postgres's
-- rule), so grant it those: grant shop to recoverer.
create function once.grant_recover(role text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_role(grant_recover.role);
  execute format($grant$
    grant usage on schema once to %1$I;
    grant select on once.identity, once.scope, once.global_transaction, once.evidence, once.heuristic,
                    once.in_doubt to %1$I;
    grant update (forgotten_xid) on once.identity to %1$I;
    grant update (proven_at), delete on once.global_transaction to %1$I;
    grant delete on once.evidence to %1$I;
    grant insert on once.heuristic to %1$I;
    grant execute on function
      once.schema_version(), once.home_id(), once.check_primary(), once.check_home(uuid),
      once.decide(uuid, uuid, xid8), once.outcome(uuid, uuid, xid8),
      once.unproven(integer, timestamptz, uuid), once.find_evidence(uuid[]), once.mark_proven(uuid[]),
      once.proven(integer, interval), once.delete_evidence(uuid, uuid[]), once.forget_proven(uuid[]),
      once.evidence_page(integer, uuid), once.find_decisions(uuid[]),
      once.record_heuristic(uuid, text, uuid, text), once.sweep(integer)
    to %1$I
  $grant$, grant_recover.role);
end
$$;

comment on function once.grant_recover(text) is
  'Lets a role recover, forget by the handshake, audit and sweep: select once.grant_recover(''recoverer'').';
revoke all on function once.grant_recover(text) from public;
--! EndIncluded roles/grant_recover.sql
--! Included roles/grant_monitor.sql
-- What a dashboard needs: to look, at everything but payload hashes and results.
create function once.grant_monitor(role text) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_role(grant_monitor.role);
  execute format($grant$
    grant usage on schema once to %1$I;
    grant select on once.identity, once.producers, once.scope, once.message_floor, once.consumer_offset,
                    once.topic_end, once.lag, once.in_doubt, once.global_transaction, once.evidence,
                    once.heuristic, once.intervention to %1$I;
    grant execute on function
      once.schema_version(), once.home_id(), once.read_offset(text, text, integer),
      once.unproven(integer, timestamptz, uuid)
    to %1$I
  $grant$, grant_monitor.role);
end
$$;

comment on function once.grant_monitor(text) is
  'Lets a role look at identity, ledgers, offsets, branches in doubt and losses: select once.grant_monitor(''grafana'').';
revoke all on function once.grant_monitor(text) from public;
--! EndIncluded roles/grant_monitor.sql
--! EndIncluded schema.sql
