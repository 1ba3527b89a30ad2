--! Previous: -
--! Hash: sha1:74fb25a31d142dbb425d3c551b097f20c98730fb
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
--! Included role/privilege.sql
-- What each kind of role needs, a row per object, written by the `call once.allow(kinds, object)` beside each
-- object and granted by once.grant_app() and its like. It is the least that works.
create table once.privilege (
  kind text not null check (kind in ('app', 'recover', 'monitor', 'operator')), object text not null,
  -- As GRANT has them: `execute`, or `select, insert (scope)`.
  privileges text not null,
  primary key (kind, object)
);
comment on table once.privilege is
  'What app, recover, monitor and operator may do, by object: what once.grant_app and its like grant.';
--! EndIncluded role/privilege.sql
--! Included role/allow.sql
-- Internal: notes beside an object which kinds of role need it, as in 'app, recover'; `owner` is nobody else.
-- A routine is taken from PUBLIC, who may execute it by default.
create procedure once.allow(kinds text, object text, privileges text default 'execute')
language plpgsql set search_path = '' as $$
begin
  if allow.privileges = 'execute' then
    execute format('revoke all on routine once.%I from public', allow.object);
  end if;
  insert into once.privilege (kind, object, privileges)
  select k, allow.object, allow.privileges from regexp_split_to_table(allow.kinds, ', ') k where k <> 'owner'
      on conflict on constraint privilege_pkey do update set privileges = excluded.privileges;
end $$;
comment on procedure once.allow(text, text, text) is
  'Internal: notes what kinds of role need of an object, and takes a routine from PUBLIC.';
call once.allow('owner', 'allow');
call once.allow('app, recover, monitor', 'privilege', 'select');
--! EndIncluded role/allow.sql
--! Included database/migration.sql
-- What was installed, a row per file of migrations/committed/: written by the text that installs it.
create table once.migration (
  name text primary key, installed_at timestamptz not null default clock_timestamp()
);
comment on table once.migration is
  'The migrations of pgonce that were installed in this database, by name and time.';
call once.allow('app, recover, monitor', 'migration', 'select');
--! EndIncluded database/migration.sql
--! Included database/schema_version.sql
-- The number of the newest migration, for clients to compare: every migration replaces this function.
create function once.schema_version() returns integer
language sql immutable parallel safe set search_path = '' as $$ select 1 $$;
comment on function once.schema_version() is
  'The number of the newest pgonce migration installed in this database.';
call once.allow('app, recover, monitor', 'schema_version');
--! EndIncluded database/schema_version.sql
--! Included database/database.sql
-- One row that names this database. The id stands in every gid and says which database decides. The
-- fingerprint (cluster and database oid) tells an original from a copy, which carries the id too but must not
-- answer for the original: it knows nothing of transactions that still run there.
create table once.database (
  singleton boolean primary key default true check (singleton), id uuid not null default gen_random_uuid(),
  system_identifier bigint not null, database_oid oid not null,
  -- The newest home xid whose decision was purged: once.outcome() answers exactly above it.
  purged_xid xid8 not null default '0',
  created_at timestamptz not null default now()
);

insert into once.database (system_identifier, database_oid)
select c.system_identifier, d.oid from pg_catalog.pg_control_system() c, pg_catalog.pg_database d
 where d.datname = current_database();
comment on table once.database is
  'One row: the id of this database in gids, and the fingerprint that tells an original from a copy.';
call once.allow('app, monitor', 'database', 'select');
call once.allow('recover', 'database', 'select, update (purged_xid)');
--! EndIncluded database/database.sql
--! Included database/intervention.sql
-- What people did by hand: every function that overrules the protocol writes here first, in its transaction.
create table once.intervention (
  intervention_id bigint generated always as identity primary key,
  happened_at timestamptz not null default now(), login name not null default session_user,
  action text not null, subject jsonb not null, reason text not null check (reason <> '')
);
comment on table once.intervention is
  'Every manual override (position, watermark, database id, loss, forced branch): who, when, why.';

-- Internal: records an intervention. "Why" cannot be found out later, so it is required.
create function once.record_intervention(action text, subject jsonb, reason text) returns void
language plpgsql volatile set search_path = '' as $$
begin
  if coalesce(record_intervention.reason, '') = '' then
    raise exception 'a reason is required for %', record_intervention.action using errcode = 'ONARG',
      detail = 'Got an empty reason.',
      hint = 'Say why in the argument "reason"; it is kept in once.intervention.';
  end if;
  if record_intervention.action is null or record_intervention.subject is null then
    raise exception 'null is not allowed as action or subject' using errcode = 'ONARG',
      detail = 'They say what was done to what.',
      hint = 'select once.record_intervention(''restore'', ''{"from": "the backup of Monday"}'', ''why'')';
  end if;
  insert into once.intervention (action, subject, reason)
  values (record_intervention.action, record_intervention.subject, record_intervention.reason);
end $$;
comment on function once.record_intervention(text, jsonb, text) is
  'Internal: writes a row to once.intervention.';
call once.allow('operator', 'record_intervention');
call once.allow('recover, monitor', 'intervention', 'select');
call once.allow('operator', 'intervention', 'insert (action, subject, reason)');
--! EndIncluded database/intervention.sql
--! Included database/check_name.sql
-- Names are keys of B-tree indexes, whose entries cannot exceed 2.7 kB, so: 1 to 200 characters.
create function once.check_name(what text, value text) returns void
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  if check_name.value is null or length(check_name.value) not between 1 and 200 then
    raise exception 'bad %: %', check_name.what,
        case when check_name.value is null then 'null' else quote_literal(left(check_name.value, 40)) end
      using errcode = 'ONARG',
      detail = format('Expected 1 to 200 characters, got %s.',
                      coalesce(length(check_name.value)::text, 'null')),
      hint = 'Use a short stable name; for long or secret ids use the key ledger, which keeps a digest.';
  end if;
end $$;
comment on function once.check_name(text, text) is
  'Internal: raises ONARG unless a name has 1 to 200 characters.';
call once.allow('app, recover', 'check_name');
--! EndIncluded database/check_name.sql
--! Included database/name.sql
-- The type of names in tables that every message updates. A domain checks what is assigned; a CHECK of the
-- table would be evaluated at every update of any column, and some cost as much as the update itself.
create domain once.name as text check (length(value) between 1 and 200);
comment on domain once.name is 'A name of 1 to 200 characters; see once.check_name.';
revoke all on domain once.name from public;
--! EndIncluded database/name.sql
--! Included database/assert_primary.sql
-- Internal: raises on a standby. It may lag behind: no row there, missing or present, proves anything.
create function once.assert_primary() returns void language plpgsql volatile set search_path = '' as $$
begin
  if pg_is_in_recovery() then
    raise exception 'this server is a standby; only the primary decides' using errcode = 'ONSTB',
      detail = 'A standby may lag behind, so a missing row proves nothing here.',
      hint = 'Connect to the primary (target_session_attrs=read-write).';
  end if;
end $$;
comment on function once.assert_primary() is 'Internal: raises ONSTB on a standby.';
call once.allow('app, recover, monitor', 'assert_primary');
--! EndIncluded database/assert_primary.sql
--! Included database/explain_no_database.sql
-- Internal: raises why the row that names this database is not to be seen. No hint may destroy what is only
-- hidden: under a new id the decisions of transactions in doubt would be gone.
create function once.explain_no_database() returns void language plpgsql stable set search_path = '' as $$
begin
  if row_security_active('once.database'::regclass) then
    raise exception 'row level security hides the id of database % from role %',
        quote_ident(current_database()), quote_ident(current_user) using errcode = 'ONRLS',
      detail = 'Row level security was switched on for once.database, '
               'which has no policy that shows its row.',
      hint = 'alter table once.database disable row level security;   '
             '-- likewise the other tables of schema once';
  end if;
  raise exception 'database % has no id: the row of once.database is missing', quote_ident(current_database())
    using errcode = 'ONCPY',
    detail = 'The row names this database in gids; decisions and evidence count under that name only.',
    hint = case when exists (select from once.global_transaction) or exists (select from once.evidence)
                then 'There are decisions or evidence here: bring the row back from a backup.'
                else 'If this is a copy of a schema without its data: '
                     'select once.renew_database_id(''copied''). Else bring the row back from a backup.' end;
end $$;
comment on function once.explain_no_database() is
  'Internal: raises ONRLS if row level security hides the id of this database, ONCPY if it is missing.';
call once.allow('app, recover, monitor', 'explain_no_database');
--! EndIncluded database/explain_no_database.sql
--! Included database/database_id.sql
-- The id of this database, if it is the database that the id was made for. That is the safety of "ask the
-- home": a copy that answered would call every running transaction aborted. A promoted standby has the same
-- fingerprint and the same transactions: it may answer.
create function once.database_id() returns uuid language plpgsql stable set search_path = '' as $$
declare v_row once.database; v_system_identifier bigint; v_database_oid oid;
begin
  select i.* into v_row from once.database i;
  if not found then perform once.explain_no_database(); end if;
  select c.system_identifier into v_system_identifier from pg_catalog.pg_control_system() c;
  select d.oid into v_database_oid from pg_catalog.pg_database d where d.datname = current_database();
  if v_row.system_identifier is distinct from v_system_identifier
     or v_row.database_oid is distinct from v_database_oid then
    raise exception 'database % is a copy: its database id % was made for another database',
        quote_ident(current_database()), v_row.id using errcode = 'ONCPY',
      detail = format('Made for system %s, database oid %s; this is system %s, database oid %s.',
                      v_row.system_identifier, v_row.database_oid, v_system_identifier, v_database_oid),
      hint = 'If the original lives on: select once.renew_database_id(''copied''). '
             'If this database replaces it for good (dump and restore, pg_upgrade): '
             'select once.adopt_database_id(''moved'').';
  end if;
  return v_row.id;
end $$;
comment on function once.database_id() is
  'The id of this database in gids; raises ONCPY in a copied database, ONRLS where the row is hidden.';
call once.allow('app, recover, monitor', 'database_id');
--! EndIncluded database/database_id.sql
--! Included ledger/ensure_durable.sql
-- A sender hears that its message is done once the transaction commits. Under synchronous_commit = off that
-- commit can be lost in a crash afterwards, and nobody sends it again. So a claim waits for its flush.
create function once.ensure_durable() returns void language plpgsql volatile set search_path = '' as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end $$;
comment on function once.ensure_durable() is
  'Internal: turns synchronous_commit on for the current transaction if it is off.';
call once.allow('app, operator', 'ensure_durable');
--! EndIncluded ledger/ensure_durable.sql
--! Included ledger/gap_limit.sql
-- How many gaps a producer may have: operators change it in the table. A domain: see once.name.
create domain once.gap_limit as integer check (value between 0 and 100000);
comment on domain once.gap_limit is 'A number of gaps, 0 to 100000; see once.producer.';
revoke all on domain once.gap_limit from public;
--! EndIncluded ledger/gap_limit.sql
--! Included ledger/producer.sql
-- The ledger by sequence: one compact row per producer. All up to the watermark was processed, and the ranges
-- of once.claimed_ahead; what lies between may still arrive. No CHECK constraints: see once.name.
create table once.producer (
  producer once.name primary key, epoch integer not null default 0, watermark bigint not null default -1,
  -- How many rows of once.claimed_ahead are this producer's: each ends a gap.
  gaps integer not null default 0,
  max_gaps once.gap_limit not null default 1000
)
-- Every claim updates the row; free space on the page keeps those updates HOT, without index entries.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table once.producer is
  'Ledger by sequence, one row per producer: epoch, watermark (all up to it processed), ranges ahead of it.';
call once.allow('app', 'producer',
  'select, insert (producer, epoch, watermark), update (epoch, watermark, gaps)');
--! EndIncluded ledger/producer.sql
--! Included ledger/claimed_ahead.sql
-- Sequences processed ahead of their producer's watermark: ranges that neither overlap nor touch, first and
-- last included. A row per range, so that a claim touches only the ranges next to it: in one value on the
-- producer's row the 1,000th gap made a claim 28 times as dear. Who changes rows here updates the producer's.
create table once.claimed_ahead (
  producer once.name, first bigint, last bigint not null, primary key (producer, first)
)
-- A stream that goes on behind a gap updates "last" again and again: HOT, as it is in no index.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table once.claimed_ahead is
  'Ledger by sequence: ranges processed ahead of their producer''s watermark, one row per range.';
call once.allow('app', 'claimed_ahead', 'select, insert, update (last), delete');

create view once.producers as
select p.producer, p.epoch, p.watermark, p.gaps::bigint as gaps,
       coalesce((select a.last from once.claimed_ahead a
                  where a.producer = p.producer order by a.first desc limit 1), p.watermark) as highest,
       p.max_gaps from once.producer p;
comment on view once.producers is
  'Per producer: epoch, watermark, how many gaps are open, the highest sequence claimed, the limit of gaps.';
call once.allow('app, monitor', 'producers', 'select');
--! EndIncluded ledger/claimed_ahead.sql
--! Included ledger/assert_sequences.sql
-- Internal: raises unless the arguments of a claim by sequence are valid. 2^63-1 is left out because a range
-- that contains it has no upper bound in bigint.
create function once.assert_sequences(
  producer text, ranges int8multirange, epoch integer, strict boolean, start_at bigint
) returns void language plpgsql immutable set search_path = '' as $$
begin
  perform once.check_name('producer', assert_sequences.producer);
  if assert_sequences.ranges is null or assert_sequences.epoch is null or assert_sequences.strict is null then
    raise exception 'null is not allowed as sequences, epoch or strict' using errcode = 'ONARG',
      detail = format('Got sequences %s, epoch %s, strict %s.', assert_sequences.ranges is not null,
                      assert_sequences.epoch, assert_sequences.strict),
      hint = 'Pass an array of sequences, as array[41, 42], or ranges, as ''{[41,45]}''.';
  end if;
  if assert_sequences.epoch < 0 then
    raise exception 'bad epoch: %', assert_sequences.epoch using errcode = 'ONARG',
      detail = 'Expected 0 to 2147483647.',
      hint = 'Epochs count up from 0; a restarted producer takes the next one.';
  end if;
  if lower(assert_sequences.ranges) < 0 or lower_inf(assert_sequences.ranges)
     or upper_inf(assert_sequences.ranges) then
    raise exception 'bad sequence: %',
        case when lower(assert_sequences.ranges) < 0 then lower(assert_sequences.ranges)::text
             else '9223372036854775807, or none at all' end using errcode = 'ONARG',
      detail = 'Expected 0 to 9223372036854775806.', hint = 'Count messages of a producer up from 0.';
  end if;
  if assert_sequences.start_at < 0 or assert_sequences.start_at = 9223372036854775807 then
    raise exception 'bad start_at: %', assert_sequences.start_at using errcode = 'ONARG',
      detail = 'Expected 0 to 9223372036854775806.',
      hint = 'Name the first sequence of the producer, such as 1; leave it out for 0.';
  end if;
end $$;
comment on function once.assert_sequences(text, int8multirange, integer, boolean, bigint) is
  'Internal: raises ONARG unless producer, sequences, epoch and start of a claim are valid.';
call once.allow('app', 'assert_sequences');
--! EndIncluded ledger/assert_sequences.sql
--! Included ledger/refuse_gaps.sql
-- Internal: raises that a claim would leave too many gaps, with ranges ahead of those that are known.
create function once.refuse_gaps(producer text, ahead int8multirange, gaps bigint) returns void
language plpgsql stable set search_path = '' as $$
declare v_row once.producer; v_half bigint;
begin
  select p.* into v_row from once.producer p where p.producer = refuse_gaps.producer;
  with range as (
    select a.first from once.claimed_ahead a where a.producer = refuse_gaps.producer
    union select lower(r) from unnest(refuse_gaps.ahead) r
  )
  select r.first into v_half from range r order by r.first offset (select count(*) / 2 from range) limit 1;
  raise exception 'producer % would have % gaps, the limit is %',
      quote_literal(refuse_gaps.producer), refuse_gaps.gaps, v_row.max_gaps using errcode = 'ONMAX',
    detail = case when v_row.watermark >= 0
                  then format('Every sequence up to %s is processed; ', v_row.watermark)
                  else 'Sequence 0 is not processed yet; ' end
             || format('%s separate ranges lie above it. Nothing was claimed.', refuse_gaps.gaps),
    hint = format('Deliver the missing messages, or give the older half of them up: '
                  'select once.set_watermark(%L, %s, ''reason''). '
                  'Numbers with holes for good, as of an identity column, belong in the key ledger; '
                  'for a producer that begins at 1 say start_at => 1 with its first claim.',
                  refuse_gaps.producer, v_half - 1);
end $$;
comment on function once.refuse_gaps(text, int8multirange, bigint) is
  'Internal: raises ONMAX for a claim that would leave too many gaps, and says how to give half of them up.';
call once.allow('app', 'refuse_gaps');
--! EndIncluded ledger/refuse_gaps.sql
--! Included ledger/ranges_near.sql
-- Internal: what a producer has claimed ahead of its watermark, as far as it can overlap or touch these
-- ranges: from the last one that begins below the first of them, to where they end.
create function once.ranges_near(producer text, ranges int8multirange) returns int8multirange
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(range_agg(int8range(a.first, a.last, '[]')), '{}') from once.claimed_ahead a
     where a.producer = ranges_near.producer and a.first <= upper(ranges_near.ranges)
       and a.first >= coalesce((select b.first from once.claimed_ahead b
                                 where b.producer = ranges_near.producer
                                   and b.first < lower(ranges_near.ranges)
                                 order by b.first desc limit 1), 0));
end $$;
comment on function once.ranges_near(text, int8multirange) is
  'Internal: the ranges claimed ahead of a producer''s watermark that can overlap or touch these.';
call once.allow('app', 'ranges_near');
--! EndIncluded ledger/ranges_near.sql
--! Included ledger/claim_any.sql
-- Internal: claims any sequences and answers the new ones, where the fast paths of once.claim and
-- once.claim_ranges do not apply: a new producer or epoch, gaps, duplicates, bad arguments.
--
-- The producer's row is locked until the caller's transaction ends, so two claims of one sequence can never
-- both be new: the second waits, then sees the first, or takes over if it rolled back.
create function once.claim_any(
  producer text, ranges int8multirange, epoch integer, strict boolean, start_at bigint
) returns int8multirange language plpgsql volatile set search_path = '' as $$
declare
  v_row once.producer; v_near int8multirange := '{}'; v_near_count bigint := 0;
  v_fresh int8multirange; v_ahead int8multirange; v_watermark bigint; v_gaps bigint; v_bad bigint;
begin
  perform once.ensure_durable();
  select p.* into v_row from once.producer p where p.producer = claim_any.producer for update;
  if not found then
    perform once.assert_sequences(claim_any.producer, claim_any.ranges, claim_any.epoch,
                                  claim_any.strict, claim_any.start_at);
    if isempty(claim_any.ranges) then return '{}'; end if;
    insert into once.producer (producer, epoch, watermark)
    values (claim_any.producer, claim_any.epoch, coalesce(claim_any.start_at, 0) - 1) on conflict do nothing;
    -- Read again: if somebody else inserted it, we waited for them and must see what they claimed.
    select p.* into strict v_row from once.producer p where p.producer = claim_any.producer for update;
  end if;
  if (lower(claim_any.ranges) >= 0 and not upper_inf(claim_any.ranges)
      and claim_any.epoch >= v_row.epoch and claim_any.strict is not null) is not true then
    perform once.assert_sequences(claim_any.producer, claim_any.ranges, claim_any.epoch,
                                  claim_any.strict, claim_any.start_at);
    if isempty(claim_any.ranges) then return '{}'; end if;
    raise exception 'producer % is fenced: epoch % is older than %',
        quote_literal(claim_any.producer), claim_any.epoch, v_row.epoch using errcode = 'ONFEN',
      detail = 'A newer incarnation of this producer has claimed already; nothing was claimed.',
      hint = 'Stop this producer. A successor must use an epoch of at least the current one.';
  end if;

  -- What lies ahead and can overlap or touch, as once.ranges_near has it.
  if v_row.gaps > 0 then
    select coalesce(range_agg(int8range(a.first, a.last, '[]')), '{}'), count(*) into v_near, v_near_count
      from once.claimed_ahead a
     where a.producer = claim_any.producer and a.first <= upper(claim_any.ranges)
       and a.first >= coalesce((select b.first from once.claimed_ahead b
                                 where b.producer = claim_any.producer and b.first < lower(claim_any.ranges)
                                 order by b.first desc limit 1), 0);
  end if;
  v_fresh := claim_any.ranges - v_near - int8multirange(int8range(null, v_row.watermark, '[]'));
  if isempty(v_fresh) and claim_any.epoch = v_row.epoch then return '{}'; end if;

  v_ahead := v_near + v_fresh;
  v_watermark := v_row.watermark;
  if lower(v_ahead) = v_watermark + 1 then
    select upper(r) - 1 into v_watermark from unnest(v_ahead) r order by r limit 1;
    v_ahead := v_ahead - int8multirange(int8range(null, v_watermark, '[]'));
  end if;
  -- Strict: the watermark must reach the last new one. What was processed ahead of it is no gap.
  if claim_any.strict and upper(v_fresh) - 1 > v_watermark then
    v_bad := lower(v_fresh - int8multirange(int8range(null, v_watermark, '[]')));
    raise exception 'producer % is out of order: expected sequence %, got %',
        quote_literal(claim_any.producer), v_watermark + 1, v_bad using errcode = 'ONGAP',
      detail = 'In strict mode new sequences must follow the watermark without a gap. Nothing was claimed.',
      hint = format('Deliver the missing messages first, or skip them: '
                    'select once.set_watermark(%L, %s, ''reason'').', claim_any.producer, v_bad - 1);
  end if;
  v_gaps := v_row.gaps - v_near_count + (select count(*) from unnest(v_ahead));
  -- A claim that closes a gap is welcome even where the limit is exceeded.
  if v_gaps > v_row.max_gaps and v_gaps > v_row.gaps then
    perform once.refuse_gaps(claim_any.producer, v_ahead, v_gaps);
  end if;

  -- One range that only grew at its end is all that is left alone by this.
  if v_near_count > 1 or lower(v_ahead) is distinct from lower(v_near) then
    delete from once.claimed_ahead a
     where a.producer = claim_any.producer
       and a.first = any (array(select lower(r) from unnest(v_near) r
                                except select lower(r) from unnest(v_ahead) r));
  end if;
  insert into once.claimed_ahead as a (producer, first, last)
  select claim_any.producer, lower(r), upper(r) - 1 from unnest(v_ahead) r where not r <@ v_near
  on conflict on constraint claimed_ahead_pkey do update set last = excluded.last;
  -- Also where none of its columns changes: it is what a claim with an older snapshot collides with.
  update once.producer p set watermark = v_watermark, gaps = v_gaps, epoch = claim_any.epoch
   where p.producer = claim_any.producer;
  return v_fresh;
end $$;
comment on function once.claim_any(text, int8multirange, integer, boolean, bigint) is
  'Internal: claims any sequences of a producer and answers the new ones; see once.claim_ranges.';
call once.allow('app', 'claim_any');
--! EndIncluded ledger/claim_any.sql
--! Included ledger/claim_ranges.sql
-- Claims ranges of sequences of one producer, as '{[1,500]}', and answers the new ones: what clients call.
create function once.claim_ranges(
  producer text, ranges int8multirange, epoch integer default 0, strict boolean default false,
  start_at bigint default null
) returns int8multirange language plpgsql volatile set search_path = '' as $$
begin
  -- The next piece of its stream, whole: one update of one row.
  update once.producer p set watermark = upper(claim_ranges.ranges) - 1
   where p.producer = claim_ranges.producer and p.epoch = claim_ranges.epoch
     and p.watermark + 1 = lower(claim_ranges.ranges) and p.gaps = 0
     and claim_ranges.ranges = int8multirange(int8range(p.watermark + 1, upper(claim_ranges.ranges)))
     and not upper_inf(claim_ranges.ranges) and current_setting('synchronous_commit') <> 'off';
  if found then return claim_ranges.ranges; end if;
  -- All of it behind the watermark. That never moves back, so no lock is needed to be sure.
  perform from once.producer p
    where p.producer = claim_ranges.producer and p.epoch = claim_ranges.epoch
      and lower(claim_ranges.ranges) >= 0 and upper(claim_ranges.ranges) - 1 <= p.watermark
      and current_setting('synchronous_commit') <> 'off';
  if found then return '{}'; end if;
  -- Or in what was processed ahead of it, which stays so as well.
  perform from once.producer p
    where p.producer = claim_ranges.producer and p.epoch = claim_ranges.epoch and p.gaps > 0
      and lower(claim_ranges.ranges) >= 0
      and claim_ranges.ranges - int8multirange(int8range(null, p.watermark, '[]'))
          <@ once.ranges_near(claim_ranges.producer, claim_ranges.ranges)
      and current_setting('synchronous_commit') <> 'off';
  if found then return '{}'; end if;
  return once.claim_any(claim_ranges.producer, claim_ranges.ranges, claim_ranges.epoch,
                                 claim_ranges.strict, claim_ranges.start_at);
end $$;
comment on function once.claim_ranges(text, int8multirange, integer, boolean, bigint) is
  'Claims ranges of sequences and answers the new ones: select once.claim_ranges(''shop-7'', ''{[41,45]}'').';
call once.allow('app', 'claim_ranges');
--! EndIncluded ledger/claim_ranges.sql
--! Included ledger/claim_batch.sql
-- Claims a batch of sequences of one producer and returns those that are new, once each, ascending.
create function once.claim_batch(
  producer text, sequences bigint[], epoch integer default 0, strict boolean default false,
  start_at bigint default null
) returns setof bigint language plpgsql volatile set search_path = '' as $$
declare v_ranges int8multirange;
begin
  if exists (select from unnest(claim_batch.sequences) s
              where s is null or s < 0 or s = 9223372036854775807) then
    raise exception 'bad sequence: %', coalesce((select s::text from unnest(claim_batch.sequences) s
        where s is null or s < 0 or s = 9223372036854775807 order by s limit 1), 'null')
      using errcode = 'ONARG', detail = 'Expected 0 to 9223372036854775806, and no null.',
      hint = 'Give every message of the batch its sequence; count messages of a producer up from 0.';
  end if;
  select range_agg(int8range(s, s, '[]')) into v_ranges from unnest(claim_batch.sequences) s;
  return query select s
    from unnest(once.claim_ranges(
           claim_batch.producer,
           case when claim_batch.sequences is not null then coalesce(v_ranges, '{}') end,
           claim_batch.epoch, claim_batch.strict, claim_batch.start_at)) r,
         generate_series(lower(r), upper(r) - 1) s order by s;
end $$;
comment on function once.claim_batch(text, bigint[], integer, boolean, bigint) is
  'Claims sequences and returns the new ones, once each: select once.claim_batch(''shop-7'', array[41, 42]).';
call once.allow('app', 'claim_batch');
--! EndIncluded ledger/claim_batch.sql
--! Included ledger/claim.sql
-- Claims one message of an ordered producer: 'claimed' (process it, in this transaction) or 'duplicate'
-- (already processed; no error, which would abort the caller's transaction). A new producer begins at
-- "start_at" (0 if left out): sequences below count as processed. A known one keeps its start.
create function once.claim(
  producer text, sequence bigint, epoch integer default 0, strict boolean default false,
  start_at bigint default null, out status text
) language plpgsql volatile set search_path = '' as $$
begin
  -- The next one of its stream.
  update once.producer p set watermark = claim.sequence
   where p.producer = claim.producer and p.epoch = claim.epoch and p.watermark + 1 = claim.sequence
     and p.gaps = 0 and claim.sequence < 9223372036854775807
     and current_setting('synchronous_commit') <> 'off';
  if found then claim.status := 'claimed'; return; end if;
  -- Behind the watermark. What is processed stays so: no lock is needed to be sure.
  perform from once.producer p
    where p.producer = claim.producer and p.epoch = claim.epoch and claim.sequence between 0 and p.watermark
      and current_setting('synchronous_commit') <> 'off';
  if found then claim.status := 'duplicate'; return; end if;
  -- Or in a range ahead of it.
  perform from once.claimed_ahead a
    where a.producer = claim.producer
      and a.first = (select b.first from once.claimed_ahead b
                      where b.producer = claim.producer and b.first <= claim.sequence
                      order by b.first desc limit 1)
      and claim.sequence <= a.last
      and claim.epoch = (select p.epoch from once.producer p where p.producer = claim.producer)
      and current_setting('synchronous_commit') <> 'off';
  if found then claim.status := 'duplicate'; return; end if;
  claim.status := case when isempty(once.claim_any(claim.producer,
      case when claim.sequence < 9223372036854775807
           then int8multirange(int8range(claim.sequence, claim.sequence, '[]'))
           when claim.sequence is not null then '{[0,)}' end,
      claim.epoch, claim.strict, claim.start_at)) then 'duplicate' else 'claimed' end;
end $$;
comment on function once.claim(text, bigint, integer, boolean, bigint) is
  'Claims one message by producer and sequence: select once.claim(''shop-7'', 41): claimed or duplicate.';
call once.allow('app', 'claim');
--! EndIncluded ledger/claim.sql
--! Included ledger/take_effect.sql
-- Runs statements if the claim is new, in the claim's round trip, and hands on its answer. The names in them
-- are the caller's, so it has no search_path of its own, and names what it uses with its schema.
create function once.take_effect(status text, statements text[]) returns text language plpgsql volatile as $$
declare v_statement pg_catalog.text;
begin
  if take_effect.status operator(pg_catalog.=) 'claimed'::pg_catalog.text then
    foreach v_statement in array take_effect.statements loop
      execute v_statement;
    end loop;
  elsif (take_effect.status operator(pg_catalog.=) any ('{duplicate,expired}'::pg_catalog.text[]))
        is not true then
    raise exception 'no answer of a claim: %', coalesce(take_effect.status, 'null') using errcode = 'ONARG',
      detail = 'Expected claimed, duplicate or expired.', hint = 'Pass what once.claim or claim_key answers.';
  end if;
  return take_effect.status;
end $$;
comment on function once.take_effect(text, text[]) is
  'Runs statements if a claim is new: select once.take_effect(once.claim(''shop-7'', 41), array[''...'']).';
call once.allow('app', 'take_effect');
--! EndIncluded ledger/take_effect.sql
--! Included ledger/set_watermark.sql
-- For operators: counts everything up to a sequence as processed. Closes gaps whose messages will never come,
-- and starts a stream in the middle. Never moves back.
create function once.set_watermark(producer text, sequence bigint, reason text) returns void
language plpgsql volatile set search_path = '' as $$
declare v_row once.producer; v_watermark bigint; v_deleted integer;
begin
  perform once.ensure_durable();
  perform once.check_name('producer', set_watermark.producer);
  if set_watermark.sequence is null or set_watermark.sequence < 0
     or set_watermark.sequence = 9223372036854775807 then
    raise exception 'bad sequence: %', coalesce(set_watermark.sequence::text, 'null') using errcode = 'ONARG',
      detail = 'Expected 0 to 9223372036854775806.',
      hint = 'Name the last sequence that counts as processed.';
  end if;
  insert into once.producer (producer) values (set_watermark.producer) on conflict do nothing;
  select p.* into strict v_row from once.producer p where p.producer = set_watermark.producer for update;
  if set_watermark.sequence <= v_row.watermark then
    raise exception 'the watermark of producer % is % already',
        quote_literal(set_watermark.producer), v_row.watermark using errcode = 'ONARG',
      detail = format('Got %s; a watermark never moves back, or messages would take effect twice.',
                      set_watermark.sequence),
      hint = 'Name a sequence above the watermark; see once.producers.';
  end if;
  perform once.record_intervention('set_watermark',
    jsonb_build_object('producer', set_watermark.producer, 'from', v_row.watermark,
                       'to', set_watermark.sequence),
    set_watermark.reason);
  -- Ranges below it or next to it are behind the watermark from now on.
  select coalesce(max(a.last), set_watermark.sequence) into v_watermark from once.claimed_ahead a
   where a.producer = set_watermark.producer and a.first <= set_watermark.sequence + 1
     and a.last > set_watermark.sequence;
  delete from once.claimed_ahead a where a.producer = set_watermark.producer and a.last <= v_watermark;
  get diagnostics v_deleted = row_count;
  update once.producer p set watermark = v_watermark, gaps = p.gaps - v_deleted
   where p.producer = set_watermark.producer;
end $$;
comment on function once.set_watermark(text, bigint, text) is
  'Operator: counts all sequences of a producer up to this one as processed, and records who and why.';
call once.allow('owner', 'set_watermark');
--! EndIncluded ledger/set_watermark.sql
--! Included ledger/scope.sql
-- The scopes of the ledger by key. The horizon is stored and only moves forward: a key older than it is
-- answered 'expired' for ever, whatever the clock or the retention say later.
create table once.scope (
  scope_id integer generated always as identity primary key,
  scope text not null unique check (length(scope) between 1 and 200),
  retention interval check (retention >= interval '0'), horizon timestamptz,
  -- Whether a key's own time (once.message_time) counts where occurred_at is not given. Never changes.
  key_times boolean not null default false,
  -- The horizon's day when deleting began last, see once.expire: never after the horizon.
  delete_before date
);
comment on table once.scope is
  'Scopes of the key ledger: retention (null: for ever), horizon (older is expired), key times or not.';
call once.allow('app', 'scope', 'select, insert (scope)');
call once.allow('recover, monitor', 'scope', 'select');
--! EndIncluded ledger/scope.sql
--! Included ledger/message.sql
-- The ledger by key. A key is kept as 16 bytes (once.message_digest): no limit of an index, and no personal
-- data. The first 2 bytes are the day (UTC) of the message itself, never of its arrival, 0 if it has no time;
-- the other 14 begin a SHA-256 over scope and key. A collision needs some 2^56 keys of one day.
--
-- One table, and no partitions: a partition per day made claims depend on DDL, let whoever chose keys choose
-- partitions, held up all messages of a day until the first one's handler ended, and could not be dropped
-- under load. Since the day stands in front, the index does the same: new keys go to its end, and a deleted
-- day leaves whole pages empty for reuse. A row with neither hash nor result fits into 48 bytes.
create table once.message (
  digest uuid primary key, scope_id integer not null,
  -- The day of the claim, if the message has no time: retention counts from there.
  claimed_on date,
  payload_hash bytea, result jsonb
)
-- A day's worth of rows goes at once; 20 % of a large ledger would be many days.
with (autovacuum_vacuum_scale_factor = 0.05);
comment on table once.message is
  'Ledger by key: digest of day, scope and key; day of the claim if there is no time; payload hash; result.';
call once.allow('app', 'message', 'select, insert, update (result)');
--! EndIncluded ledger/message.sql
--! Included ledger/expired_claim.sql
-- Claims that were answered 'expired': their messages came later than the scope remembers keys, the handlers
-- did not run, and nobody knows whether they did the first time. once.health alarms.
--
-- A row per claim or batch, only ever inserted: over a counter claims would wait, deadlock, and fail under
-- REPEATABLE READ or SERIALIZABLE. A row is there exactly if the transaction committed that was told
-- 'expired', which is when the message was given up. once.expire deletes rows after two days.
create table once.expired_claim (
  answered_at timestamptz not null default clock_timestamp(),
  expired_claim_id bigint generated always as identity, scope_id integer not null, claims integer not null,
  -- The oldest of them, by the messages' own time.
  oldest_day date not null,
  primary key (answered_at, expired_claim_id)
);
comment on table once.expired_claim is
  'Ledger by key: one row per claim or batch answered expired, kept for two days; see once.expired_claims.';
call once.allow('app', 'expired_claim', 'insert (scope_id, claims, oldest_day)');

-- For people: which scopes, and how long a retention would have known them.
create view once.expired_claims as
select s.scope, sum(e.claims)::bigint as claims, min(e.answered_at) as first_at,
       max(e.answered_at) as last_at, min(e.oldest_day) as oldest_day, s.retention, s.horizon
  from once.expired_claim e join once.scope s on s.scope_id = e.scope_id
 where e.answered_at > now() - interval '1 day' group by s.scope_id;
comment on view once.expired_claims is
  'Scopes whose claims were answered expired within a day: how many, when, the oldest day, and the horizon.';
call once.allow('recover, monitor', 'expired_claims', 'select');
--! EndIncluded ledger/expired_claim.sql
--! Included ledger/message_time.sql
-- The time that a key itself carries: a UUIDv7 (RFC 9562, 5.7) says so in its version bits; a ULID is 26
-- characters of Crockford base32, 48 bits of milliseconds first. Others look like that, so a ULID counts only
-- from 2010 to 2100. It depends on the key alone: by the clock, a key could be kept in two places.
create function once.message_time(key text) returns timestamptz
language plpgsql immutable strict parallel safe set search_path = '' as $$
declare v_milliseconds bigint := 0; v_time timestamptz;
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
end $$;
comment on function once.message_time(text) is 'The time in a UUIDv7 or ULID (2010 to 2100), else null.';
call once.allow('app', 'message_time');
--! EndIncluded ledger/message_time.sql
--! Included ledger/message_digest.sql
-- The identity of a message: 2 bytes for the day of its time (UTC), counted from 1999-12-31, 0 without a
-- time; 14 bytes of a SHA-256 over scope and key, with a zero byte between. Null: no claim has this time.
create function once.message_digest(scope text, key text, occurred_at timestamptz default null) returns uuid
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return encode(
    case when message_digest.occurred_at is null then decode('0000', 'hex')
         when message_digest.occurred_at >= '2000-01-01 00:00:00+00'::timestamptz
          and message_digest.occurred_at < '2179-06-06 00:00:00+00'::timestamptz
         then substring(
                int4send((message_digest.occurred_at at time zone 'UTC')::date - date '1999-12-31') from 3)
    end
    || substring(sha256(convert_to(message_digest.scope, 'UTF8') || decode('00', 'hex')
                        || convert_to(message_digest.key, 'UTF8')) for 14), 'hex')::uuid;
end $$;
comment on function once.message_digest(text, text, timestamptz) is
  'How the ledger remembers a key: 2 bytes for the day (0: no time), 14 of SHA-256 over scope, zero, key.';
call once.allow('app', 'message_digest');
--! EndIncluded ledger/message_digest.sql
--! Included ledger/open_scope.sql
-- Internal: the scope's row, made at first use.
create function once.open_scope(scope text) returns once.scope
language plpgsql volatile set search_path = '' as $$
declare v_scope once.scope;
begin
  select s.* into v_scope from once.scope s where s.scope = open_scope.scope;
  if not found then
    perform once.check_name('scope', open_scope.scope);
    insert into once.scope (scope) values (open_scope.scope) on conflict do nothing;
    select s.* into strict v_scope from once.scope s where s.scope = open_scope.scope;
  end if;
  return v_scope;
end $$;
comment on function once.open_scope(text) is 'Internal: the row of a scope, created at first use.';
call once.allow('app', 'open_scope');
--! EndIncluded ledger/open_scope.sql
--! Included ledger/assert_keys.sql
-- Internal: raises unless the arguments of a claim by key are valid. "times" are those that count.
create function once.assert_keys(
  keys text[], occurred_at timestamptz[], payload_hashes bytea[], times timestamptz[]
) returns void language plpgsql stable set search_path = '' as $$
declare
  v_least constant timestamptz := '2000-01-01 00:00:00+00';
  v_bad record;
begin
  if assert_keys.keys is null then
    raise exception 'null is not allowed as keys' using errcode = 'ONARG',
      detail = 'Expected an array of keys.', hint = 'Pass array[''key'', ...].';
  end if;
  if cardinality(assert_keys.occurred_at) <> cardinality(assert_keys.keys)
     or cardinality(assert_keys.payload_hashes) <> cardinality(assert_keys.keys) then
    raise exception 'the arrays differ in length: % keys, % times, % payload hashes',
        cardinality(assert_keys.keys), coalesce(cardinality(assert_keys.occurred_at)::text, 'no'),
        coalesce(cardinality(assert_keys.payload_hashes)::text, 'no') using errcode = 'ONARG',
      detail = 'Element n of each array belongs to key n.',
      hint = 'Pass arrays of the same length, or leave the optional ones out.';
  end if;
  if exists (select from unnest(assert_keys.keys) k where k is null or k = '') then
    raise exception 'bad key: null or empty' using errcode = 'ONARG',
      detail = 'Expected text of at least one character.', hint = 'Give every message its id.';
  end if;
  select i.at, i.key, i.given is null as own into v_bad
    from unnest(assert_keys.keys, assert_keys.occurred_at, assert_keys.times) i (key, given, at)
   where i.at < v_least or i.at >= now() + interval '2 days' limit 1;
  if found and v_bad.own then
    raise exception 'bad time in key %: %', quote_literal(left(v_bad.key, 100)), v_bad.at
      using errcode = 'ONARG', detail = format('Expected a time from %s to two days from now.', v_least),
      hint = 'Is the sender''s clock right? Keys of anybody''s making want a scope without key times.';
  elsif found then
    raise exception 'bad occurred_at: %', v_bad.at using errcode = 'ONARG',
      detail = format('Expected a time from %s to two days from now.', v_least),
      hint = 'Is the time in milliseconds where seconds were meant, or the reverse?';
  end if;
end $$;
comment on function once.assert_keys(text[], timestamptz[], bytea[], timestamptz[]) is
  'Internal: raises ONARG unless keys, times and payload hashes of a claim are valid.';
call once.allow('app', 'assert_keys');
--! EndIncluded ledger/assert_keys.sql
--! Included ledger/answer_keys.sql
-- Internal: the answer of once.claim_keys where not every key was new; "claimed" are the digests that were.
create function once.answer_keys(
  scope_id integer, horizon timestamptz, keys text[], digests uuid[], times timestamptz[],
  payload_hashes bytea[], claimed uuid[]
) returns text language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare v_answer text; v_bad bigint; v_expired bigint; v_oldest timestamptz;
begin
  -- Of several with one digest the first in order is the claim: it follows the digest's entry in "claimed".
  with item as (
    select i.digest, i.at, i.hash, i.n, i.expired,
           lag(i.n = 0, 1, false) over (partition by i.digest, i.expired order by i.n) as claimed
      from (select k.digest, k.at, k.hash, k.n, (k.at < answer_keys.horizon) is true as expired
              from unnest(answer_keys.digests, answer_keys.times, answer_keys.payload_hashes)
                   with ordinality k (digest, at, hash, n)
            union all
            select c, null, null, 0, false from unnest(answer_keys.claimed) c) i
  )
  select '[' || string_agg(case when i.expired then '"expired"' when i.claimed then '"claimed"'
                                when f.result is null then '"duplicate"'
                                else '{"result":' || f.result::text || '}' end, ',' order by i.n) || ']',
         min(i.n) filter (where f.payload_hash <> i.hash), count(*) filter (where i.expired),
         min(i.at) filter (where i.expired)
    into v_answer, v_bad, v_expired, v_oldest
    from item i
    left join lateral (
      select m.payload_hash, m.result from once.message m
       where m.digest = i.digest and not i.expired and not i.claimed limit 1
    ) f on true
   where i.n > 0;

  if v_bad is not null then
    raise exception 'key % came again with another payload',
        (select quote_literal(left(k.key, 100))
           from unnest(answer_keys.keys) with ordinality k (key, n)
          where k.n = v_bad) using errcode = 'ONPAY',
      detail = format('Scope %L: the payload hash differs from that of the first claim.',
                      (select s.scope from once.scope s where s.scope_id = answer_keys.scope_id)),
      hint = 'Two different messages share one key: fix the sender, or choose a key that tells them apart.';
  end if;
  if v_expired > 0 then
    insert into once.expired_claim (scope_id, claims, oldest_day)
    select s.scope_id, v_expired, (v_oldest at time zone 'UTC')::date
      from once.scope s where s.scope_id = answer_keys.scope_id;
  end if;
  return v_answer;
end $$;
comment on function once.answer_keys(integer, timestamptz, text[], uuid[], timestamptz[], bytea[], uuid[]) is
  'Internal: what once.claim_keys answers if not every key was new.';
call once.allow('app', 'answer_keys');
--! EndIncluded ledger/answer_keys.sql
--! Included ledger/claim_keys.sql
-- Claims messages by key: anything with an id but no order. What clients call; once.claim_key_batch answers
-- in rows. 'claimed' if every key is new; else a JSON array with an element per key: "claimed" (the first of
-- its key, ever), "duplicate", {"result": ...} (a duplicate with a result) or "expired".
--
-- Why a key cannot be claimed twice: its digest follows from the message alone, and is unique. Rows are
-- deleted only when no transaction is left that may have read an older horizon (once.expire).
create function once.claim_keys(
  scope text, keys text[], occurred_at timestamptz[] default null, payload_hashes bytea[] default null
) returns text language plpgsql volatile set search_path = '' as $$
declare v_scope once.scope; v_prefix bytea; v_times timestamptz[]; v_digests uuid[]; v_new uuid[];
begin
  perform once.ensure_durable();
  select s.* into v_scope from once.scope s where s.scope = claim_keys.scope;
  if not found then v_scope := once.open_scope(claim_keys.scope); end if;
  if v_scope.key_times then
    v_times := array(select coalesce(i.at, once.message_time(i.key))
                       from unnest(claim_keys.keys, claim_keys.occurred_at) with ordinality i (key, at, n)
                      order by i.n);
  else
    v_times := claim_keys.occurred_at;
  end if;
  perform once.assert_keys(claim_keys.keys, claim_keys.occurred_at, claim_keys.payload_hashes, v_times);

  -- As in once.message_digest, which would cost as much again.
  v_prefix := convert_to(claim_keys.scope, 'UTF8') || decode('00', 'hex');
  v_digests := array(
    select encode(case when i.at is not null
                       then substring(int4send((i.at at time zone 'UTC')::date - date '1999-12-31') from 3)
                       else decode('0000', 'hex') end
                  || substring(sha256(v_prefix || convert_to(i.key, 'UTF8')) for 14), 'hex')::uuid
      from unnest(claim_keys.keys, v_times) with ordinality i (key, at, n)
     order by i.n);

  -- In one order for everybody, so that two batches cannot wait for each other. Of repeated keys the first is
  -- inserted; a conflict waits for the other transaction to end.
  with claimed as (
    insert into once.message as m (digest, scope_id, claimed_on, payload_hash)
    select i.digest, v_scope.scope_id,
           case when i.at is null then (now() at time zone 'UTC')::date end, i.hash
      from unnest(v_digests, v_times, claim_keys.payload_hashes) with ordinality i (digest, at, hash, n)
     where (i.at < v_scope.horizon) is not true order by i.digest, i.n
    on conflict do nothing returning m.digest
  )
  select array_agg(c.digest) into v_new from claimed c;
  if coalesce(cardinality(v_new), 0) = cardinality(claim_keys.keys) then return 'claimed'; end if;
  return once.answer_keys(v_scope.scope_id, v_scope.horizon, claim_keys.keys, v_digests, v_times,
                          claim_keys.payload_hashes, v_new);
end $$;
comment on function once.claim_keys(text, text[], timestamptz[], bytea[]) is
  'Claims messages by key: claimed if all are new, else a JSON array of answers; see once.claim_key_batch.';
call once.allow('app', 'claim_keys');
--! EndIncluded ledger/claim_keys.sql
--! Included ledger/claim_key_batch.sql
-- Claims messages by key and answers one row per key, in the order of the array; see once.claim_keys.
create function once.claim_key_batch(
  scope text, keys text[], occurred_at timestamptz[] default null, payload_hashes bytea[] default null
) returns table (ordinal integer, key text, status text, result jsonb)
language plpgsql volatile set search_path = '' as $$
declare
  v_answer text := once.claim_keys(claim_key_batch.scope, claim_key_batch.keys, claim_key_batch.occurred_at,
                                   claim_key_batch.payload_hashes);
begin
  if v_answer = 'claimed' then
    return query select i.n::integer, i.key, 'claimed', null::jsonb
      from unnest(claim_key_batch.keys) with ordinality i (key, n) order by i.n;
  else
    return query select i.n::integer, i.key,
           case jsonb_typeof(i.answer) when 'string' then i.answer #>> '{}' else 'duplicate' end,
           i.answer -> 'result'
      from rows from (unnest(claim_key_batch.keys), jsonb_array_elements(v_answer::jsonb))
           with ordinality i (key, answer, n) order by i.n;
  end if;
end $$;
comment on function once.claim_key_batch(text, text[], timestamptz[], bytea[]) is
  'Claims messages by key, a row per key: select * from once.claim_key_batch(''stripe'', array[''evt_1'']).';
call once.allow('app', 'claim_key_batch');
--! EndIncluded ledger/claim_key_batch.sql
--! Included ledger/claim_key.sql
-- Claims one message by key; see once.claim_keys for the answers and why they hold. The usual answers take
-- one statement for a new message and two for a duplicate, with few expressions, since each costs at every
-- call. Whatever is unusual (a new scope, a key's own time, an expired message, another payload, bad
-- arguments, synchronous_commit = off) gets through neither and is left to once.claim_keys.
create function once.claim_key(
  scope text, key text, occurred_at timestamptz default null, payload_hash bytea default null,
  out status text, out result jsonb
)
language plpgsql volatile set search_path = ''
-- A duplicate is looked up by digest, however small the table was when the plan was made.
set enable_seqscan = off as $$
declare v_digest uuid;
begin
  -- The digest as once.message_digest has it.
  if claim_key.occurred_at is null then
    v_digest := encode(
      decode('0000', 'hex')
      || substring(sha256(convert_to(claim_key.scope, 'UTF8') || decode('00', 'hex')
                          || convert_to(claim_key.key, 'UTF8')) for 14), 'hex')::uuid;
    insert into once.message (digest, scope_id, claimed_on, payload_hash)
    select v_digest, s.scope_id, (now() at time zone 'UTC')::date, claim_key.payload_hash from once.scope s
     where s.scope = claim_key.scope and not s.key_times and claim_key.key <> ''
       and current_setting('synchronous_commit') <> 'off'
    on conflict do nothing;
    if found then claim_key.status := 'claimed'; return; end if;
    select m.result into claim_key.result from once.message m
     where m.digest = v_digest and (m.payload_hash <> claim_key.payload_hash) is not true
       and current_setting('synchronous_commit') <> 'off';
  else
    v_digest := case when isfinite(claim_key.occurred_at) then encode(
      substring(int4send((claim_key.occurred_at at time zone 'UTC')::date - date '1999-12-31') from 3)
      || substring(sha256(convert_to(claim_key.scope, 'UTF8') || decode('00', 'hex')
                          || convert_to(claim_key.key, 'UTF8')) for 14), 'hex')::uuid end;
    insert into once.message (digest, scope_id, payload_hash)
    select v_digest, s.scope_id, claim_key.payload_hash from once.scope s
     where s.scope = claim_key.scope and (claim_key.occurred_at < s.horizon) is not true
       and claim_key.occurred_at >= '2000-01-01 00:00:00+00'::timestamptz
       and claim_key.occurred_at < now() + interval '2 days' and claim_key.key <> ''
       and current_setting('synchronous_commit') <> 'off'
    on conflict do nothing;
    if found then claim_key.status := 'claimed'; return; end if;
    select m.result into claim_key.result from once.message m join once.scope s on s.scope = claim_key.scope
     where m.digest = v_digest and (claim_key.occurred_at < s.horizon) is not true
       and (m.payload_hash <> claim_key.payload_hash) is not true
       and current_setting('synchronous_commit') <> 'off';
  end if;
  if found then claim_key.status := 'duplicate'; return; end if;

  select b.status, b.result into claim_key.status, claim_key.result
    from once.claim_key_batch(claim_key.scope, array[claim_key.key],
           case when claim_key.occurred_at is not null then array[claim_key.occurred_at] end,
           case when claim_key.payload_hash is not null then array[claim_key.payload_hash] end) b;
end $$;
comment on function once.claim_key(text, text, timestamptz, bytea) is
  'Claims one message by key (or duplicate, expired): select * from once.claim_key(''stripe'', ''evt_1'').';
call once.allow('app', 'claim_key');
--! EndIncluded ledger/claim_key.sql
--! Included ledger/keep_result.sql
-- Keeps the result of a message for its duplicates, once: what they may have been given is never replaced.
create function once.keep_result(scope text, key text, result jsonb, occurred_at timestamptz default null)
returns void language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare v_own constant timestamptz := once.message_time(keep_result.key);
begin
  update once.message m set result = keep_result.result
    from once.scope s
   where s.scope = keep_result.scope
     and m.digest = once.message_digest(keep_result.scope, keep_result.key,
           coalesce(keep_result.occurred_at, case when s.key_times then v_own end))
     and m.result is null;
  if not found then
    raise exception 'no claim of key % in scope % waits for a result',
        quote_literal(left(keep_result.key, 100)), quote_literal(keep_result.scope) using errcode = 'ONARG',
      detail = 'Either the key is not claimed, or its result is kept already, or occurred_at differs '
               'from the claim''s.',
      hint = 'Call once.claim_key(...) first, in the same transaction, and keep one result.';
  end if;
end $$;
comment on function once.keep_result(text, text, jsonb, timestamptz) is
  'Keeps the result of a claimed key for its duplicates; call it in the claiming transaction.';
call once.allow('app', 'keep_result');
--! EndIncluded ledger/keep_result.sql
--! Included ledger/expiry.sql
-- How far once.expire has come. Once a day it goes through once.message from front to back, a stretch of
-- blocks per call. An index for it would cost each claim more than reading the table once a day.
create table once.expiry (
  singleton boolean primary key default true check (singleton),
  -- The day (UTC) of the last complete pass.
  finished_on date not null default '-infinity',
  -- Of the pass that is under way: when it began, and the transaction that fixed what it deletes.
  begun_at timestamptz, begun_by xid8,
  -- Transactions that may have read an older horizon, as virtual transaction ids; null: not looked yet.
  waits_for text[],
  next_block bigint not null default 0
);

insert into once.expiry default values;
comment on table once.expiry is
  'One row: the last complete pass of once.expire(), and where the pass under way goes on or waits.';
call once.allow('monitor', 'expiry', 'select');
--! EndIncluded ledger/expiry.sql
--! Included ledger/set_retention.sql
-- How long a scope remembers its keys; null: for ever. Takes effect at the next once.expire(). A longer
-- retention does not bring back what is past the horizon.
create function once.set_retention(scope text, retention interval) returns void
language plpgsql volatile set search_path = '' as $$
begin
  -- The upper limit keeps now() - retention within what a timestamp can hold.
  if set_retention.retention not between interval '0' and interval '1000 years' then
    raise exception 'bad retention: %', set_retention.retention using errcode = 'ONARG',
      detail = 'Expected an interval from 0 to 1000 years, or null for ever.',
      hint = 'For example: select once.set_retention(''stripe'', ''30 days'').';
  end if;
  perform once.open_scope(set_retention.scope);
  update once.scope s set retention = set_retention.retention where s.scope = set_retention.scope;
  -- Begins another pass.
  update once.expiry e set finished_on = '-infinity', begun_at = null;
end $$;
comment on function once.set_retention(text, interval) is
  'Sets how long a scope of the key ledger remembers its keys (null: for ever); applied by once.expire().';
call once.allow('owner', 'set_retention');
--! EndIncluded ledger/set_retention.sql
--! Included ledger/set_key_times.sql
-- Whether UUIDv7s and ULIDs without occurred_at bring their own time. Off unless this is called: who chooses
-- such a key chooses its time. A scope that is there keeps what it has: where a key is kept follows from
-- this, and a key that is looked for somewhere else would be claimed again.
create function once.set_key_times(scope text, enabled boolean) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.check_name('scope', set_key_times.scope);
  if set_key_times.enabled is null then
    raise exception 'bad enabled: null' using errcode = 'ONARG', detail = 'Expected true or false.',
      hint = 'For example: select once.set_key_times(''orders'', true).';
  end if;
  insert into once.scope (scope, key_times) values (set_key_times.scope, set_key_times.enabled)
  on conflict do nothing;
  perform from once.scope s where s.scope = set_key_times.scope and s.key_times = set_key_times.enabled;
  if not found then
    raise exception 'scope % is there already, with key times %',
        quote_literal(set_key_times.scope), case when set_key_times.enabled then 'off' else 'on' end
      using errcode = 'ONARG', detail = 'Where a key is kept must not change, or it could be claimed again.',
      hint = 'Call this before the first claim and before once.set_retention. Else take a new scope, '
             'or give occurred_at with every claim.';
  end if;
end $$;
comment on function once.set_key_times(text, boolean) is
  'Whether UUIDv7s and ULIDs without occurred_at bring their own time; only before a scope is used.';
call once.allow('owner', 'set_key_times');
--! EndIncluded ledger/set_key_times.sql
--! Included ledger/await_claims.sql
-- Internal, of once.expire, and with its owner's rights and search_path for that: waits up to a second for
-- the transactions that may have read an older horizon, and names those left (once.expiry.waits_for).
create function once.await_claims()
returns table (action text, scope text, detail text, count bigint, more boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare v_waits_for text[]; v_begun_by xid8;
begin
  select e.waits_for, e.begun_by into v_waits_for, v_begun_by from once.expiry e;
  if v_begun_by = pg_current_xact_id() then
    return query
    select 'wait', null::text, 'keys past their horizon: call again in another transaction', 0::bigint, false;
    return;
  end if;
  if v_waits_for is null then
    -- A caller's transaction may have looked before, and would be shown the same again.
    perform pg_stat_clear_snapshot();
    -- Who is not in pg_stat_activity, or has no user there, is about to connect, and whatever it begins then
    -- sees the new horizons; or it is autovacuum.
    v_waits_for := array(
      select l.virtualxid from pg_catalog.pg_locks l
        join pg_catalog.pg_stat_activity a on a.pid = l.pid
       where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.granted
         and l.pid <> pg_backend_pid() and a.usesysid is not null and a.datname = current_database());
  end if;
  for i in 1..21 loop
    v_waits_for := array(select l.virtualxid from pg_catalog.pg_locks l
                          where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.granted
                            and l.virtualxid = any (v_waits_for));
    exit when v_waits_for = '{}' or i = 21;
    perform pg_sleep(0.05);
  end loop;
  update once.expiry e set waits_for = v_waits_for;
  if v_waits_for <> '{}' then
    return query select 'wait', null::text,
           'keys past their horizon are deleted when what began before it moved has ended: process '
           || string_agg(l.pid || coalesce(' (' || a.usename || ')', ''), ', ' order by l.pid),
           count(*), false
      from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.virtualxid = any (v_waits_for);
  end if;
end $$;
comment on function once.await_claims() is
  'Internal: waits a moment for transactions that may have read an older horizon, and names those left.';
call once.allow('owner', 'await_claims');
--! EndIncluded ledger/await_claims.sql
--! Included ledger/delete_keys.sql
-- Internal, of once.expire, and with its owner's rights and search_path for that: goes on with the pass
-- through the ledger until so many keys past their horizon are deleted, or as many blocks read; it counts
-- after each 32 blocks, some 5,000 keys. Rows that somebody has locked (to keep a result) stay as garbage.
create function once.delete_keys(batch_size integer)
returns table (action text, scope text, detail text, count bigint, more boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  v_end constant bigint := pg_relation_size('once.message') / current_setting('block_size')::bigint;
  v_from bigint := (select e.next_block from once.expiry e);
  v_last constant bigint := v_from + greatest(1000, delete_keys.batch_size);
  v_blocks constant integer := 32; v_counts jsonb := '{}'; v_deleted bigint := 0; v_scope text;
  v_count bigint;
begin
  while v_from < v_end and v_from < v_last and v_deleted < delete_keys.batch_size loop
    for v_scope, v_count in
      with due as materialized (
        select s.scope_id, s.scope, ((now() - s.retention) at time zone 'UTC')::date as claimed_before,
               -- The least digest of the day.
               (lpad(to_hex(greatest(s.delete_before - date '1999-12-31', 0)), 4, '0')
                || repeat('0', 28))::uuid as before
          from once.scope s
         where s.retention is not null or s.delete_before is not null
      ), doomed as (
        select m.ctid from once.message m join due d on d.scope_id = m.scope_id
         where m.ctid >= format('(%s,0)', v_from)::tid and m.ctid < format('(%s,0)', v_from + v_blocks)::tid
           and case when m.claimed_on is null then m.digest < d.before
                    else m.claimed_on < d.claimed_before end
           for update of m skip locked
      ), gone as (
        delete from once.message m where m.ctid = any (array(select d.ctid from doomed d))
        returning m.scope_id
      )
      select d.scope, count(*) from gone g join due d on d.scope_id = g.scope_id group by d.scope
    loop
      v_deleted := v_deleted + v_count;
      v_counts := v_counts
        || jsonb_build_object(v_scope, coalesce((v_counts ->> v_scope)::bigint, 0) + v_count);
    end loop;
    v_from := v_from + v_blocks;
  end loop;

  return query select 'delete', c.key, 'keys past their horizon', c.value::bigint, false
    from jsonb_each_text(v_counts) c order by c.key;
  if v_from < v_end then
    update once.expiry e set next_block = v_from;
    return query
    select 'delete', null::text, format('keys past their horizon: at block %s of %s', v_from, v_end),
           0::bigint, true;
  else
    update once.expiry e set finished_on = (now() at time zone 'UTC')::date, begun_at = null;
  end if;
end $$;
comment on function once.delete_keys(integer) is
  'Internal: deletes keys past their horizon from the next stretch of blocks; says whether there is more.';
call once.allow('owner', 'delete_keys');
--! EndIncluded ledger/delete_keys.sql
--! Included ledger/expire.sql
-- One bounded step of retention: moves the horizons of scopes that have a retention, and deletes a batch of
-- keys and of records of expired claims that are past them. Call it again, each time in a transaction of its
-- own, while a row says more. It never waits for a claim's lock, and no claim waits for it.
--
-- Deleting a key is safe once no claim can come through with an older horizon: (1) the horizons are moved and
-- what to delete is fixed from them, and that commits; (2) a later transaction notes who else is running, by
-- virtual transaction ids, which everybody holds from before its first snapshot to its end; (3) when all of
-- those have ended, whoever claims has a snapshot that shows the new horizons, at any isolation level, and
-- hears 'expired'. New transactions do not count, so it makes progress under any load. A prepared transaction
-- holds none, and does not read any more. Do not claim in an exported snapshot.
--
-- SECURITY DEFINER because nobody else may delete keys; the search_path names pg_temp, last: else Postgres
-- looks for types there first, and a caller's own type "date" would run code as our owner.
create function once.expire(batch_size integer default 5000)
returns table (action text, scope text, detail text, count bigint, more boolean)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_pass once.expiry;
  v_today constant date := (now() at time zone 'UTC')::date;
  v_count bigint;
begin
  if expire.batch_size is null or expire.batch_size not between 1 and 1000000 then
    raise exception 'bad batch_size: %', coalesce(expire.batch_size::text, 'null') using errcode = 'ONARG',
      detail = 'Expected 1 to 1000000 keys.', hint = 'Leave it out for 5000.';
  end if;
  select e.* into v_pass from once.expiry e for update skip locked;
  if not found then
    return query select 'busy', null::text, 'another call of once.expire() is at work', 0::bigint, false;
    return;
  end if;
  perform once.ensure_durable();

  -- Not at each of many calls in a row.
  return query
  update once.scope s set horizon = now() - s.retention
   where s.retention is not null and (s.horizon < now() - s.retention - interval '1 minute') is not false
  returning 'horizon', s.scope,
    'older than ' || to_char(s.horizon at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' is expired',
    0::bigint, false;

  delete from once.expired_claim e
   where e.ctid = any (array(select o.ctid from once.expired_claim o
                              where o.answered_at < now() - interval '2 days'
                              order by o.answered_at limit expire.batch_size));
  get diagnostics v_count = row_count;
  if v_count > 0 then
    return query
    select 'delete', null::text, 'records of expired claims', v_count, v_count = expire.batch_size;
  end if;

  if v_pass.finished_on = v_today or not exists (select from once.scope s where s.horizon is not null) then
    return;
  end if;
  if v_pass.begun_at is null then
    update once.scope s set delete_before = (s.horizon at time zone 'UTC')::date where s.horizon is not null;
    update once.expiry e
       set begun_at = now(), begun_by = pg_current_xact_id(), waits_for = null, next_block = 0;
    return query
    select 'delete', null::text, 'keys past their horizon: from the next call on', 0::bigint, true;
    return;
  end if;
  return query select * from once.await_claims();
  if not exists (select from once.expiry e where e.waits_for = '{}') then return; end if;
  return query select * from once.delete_keys(expire.batch_size);
end $$;
comment on function once.expire(integer) is
  'One step of retention: select * from once.expire(); again, in another transaction, while a row says more.';
call once.allow('recover', 'expire');
--! EndIncluded ledger/expire.sql
--! Included position/consumer_position.sql
-- Where each consumer group stands, beside the results so that both move in one commit. A position is the
-- next message to read: a bigint, or an opaque token for sources without numbers (an LSN, a file).
create table once.consumer_position (
  consumer_group once.name not null, topic once.name not null,
  partition integer not null check (partition >= 0), "position" bigint, token text,
  epoch integer not null default 0, owner once.name, taken_at timestamptz,
  updated_at timestamptz not null default now(), primary key (consumer_group, topic, partition),
  check (num_nonnulls("position", token) <= 1)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table once.consumer_position is
  'Position of each consumer group per partition (the next message to read), and the epoch that fences.';

-- Where each partition ends, as far as somebody told us: the other half of the lag.
create table once.topic_end (
  topic text not null check (length(topic) between 1 and 200),
  partition integer not null check (partition >= 0), end_position bigint not null,
  updated_at timestamptz not null default now(), primary key (topic, partition)
);
comment on table once.topic_end is
  'The end of each partition (the position after its last message), as reported by once.report_end().';

-- The lag is unknown (null) before the first move, for a token, and where nobody reported the end.
create view once.lag as
select o.consumer_group, o.topic, o.partition, o."position", o.token, e.end_position,
       case when e.end_position < o."position" then 0 else e.end_position - o."position" end as lag,
       o.epoch, o.owner, o.taken_at, o.updated_at, now() - o.updated_at as idle
  from once.consumer_position o left join once.topic_end e using (topic, partition);
comment on view once.lag is
  'Per group and partition: position, reported end, lag in messages, owner, epoch, time since the last move.';
call once.allow('app', 'consumer_position',
  'select, insert (consumer_group, topic, partition, epoch, owner, taken_at),
   update ("position", token, epoch, owner, taken_at, updated_at)');
call once.allow('monitor', 'consumer_position', 'select');
call once.allow('app', 'topic_end',
  'select, insert (topic, partition, end_position), update (end_position, updated_at)');
call once.allow('monitor', 'topic_end', 'select');
call once.allow('app, monitor', 'lag', 'select');
--! EndIncluded position/consumer_position.sql
--! Included position/take_partition.sql
-- Takes a partition: bumps the epoch, which fences whoever had it, and returns where to go on. In a
-- transaction of its own, before the first message.
create function once.take_partition(
  consumer_group text, topic text, partition integer, owner text default null, out epoch integer,
  out "position" bigint, out token text
) language plpgsql volatile set search_path = '' as $$
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
      using errcode = 'ONARG', detail = 'Expected 0 to 2147483647.',
      hint = 'A source without partitions uses 0.';
  end if;
  insert into once.consumer_position as o (consumer_group, topic, partition, epoch, owner, taken_at)
  values (take_partition.consumer_group, take_partition.topic, take_partition.partition,
          1, take_partition.owner, now())
  on conflict on constraint consumer_position_pkey do update
     set epoch = o.epoch + 1, owner = excluded.owner, taken_at = excluded.taken_at
  returning o.epoch, o."position", o.token
  into take_partition.epoch, take_partition."position", take_partition.token;
end $$;
comment on function once.take_partition(text, text, integer, text) is
  'Takes a partition: fences the previous owner, returns the new epoch and the position (null: the start).';
call once.allow('app', 'take_partition');
--! EndIncluded position/take_partition.sql
--! Included position/explain_position.sql
-- Internal: says why a position could not be moved. Called after the compare-and-set found no row.
create function once.explain_position(
  consumer_group text, topic text, partition integer, epoch integer, expected text, next text
) returns void language plpgsql volatile set search_path = '' as $$
declare
  v_row once.consumer_position;
  v_name text := format('group %L, topic %L, partition %s', explain_position.consumer_group,
                        explain_position.topic, coalesce(explain_position.partition::text, 'null'));
begin
  select o.* into v_row from once.consumer_position o
   where o.consumer_group = explain_position.consumer_group and o.topic = explain_position.topic
     and o.partition = explain_position.partition;
  if not found then
    raise exception '% was never taken', v_name using errcode = 'ONTKN',
      detail = 'A position can be moved only by the owner of the partition.',
      hint = format('select * from once.take_partition(%L, %L, %s)', explain_position.consumer_group,
                    explain_position.topic, coalesce(explain_position.partition::text, '0'));
  elsif v_row.epoch is distinct from explain_position.epoch then
    raise exception '% is fenced: epoch % is not the current epoch %',
        v_name, coalesce(explain_position.epoch::text, 'null'), v_row.epoch using errcode = 'ONFEN',
      detail = format('The partition was taken at %s by %s; nothing was moved.', v_row.taken_at,
                      coalesce(quote_literal(v_row.owner), 'an unnamed owner')),
      hint = 'Stop this consumer, or take the partition again and read on from the position it returns.';
  end if;
  raise exception '% is at %, not at the expected %', v_name,
      coalesce(v_row."position"::text, quote_literal(v_row.token), 'its start'),
      coalesce(explain_position.expected, 'its start') using errcode = 'ONCAS',
    detail = format('The move to %s was not made.', coalesce(explain_position.next, 'null')),
    hint = 'Somebody with the same epoch moved it, or this move was made already: '
           'read once.read_position(...) and go on from there.';
end $$;
comment on function once.explain_position(text, text, integer, integer, text, text) is
  'Internal: raises ONTKN, ONFEN or ONCAS for a position that could not be moved.';
call once.allow('app', 'explain_position');
--! EndIncluded position/explain_position.sql
--! Included position/advance.sql
-- Moves a numeric position: compare and set, in the transaction that holds the results. Needs the current
-- epoch and the position that the caller believes in (null: the start).
create function once.advance(
  consumer_group text, topic text, partition integer, epoch integer, expected bigint, next bigint
) returns void language plpgsql volatile set search_path = '' as $$
begin
  if current_setting('synchronous_commit') = 'off' then perform once.ensure_durable(); end if;
  if advance.next is null or advance.next < 0 or advance.next < advance.expected then
    raise exception 'bad position: % after %',
        coalesce(advance.next::text, 'null'), coalesce(advance.expected::text, 'the start')
      using errcode = 'ONARG', detail = 'Expected a number of at least 0 that does not move back.',
      hint = 'To go back on purpose: select once.reset_position(..., reason => ''...'').';
  end if;
  update once.consumer_position o set "position" = advance.next, updated_at = now()
   where o.consumer_group = advance.consumer_group and o.topic = advance.topic
     and o.partition = advance.partition
     and o.epoch = advance.epoch
     and o."position" is not distinct from advance.expected and o.token is null;
  if not found then
    perform once.explain_position(advance.consumer_group, advance.topic, advance.partition, advance.epoch,
                                advance.expected::text, advance.next::text);
  end if;
end $$;
comment on function once.advance(text, text, integer, integer, bigint, bigint) is
  'Moves a position to next (the next message to read) if the epoch is current; else ONFEN, ONCAS, ONTKN.';
call once.allow('app', 'advance');
--! EndIncluded position/advance.sql
--! Included position/advance_token.sql
-- Moves an opaque position; as once.advance, but a token has no order, so nothing is said of moving back.
create function once.advance_token(
  consumer_group text, topic text, partition integer, epoch integer, expected text, next text
) returns void language plpgsql volatile set search_path = '' as $$
begin
  if current_setting('synchronous_commit') = 'off' then perform once.ensure_durable(); end if;
  if advance_token.next is null then
    raise exception 'bad token: null' using errcode = 'ONARG', detail = 'Expected text.',
      hint = 'Pass the position after the message, as the source writes it.';
  end if;
  update once.consumer_position o set token = advance_token.next, updated_at = now()
   where o.consumer_group = advance_token.consumer_group and o.topic = advance_token.topic
     and o.partition = advance_token.partition and o.epoch = advance_token.epoch
     and o.token is not distinct from advance_token.expected and o."position" is null;
  if not found then
    perform once.explain_position(advance_token.consumer_group, advance_token.topic, advance_token.partition,
                                advance_token.epoch, advance_token.expected, advance_token.next);
  end if;
end $$;
comment on function once.advance_token(text, text, integer, integer, text, text) is
  'Moves an opaque position from expected to next if the epoch is current; else ONFEN, ONCAS or ONTKN.';
call once.allow('app', 'advance_token');
--! EndIncluded position/advance_token.sql
--! Included position/read_position.sql
-- Reads a position without taking the partition.
create function once.read_position(consumer_group text, topic text, partition integer)
returns table ("position" bigint, token text, epoch integer, owner text, updated_at timestamptz)
language sql stable set search_path = '' as $$
  select o."position", o.token, o.epoch, o.owner, o.updated_at from once.consumer_position o
   where o.consumer_group = read_position.consumer_group and o.topic = read_position.topic
     and o.partition = read_position.partition
$$;
comment on function once.read_position(text, text, integer) is
  'The position, epoch and owner of a partition; no row if it was never taken.';
call once.allow('app, monitor', 'read_position');
--! EndIncluded position/read_position.sql
--! Included position/reset_position.sql
-- For operators: sets a position by hand, also backwards. Bumps the epoch, so that a running consumer is
-- fenced, and records who and why. Messages that the ledger knows stay duplicates.
create function once.reset_position(
  consumer_group text, topic text, partition integer, "position" bigint, reason text, token text default null
) returns integer language plpgsql volatile set search_path = '' as $$
declare v_old once.consumer_position; v_epoch integer;
begin
  if reset_position."position" < 0 or num_nonnulls(reset_position."position", reset_position.token) = 2 then
    raise exception 'bad position: %, token %',
        reset_position."position", quote_nullable(reset_position.token) using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or a token, or neither (the start).',
      hint = 'For example: select once.reset_position(''group'', ''topic'', 0, 42, ''replay after bug 17'').';
  end if;
  perform once.ensure_durable();
  select o.* into v_old from once.consumer_position o
   where o.consumer_group = reset_position.consumer_group and o.topic = reset_position.topic
     and o.partition = reset_position.partition for update;
  if not found then
    perform once.explain_position(reset_position.consumer_group, reset_position.topic,
                                  reset_position.partition, null, null, null);
  end if;
  perform once.record_intervention('reset_position', jsonb_build_object(
    'consumer_group', v_old.consumer_group, 'topic', v_old.topic, 'partition', v_old.partition,
    'from', coalesce(v_old."position"::text, v_old.token),
    'to', coalesce(reset_position."position"::text, reset_position.token)), reset_position.reason);
  update once.consumer_position o set "position" = reset_position."position", token = reset_position.token,
         epoch = o.epoch + 1, owner = null, updated_at = now()
   where o.consumer_group = v_old.consumer_group and o.topic = v_old.topic and o.partition = v_old.partition
  returning o.epoch into v_epoch;
  return v_epoch;
end $$;
comment on function once.reset_position(text, text, integer, bigint, text, text) is
  'Operator: sets a position by hand, fences the consumer, records who and why; returns the new epoch.';
call once.allow('owner', 'reset_position');
--! EndIncluded position/reset_position.sql
--! Included position/report_end.sql
-- Tells where a partition ends, for once.lag. Never moves back, so reports may arrive in any order.
create function once.report_end(topic text, partition integer, end_position bigint) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.check_name('topic', report_end.topic);
  if report_end.partition is null or report_end.partition < 0 or report_end.end_position is null
     or report_end.end_position < 0 then
    raise exception 'bad end of partition %: %',
        coalesce(report_end.partition::text, 'null'), coalesce(report_end.end_position::text, 'null')
      using errcode = 'ONARG', detail = 'Expected a partition and a position of at least 0.',
      hint = 'The end is the position after the last message (Kafka''s log end offset).';
  end if;
  insert into once.topic_end as e (topic, partition, end_position)
  values (report_end.topic, report_end.partition, report_end.end_position)
  on conflict on constraint topic_end_pkey do update
     set end_position = excluded.end_position, updated_at = excluded.updated_at
   where e.end_position < excluded.end_position;
end $$;
comment on function once.report_end(text, integer, bigint) is
  'Reports the end of a partition (the position after its last message) for the view once.lag.';
call once.allow('app', 'report_end');
--! EndIncluded position/report_end.sql
--! Included commit/global_transaction.sql
-- The decisions. A row is inserted by the home's own transaction, so it is visible exactly if that committed:
-- the row is the decision, and there is no other log.
create table once.global_transaction (
  transaction_id uuid primary key,
  -- The home's own transaction, as it stands in every gid. Never given, so nobody can decide for another.
  home_xid xid8 not null default pg_current_xact_id(),
  -- The other participants: the name in their gid and the id of their database, in the same order.
  participants text[] not null, database_ids uuid[] not null,
  decided_at timestamptz not null default clock_timestamp(),
  -- When every participant's evidence had been seen; null: not yet.
  proven_at timestamptz,
  -- When all of it was seen once more, a while later; from then on it may be deleted.
  confirmed_at timestamptz check (confirmed_at is null or proven_at is not null),
  check (cardinality(participants) = cardinality(database_ids))
);

-- What the clean-up still has to look at, oldest first; and what it may purge.
create index global_transaction_unproven on once.global_transaction (decided_at, transaction_id)
 where proven_at is null;
create index global_transaction_proven on once.global_transaction (proven_at, transaction_id)
 where proven_at is not null and confirmed_at is null;
create index global_transaction_confirmed on once.global_transaction (confirmed_at, transaction_id)
 where confirmed_at is not null;
comment on table once.global_transaction is
  'Home: one row a committed global transaction, until every branch is proven to have committed.';
call once.allow('app', 'global_transaction', 'select, insert (transaction_id, participants, database_ids)');
call once.allow('recover', 'global_transaction', 'select, update (proven_at, confirmed_at), delete');
call once.allow('monitor', 'global_transaction', 'select');
call once.allow('operator', 'global_transaction', 'update (participants, database_ids)');
--! EndIncluded commit/global_transaction.sql
--! Included commit/evidence.sql
-- What a branch leaves behind, inserted in the branch's own transaction: it exists exactly if the branch
-- committed. "Prepared transaction does not exist" proves nothing; this does.
create table once.evidence (
  transaction_id uuid primary key, home uuid not null, participant text not null,
  recorded_at timestamptz not null default clock_timestamp()
);
comment on table once.evidence is
  'Participant: one row a committed branch, until the home has confirmed the transaction.';
call once.allow('app', 'evidence', 'select, insert (transaction_id, home, participant)');
call once.allow('recover', 'evidence', 'select, delete');
call once.allow('monitor', 'evidence', 'select');
--! EndIncluded commit/evidence.sql
--! Included recovery/loss.sql
-- One side committed, the other did not, which no protocol can repair. Kept until acknowledged.
create table once.loss (
  transaction_id uuid not null, participant text not null, home uuid not null,
  kind text not null check (kind in ('lost decision', 'lost branch')),
  found_at timestamptz not null default now(), found_by name not null default session_user,
  acknowledged_at timestamptz, primary key (transaction_id, participant, kind)
);
comment on table once.loss is
  'Found by the audit. lost branch: the home committed, the participant did not; lost decision: the reverse.';
call once.allow('recover', 'loss', 'select, insert');
call once.allow('monitor', 'loss', 'select');
call once.allow('operator', 'loss', 'update (acknowledged_at)');
--! EndIncluded recovery/loss.sql
--! Included operator/heuristic.sql
-- Heuristic outcomes: branches that a person finished without their home's decision, because the home is gone
-- for good. Written before the line to type is given out. A home that comes back adds its decision.
create table once.heuristic (
  gid text primary key, transaction_id uuid not null, home uuid not null, home_xid xid8 not null,
  participant text not null, owner name not null,
  outcome text not null check (outcome in ('commit', 'rollback')),
  forced_at timestamptz not null default now(), forced_by name not null default session_user,
  reason text not null check (reason <> ''),
  -- What the home said when it could be asked again: committed or aborted.
  decided text check (decided in ('committed', 'aborted')),
  -- What became of the branch, as found then.
  done text check (done in ('committed', 'rolled back')),
  judged_at timestamptz, acknowledged_at timestamptz
);
comment on table once.heuristic is
  'Participant: branches finished by hand (once.force): how, who, when, why, and what the home said later.';
call once.allow('recover', 'heuristic', 'select, update (decided, done, judged_at)');
call once.allow('monitor', 'heuristic', 'select');
call once.allow('operator', 'heuristic',
  'insert (gid, transaction_id, home, home_xid, participant, owner, outcome, reason),
   update (outcome, reason, acknowledged_at)');
--! EndIncluded operator/heuristic.sql
--! Included recovery/recovery.sql
-- When somebody last recovered here: without it, nobody can tell "not yet" from "nobody is at it".
create table once.recovery (
  singleton boolean primary key default true check (singleton), recovered_at timestamptz, recovered_by text,
  -- When all evidence here was last compared with the decisions at its homes.
  audited_at timestamptz
);

insert into once.recovery default values;
comment on table once.recovery is
  'One row: when a recoverer last looked after this database, and who it was.';
call once.allow('recover', 'recovery', 'select, update (recovered_at, recovered_by, audited_at)');
call once.allow('monitor', 'recovery', 'select');
--! EndIncluded recovery/recovery.sql
--! Included recovery/peer.sql
-- How this database reaches the others, for recovery inside Postgres. The user and the password are those of
-- the user mapping, so that none lies in a table.
create table once.peer (
  database_id uuid primary key, server name not null, added_at timestamptz not null default now(),
  added_by name not null default session_user
);
comment on table once.peer is
  'The foreign server by which dblink reaches the database with this id; see once.add_peer.';
call once.allow('recover, monitor', 'peer', 'select');
call once.allow('operator', 'peer',
  'insert (database_id, server), update (server, added_at, added_by), delete');
--! EndIncluded recovery/peer.sql
--! Included commit/open.sql
-- Marks the current transaction as part of a global one, which tells later whether the handler ended it or
-- left another role in force, and bounds what a coordinator that vanishes can hold up. Timeouts in
-- milliseconds; 0: none; null: as the session has it. A procedure: CALL costs half of SELECT.
create procedure once.open(
  transaction_id uuid, lock_timeout integer default null, idle_timeout integer default null
) language plpgsql set search_path = '' as $$
begin
  if open.transaction_id is null or open.lock_timeout < 0 or open.idle_timeout < 0 then
    raise exception 'bad arguments: transaction %, lock_timeout %, idle_timeout %',
        coalesce(open.transaction_id::text, 'null'), open.lock_timeout, open.idle_timeout
      using errcode = 'ONARG', detail = 'Expected an id, and timeouts of 0 to 2147483647 milliseconds.',
      hint = 'call once.open(gen_random_uuid(), 10000, 60000); null: as the session has it.';
  end if;
  perform set_config('once.transaction', open.transaction_id || ' ' || current_user, true),
          case when open.lock_timeout is not null
               then set_config('lock_timeout', open.lock_timeout::text, true) end,
          case when open.idle_timeout is not null
               then set_config('idle_in_transaction_session_timeout', open.idle_timeout::text, true) end;
  if current_setting('synchronous_commit') = 'off' then perform once.ensure_durable(); end if;
end $$;
comment on procedure once.open(uuid, integer, integer) is
  'First statement of a branch: marks the transaction with its global id, and sets its timeouts (ms).';
call once.allow('app', 'open');
--! EndIncluded commit/open.sql
--! Included commit/assert_branch.sql
-- Raises unless the current transaction is the one that once.open marked, under the role it began with. Else
-- a handler that runs COMMIT, or a driver that reopens a lost connection, would be taken for one that wrote
-- nothing. True, so that a statement can say "where once.assert_branch(...)": a stable condition without
-- columns is evaluated before anything else of it.
create function once.assert_branch(transaction_id uuid) returns boolean
language plpgsql stable set search_path = '' as $$
declare v_mark text := coalesce(current_setting('once.transaction', true), '');
begin
  if v_mark = assert_branch.transaction_id || ' ' || current_user then return true; end if;
  if (v_mark like assert_branch.transaction_id || ' %') is not true then
    raise exception 'the handler ended the transaction it was given' using errcode = 'ONEND',
      detail = format('Transaction %s is not open any more; '
                      'what its handler committed stays committed.',
                      coalesce(assert_branch.transaction_id::text, 'null')),
      hint = 'Remove COMMIT, ROLLBACK or PREPARE TRANSACTION from the handler: '
             'return to commit, throw to roll back.';
  end if;
  raise exception 'the handler changed the role to %', quote_ident(current_user) using errcode = 'ONROL',
    detail = format('The transaction began as %s; '
                    'a prepared transaction belongs to the role that prepares it.', substr(v_mark, 38)),
    hint = 'Run RESET ROLE before the handler returns.';
end $$;
comment on function once.assert_branch(uuid) is
  'True inside the marked transaction; raises ONEND if it is over, ONROL if the role changed.';
call once.allow('app', 'assert_branch');

-- The last word before a COMMIT in one phase, in one text with it. Deferred triggers have run (set
-- constraints all immediate stands before it; in a function it would run them under the function's
-- search_path), so a role that they or the handler changed is found out, and synchronous_commit is set back.
create function once.seal(transaction_id uuid) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_branch(seal.transaction_id);
  perform once.ensure_durable();
end $$;
comment on function once.seal(uuid) is
  'Last statement before COMMIT: as once.assert_branch, and the commit waits for its flush.';
call once.allow('app', 'seal');
--! EndIncluded commit/assert_branch.sql
--! Included commit/vote.sql
-- A participant's vote, right before PREPARE TRANSACTION: false if this branch wrote nothing (commit it
-- plainly, it needs no gid); else true, and the evidence stands in the branch's own transaction. A caller
-- that remembers the participant's database id names it: the decision carries it, and if this database has
-- another id by now, its evidence would never be found. Null: it was read here just now.
create function once.vote(
  transaction_id uuid, home uuid, participant text, database_id uuid default null
) returns boolean language plpgsql volatile set search_path = '' as $$
begin
  -- Asked here as well, which is the faster way to hear that all is well.
  if current_setting('once.transaction', true)
     is distinct from vote.transaction_id || ' ' || current_user then
    perform once.assert_branch(vote.transaction_id);
  end if;
  if pg_current_xact_id_if_assigned() is null then return false; end if;
  if vote.transaction_id is null or vote.home is null or vote.participant is null then
    raise exception 'null is not allowed as transaction_id, home or participant' using errcode = 'ONARG',
      detail = 'All three stand in the gid, and in the evidence of the branch.',
      hint = 'select once.vote(<transaction>, <once.database_id() of the home>, ''billing'')';
  end if;
  if vote.database_id is not null
     and not exists (select from once.database d where d.id = vote.database_id) then
    raise exception 'this database is %, not the participant %',
        (select d.id from once.database d), vote.database_id using errcode = 'ONIDN',
      detail = 'The evidence is looked for in the database whose id stands in the decision.',
      hint = 'select once.database_id(); anew, and begin the transaction anew.';
  end if;
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- A row that was there before would count as ours before we commit, and recovery would purge a decision
  -- whose branch is still prepared. So that is an error (23505), and the transaction is rolled back.
  insert into once.evidence (transaction_id, home, participant)
  values (vote.transaction_id, vote.home, vote.participant);
  return true;
end $$;
comment on function once.vote(uuid, uuid, text, uuid) is
  'Participant, before PREPARE: false if it wrote nothing; else inserts the evidence and returns true.';
call once.allow('app', 'vote');
--! EndIncluded commit/vote.sql
--! Included commit/begin_global.sql
-- The home's part, right before the others prepare: records the decision that its own COMMIT will make, and
-- returns its xid for the gids; null if the home wrote nothing (choose another home).
--
-- A caller that remembers the home's database id names it: the gids carry it, and if this database has
-- another id by now, its decision would never be found. Null: it was read here just now.
--
-- synchronous_commit: a visible row must be a durable one. Otherwise a recoverer could see it, commit a
-- branch, and the home lose its decision in a crash.
create function once.begin_global(
  transaction_id uuid, participants text[], database_ids uuid[], home uuid default null
) returns xid8 language plpgsql volatile set search_path = '' as $$
declare v_xid xid8;
begin
  -- Asked here as well, which is the faster way to hear that all is well.
  if current_setting('once.transaction', true)
     is distinct from begin_global.transaction_id || ' ' || current_user then
    perform once.assert_branch(begin_global.transaction_id);
  end if;
  v_xid := pg_current_xact_id_if_assigned();
  if v_xid is null then return null; end if;
  -- Without its database id a participant would never be asked for evidence: the decision could be purged
  -- while the branch is still prepared.
  if begin_global.transaction_id is null
     or begin_global.participants is null or begin_global.database_ids is null
     or cardinality(begin_global.participants) <> cardinality(begin_global.database_ids)
     or (case when array_ndims(begin_global.participants) > 1
                or array_ndims(begin_global.database_ids) > 1 then true
              else array_position(begin_global.participants, null) is not null
                   or array_position(begin_global.database_ids, null) is not null end) then
    raise exception 'bad participants: % names, % database ids',
        coalesce(cardinality(begin_global.participants)::text, 'null'),
        coalesce(cardinality(begin_global.database_ids)::text, 'null') using errcode = 'ONARG',
      detail = 'Expected an id, and as many database ids as names, none of them null.',
      hint = 'Name each database but this one: array[''billing''], and what once.database_id() says there.';
  end if;
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  if begin_global.home is not null
     and not exists (select from once.database d where d.id = begin_global.home) then
    raise exception 'this database is %, not the home %',
        (select d.id from once.database d), begin_global.home using errcode = 'ONIDN',
      detail = 'Only the database whose id stands in the gid decides.',
      hint = 'select once.database_id(); anew, and begin the transaction anew.';
  end if;
  -- home_xid is left to its default, so that nobody needs the right to choose one: see once.branch_outcome.
  insert into once.global_transaction (transaction_id, participants, database_ids)
  values (begin_global.transaction_id, begin_global.participants, begin_global.database_ids);
  return v_xid;
end $$;
comment on function once.begin_global(uuid, text[], uuid[], uuid) is
  'Home, before the others prepare: inserts the decision, returns the home''s xid (null: it wrote nothing).';
call once.allow('app', 'begin_global');
--! EndIncluded commit/begin_global.sql
--! Included recovery/assert_home.sql
-- Internal: raises unless this database may answer for a home, now, in this transaction.
create function once.assert_home(home uuid) returns void language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_primary();
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'an outcome cannot be read under %', current_setting('transaction_isolation')
      using errcode = 'ONISO',
      detail = 'The row must be read with a snapshot newer than the transaction''s status.',
      hint = 'begin transaction isolation level read committed;';
  end if;
  if once.database_id() is distinct from assert_home.home then
    raise exception 'this database is %, not the home %',
        once.database_id(), coalesce(assert_home.home::text, 'null') using errcode = 'ONIDN',
      detail = 'Only the database whose id stands in the gid decides.',
      hint = 'Find it: select id from once.database in each database.';
  end if;
end $$;
comment on function once.assert_home(uuid) is
  'Internal: raises ONSTB on a standby, ONISO under a frozen snapshot, ONIDN in another database.';
call once.allow('app, recover, monitor', 'assert_home');
--! EndIncluded recovery/assert_home.sql
--! Included recovery/decode_gid.sql
-- Takes gids apart, ours and other managers': the only place in SQL that knows gid formats. (Ours is built in
-- src/commit/gid.ts.) A format proves nothing, since whoever may connect chooses his gids freely.
--
-- Many at once: a call per gid costs three times as much. No regular expression has captures or counts, which
-- would take 0.03 to 0.1 ms a gid: lengths and the places of hyphens are compared.
create function once.decode_gids(gids text[]) returns table (
  gid text, manager text, global_id text, participant text, transaction_id uuid, home uuid, home_xid text
) language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return query with part as materialized (
    -- Both ids without their hyphens are 65 characters, so there are no hyphens but those in place.
    select i.gid, i.rest, i.colon,
           i.gid like 'once:1:________-____-____-____-____________:________-____-____-____-____________:%'
           and length(i.ids) = 65 and i.ids ~ '^[0-9a-f]+:[0-9a-f]+$' and i.rest ~ '^[0-9]+:[A-Za-z0-9._-]+$'
           and i.colon between 2 and 20 and length(i.rest) - i.colon between 1 and 63 as ours
      from (select u.gid, replace(substr(u.gid, 8, 73), '-', '') as ids, substr(u.gid, 82) as rest,
                   position(':' in substr(u.gid, 82)) as colon
              from unnest(decode_gids.gids) u (gid) offset 0) i
  )
  select p.gid, 'pgonce', substr(p.gid, 45, 36), substr(p.rest, p.colon + 1),
         substr(p.gid, 45, 36)::uuid, substr(p.gid, 8, 36)::uuid, left(p.rest, p.colon - 1)
    from part p
   where p.ours
  union all
  select p.gid, f.manager, f.global_id, f.participant, null, null, null from part p
   cross join lateral once.decode_foreign_gid(p.gid) f where p.ours is not true;
end $$;
comment on function once.decode_gids(text[]) is
  'Takes gids apart, a row each in no order: manager, global id, participant, and the home of ours.';
call once.allow('app, recover, monitor', 'decode_gids');

create function once.decode_gid(
  gid text, out manager text, out global_id text, out participant text, out transaction_id uuid,
  out home uuid, out home_xid text
) language plpgsql immutable parallel safe set search_path = '' as $$
begin
  select g.manager, g.global_id, g.participant, g.transaction_id, g.home, g.home_xid
    into decode_gid.manager, decode_gid.global_id, decode_gid.participant, decode_gid.transaction_id,
         decode_gid.home, decode_gid.home_xid from once.decode_gids(array[decode_gid.gid]) g;
end $$;
comment on function once.decode_gid(text) is
  'Takes a gid apart: manager (pgonce, others, unknown), global id, participant, and the home of ours.';
call once.allow('app, recover, monitor', 'decode_gid');

-- Internal: the formats of others. Sources:
--   XA       <format id>_<gtrid>_<bqual>, base64: RecoveredXid of pgjdbc, Xid of psycopg; who manages the
--            transaction shows in the format id at most (Flink 201, Narayana 131077, Bitronix 'Btnx')
--   Citus    citus_<group>_<pid>_<transaction>_<connection>, before 8.0 without the last
--   logical replication (two_phase = true)  pg_gid_<subscription>_<remote xid>
--   SQLAlchemy  _sa_<128 bits, hex>;  Npgsql  <guid>/<pid>;  PgDog  __pgdog_2pc_[<instance>_]<number>_<shard>
create function once.decode_foreign_gid(gid text, out manager text, out global_id text, out participant text)
language plpgsql immutable parallel safe set search_path = '' as $$
declare v_part text[]; v_gtrid text; v_bqual text;
begin
  decode_foreign_gid.manager := 'unknown';
  if decode_foreign_gid.gid ~ '^-?[0-9]+_[A-Za-z0-9+/]+=*_[A-Za-z0-9+/]*=*$' then
    v_part := string_to_array(decode_foreign_gid.gid, '_');
    -- Base64: whole groups of four, at most two of the last one padded.
    if length(ltrim(v_part[1], '-')) <= 10
       and length(v_part[2]) % 4 = 0 and length(v_part[2]) - length(rtrim(v_part[2], '=')) <= 2
       and length(v_part[3]) % 4 = 0 and length(v_part[3]) - length(rtrim(v_part[3], '=')) <= 2 then
      decode_foreign_gid.manager := case v_part[1]
          when '201' then 'flink (pgjdbc)' when '131077' then 'narayana (pgjdbc)'
          when '1114926712' then 'bitronix (pgjdbc)' else 'pgjdbc or psycopg' end;
      v_gtrid := encode(pg_catalog.decode(v_part[2], 'base64'), 'hex');
      -- Flink: job id (16 bytes), subtask (4), checkpoint; the oldest versions have no job id.
      if v_part[1] = '201' and length(v_gtrid) = 56 then
        decode_foreign_gid.global_id := format('job %s subtask %s checkpoint %s', left(v_gtrid, 32),
          ('x' || substr(v_gtrid, 33, 8))::bit(32)::integer, ('x' || substr(v_gtrid, 41))::bit(64)::bigint);
      else
        -- Bytes that are plain ASCII as such, all others in hex.
        v_bqual := encode(pg_catalog.decode(v_gtrid, 'hex'), 'escape');
        decode_foreign_gid.global_id := format('%s:%s', v_part[1],
          case when v_bqual ~ '^[] -[^-~]*$' then v_bqual else v_gtrid end);
      end if;
      v_bqual := encode(pg_catalog.decode(v_part[3], 'base64'), 'escape');
      decode_foreign_gid.participant := case when v_bqual ~ '^[] -[^-~]*$' then v_bqual
                                             else encode(pg_catalog.decode(v_part[3], 'base64'), 'hex') end;
    end if;
  elsif decode_foreign_gid.gid ~ '^citus_[0-9]+_[0-9]+_[0-9]+(?:_[0-9]+)?$' then
    v_part := string_to_array(decode_foreign_gid.gid, '_');
    decode_foreign_gid.manager := 'citus';
    decode_foreign_gid.global_id := format('group %s pid %s transaction %s', v_part[2], v_part[3], v_part[4]);
    decode_foreign_gid.participant := 'connection ' || v_part[5];
  elsif decode_foreign_gid.gid ~ '^pg_gid_[0-9]+_[0-9]+$' then
    v_part := string_to_array(decode_foreign_gid.gid, '_');
    decode_foreign_gid.manager := 'logical replication';
    decode_foreign_gid.global_id := 'remote xid ' || v_part[4];
    decode_foreign_gid.participant := 'subscription ' || v_part[3];
  elsif decode_foreign_gid.gid ~ '^_sa_[0-9a-f]+$' and length(decode_foreign_gid.gid) in (36, 37) then
    decode_foreign_gid.manager := 'sqlalchemy';
    decode_foreign_gid.global_id := substr(decode_foreign_gid.gid, 5);
  elsif decode_foreign_gid.gid ~ '^__pgdog_2pc_.+_[0-9]+$' then
    v_bqual := substring(decode_foreign_gid.gid from '[0-9]+$');
    decode_foreign_gid.manager := 'pgdog';
    decode_foreign_gid.global_id := substr(decode_foreign_gid.gid, 13,
                                           length(decode_foreign_gid.gid) - 13 - length(v_bqual));
    decode_foreign_gid.participant := 'shard ' || v_bqual;
  elsif decode_foreign_gid.gid like '________-____-____-____-____________/%'
        and replace(left(decode_foreign_gid.gid, 36), '-', '') ~ '^[0-9a-fA-F]+$'
        and length(replace(left(decode_foreign_gid.gid, 36), '-', '')) = 32
        and substr(decode_foreign_gid.gid, 38) ~ '^[0-9]+$' then
    decode_foreign_gid.manager := 'npgsql';
    decode_foreign_gid.global_id := left(decode_foreign_gid.gid, 36);
    decode_foreign_gid.participant := 'pid ' || substr(decode_foreign_gid.gid, 38);
  end if;
end $$;
comment on function once.decode_foreign_gid(text) is
  'Internal: takes the gid of another manager apart; see once.decode_gid.';
call once.allow('app, recover, monitor', 'decode_foreign_gid');
--! EndIncluded recovery/decode_gid.sql
--! Included recovery/branch_outcomes.sql
-- What became of global transactions, asked at their home:
--   committed  the decision row is visible: commit the branch
--   aborted    the home's transaction is over and left no row: roll the branch back
--   pending    the home's transaction still runs: ask again
--
-- Order is everything. First the statuses, then the rows: the home commits its row before it stops being in
-- progress, so "over" followed by "no row" is conclusive; the other way round, it could commit between the
-- two readings. Hence VOLATILE and READ COMMITTED, where each statement takes a new snapshot.
--
-- The status answers "is it over?" and nothing else. Its 'committed' must not be believed: an xid that was
-- never flushed is given to a stranger after a crash. A stranger in progress would only delay the answer; but
-- it may itself wait for it, so one that can be told from the home does not count.
create function once.branch_outcomes(home uuid, transaction_ids uuid[], home_xids xid8[])
returns table (transaction_id uuid, home_xid xid8, outcome text)
language plpgsql volatile set search_path = '' as $$
declare
  v_over boolean[];
  v_n integer; v_future constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
  v_database constant oid := (
    select d.oid from pg_catalog.pg_database d where d.datname = current_database());
begin
  perform once.assert_home(branch_outcomes.home);
  if cardinality(branch_outcomes.transaction_ids) is distinct from cardinality(branch_outcomes.home_xids)
     or exists (select from unnest(branch_outcomes.transaction_ids, branch_outcomes.home_xids) i (id, xid)
                 where i.id is null or i.xid is null) then
    raise exception 'transaction_id and home_xid must not be null' using errcode = 'ONARG',
      detail = 'Both stand in the gid.', hint = 'select * from once.in_doubt';
  end if;
  -- All at once; only what may lie in the future, which is an error, one by one.
  v_over := array(
    select case when i.xid < v_future
                then coalesce(pg_xact_status(i.xid), 'too old') <> 'in progress' end
      from unnest(branch_outcomes.home_xids) with ordinality i (xid, n)
     order by i.n);
  for v_n in select i.n from unnest(v_over) with ordinality i (over, n) where i.over is null loop
    begin
      v_over[v_n] := coalesce(pg_xact_status(branch_outcomes.home_xids[v_n]), 'too old') <> 'in progress';
    exception when invalid_parameter_value then
      v_over[v_n] := true;  -- an xid that was lost in a crash before anything of it was flushed
    end;
  end loop;
  -- Is it ours that is in progress? With several databases in one cluster, a branch can get the xid that the
  -- home lost, even a branch of the very same transaction, or whoever waits for one: they would wait for this
  -- answer, and it for them. The home holds the lock on its xid until it is over; it is a transaction of this
  -- database; and nobody prepares it as another home's branch. Between status and row, as the status is: if
  -- the home holds the lock no more, its row is read after it was over. Prepared ones are looked up behind
  -- the locks: they are taken from the list when they are over and before their locks go.
  if false = any (v_over) then
    v_over := array(
      with locks as materialized (
        select l.locktype, l.database, l.transactionid, l.pid, l.mode from pg_catalog.pg_locks l
         where l.granted and l.locktype in ('transactionid', 'relation'))
      select i.over or not exists (
               select from locks l
                where l.transactionid = i.xid::xid and l.mode = 'ExclusiveLock'
                  and case
                        when l.pid is null then exists (
                          select from pg_catalog.pg_prepared_xacts p
                           where p.transaction = l.transactionid and p.database = current_database()
                             and (p.gid not like 'once:1:%'
                                  or p.gid like 'once:1:' || branch_outcomes.home || ':%'))
                        else not exists (
                          select from locks r
                           where r.pid = l.pid and r.locktype = 'relation'
                             and r.database not in (0, v_database))
                      end)
        from unnest(branch_outcomes.home_xids, v_over) with ordinality i (xid, over, n)
       order by i.n);
  end if;
  -- The xid too: a row with this id (anybody can read it in the gid) by another transaction is no decision.
  return query select i.id, i.xid,
         case when g.transaction_id is not null then 'committed' when i.over then 'aborted' else 'pending' end
    from unnest(branch_outcomes.transaction_ids, branch_outcomes.home_xids, v_over) i (id, xid, over)
    left join once.global_transaction g on g.transaction_id = i.id and g.home_xid = i.xid;
end $$;
comment on function once.branch_outcomes(uuid, uuid[], xid8[]) is
  'Home: once.branch_outcome for many branches at once.';
call once.allow('app, recover, monitor', 'branch_outcomes');
--! EndIncluded recovery/branch_outcomes.sql
--! Included recovery/branch_outcome.sql
-- What became of one global transaction, asked at its home. Why it holds: see once.branch_outcomes.
create function once.branch_outcome(home uuid, transaction_id uuid, home_xid xid8) returns text
language plpgsql volatile set search_path = '' as $$
begin
  return (select b.outcome
            from once.branch_outcomes(branch_outcome.home, array[branch_outcome.transaction_id],
                                      array[branch_outcome.home_xid]) b);
end $$;
comment on function once.branch_outcome(uuid, uuid, xid8) is
  'Home: committed, aborted or pending for a branch in doubt (as its gid says). Conclusive at any moment.';
call once.allow('app, recover, monitor', 'branch_outcome');
--! EndIncluded recovery/branch_outcome.sql
--! Included recovery/gid_outcome.sql
-- For operators at the home: what became of the transaction that a gid, or an application's id, names.
create function once.gid_outcome(gid text) returns text language plpgsql volatile set search_path = '' as $$
declare
  -- An application's id is a gid without the participant.
  v_gid record := once.decode_gid(gid_outcome.gid
    || case when gid_outcome.gid ~ '^once:1:[^:]*:[^:]*:[^:]*$' then ':-' else '' end);
begin
  if v_gid.manager <> 'pgonce' then
    raise exception 'not a gid of pgonce: %', coalesce(quote_literal(left(gid_outcome.gid, 200)), 'null')
      using errcode = 'ONARG', detail = 'Expected once:1:<home>:<transaction>:<home xid>:<participant>.',
      hint = 'Others must be asked about theirs; see the column manager of once.in_doubt.';
  end if;
  return once.branch_outcome(v_gid.home, v_gid.transaction_id, v_gid.home_xid::xid8);
end $$;
comment on function once.gid_outcome(text) is
  'Home: committed, aborted or pending: select once.gid_outcome(''once:1:...''); elsewhere once.ask_home.';
call once.allow('recover, monitor', 'gid_outcome');
--! EndIncluded recovery/gid_outcome.sql
--! Included recovery/outcome.sql
-- As once.branch_outcome, for an application that lost the connection, which may ask long after the last
-- branch was finished and the row purged. So an absent row means 'aborted' only for transactions newer than
-- every purged one, else 'purged': committed and cleaned up, or aborted.
create function once.outcome(home uuid, transaction_id uuid, home_xid xid8) returns text
language plpgsql volatile set search_path = '' as $$
declare v_outcome text := once.branch_outcome(outcome.home, outcome.transaction_id, outcome.home_xid);
begin
  -- Read after the row: a row that was purged before we looked for it has raised the mark before.
  if v_outcome = 'aborted' and (select i.purged_xid >= outcome.home_xid from once.database i) then
    return 'purged';
  end if;
  return v_outcome;
end $$;
comment on function once.outcome(uuid, uuid, xid8) is
  'Home: committed, aborted, pending or purged (too long ago to tell), for the question of an application.';
call once.allow('app, recover', 'outcome');
--! EndIncluded recovery/outcome.sql
--! Included recovery/may_vote.sql
-- Internal: whether a role can have prepared a branch of ours. Every branch inserted its evidence with
-- once.vote, so if the owner may not call it, it is a stranger's, whatever its gid says.
create function once.may_vote(role name) returns boolean language sql stable set search_path = '' as $$
  select coalesce((select has_function_privilege(r.oid, 'once.vote(uuid, uuid, text, uuid)', 'execute')
                      and has_schema_privilege(r.oid, 'once', 'usage')
                     from pg_catalog.pg_roles r where r.rolname = may_vote.role), false)
$$;
comment on function once.may_vote(name) is
  'Internal: whether a role may vote, else no prepared transaction of it is ours.';
call once.allow('app, recover, monitor', 'may_vote');

-- Internal: whether the current user can finish what a role has prepared: only the owner or a superuser may;
-- a member must SET ROLE, since 16 a privilege of its own.
create function once.may_finish(role name) returns boolean language sql stable set search_path = '' as $$
  select coalesce((select pg_has_role(current_user, r.oid,
                            case when current_setting('server_version_num')::integer >= 160000
                                 then 'set' else 'member' end)
                     from pg_catalog.pg_roles r where r.rolname = may_finish.role), false)
$$;
comment on function once.may_finish(name) is
  'Internal: whether the current user may finish what this role has prepared.';
call once.allow('app, recover, monitor', 'may_finish');
--! EndIncluded recovery/may_vote.sql
--! Included recovery/branch.sql
-- What recovery reads, often, so it is lean: this database's prepared transactions with our prefix. The view
-- for people is once.in_doubt. Anybody can choose a gid; ours have the right gid, owner and database.
create view once.branch as with prepared as materialized (
  select p.gid, p.owner, p.prepared from pg_catalog.pg_prepared_xacts p
   where p.database = current_database() and p.gid like 'once:%'
), owner as materialized (
  select o.owner, once.may_vote(o.owner) as may_vote, once.may_finish(o.owner) as may_finish
    from (select distinct p.owner from prepared p) o
), decoded as materialized (
  select g.* from once.decode_gids(array(select p.gid from prepared p)) g
)
select p.gid, g.transaction_id, g.home, g.home_xid, g.participant, p.owner, p.prepared as prepared_at,
       clock_timestamp() - p.prepared as age, g.manager = 'pgonce' and o.may_vote as ours,
       o.may_finish as can_finish
  from prepared p join owner o on o.owner is not distinct from p.owner
  join decoded g on g.gid = p.gid;
comment on view once.branch is
  'Prepared transactions here with our prefix: gid, owner, age, whether ours, whether you may finish it.';
call once.allow('app, recover, monitor', 'branch', 'select');
--! EndIncluded recovery/branch.sql
--! Included recovery/unproven.sql
-- Purging, step 1 (home): decisions whose branches are not proven yet, oldest first, a page at a time.
create function once.unproven(
  batch_size integer default 1000, after_decided_at timestamptz default '-infinity',
  after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, participants text[], database_ids uuid[], decided_at timestamptz)
language plpgsql stable set search_path = '' as $$
begin
  if unproven.batch_size < 0 then
    raise exception 'bad batch_size: %', unproven.batch_size using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  return query select g.transaction_id, g.participants, g.database_ids, g.decided_at
    from once.global_transaction g
   where g.proven_at is null
     and (g.decided_at, g.transaction_id) > (unproven.after_decided_at, unproven.after_id)
   order by g.decided_at, g.transaction_id limit unproven.batch_size;
end $$;
comment on function once.unproven(integer, timestamptz, uuid) is
  'Home: decisions whose branches are not all proven, oldest first, after the given one.';
call once.allow('recover, monitor', 'unproven');
--! EndIncluded recovery/unproven.sql
--! Included recovery/find_evidence.sql
-- Purging, step 2 (participant): which of these transactions committed their branch here.
create function once.find_evidence(transaction_ids uuid[]) returns setof uuid
language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_primary();
  return query
  select e.transaction_id from once.evidence e where e.transaction_id = any (find_evidence.transaction_ids);
end $$;
comment on function once.find_evidence(uuid[]) is
  'Participant: those of the given transactions whose branch committed in this database.';
call once.allow('app, recover', 'find_evidence');
--! EndIncluded recovery/find_evidence.sql
--! Included recovery/mark_proven.sql
-- Purging, step 3 (home): every participant's evidence of these transactions was seen.
create function once.mark_proven(transaction_ids uuid[]) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  update once.global_transaction g set proven_at = clock_timestamp()
   where g.transaction_id = any (mark_proven.transaction_ids) and g.proven_at is null;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function once.mark_proven(uuid[]) is
  'Home: marks decisions whose evidence was seen at every participant; returns how many were new.';
call once.allow('recover', 'mark_proven');
--! EndIncluded recovery/mark_proven.sql
--! Included recovery/proven.sql
-- Purging, step 4 (home): proven decisions, to be confirmed: their evidence is looked for once more. A
-- participant whose standby took over without the newest transactions has lost evidence that we had seen; if
-- it is gone, and nothing is prepared, the branch was lost. So keep is also how far a standby may lag without
-- a loss going unnoticed. The time decides when to look, nothing else.
create function once.proven(
  batch_size integer default 1000, keep interval default '5 minutes',
  after_proven_at timestamptz default '-infinity',
  after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, participants text[], database_ids uuid[], proven_at timestamptz)
language plpgsql stable set search_path = '' as $$
begin
  if proven.batch_size < 0 then
    raise exception 'bad batch_size: %', proven.batch_size using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  -- Within what a timestamp can hold.
  return query select g.transaction_id, g.participants, g.database_ids, g.proven_at
    from once.global_transaction g
   where g.proven_at <= now() - greatest(least(proven.keep, interval '1000 years'), interval '-1000 years')
     and g.confirmed_at is null
     and (g.proven_at, g.transaction_id) > (proven.after_proven_at, proven.after_id)
   order by g.proven_at, g.transaction_id limit proven.batch_size;
end $$;
comment on function once.proven(integer, interval, timestamptz, uuid) is
  'Home: decisions proven longer ago than keep, to be confirmed, oldest first, after the given one.';
call once.allow('recover', 'proven');
--! EndIncluded recovery/proven.sql
--! Included recovery/mark_confirmed.sql
-- Purging, step 5 (home): every participant's evidence was seen once more. Must be durable before any
-- evidence goes: a decision that is not confirmed, with neither branch nor evidence, is a loss.
create function once.mark_confirmed(transaction_ids uuid[]) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  update once.global_transaction g set confirmed_at = clock_timestamp()
   where g.transaction_id = any (mark_confirmed.transaction_ids) and g.proven_at is not null
     and g.confirmed_at is null;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function once.mark_confirmed(uuid[]) is
  'Home: marks proven decisions whose evidence was seen once more everywhere; returns how many were new.';
call once.allow('recover', 'mark_confirmed');
--! EndIncluded recovery/mark_confirmed.sql
--! Included recovery/confirmed.sql
-- Purging, step 6 (home): decisions confirmed a while ago, whose evidence may be deleted. Not at once: a
-- standby that takes over without the mark would find a decision whose evidence is gone, and call that a
-- loss. The time decides when to look, and nothing else: a later question is answered 'purged'.
create function once.confirmed(
  batch_size integer default 1000, keep interval default '5 minutes',
  after_confirmed_at timestamptz default '-infinity',
  after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, participants text[], database_ids uuid[], confirmed_at timestamptz)
language plpgsql stable set search_path = '' as $$
begin
  if confirmed.batch_size < 0 then
    raise exception 'bad batch_size: %', confirmed.batch_size using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  -- Within what a timestamp can hold.
  return query select g.transaction_id, g.participants, g.database_ids, g.confirmed_at
    from once.global_transaction g
   where g.confirmed_at
         <= now() - greatest(least(confirmed.keep, interval '1000 years'), interval '-1000 years')
     and (g.confirmed_at, g.transaction_id) > (confirmed.after_confirmed_at, confirmed.after_id)
   order by g.confirmed_at, g.transaction_id limit confirmed.batch_size;
end $$;
comment on function once.confirmed(integer, interval, timestamptz, uuid) is
  'Home: decisions confirmed longer ago than keep, whose evidence may go, oldest first, after the given one.';
call once.allow('recover', 'confirmed');
--! EndIncluded recovery/confirmed.sql
--! Included recovery/delete_evidence.sql
-- Purging, step 7 (participant): the home has confirmed these. Durable, or the evidence could come back in a
-- crash after its home row went, and look like a lost decision.
create function once.delete_evidence(home uuid, transaction_ids uuid[]) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  -- A forced branch loses its proof with this: keep what it proved. Its home has decided to commit.
  update once.heuristic f set decided = 'committed', done = 'committed', judged_at = clock_timestamp()
   where f.transaction_id = any (delete_evidence.transaction_ids) and f.home = delete_evidence.home
     and f.judged_at is null
     and exists (select from once.evidence e where e.transaction_id = f.transaction_id);
  delete from once.evidence e
   where e.transaction_id = any (delete_evidence.transaction_ids) and e.home = delete_evidence.home;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function once.delete_evidence(uuid, uuid[]) is
  'Participant: deletes evidence of transactions that their home has confirmed.';
call once.allow('recover', 'delete_evidence');
--! EndIncluded recovery/delete_evidence.sql
--! Included recovery/purge.sql
-- Purging, step 8 (home): the evidence is gone everywhere, so is the row. Raises the mark that makes
-- once.outcome say 'purged' from now on; rows that are not confirmed are never touched.
create function once.purge(transaction_ids uuid[]) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  with gone as (
    delete from once.global_transaction g
     where g.transaction_id = any (purge.transaction_ids) and g.confirmed_at is not null returning g.home_xid
  ), mark as (
    update once.database i set purged_xid = greatest(i.purged_xid, (select max(g.home_xid) from gone g))
     where exists (select from gone)
  )
  select count(*) into v_count from gone;
  return v_count;
end $$;
comment on function once.purge(uuid[]) is
  'Home: deletes confirmed decisions, whose evidence is gone; returns how many.';
call once.allow('recover', 'purge');
--! EndIncluded recovery/purge.sql
--! Included recovery/evidence_page.sql
-- The audit's page of evidence (participant): every branch that committed here and is not purged.
create function once.evidence_page(
  batch_size integer default 1000, after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, home uuid, participant text)
language plpgsql volatile set search_path = '' as $$
begin
  if evidence_page.batch_size < 0 then
    raise exception 'bad batch_size: %', evidence_page.batch_size using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  perform once.assert_primary();
  return query select e.transaction_id, e.home, e.participant from once.evidence e
   where e.transaction_id > evidence_page.after_id order by e.transaction_id limit evidence_page.batch_size;
end $$;
comment on function once.evidence_page(integer, uuid) is
  'Participant: a page of the evidence in this database, by transaction id.';
call once.allow('recover', 'evidence_page');
--! EndIncluded recovery/evidence_page.sql
--! Included recovery/find_decisions.sql
-- The audit's question to a home: which of these decisions do you still have, proven, confirmed?
create function once.find_decisions(transaction_ids uuid[])
returns table (transaction_id uuid, proven boolean, confirmed boolean)
language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_home(once.database_id());
  return query select g.transaction_id, g.proven_at is not null, g.confirmed_at is not null
    from once.global_transaction g where g.transaction_id = any (find_decisions.transaction_ids);
end $$;
comment on function once.find_decisions(uuid[]) is
  'Home: which of the given transactions have a decision row here, and whether it is proven, and confirmed.';
call once.allow('recover', 'find_decisions');
--! EndIncluded recovery/find_decisions.sql
--! Included recovery/record_loss.sql
-- Records a loss that the audit found; once, however many auditors find it. True if it is new.
create function once.record_loss(transaction_id uuid, participant text, home uuid, kind text) returns boolean
language plpgsql volatile set search_path = '' as $$
begin
  if record_loss.transaction_id is null or record_loss.home is null
     or coalesce(record_loss.kind, '') not in ('lost decision', 'lost branch') then
    raise exception 'bad loss: transaction %, home %, kind %',
        coalesce(record_loss.transaction_id::text, 'null'), coalesce(record_loss.home::text, 'null'),
        quote_nullable(left(record_loss.kind, 40))
      using errcode = 'ONARG', detail = 'Expected two ids, and lost decision or lost branch.',
      hint = 'Recovery records losses by itself: select * from once.audit()';
  end if;
  -- A forced branch may have been committed before its home decided: see once.judge_heuristic.
  if record_loss.kind = 'lost decision'
     and exists (select from once.heuristic h
                  where h.transaction_id = record_loss.transaction_id
                    and h.decided is distinct from 'committed') then
    return false;
  end if;
  -- An application writes the name: one that does not fit must not keep the audit from what comes after it.
  insert into once.loss (transaction_id, participant, home, kind)
  values (record_loss.transaction_id, coalesce(left(record_loss.participant, 200), ''),
          record_loss.home, record_loss.kind) on conflict do nothing;
  return found;
end $$;
comment on function once.record_loss(uuid, text, uuid, text) is
  'Records that a decision (lost decision) or a branch (lost branch) was lost; true if it was not known yet.';
call once.allow('recover', 'record_loss');
--! EndIncluded recovery/record_loss.sql
--! Included recovery/acknowledge.sql
-- For operators: acknowledges a loss or a heuristic outcome, so that the audit is silent about it, and
-- records who and why. Of a loss it removes what is left here, and raises the mark of once.outcome as
-- once.purge does: a decision that was removed must not look aborted. Other participants that are not proven
-- keep the decision: they may be in doubt, and must hear that it was made. Of a forced branch it removes
-- nothing: its home may still come back and look for the evidence.
create function once.acknowledge(transaction_id uuid, reason text) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint; v_heuristics bigint;
begin
  update once.loss l set acknowledged_at = now()
   where l.transaction_id = acknowledge.transaction_id and l.acknowledged_at is null;
  get diagnostics v_count = row_count;
  update once.heuristic h set acknowledged_at = now()
   where h.transaction_id = acknowledge.transaction_id and h.acknowledged_at is null;
  get diagnostics v_heuristics = row_count;
  if v_count + v_heuristics = 0 then
    raise exception 'transaction % has no loss to acknowledge here',
        coalesce(acknowledge.transaction_id::text, 'null') using errcode = 'ONARG',
      detail = 'Only losses that the audit has recorded, and heuristic outcomes, can be acknowledged.',
      hint = 'select * from once.audit()';
  end if;
  perform once.record_intervention(
    'acknowledge', jsonb_build_object('transaction_id', acknowledge.transaction_id), acknowledge.reason);
  perform once.ensure_durable();
  if v_count > 0 then
    update once.global_transaction g set (participants, database_ids) = (
             select coalesce(array_agg(p.name order by p.n), '{}'),
                    coalesce(array_agg(p.database_id order by p.n), '{}')
               from unnest(g.participants, g.database_ids) with ordinality p (name, database_id, n)
              where not exists (select from once.loss l
                                 where l.transaction_id = g.transaction_id and l.kind = 'lost branch'
                                   and l.participant = left(p.name, 200)))
     where g.transaction_id = acknowledge.transaction_id;
    with gone as (
      delete from once.global_transaction g
       where g.transaction_id = acknowledge.transaction_id and g.participants = '{}' returning g.home_xid
    )
    update once.database d set purged_xid = greatest(d.purged_xid, g.home_xid) from gone g;
    delete from once.evidence e where e.transaction_id = acknowledge.transaction_id;
  end if;
  return v_count + v_heuristics;
end $$;
comment on function once.acknowledge(uuid, text) is
  'Operator: acknowledges a loss or forced branch, removes what is left of it here, records who and why.';
call once.allow('operator', 'acknowledge');
--! EndIncluded recovery/acknowledge.sql
--! Included database/renew_database_id.sql
-- For a copy whose original lives on: takes a new id. Decisions and evidence in the copy belong to
-- transactions of the original, so they go; ledgers and positions stay. A copy of the schema alone lacks the
-- rows that stand for the whole database, and gets them here.
create function once.renew_database_id(reason text) returns uuid
language plpgsql volatile set search_path = '' as $$
declare v_old uuid; v_new uuid := gen_random_uuid();
begin
  insert into once.database (system_identifier, database_oid) values (0, 0) on conflict do nothing;
  insert into once.expiry default values on conflict do nothing;
  select i.id into v_old from once.database i for update;
  perform once.record_intervention('renew_database_id', jsonb_build_object('old', v_old, 'new', v_new),
                                   renew_database_id.reason);
  perform once.ensure_durable();
  delete from once.global_transaction; delete from once.evidence; delete from once.loss;
  delete from once.heuristic; delete from once.peer;
  update once.recovery r set recovered_at = null, recovered_by = null, audited_at = null;
  update once.database i set id = v_new, system_identifier = c.system_identifier, database_oid = d.oid,
         purged_xid = '0', created_at = now()
    from pg_catalog.pg_control_system() c, pg_catalog.pg_database d where d.datname = current_database();
  return v_new;
end $$;
comment on function once.renew_database_id(text) is
  'Gives a copied database an id of its own and drops the original''s decisions and evidence from it.';
call once.allow('owner', 'renew_database_id');
--! EndIncluded database/renew_database_id.sql
--! Included database/adopt_database_id.sql
-- For a database that replaces its original for good (dump and restore, pg_upgrade): keeps the id, so that
-- branches which name it as their home still find their decision here.
create function once.adopt_database_id(reason text) returns uuid
language plpgsql volatile set search_path = '' as $$
declare v_id uuid;
begin
  select i.id into v_id from once.database i for update;
  perform once.record_intervention('adopt_database_id', jsonb_build_object('id', v_id),
                                   adopt_database_id.reason);
  perform once.ensure_durable();
  update once.database i set system_identifier = c.system_identifier, database_oid = d.oid
    from pg_catalog.pg_control_system() c, pg_catalog.pg_database d where d.datname = current_database();
  return v_id;
end $$;
comment on function once.adopt_database_id(text) is
  'Keeps the database id in a database that has replaced its original for good (restored dump, pg_upgrade).';
call once.allow('owner', 'adopt_database_id');
--! EndIncluded database/adopt_database_id.sql
--! Included recovery/stamp_recovery.sql
-- A recoverer looks several times a second; this writes every few seconds, without a flush.
create function once.stamp_recovery(recoverer text, audited boolean default false) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.check_name('recoverer', stamp_recovery.recoverer);
  if not exists (select from once.recovery r
                  where r.recovered_at < clock_timestamp() - interval '5 seconds' or r.recovered_at is null
                     or stamp_recovery.audited) then
    return;
  end if;
  if pg_current_xact_id_if_assigned() is null then
    perform set_config('synchronous_commit', 'off', true);
  end if;
  update once.recovery r set recovered_at = clock_timestamp(), recovered_by = stamp_recovery.recoverer,
         audited_at = case when stamp_recovery.audited then clock_timestamp() else r.audited_at end
   where r.singleton and r.ctid = any (array(select u.ctid from once.recovery u for update skip locked));
end $$;
comment on function once.stamp_recovery(text, boolean) is
  'Recoverer: notes in once.recovery that it looked after this database; writes every 5 seconds at most.';
call once.allow('recover', 'stamp_recovery');
--! EndIncluded recovery/stamp_recovery.sql
--! Included recovery/dblink_schema.sql
-- Internal: the schema that dblink was installed into, quoted: any. Only recovery over dblink needs it.
create function once.dblink_schema() returns text language plpgsql stable set search_path = '' as $$
declare v_schema text;
begin
  select quote_ident(n.nspname) into v_schema
    from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
   where e.extname = 'dblink';
  if v_schema is null then
    raise exception 'the extension dblink is not installed in this database' using errcode = 'ONEXT',
      detail = 'It asks other databases, and finishes prepared transactions, which no function can.',
      hint = 'create extension dblink; or recover from outside: npx pgonce recover';
  end if;
  return v_schema;
end $$;
comment on function once.dblink_schema() is
  'Internal: the schema of the extension dblink; raises ONEXT if it is not installed.';
call once.allow('recover', 'dblink_schema');
--! EndIncluded recovery/dblink_schema.sql
--! Included recovery/remote.sql
-- Internal: runs a text over a dblink connection: a query with one column of type text, or commands, of which
-- the tag comes back. Each call is a transaction of its own over there, with a snapshot of its own; a command
-- alone is in no transaction block, so it may be COMMIT PREPARED.
--
-- What the statement_timeout over there has cancelled arrives as query_canceled, which `when others` does not
-- catch, since somebody may cancel us. The context tells: it names the connection.
create function once.remote(connection text, query text) returns setof text
language plpgsql volatile set search_path = '' as $$
declare v_context text;
begin
  return query execute format('select r.v from %s.dblink($1, $2) as r (v text)', once.dblink_schema())
    using remote.connection, remote.query;
exception when query_canceled then
  get stacked diagnostics v_context = pg_exception_context;
  if position(remote.connection in v_context) = 0 then raise; end if;
  raise exception 'no answer in time' using errcode = 'ONPER', detail = sqlerrm,
    hint = 'Look there for what it waits for: select * from pg_stat_activity;';
end $$;
comment on function once.remote(text, text) is
  'Internal: a query with one column of type text, or commands, over a dblink connection.';
call once.allow('recover', 'remote');
--! EndIncluded recovery/remote.sql
--! Included recovery/disconnect.sql
-- Internal: closes a dblink connection if it is open.
create function once.disconnect(connection text) returns void
language plpgsql volatile set search_path = '' as $$
declare v_dblink text := once.dblink_schema(); v_open boolean;
begin
  execute format('select $1 = any (%s.dblink_get_connections())', v_dblink)
     into v_open using disconnect.connection;
  if v_open then
    execute format('select %s.dblink_disconnect($1)', v_dblink) using disconnect.connection;
  end if;
end $$;
comment on function once.disconnect(text) is 'Internal: closes a dblink connection if it is open.';
call once.allow('recover', 'disconnect');
--! EndIncluded recovery/disconnect.sql
--! Included recovery/open_connection.sql
-- Internal: opens a dblink connection; an old one may have outlived a transaction that failed. In it names
-- mean what they mean here; each statement sees what is committed by then; and nobody waits longer than ten
-- seconds for a server that hangs, other than for COMMIT PREPARED: see once.finish_remote.
create function once.open_connection(connection text, target text) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.disconnect(open_connection.connection);
  execute format('select %s.dblink_connect($1, $2)', once.dblink_schema())
    using open_connection.connection, open_connection.target;
  perform once.remote(open_connection.connection,
    'set search_path = pg_catalog, pg_temp; set application_name = ''pgonce recovery''; '
    'set default_transaction_isolation = ''read committed''; set default_transaction_read_only = off; '
    'set statement_timeout = ''10s''');
end $$;
comment on function once.open_connection(text, text) is
  'Internal: opens a dblink connection to a foreign server, or by a connection string, with our settings.';
call once.allow('recover', 'open_connection');
--! EndIncluded recovery/open_connection.sql
--! Included recovery/quote_conninfo.sql
-- Internal: quotes a value for a libpq connection string. No backslash is written as such: in a literal it
-- means what the caller's standard_conforming_strings says.
create function once.quote_conninfo(value text) returns text
language sql immutable parallel safe set search_path = '' as $$
  select ''''
    || replace(replace(quote_conninfo.value, chr(92), repeat(chr(92), 2)), '''', chr(92) || '''') || ''''
$$;
comment on function once.quote_conninfo(text) is 'Internal: quotes a value for a libpq connection string.';
call once.allow('recover', 'quote_conninfo');
--! EndIncluded recovery/quote_conninfo.sql
--! Included recovery/connect.sql
-- Internal: opens a dblink connection to a database by its id, and returns its name: by the foreign server of
-- once.peer; to this database itself over its own port; to another database of this cluster. The last two
-- name no password, which dblink allows to superusers only: everybody else needs a peer.
--
-- Whoever owns a database can put anything under the names of our functions, and it would run as us. So a
-- database that was not named as a peer is spoken to only if its schema once, with all in it, belongs to the
-- role that owns ours, by the catalogs, which nobody can put anything into.
create function once.connect(database_id uuid) returns text
language plpgsql volatile set search_path = '' as $$
declare
  v_name text := 'once ' || connect.database_id;
  v_server name; v_database name; v_local text; v_found uuid; v_owner name; v_there boolean;
  v_message text; v_detail text;
begin
  perform once.dblink_schema();
  select p.server, exists (select from pg_catalog.pg_foreign_server s where s.srvname = p.server)
    into v_server, v_there
    from once.peer p where p.database_id = connect.database_id;
  if v_server is not null then
    begin
      -- dblink would take the name for a connection string.
      if not v_there then
        raise undefined_object using message = 'there is no such server any more';
      end if;
      perform once.open_connection(v_name, v_server);
      select r into v_found from once.remote(v_name, 'select once.database_id()::text') r;
    exception when others then
      get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail;
      perform once.disconnect(v_name);
      if sqlstate like 'ON%' then raise; end if;
      -- What is wrong over there stands in dblink's detail, and reports show messages only.
      raise exception 'no connection by foreign server %: %', quote_ident(v_server),
          regexp_replace(coalesce(nullif(v_detail, ''), v_message), '[[:space:]]+', ' ', 'g')
        using errcode = 'ONPER',
        detail = format('It leads to database %s, says once.peer; dblink says: %s.',
                        connect.database_id, v_message),
        hint = format('grant usage on foreign server %1$I to %2$I; create user mapping for %2$I '
                      'server %1$I options (user ''...'', password ''...''); '
                      'the server there must ask for the password.', v_server, current_user);
    end;
  else
    -- The settings that a role may not see are not there.
    select format('port=%s connect_timeout=5 user=%s host=%s',
                  max(s.setting) filter (where s.name = 'port'), once.quote_conninfo(current_user),
                  once.quote_conninfo(coalesce(
                    nullif(split_part(
                      max(s.setting) filter (where s.name = 'unix_socket_directories'), ',', 1), ''),
                    nullif(nullif(split_part(
                      max(s.setting) filter (where s.name = 'listen_addresses'), ',', 1), '*'), '0.0.0.0'),
                    'localhost')))
      into v_local from pg_catalog.pg_settings s;
    select n.nspowner::regrole::name into v_owner from pg_catalog.pg_namespace n where n.nspname = 'once';
    for v_database in
      select d.datname from pg_catalog.pg_database d
       where d.datallowconn and not d.datistemplate
         and (d.datname = current_database()) = (connect.database_id = (select i.id from once.database i))
       order by d.datname
    loop
      begin
        perform once.open_connection(v_name, v_local || ' dbname=' || once.quote_conninfo(v_database));
        if exists (
          select from once.remote(v_name, format($q$
            select '' from pg_catalog.pg_namespace n
             where n.nspname = 'once' and pg_catalog.pg_get_userbyid(n.nspowner) = %1$L
               and exists (select from pg_catalog.pg_class c
                            where c.relnamespace = n.oid and c.relname = 'database' and c.relkind = 'r')
               and not exists (select from pg_catalog.pg_class c
                            where c.relnamespace = n.oid and pg_catalog.pg_get_userbyid(c.relowner) <> %1$L)
               and not exists (select from pg_catalog.pg_proc f
                            where f.pronamespace = n.oid and pg_catalog.pg_get_userbyid(f.proowner) <> %1$L)
            $q$, v_owner))) then
          select r into v_found from once.remote(v_name, 'select i.id::text from once.database i') r;
        end if;
      exception when others then
        if v_database = current_database() then
          get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail;
          perform once.disconnect(v_name);
          raise exception 'no connection to this database itself: %',
              regexp_replace(coalesce(nullif(v_detail, ''), v_message), '[[:space:]]+', ' ', 'g')
            using errcode = 'ONPER',
            detail = 'COMMIT PREPARED cannot run in a function, so it goes over a connection of its own.',
            hint = 'select once.add_peer(''server'') '
                   'with a foreign server that leads to this database, and a user mapping.';
        end if;
      end;
      exit when v_found = connect.database_id;
      v_found := null;
      perform once.disconnect(v_name);
    end loop;
    if v_found is null then
      raise exception 'nothing known of the database %', connect.database_id using errcode = 'ONPER',
        detail = 'It is no peer, and no other database of this cluster that could be looked into.',
        hint = 'Name a foreign server (wrapper dblink_fdw) that leads to it: '
               'select once.add_peer(''server'').';
    end if;
    select r into v_found from once.remote(v_name, 'select once.database_id()::text') r;
  end if;
  if v_found is distinct from connect.database_id then
    perform once.disconnect(v_name);
    raise exception 'foreign server % leads to database %, not to %',
        quote_ident(v_server), v_found, connect.database_id using errcode = 'ONIDN',
      detail = 'Only the database whose id stands in the gid decides.',
      hint = format('delete from once.peer where database_id = %L; then select once.add_peer(''server'').',
                    connect.database_id);
  end if;
  return v_name;
end $$;
comment on function once.connect(uuid) is
  'Internal: opens a dblink connection to the database with this id; returns its name.';
call once.allow('recover', 'connect');
--! EndIncluded recovery/connect.sql
--! Included recovery/add_peer.sql
-- Names the foreign server that leads to another database of pgonce, and asks that database who it is.
create function once.add_peer(server text) returns uuid language plpgsql volatile set search_path = '' as $$
declare v_name constant text := 'once new peer'; v_id uuid; v_message text; v_detail text;
begin
  perform once.dblink_schema();
  -- Else dblink would take the name for a connection string.
  if not exists (select from pg_catalog.pg_foreign_server s where s.srvname = add_peer.server) then
    raise exception 'no foreign server named %', coalesce(quote_literal(add_peer.server), 'null')
      using errcode = 'ONARG', detail = 'Expected the name of a foreign server, without quotes.',
      hint = 'create server billing foreign data wrapper dblink_fdw '
             'options (host ''...'', dbname ''billing''); create user mapping for current_user '
             'server billing options (user ''...'', password ''...'');';
  end if;
  begin
    perform once.open_connection(v_name, add_peer.server);
    select r into v_id from once.remote(v_name, 'select once.database_id()::text') r;
    perform once.disconnect(v_name);
  exception when others then
    get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail;
    perform once.disconnect(v_name);
    if sqlstate like 'ON%' then raise; end if;
    raise exception 'foreign server % does not lead to a database of pgonce: %', quote_ident(add_peer.server),
        regexp_replace(coalesce(nullif(v_detail, ''), v_message), '[[:space:]]+', ' ', 'g')
      using errcode = 'ONPER', detail = format('dblink says: %s.', v_message),
      hint = format('grant usage on foreign server %1$I to %2$I; create user mapping for %2$I '
                    'server %1$I options (user ''...'', password ''...''); '
                    'and over there: npx pgonce migrate.', add_peer.server, current_user);
  end;
  insert into once.peer (database_id, server) values (v_id, add_peer.server)
  on conflict on constraint peer_pkey do update
     set server = excluded.server, added_at = now(), added_by = session_user;
  return v_id;
end $$;
comment on function once.add_peer(text) is
  'Names the foreign server to another database of pgonce; its id: select once.add_peer(''billing'').';
call once.allow('operator', 'add_peer');
--! EndIncluded recovery/add_peer.sql
--! Included recovery/finish_remote.sql
-- Internal: runs a statement of once.apply over a loopback connection: COMMIT PREPARED cannot run in a
-- function. Null when it is done, 'gone' if somebody else was faster, else why it is not done.
--
-- No statement_timeout, ours or the role's, may end it: COMMIT PREPARED would be cancelled while it waits for
-- a synchronous standby, and then be answered as done, seen and believed although no standby has it. It waits
-- for nothing else. What bounds it is what bounds every commit: the standby comes back or is given up.
create function once.finish_remote(connection text, statement text, role name) returns text
language plpgsql volatile set search_path = '' as $$
declare v_problem text := 'busy: somebody else is finishing it';
begin
  begin
    perform once.remote(finish_remote.connection,
              'set statement_timeout = 0' || coalesce('; set role ' || quote_ident(finish_remote.role), ''));
  exception when others then
    return format('%s (%s)', sqlerrm, sqlstate);
  end;
  for v_try in 1 .. 100 loop
    begin
      perform once.remote(finish_remote.connection, finish_remote.statement);
      v_problem := null;
      exit;
    exception
      when object_not_in_prerequisite_state then
        perform pg_sleep(0.02);  -- busy, or PREPARE still waits for a standby
      when undefined_object then
        -- Somebody else has finished it, or it was lost. That it is gone proves nothing; evidence does.
        v_problem := 'gone';
        exit;
      when others then
        v_problem := format('%s (%s)', sqlerrm, sqlstate);
        exit;
    end;
  end loop;
  begin
    perform once.remote(finish_remote.connection, 'reset role; set statement_timeout = ''10s''');
  exception when others then
    -- What comes next over it would be done as somebody else, or wait for ever.
    perform once.connect(once.database_id());
  end;
  return v_problem;
end $$;
comment on function once.finish_remote(text, text, name) is
  'Internal: COMMIT or ROLLBACK PREPARED over a connection; null when done, gone, or why not.';
call once.allow('recover', 'finish_remote');
--! EndIncluded recovery/finish_remote.sql
--! Included operator/judge_heuristic.sql
-- The home of a forced branch has come back: puts its decision beside what was done, which the branch itself
-- shows: still prepared, then nothing yet; else evidence exactly if it committed.
create function once.judge_heuristic(transaction_id uuid, decided text) returns bigint
language plpgsql volatile set search_path = '' as $$
declare v_count bigint;
begin
  perform once.assert_primary();
  if coalesce(judge_heuristic.decided, '') not in ('committed', 'aborted') then return 0; end if;
  -- First what is prepared, then, with a newer snapshot, what is evident: it leaves the one for the other.
  -- The owner too: whoever may connect can prepare a transaction of this name once the real one is gone.
  if exists (select from once.branch b
               join once.heuristic f on f.gid = b.gid and f.owner = b.owner
              where f.transaction_id = judge_heuristic.transaction_id) then
    return 0;
  end if;
  update once.heuristic f set decided = judge_heuristic.decided,
         done = case when exists (select from once.evidence e where e.transaction_id = f.transaction_id)
                     then 'committed' else 'rolled back' end,
         judged_at = clock_timestamp()
   where f.transaction_id = judge_heuristic.transaction_id and f.judged_at is null;
  get diagnostics v_count = row_count;
  return v_count;
end $$;
comment on function once.judge_heuristic(uuid, text) is
  'Recoverer: notes what the home of a forced branch decided, once it can be asked again.';
call once.allow('recover', 'judge_heuristic');
--! EndIncluded operator/judge_heuristic.sql
--! Included operator/find_acknowledged.sql
-- The audit's question to a home: which of these transactions did somebody acknowledge?
create function once.find_acknowledged(transaction_ids uuid[]) returns setof uuid
language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_primary();
  return query select i.id from unnest(find_acknowledged.transaction_ids) i (id)
   where exists (select from once.intervention v
                  where v.action = 'acknowledge' and v.subject ->> 'transaction_id' = i.id::text);
end $$;
comment on function once.find_acknowledged(uuid[]) is
  'Home: those of the given transactions that somebody has acknowledged (once.acknowledge).';
call once.allow('recover', 'find_acknowledged');
--! EndIncluded operator/find_acknowledged.sql
--! Included recovery/read_messages.sql
-- Internal: reads what a courier brings, one question or a list of answers. Whatever is not one is refused:
-- it decides what is marked, deleted and finished. All messages have the same members:
--   step      finish, judge: outcomes; prove, confirm: evidence; purge: evidence deleted; audit: decisions;
--             acknowledge: what was acknowledged by hand
--   asking, asked                   the databases, by their ids
--   ids                             transactions; with xids of their home, for outcomes
--   outcomes, evident, missing      of an answer; outcomes in the order of ids
create function once.read_messages(messages text) returns table (
  step text, asking uuid, asked uuid, ids uuid[], xids xid8[], outcomes text[], evident uuid[], missing uuid[]
) language plpgsql stable set search_path = '' as $$
declare v_messages jsonb; v_message jsonb;
begin
  begin
    v_messages := read_messages.messages;
    for v_message in
      select m from jsonb_array_elements(case jsonb_typeof(v_messages) when 'array' then v_messages
                                              else jsonb_build_array(v_messages) end) m
    loop
      read_messages.step := v_message ->> 'step';
      read_messages.asking := v_message ->> 'asking';
      read_messages.asked := v_message ->> 'asked';
      read_messages.ids := array(select jsonb_array_elements_text(v_message -> 'ids'));
      read_messages.xids := array(select jsonb_array_elements_text(v_message -> 'xids'));
      read_messages.outcomes := array(select jsonb_array_elements_text(v_message -> 'outcomes'));
      read_messages.evident := array(select jsonb_array_elements_text(v_message -> 'evident'));
      read_messages.missing := array(select jsonb_array_elements_text(v_message -> 'missing'));
      if read_messages.step is null or read_messages.asking is null or read_messages.asked is null
         or cardinality(read_messages.outcomes) not in (0, cardinality(read_messages.ids))
         or read_messages.outcomes <@ array['committed', 'aborted', 'pending'] is not true then
        raise data_exception using message = 'it lacks a member, or has an outcome that is none';
      end if;
      return next;
    end loop;
  exception when others then
    raise exception 'no message of recovery: %', quote_nullable(left(read_messages.messages, 200))
      using errcode = 'ONARG', detail = sqlerrm, hint = 'Pass on what once.ask and once.answer say as it is.';
  end;
end $$;
comment on function once.read_messages(text) is
  'Internal: takes a question of once.ask, or a list of answers of once.answer, apart; else raises ONARG.';
call once.allow('recover', 'read_messages');
--! EndIncluded recovery/read_messages.sql
--! Included recovery/ask.sql
-- Recovery, step 1 (every database): what this database wants to know, and from which other. It returns JSON,
-- a row each, which a courier carries without knowing what it says; see docs/protocol.md#couriers:
--   {"id"}                         which database this is, first of all
--   {"batch", "to", "question"}    for once.answer at database "to"; the answers of a batch go together to
--                                  once.apply here; "gids": the branches that wait for the answer
--   {"action"}                     something to report, as once.apply has it
--   {"again"}                      a branch is too young: look again soon
--   {"next"}                       there is more: the request for it
--
-- The request has "steps" (finish, prove, confirm, purge, audit, judge); "settle", how old a branch must be;
-- "keep", of which one half lies between the two looks at the evidence, and the other before it goes; and
-- "recoverer", to note who looked after this database. It answers a page at a time: a long backlog must fit
-- into memory, and what cannot be done now must not keep the rest from its turn.
create function once.ask(request text) returns setof text language plpgsql volatile set search_path = '' as $$
declare
  v_self constant uuid := once.database_id();
  v_request jsonb; v_steps text[]; v_step text; v_settle interval; v_half interval;
  v_at timestamptz; v_id uuid; v_gid text; v_branches constant integer := 10000;
  v_page constant integer := 1000;
begin
  perform once.assert_primary();
  begin
    v_request := ask.request;
    v_steps := array(select jsonb_array_elements_text(v_request -> 'steps'));
    v_settle := coalesce(v_request ->> 'settle', '0');
    v_half := coalesce(v_request ->> 'keep', '10 minutes')::interval / 2;
    v_at := coalesce(v_request #>> '{after,at}', '-infinity');
    v_id := coalesce(v_request #>> '{after,id}', '00000000-0000-0000-0000-000000000000');
    v_gid := coalesce(v_request #>> '{after,gid}', '');
    if v_steps = '{}' or not v_steps <@ array['finish', 'prove', 'confirm', 'purge', 'audit', 'judge'] then
      raise data_exception using message = 'no steps, or unknown ones';
    end if;
  exception when others then
    raise exception 'no request of a recoverer: %', quote_nullable(left(ask.request, 200))
      using errcode = 'ONARG', detail = sqlerrm, hint = 'select once.ask(''{"steps": ["finish", "prove"]}'')';
  end;
  return next jsonb_build_object('id', v_self);

  foreach v_step in array v_steps loop
    if v_step = 'finish' then
      return query with branch as materialized (
        select b.* from once.branch b
         where (b.ours or b.owner is null and b.transaction_id is not null) and b.gid > v_gid
      ), page as materialized (
        select b.* from branch b where b.age >= v_settle order by b.gid limit v_branches
      )
      -- This database's own first: it needs no connection to another.
      (select jsonb_build_object('batch', v_step || ' ' || p.home, 'to', p.home, 'gids', jsonb_agg(p.gid),
                'question', jsonb_build_object('step', v_step, 'asking', v_self, 'asked', p.home,
                  'ids', jsonb_agg(p.transaction_id), 'xids', jsonb_agg(p.home_xid)))::text
         from page p
        where p.can_finish or not p.ours
        group by p.home order by p.home <> v_self)
      union all
      select jsonb_build_object('action', 'unfinished', 'subject', p.gid, 'detail',
               format('only role %1$I may finish it; a superuser can: grant %1$I to %2$I',
                      p.owner, current_user))::text
        from page p where p.ours and not p.can_finish
      union all
      select '{"again": true}' where exists (select from branch b where b.age < v_settle)
      union all
      select jsonb_build_object('next', v_request || jsonb_build_object('steps', array[v_step],
               'after', jsonb_build_object('gid', max(p.gid))))::text
        from page p having count(*) = v_branches;
      continue;
    end if;
    return query with item as materialized (
      select i.*
        from (select d.decided_at, d.transaction_id, d.database_ids, null::text
                from once.unproven(v_page, v_at, v_id) d where v_step = 'prove'
               union all
              select d.proven_at, d.transaction_id, d.database_ids, null
                from once.proven(v_page, v_half, v_at, v_id) d where v_step = 'confirm'
               union all
              select d.confirmed_at, d.transaction_id, d.database_ids, null
                from once.confirmed(v_page, v_half, v_at, v_id) d where v_step = 'purge'
               union all
              select '-infinity', e.transaction_id, array[e.home], null
                from once.evidence_page(v_page, v_id) e where v_step = 'audit'
               union all
              select '-infinity', h.transaction_id, array[h.home], h.home_xid::text
                from once.heuristic h where v_step = 'judge' and h.judged_at is null
             ) i (at, id, asked, xid)
    )
    -- A decision that concerns nobody else is a question to this database itself.
    select jsonb_build_object(
             'batch', v_step || case when v_step in ('audit', 'judge') then ' ' || q.asked else '' end,
             'to', q.asked,
             'question', jsonb_build_object('step', v_step, 'asking', v_self, 'asked', q.asked,
               'ids', jsonb_agg(q.id), 'xids', array_remove(array_agg(q.xid), null)))::text
      from (select i.id, i.xid, coalesce(a.id, v_self) as asked
              from item i left join lateral unnest(i.asked) a (id) on true) q
     group by q.asked
    union all
    (select jsonb_build_object('next', v_request || jsonb_build_object('steps', array[v_step],
              'after', jsonb_build_object('at', i.at, 'id', i.id)))::text
       from item i
      where v_step <> 'judge' and (select count(*) from item) = v_page
      order by i.at desc, i.id desc limit 1);
  end loop;

  if v_request ->> 'recoverer' is not null then
    begin
      perform once.stamp_recovery(v_request ->> 'recoverer');
    exception when insufficient_privilege or read_only_sql_transaction then
      null;  -- that the role may not is no reason not to recover
    end;
  end if;
end $$;
comment on function once.ask(text) is
  'Recovery, step 1: what this database wants to know from which other, in JSON, for couriers to carry.';
call once.allow('recover', 'ask');
--! EndIncluded recovery/ask.sql
--! Included recovery/answer.sql
-- Recovery, step 2 (the database that a question is for): answers it. Only a primary answers, only the
-- database that is asked, and only under READ COMMITTED, where each reading has a newer snapshot.
create function once.answer(question text) returns text language plpgsql volatile set search_path = '' as $$
declare v_question record; v_header jsonb; v_prepared uuid[]; v_evident uuid[];
begin
  select q.* into strict v_question from once.read_messages(answer.question) q;
  perform once.assert_home(v_question.asked);
  v_header := jsonb_build_object('step', v_question.step, 'asking', v_question.asking,
                                 'asked', v_question.asked, 'ids', v_question.ids);
  case
    when v_question.step in ('finish', 'judge') then
      return v_header || (
        select jsonb_strip_nulls(jsonb_build_object('ids', array_agg(o.transaction_id),
                 'xids', array_agg(o.home_xid), 'outcomes', array_agg(o.outcome)))
          from once.branch_outcomes(v_question.asked, v_question.ids, v_question.xids) o);
    when v_question.step in ('prove', 'confirm') then
      -- First what is prepared, then, with a newer snapshot, what is evident: a branch that commits is
      -- evident before it leaves the first list. So what is in neither is missing.
      v_prepared := array(select b.transaction_id from once.branch b where b.transaction_id is not null);
      v_evident := array(select e from once.find_evidence(v_question.ids) e);
      return v_header || jsonb_build_object('evident', v_evident, 'missing', array(
        select unnest(v_question.ids) except select unnest(v_prepared) except select unnest(v_evident)));
    when v_question.step = 'purge' then
      -- The home has confirmed these. Whoever hears this answer knows that the deletion is committed.
      perform once.delete_evidence(v_question.asking, v_question.ids);
      return v_header;
    when v_question.step = 'audit' then
      return v_header || jsonb_build_object('missing', array(
        select unnest(v_question.ids)
        except select d.transaction_id from once.find_decisions(v_question.ids) d));
    when v_question.step = 'acknowledge' then
      return v_header || jsonb_build_object('ids',
        array(select i from once.find_acknowledged(v_question.ids) i));
    else
      raise exception 'unknown question: %', quote_literal(left(v_question.step, 40)) using errcode = 'ONARG',
        detail = 'Another version of schema once has asked it.',
        hint = 'Bring all databases up to date: npx pgonce migrate';
  end case;
end $$;
comment on function once.answer(text) is
  'Recovery, step 2: answers a question of once.ask that is for this database.';
call once.allow('recover', 'answer');
--! EndIncluded recovery/answer.sql
--! Included recovery/finish_statements.sql
-- Internal: what a home's outcomes mean for the branches in doubt here: the statement that finishes each, or
-- why there is none. By all three ids: anybody can read the transaction's and prepare another xid.
create function once.finish_statements(home uuid, ids uuid[], xids xid8[], outcomes text[])
returns setof jsonb language plpgsql volatile set search_path = ''
-- The planner does not know how many branches there are: over two long lists a nested loop takes for ever.
set enable_nestloop = off as $$
begin
  return query select case
           when o.outcome = 'pending'
             then jsonb_build_object('action', 'pending', 'subject', b.gid,
                    'detail', 'the home''s transaction still runs')
           -- Nothing proves any more that it is ours.
           when b.owner is null
             then jsonb_build_object('action', 'unfinished', 'subject', b.gid, 'detail',
                    format('its owner was dropped, and its home says %s; if it is yours, as a superuser: %s',
                           o.outcome, s.statement))
           else jsonb_build_object('action', 'run', 'statement', s.statement, 'gid', b.gid,
                  'id', b.transaction_id, 'outcome', o.outcome,
                  'role', case when b.owner <> current_user and not u.rolsuper then b.owner end)
         end
    from once.branch b
    join (select distinct *
            from unnest(finish_statements.ids, finish_statements.xids, finish_statements.outcomes)
         ) o (id, xid, outcome) on o.id = b.transaction_id and o.xid = b.home_xid::xid8
   cross join lateral (
     select format('%s prepared %L', case o.outcome when 'committed' then 'commit' else 'rollback' end, b.gid)
   ) s (statement)
    join pg_catalog.pg_roles u on u.rolname = current_user
   where b.home = finish_statements.home and (b.ours and b.can_finish or b.owner is null)
   order by b.prepared_at;
end $$;
comment on function once.finish_statements(uuid, uuid[], xid8[], text[]) is
  'Internal: what to do with each branch here whose home has answered: a statement, or why there is none.';
call once.allow('recover', 'finish_statements');
--! EndIncluded recovery/finish_statements.sql
--! Included recovery/apply.sql
-- Recovery, step 3 (the database that asked): applies the answers of a batch. It marks, purges and records by
-- itself; what no function can run it returns, with what there is to report. JSON, a row each:
--   "run"                            a "statement", outside of a transaction, as "role" if that is not null;
--                                    "gid", "id" and "outcome" are for people
--   "pending", "unfinished"          a gid as "subject", and the "detail"
--   "proven", "purged"               a "count"
--   "lost branch", "lost decision"   a transaction as "subject", "participant", "home" and "detail"
-- Answers may be late, come again, or be some of a batch only: an outcome never changes; a mark needs the
-- evidence of every participant; and what is called lost is read once more here, after the answer.
create function once.apply(answers text) returns setof text
language plpgsql volatile set search_path = '' as $$
declare v_self uuid; v_step text; v_answer record; v_loss record; v_ids uuid[] := '{}'; v_count bigint;
begin
  for v_answer in select a.* from once.read_messages(apply.answers) a loop
    perform once.assert_home(v_answer.asking);
    v_self := v_answer.asking;
    if v_answer.step <> coalesce(v_step, v_answer.step) then
      raise exception 'answers to different questions: % and %', v_step, v_answer.step
        using errcode = 'ONARG', detail = 'Those of a batch go together.', hint = 'See "batch" of once.ask.';
    end if;
    v_step := v_answer.step;
    v_ids := v_ids || v_answer.ids;
    if v_step = 'finish' then
      return query select s::text
        from once.finish_statements(v_answer.asked, v_answer.ids, v_answer.xids, v_answer.outcomes) s;
    elsif v_step = 'judge' then
      perform once.judge_heuristic(h.transaction_id, o.outcome)
         from unnest(v_answer.ids, v_answer.xids, v_answer.outcomes) o (id, xid, outcome)
         join once.heuristic h on h.home = v_answer.asked and h.transaction_id = o.id and h.home_xid = o.xid
        where h.judged_at is null;
    elsif v_step = 'audit' then
      -- A decision goes only after its evidence: if that is still here, the home has lost the decision.
      for v_loss in
        select e.transaction_id as id, e.participant from once.evidence e
         where e.transaction_id in (select f from once.find_evidence(v_answer.missing) f)
           and e.home = v_answer.asked
      loop
        if once.record_loss(v_loss.id, v_loss.participant, v_answer.asked, 'lost decision') then
          return next jsonb_build_object('action', 'lost decision', 'subject', v_loss.id,
            'participant', v_loss.participant, 'home', v_answer.asked,
            'detail', format('committed here, home %s has no decision', v_answer.asked));
        end if;
      end loop;
    end if;
  end loop;
  if coalesce(v_step, '') not in ('prove', 'confirm', 'purge') then return; end if;

  -- Those that every participant has answered for: with evidence, or that it is deleted.
  v_ids := array(
    select g.transaction_id from once.global_transaction g
      left join lateral unnest(g.database_ids) p (id) on true
      left join (select distinct a.asked, unnest(case v_step when 'purge' then a.ids else a.evident end) as id
                   from once.read_messages(apply.answers) a) n on n.id = g.transaction_id and n.asked = p.id
     where g.transaction_id = any (v_ids) group by g.transaction_id
    having count(p.id) = count(n.id));
  v_count := case v_step when 'prove' then once.mark_proven(v_ids)
                         when 'confirm' then once.mark_confirmed(v_ids)
                         else once.purge(v_ids) end;
  if v_count > 0 and v_step <> 'confirm' then
    return next jsonb_build_object('action', case v_step when 'prove' then 'proven' else 'purged' end,
                                   'count', v_count);
  end if;

  -- A decision read without the mark (once.ask), whose branch is then neither prepared nor, after that,
  -- evident (once.answer), and which is still without the mark after that, has lost the branch: it was
  -- prepared when the decision was made; what leaves the list of prepared transactions by committing has left
  -- its evidence before; and evidence goes only after the decision is marked. Hence the order of readings.
  for v_loss in
    select d.transaction_id as id, coalesce(p.name, '') as name, a.asked
      from once.read_messages(apply.answers) a cross join lateral unnest(a.missing) m (id)
      join once.find_decisions(array(select unnest(o.missing) from once.read_messages(apply.answers) o)) d
        on d.transaction_id = m.id and not case v_step when 'prove' then d.proven else d.confirmed end
      join once.global_transaction g on g.transaction_id = d.transaction_id
     cross join lateral unnest(g.participants, g.database_ids) p (name, id)
     where p.id = a.asked
  loop
    if once.record_loss(v_loss.id, v_loss.name, v_self, 'lost branch') then
      return next jsonb_build_object('action', 'lost branch', 'subject', v_loss.id,
        'participant', v_loss.name, 'home', v_self, 'detail',
        format('committed here, participant %s has neither the branch nor evidence of it', v_loss.name));
    end if;
  end loop;
end $$;
comment on function once.apply(text) is
  'Recovery, step 3: applies answers of once.answer here; returns as JSON what to run, and what to report.';
call once.allow('recover', 'apply');
--! EndIncluded recovery/apply.sql
--! Included recovery/carry.sql
-- Internal: carries a question to the database that it is for, through dblink, or answers it if this is it.
create function once.carry(question text) returns text language plpgsql volatile set search_path = '' as $$
declare
  v_asked uuid := (select q.asked from once.read_messages(carry.question) q limit 1);
  v_connection text; v_answer text;
begin
  if v_asked = (select d.id from once.database d) then return once.answer(carry.question); end if;
  v_connection := once.connect(v_asked);
  begin
    v_answer := (select r from once.remote(v_connection, format('select once.answer(%L)', carry.question)) r);
    perform once.disconnect(v_connection);
  exception when others then
    perform once.disconnect(v_connection);
    raise;
  end;
  return v_answer;
end $$;
comment on function once.carry(text) is
  'Internal: brings a question to the database that it is for, through dblink; returns the answer.';
call once.allow('recover', 'carry');
--! EndIncluded recovery/carry.sql
--! Included recovery/consult.sql
-- Internal: a courier within the caller's transaction, for people at psql: asks here, carries each question,
-- applies each answer here. For the steps whose answers need not be applied together; it runs no statements.
create function once.consult(step text) returns setof jsonb
language plpgsql volatile set search_path = '' as $$
declare v_row jsonb;
begin
  for v_row in select a::jsonb from once.ask(jsonb_build_object('steps', array[consult.step])::text) a loop
    if v_row ? 'action' then
      return next v_row;
    elsif v_row ? 'question' then
      begin
        return query select a::jsonb from once.apply(once.carry((v_row -> 'question')::text)) a;
      exception when others then
        return query select jsonb_build_object('action', 'unfinished', 'subject', g, 'detail', sqlerrm)
                       from jsonb_array_elements_text(v_row -> 'gids') g;
      end;
    end if;
  end loop;
end $$;
comment on function once.consult(text) is
  'Internal: asks, carries through dblink and applies, to finish or to judge; returns what once.apply does.';
call once.allow('recover', 'consult');
--! EndIncluded recovery/consult.sql
--! Included recovery/ask_home.sql
-- Asks the home of a branch, wherever it is: this database, or another through dblink.
create function once.ask_home(gid text) returns text language plpgsql volatile set search_path = '' as $$
declare v_gid record := once.decode_gid(ask_home.gid);
begin
  if v_gid.manager <> 'pgonce' or v_gid.home = (select d.id from once.database d) then
    return once.gid_outcome(ask_home.gid);
  end if;
  return once.carry(jsonb_build_object('step', 'finish', 'asking', once.database_id(), 'asked', v_gid.home,
    'ids', array[v_gid.transaction_id], 'xids', array[v_gid.home_xid])::text)::jsonb #>> '{outcomes,0}';
end $$;
comment on function once.ask_home(text) is
  'Committed, aborted or pending, asked at its home through dblink: select once.ask_home(''once:1:...'').';
call once.allow('recover', 'ask_home');
--! EndIncluded recovery/ask_home.sql
--! Included recovery/recover.sql
-- A whole round of recovery inside Postgres, for this database: a courier over dblink of what once.ask,
-- once.answer and once.apply say, as in TypeScript (src/recovery/courier.ts); both may run at once, and
-- several of each. By pg_cron: see docs/operations.md.
--
-- This database's own part goes over a loopback connection, each call as a transaction of its own: COMMIT
-- PREPARED cannot run in a function; each reading needs a newer snapshot; and "proven" must be committed
-- before any evidence goes. Questions are carried from there as well: dblink heeds no connect_timeout since
-- Postgres 16, statement_timeout there ends what hangs.
create function once.recover(keep interval default '10 minutes', settle interval default '0')
returns table (action text, count bigint, subject text, detail text)
language plpgsql volatile set search_path = '' set intervalstyle = 'postgres' as $$
declare
  v_self uuid := once.database_id(); v_me text; v_audit boolean; v_requests text[]; v_rows jsonb[];
  v_batch jsonb[]; v_question jsonb; v_answers text[]; v_result jsonb; v_problem text;
  v_down text[] := '{}';
begin
  perform once.assert_home(v_self);
  v_me := once.connect(v_self);
  v_audit := (
    select coalesce(r.audited_at < clock_timestamp() - interval '1 minute', true) from once.recovery r);
  v_requests := array(
    select jsonb_build_object('steps', array[s], 'keep', recover.keep, 'settle', recover.settle,
                              'recoverer', 'once.recover()')::text
      from unnest(array['finish', 'prove', 'confirm', 'purge', 'audit', 'judge']) with ordinality u (s, n)
     where v_audit or n <= 4);
  while v_requests <> '{}' loop
    v_rows := array(select a::jsonb from once.remote(v_me, format('select once.ask(%L)', v_requests[1])) a);
    v_requests := array(select (r -> 'next')::text from unnest(v_rows) r where r ? 'next') || v_requests[2:];
    for v_batch in
      select array_agg(r.said) from unnest(v_rows) with ordinality r (said, n)
       where r.said ? 'action' or r.said ? 'batch' group by r.said ->> 'batch' order by min(r.n)
    loop
      v_answers := '{}';
      foreach v_question in array v_batch loop
        continue when v_question ? 'action';
        v_problem := case when v_question ->> 'to' = any (v_down) then 'not asked again' end;
        if v_problem is null then
          begin
            v_answers := v_answers || array(
              select a from once.remote(v_me, format('select once.carry(%L)', v_question -> 'question')) a);
            continue;
          exception when others then
            v_problem := sqlerrm;
            v_down := v_down || (v_question ->> 'to');
          end;
        end if;
        return query
        select 'unfinished', 1::bigint, g, v_problem from jsonb_array_elements_text(v_question -> 'gids') g
        union all
        select 'unreachable', jsonb_array_length(v_question #> '{question,ids}'), v_question ->> 'to',
               v_problem
         where not v_question ? 'gids';
      end loop;
      for v_result in
        select r from unnest(v_batch) r where r ? 'action'
        union all
        select a::jsonb
          from once.remote(v_me,
                 format('select once.apply(%L)', '[' || array_to_string(v_answers, ',') || ']')) a
      loop
        if v_result ->> 'action' = 'run' then
          v_problem := once.finish_remote(v_me, v_result ->> 'statement', (v_result ->> 'role')::name);
          continue when v_problem = 'gone';
          return query
          select case when v_problem is not null then 'unfinished'
                      when v_result ->> 'outcome' = 'committed' then 'committed' else 'rolled back' end,
                 1::bigint, v_result ->> 'gid', v_problem;
        else
          return query select v_result ->> 'action', coalesce((v_result ->> 'count')::bigint, 1),
                              v_result ->> 'subject', v_result ->> 'detail';
        end if;
      end loop;
    end loop;
  end loop;
  if v_audit then
    perform once.remote(v_me, 'select once.stamp_recovery(''once.recover()'', true)::text');
  end if;
  perform once.disconnect(v_me);
end $$;
comment on function once.recover(interval, interval) is
  'Recovers this database from within, through dblink; says what it did: select * from once.recover();';
call once.allow('recover', 'recover');
--! EndIncluded recovery/recover.sql
--! Included operator/known_outcomes.sql
-- Internal: the outcomes of branches as far as this database knows them, in words where it does not. It never
-- fails, since a view shows it: a list without outcomes is better than none.
create function once.known_outcomes(homes uuid[], transaction_ids uuid[], home_xids text[])
returns table (home uuid, transaction_id uuid, home_xid text, outcome text)
language plpgsql volatile set search_path = ''
-- As ever, whatever once.inspect has set for itself: decision rows are found by index.
set enable_nestloop = on
set enable_sort = on as $$
declare v_self uuid; v_why_not text; v_ids uuid[]; v_xids xid8[];
begin
  begin
    v_self := once.database_id();
  exception when sqlstate 'ONCPY' then
    select i.id into v_self from once.database i;
    v_why_not := 'unknown here: this database is a copy, see select once.database_id()';
  end;
  if pg_is_in_recovery() then
    v_why_not := 'unknown here: this is a standby, ask the primary';
  elsif current_setting('transaction_isolation') <> 'read committed' then
    v_why_not := 'unknown here: ask under read committed';
  end if;
  select array_agg(i.id), array_agg(i.xid::xid8) into v_ids, v_xids
    from unnest(known_outcomes.homes, known_outcomes.transaction_ids, known_outcomes.home_xids)
         i (home, id, xid) where i.home = v_self;
  if cardinality(v_ids) is distinct from cardinality(known_outcomes.transaction_ids) then
    return query select i.home, i.id, i.xid, 'unknown here: ask ' || i.home
      from unnest(known_outcomes.homes, known_outcomes.transaction_ids, known_outcomes.home_xids)
           i (home, id, xid) where i.home is distinct from v_self;
  end if;
  if v_why_not is not null then
    return query select v_self, i.id, i.xid::text, v_why_not from unnest(v_ids, v_xids) i (id, xid);
  elsif v_ids is not null then
    return query select v_self, b.transaction_id, b.home_xid::text, b.outcome
                   from once.branch_outcomes(v_self, v_ids, v_xids) b;
  end if;
end $$;
comment on function once.known_outcomes(uuid[], uuid[], text[]) is
  'Internal: committed, aborted, pending where this database is the home; else why it is unknown here.';
call once.allow('app, recover, monitor', 'known_outcomes');
--! EndIncluded operator/known_outcomes.sql
--! Included operator/inspect.sql
-- What an operator wants to know at three in the morning: every prepared transaction of this database, ours
-- or not, what it locks, whom it blocks, and what was decided.
--
-- pg_locks is read once, which is most of the cost. A prepared transaction's locks carry no pid, and until a
-- restart the virtual transaction of the session that prepared it (then '-1/<xid>'). Its own xid's lock
-- tells.
--
-- Who waits is worked out here: pg_blocking_pids() locks the lock table for each session, and calls every
-- prepared transaction 0. A session waits for those that hold what it wants in a mode that conflicts, and for
-- those before it in the queue that want so; hence for a prepared transaction through any number of others.
--
-- A function, so that it can tell the planner to hash: nothing is known of how many rows pg_locks has, and a
-- nested loop over two lists of a thousand each takes longer than all the rest.
create function once.inspect() returns table (
  gid text, manager text, global_id text, participant text, transaction_id uuid, home uuid, home_xid text,
  owner name, ours boolean, can_finish boolean, prepared_at timestamptz, age interval, xid_age integer,
  locks text[], blocks integer, blocked_pids integer[], longest_wait interval, outcome text
)
language plpgsql volatile set search_path = '' set enable_nestloop = off set enable_mergejoin = off
set enable_sort = off as $$
begin
  return query with recursive prepared as materialized (
    select p.gid, p.transaction, p.owner, p.prepared from pg_catalog.pg_prepared_xacts p
     where p.database = current_database()
  ), owner as materialized (
    select o.owner, once.may_vote(o.owner) as may_vote, once.may_finish(o.owner) as can_finish
      from (select distinct p.owner from prepared p) o
  ), branch as materialized (
    select p.transaction, p.owner, p.prepared, g.*, coalesce(o.can_finish, false) as can_finish,
           g.manager = 'pgonce' and o.may_vote is true as ours
      from prepared p join once.decode_gids(array(select n.gid from prepared n)) g on g.gid = p.gid
      left join owner o on o.owner = p.owner
  ), lock as materialized (
    select l.* from pg_catalog.pg_locks l
  ), bundle as materialized (
    -- What prepared transactions hold, by what it is: there are many locks, but few relations and modes.
    select l.relation, l.mode, array_agg(l.virtualtransaction) as holders,
           array_agg(l.transactionid) filter (where l.relation is null) as transactions
      from lock l
     where l.pid is null and l.granted
       and (l.locktype = 'transactionid'
            or l.locktype = 'relation'
               and l.database in (0, (select d.oid from pg_catalog.pg_database d
                                       where d.datname = current_database())))
     group by l.relation, l.mode
  ), holder as materialized (
    select u.transaction, u.virtualtransaction
      from bundle b, unnest(b.transactions, b.holders) u (transaction, virtualtransaction)
     where b.relation is null and b.mode = 'ExclusiveLock'
  ), label as materialized (
    -- A lock on an index always comes with one on its table.
    select b.holders, c.oid::regclass::text || ' ' || b.mode as label from bundle b
      join pg_catalog.pg_class c on c.oid = b.relation and c.relkind not in ('i', 'I')
     order by c.oid::regclass::text collate "C", length(b.mode)
  ), held as materialized (
    -- In the labels' order, for which no array is sorted: hashing keeps the order in which rows come.
    select h.virtualtransaction, array_agg(h.label) as locks
      from (select unnest(l.holders) as virtualtransaction, l.label from label l) h
     group by h.virtualtransaction
  ), conflict (mode, with_modes) as (
    -- https://www.postgresql.org/docs/current/explicit-locking.html#TABLE-LOCK-COMPATIBILITY
    select m.modes[c.mode], array(select m.modes[n] from unnest(c.with_modes) n)
      from (values ('{AccessShareLock,RowShareLock,RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,'
                    'ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'::text[])) m (modes),
           (values (1, '{8}'::integer[]), (2, '{7,8}'), (3, '{5,6,7,8}'), (4, '{4,5,6,7,8}'),
                   (5, '{3,4,6,7,8}'), (6, '{3,4,5,6,7,8}'), (7, '{2,3,4,5,6,7,8}'),
                   (8, '{1,2,3,4,5,6,7,8}')) c (mode, with_modes)
  ), waiting as materialized (
    select l.*, c.with_modes from lock l join conflict c on c.mode = l.mode where not l.granted
  ), edge as materialized (
    select w.pid as waiter, b.pid as blocker, b.virtualtransaction from waiting w
      join lock b on b.locktype = w.locktype and coalesce(b.relation, 0) = coalesce(w.relation, 0)
                 and coalesce(b.transactionid, '0') = coalesce(w.transactionid, '0')
                 and b.database is not distinct from w.database and b.page is not distinct from w.page
                 and b.tuple is not distinct from w.tuple and b.virtualxid is not distinct from w.virtualxid
                 and b.classid is not distinct from w.classid and b.objid is not distinct from w.objid
                 and b.objsubid is not distinct from w.objsubid
     where b.mode = any (w.with_modes) and (b.granted or b.waitstart < w.waitstart)
       and b.pid is distinct from w.pid
  ), blocked (virtualtransaction, pid) as (
    select e.virtualtransaction, e.waiter from edge e where e.blocker is null
    union
    select b.virtualtransaction, e.waiter from blocked b join edge e on e.blocker = b.pid
  ), blocks as materialized (
    select s.virtualtransaction, count(*)::integer as sessions, array_agg(s.pid) as pids,
           clock_timestamp() - min(s.waitstart) as longest_wait
      from (select b.virtualtransaction, b.pid, w.waitstart
              from blocked b join waiting w on w.pid = b.pid
             order by b.pid) s
     group by s.virtualtransaction
  ), ours as materialized (
    select distinct b.home, b.transaction_id, b.home_xid from branch b where b.ours
  ), outcome as materialized (
    select k.home, k.transaction_id, k.home_xid, k.outcome
      from (select array_agg(o.home) as homes, array_agg(o.transaction_id) as ids,
                   array_agg(o.home_xid) as xids from ours o) a,
           once.known_outcomes(a.homes, a.ids, a.xids) k
  )
  select b.gid,
         -- Whose gid has our form, but who could not have made it, is nobody we know.
         case when b.manager = 'pgonce' and not b.ours then 'unknown' else b.manager end, b.global_id,
         b.participant, b.transaction_id, b.home, b.home_xid, b.owner, b.ours, b.can_finish, b.prepared,
         clock_timestamp() - b.prepared, age(b.transaction), coalesce(held.locks, '{}'),
         coalesce(k.sessions, 0), coalesce(k.pids, '{}'), k.longest_wait,
         case when b.ours then u.outcome
              when b.owner is null and b.manager = 'pgonce' then 'its owner was dropped: see once.audit()'
              else 'not ours: ask its manager' end
    from branch b
    left join outcome u on u.home = b.home and u.transaction_id = b.transaction_id and u.home_xid = b.home_xid
    left join holder h on h.transaction = b.transaction
    left join held on held.virtualtransaction = h.virtualtransaction
    left join blocks k on k.virtualtransaction = h.virtualtransaction;
end $$;
comment on function once.inspect() is 'Internal: the rows of the view once.in_doubt.';
call once.allow('app, recover, monitor', 'inspect');
--! EndIncluded operator/inspect.sql
--! Included operator/in_doubt.sql
-- What an operator wants to know at three in the morning, in one query; how it is found: once.inspect.
create view once.in_doubt as
select i.gid, i.manager, i.global_id, i.participant, i.transaction_id, i.home, i.home_xid, i.owner, i.ours,
       i.can_finish, i.prepared_at, i.age, i.xid_age, i.locks, i.blocks, i.blocked_pids, i.longest_wait,
       i.outcome from once.inspect() i;
comment on view once.in_doubt is
  'Every prepared transaction of this database: manager, ids, owner, age, locks, whom it blocks, outcome.';
comment on column once.in_doubt.manager is
  'Whose it is, by the form of its gid; only pgonce''s are finished from here.';
comment on column once.in_doubt.can_finish is 'Whether Postgres lets you finish it; not whether you should.';
comment on column once.in_doubt.xid_age is 'Transactions since it began: younger dead rows stay.';
comment on column once.in_doubt.locks is 'Relations that it locks, with modes; row locks show in who waits.';
comment on column once.in_doubt.blocks is 'How many sessions wait for it, directly or behind others that do.';
comment on column once.in_doubt.outcome is 'committed, aborted, pending; or where to ask.';
call once.allow('app, recover, monitor', 'in_doubt', 'select');
--! EndIncluded operator/in_doubt.sql
--! Included operator/blocked.sql
-- The sessions that hang because of a prepared transaction. The query's text shows to members of
-- pg_read_all_stats, and to everybody for sessions of his own.
create view once.blocked as with doubt as materialized (
  select d.* from once.in_doubt d where d.blocks > 0
), pid as materialized (
  select b.pid,
         -- 0 is what Postgres calls any prepared transaction.
         array(select distinct x from unnest(pg_blocking_pids(b.pid)) x where x <> 0 order by x) as behind
    from (select distinct unnest(d.blocked_pids) as pid from doubt d) b
), lock as materialized (
  select l.pid, l.locktype, l.relation, l.mode, l.granted, l.waitstart from pg_catalog.pg_locks l
   where l.pid in (select p.pid from pid p) and (not l.granted or l.locktype = 'tuple')
)
select b.pid, d.gid, d.manager, d.outcome, clock_timestamp() - w.waitstart as waits_for,
       -- Who waits for a row waits for the transaction that wrote it, and holds the row's place in the queue.
       coalesce(w.relation, (select min(t.relation::text)::oid from lock t
                              where t.pid = b.pid and t.locktype = 'tuple'))::regclass as relation,
       w.locktype as waits_on, w.mode, p.behind, a.usename, a.application_name, a.client_addr, a.query
  from doubt d cross join lateral unnest(d.blocked_pids) b (pid) join pid p on p.pid = b.pid
  join lock w on w.pid = b.pid and not w.granted
  left join pg_catalog.pg_stat_activity a on a.pid = b.pid;
comment on view once.blocked is
  'By session: which prepared transaction it waits for, how long, for what, behind whom, and its query.';
call once.allow('recover, monitor', 'blocked', 'select');
--! EndIncluded operator/blocked.sql
--! Included operator/in_doubt_elsewhere.sql
-- Prepared transactions of the cluster's other databases. They lock nothing here, but hold vacuum back here
-- too: every snapshot reaches back to the cluster's oldest running transaction; and shared catalogs and the
-- wraparound limit belong to all. They are finished from their own database only.
create view once.in_doubt_elsewhere as with prepared as materialized (
  select p.* from pg_catalog.pg_prepared_xacts p where p.database <> current_database()
)
select p.database, p.gid, g.manager, g.home, p.owner, p.prepared as prepared_at,
       clock_timestamp() - p.prepared as age, age(p.transaction) as xid_age
  from prepared p join once.decode_gids(array(select o.gid from prepared o)) g on g.gid = p.gid;
comment on view once.in_doubt_elsewhere is
  'Prepared transactions of the cluster''s other databases, which hold vacuum back here; finish them there.';
call once.allow('recover, monitor', 'in_doubt_elsewhere', 'select');
--! EndIncluded operator/in_doubt_elsewhere.sql
--! Included operator/resolve.sql
-- The statements that finish what is decided, for psql to run: select once.resolve() \gexec Only ours, only
-- what the current user may finish, only as its home decided. Homes elsewhere are asked through dblink. What
-- cannot be finished is left out, and a notice says why. The reason stands before the statement, as a
-- comment: one in front does not make it two statements, and one at the end would swallow a semicolon.
create function once.resolve() returns table (statement text)
language plpgsql volatile set search_path = '' as $$
declare v_said jsonb[]; v_left jsonb;
begin
  perform once.assert_home(once.database_id());
  v_said := array(select c from once.consult('finish') c);
  foreach v_left in array v_said loop
    if v_left ->> 'action' <> 'run' then
      raise notice 'no line for %: %', v_left ->> 'subject',
        case v_left ->> 'action' when 'pending' then 'pending: ' else '' end || (v_left ->> 'detail');
    end if;
  end loop;
  return query with decided as materialized (
    select b.owner, b.prepared_at, r ->> 'role' as role,
           format('/* %s: home %s %s; prepared %s ago */ %s', b.transaction_id, b.home,
                  case r ->> 'outcome' when 'committed' then 'committed'
                                       else 'is over and did not commit' end,
                  date_trunc('second', b.age), r ->> 'statement') as statement
      from unnest(v_said) r join once.branch b on b.gid = r ->> 'gid'
  ), line (owner, step, prepared_at, statement) as (
    select distinct d.owner, 1, '-infinity'::timestamptz,
           format('/* only its owner may finish it */ set role %I', d.role)
      from decided d where d.role is not null
    union all
    select d.owner, 2, d.prepared_at, d.statement from decided d
    union all
    select distinct d.owner, 3, 'infinity'::timestamptz, 'reset role' from decided d where d.role is not null
  )
  select l.statement from line l order by l.owner, l.step, l.prepared_at;
end $$;
comment on function once.resolve() is
  'The statements that finish every decided branch of ours here; in psql: select once.resolve() \gexec';
call once.allow('recover', 'resolve');
--! EndIncluded operator/resolve.sql
--! Included operator/force.sql
-- Finishes a branch whose home is gone for good, and only that: it is refused wherever the home can still be
-- asked. Records who, when and why; then returns the line to type, as once.resolve does. Nothing else does
-- so.
create function once.force(gid text, outcome text, reason text) returns table (statement text)
language plpgsql volatile set search_path = '' as $$
declare
  v_branch record;
  v_xid text := (once.decode_gid(force.gid)).home_xid;
  v_outcome text;
begin
  perform once.assert_primary();
  if coalesce(force.outcome, '') not in ('commit', 'rollback') then
    raise exception 'bad outcome: %', coalesce(quote_literal(force.outcome), 'null') using errcode = 'ONARG',
      detail = 'Expected commit or rollback.',
      hint = 'What did the other participants do? Their once.evidence and their data tell.';
  end if;
  select b.* into v_branch from once.branch b where b.gid = force.gid and b.ours;
  if not found then
    raise exception 'no branch of ours is prepared here as %',
        coalesce(quote_literal(left(force.gid, 200)), 'null') using errcode = 'ONARG',
      detail = 'Only prepared transactions of pgonce, in this database, can be forced.',
      hint = 'select gid, manager, outcome from once.in_doubt where ours';
  end if;
  if not v_branch.can_finish then
    raise exception 'only role % may finish this branch', quote_ident(v_branch.owner) using errcode = 'ONARG',
      detail = 'Postgres lets the owner and superusers finish a prepared transaction.',
      hint = format('grant %I to %I', v_branch.owner, current_user);
  end if;
  begin
    v_outcome := once.ask_home(force.gid);
  exception when others then
    null;  -- out of reach: that is what this is for
  end;
  if v_outcome is not null then
    raise exception 'its home answers: %', v_outcome using errcode = 'ONARG',
      detail = 'An outcome is forced only where the home is gone for good.',
      hint = case v_outcome when 'pending' then 'Its transaction still runs there: wait, or end it there.'
             else 'select once.resolve() \gexec' end;
  end if;
  perform once.record_intervention('force', jsonb_build_object('gid', force.gid, 'outcome', force.outcome),
                                   force.reason);
  perform once.ensure_durable();
  -- A second opinion before the line was typed: what is done tells in the end.
  insert into once.heuristic as f (gid, transaction_id, home, home_xid, participant, owner, outcome, reason)
  values (force.gid, v_branch.transaction_id, v_branch.home, v_xid::xid8, v_branch.participant,
          v_branch.owner, force.outcome, force.reason)
  on conflict on constraint heuristic_pkey do update set outcome = excluded.outcome, reason = excluded.reason;
  return query select s.statement
    from (values (1, format('/* only its owner may finish it */ set role %I', v_branch.owner)),
                 (2, format('/* forced by %s */ %s prepared %L',
                            translate(quote_ident(session_user), '*/', ''), force.outcome, force.gid)),
                 (3, 'reset role')) s (step, statement)
   where s.step = 2 or v_branch.owner <> current_user
         and not (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user)
   order by s.step;
end $$;
comment on function once.force(text, text, text) is
  'Operator: records a forced commit or rollback of a branch whose home is gone for good; the line to type.';
call once.allow('operator', 'force');
--! EndIncluded operator/force.sql
--! Included operator/heuristics.sql
-- Forced branches in the words of the XA specification (X/Open, Distributed TP: The XA Specification, 1991,
-- section 2.3.3: XA_HEURCOM, XA_HEURRB, XA_HEURMIX, XA_HEURHAZ).
create view once.heuristics as
select f.gid, f.transaction_id, f.participant, f.home,
       case when f.judged_at is null then 'hazard'
            when (f.decided = 'committed') <> (f.done = 'committed') then 'mixed'
            when f.done = 'committed' then 'heuristic commit'
            else 'heuristic rollback' end as outcome,
       f.outcome as forced, f.done, f.decided, f.forced_at, f.forced_by, f.reason,
       f.judged_at, f.acknowledged_at from once.heuristic f;
comment on view once.heuristics is
  'Forced branches: heuristic commit or rollback (as decided), mixed (the reverse), hazard (not known yet).';
call once.allow('recover, monitor', 'heuristics', 'select');
--! EndIncluded operator/heuristics.sql
--! Included operator/audit.sql
-- What does not add up, with what it means and what to do: losses that recovery has recorded, forced
-- branches, and what the other databases answer now, through dblink: this one's evidence is compared with the
-- decisions at its homes, its decisions with the evidence at their participants. Who cannot be reached is a
-- finding of its own, so that silence is never taken for health. Pages are long, and a generic plan would
-- compare each id with each: hence custom plans.
create function once.audit() returns table (
  finding text, transaction_id uuid, participant text, home uuid, since timestamptz, meaning text, to_do text
) language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
  v_self uuid := once.database_id();
  v_patience constant interval := '1 minute';  -- younger than this, recovery is probably at it
  v_other record; v_answer record; v_page constant integer := 100000;
  v_repair constant text := 'compare the data of both, repair by hand; '
                            'then select once.acknowledge(%L, ''<what you did>'')';
  v_to_do constant text := 'pgonce recover (or once.recover()) records it; then compare the data of both and '
                           'repair by hand';
begin
  perform once.assert_home(v_self);

  return query select l.kind, l.transaction_id, l.participant, l.home, l.found_at,
         format(case l.kind
                  when 'lost branch'
                    then 'the home committed, participant %s did not: it has lost its prepared branch'
                  else 'participant %s committed, the home has no decision: it has lost it' end,
                l.participant),
         format(v_repair, l.transaction_id)
    from once.loss l where l.acknowledged_at is null order by l.found_at;

  -- A forced branch whose home answers again.
  perform once.consult('judge');
  return query select o.outcome, o.transaction_id, o.participant, o.home, o.forced_at,
         format(case o.outcome
                  when 'hazard' then 'forced to %1$s by %2$s (%3$s); what the home decided is not known'
                  when 'mixed' then 'forced by %2$s (%3$s): this branch %4$s, the home %5$s'
                  else 'forced by %2$s (%3$s), and the home decided the same' end,
                o.forced, o.forced_by, o.reason, o.done, o.decided),
         format(case
                  when o.outcome = 'mixed' then v_repair
                  when o.outcome <> 'hazard' then 'nothing: select once.acknowledge(%L, ''as decided'')'
                  when b.gid is not null
                    then 'the line was not typed: type it, or select once.resolve() if the home is back'
                  else 'wait for the home; if it never comes: select once.acknowledge(%L, ''<why>'')' end,
                o.transaction_id)
    from once.heuristics o
    left join once.branch b on b.gid = o.gid where o.acknowledged_at is null order by o.forced_at;

  -- Each of the other databases is asked what a recoverer would ask it:
  --   evidence here, decisions there. A decision goes only after its evidence: so evidence that is still
  --     there after its decision was not, has none.
  --   decisions here, branches there: first what is prepared, then what is evident, then whether it is
  --     confirmed meanwhile, for then evidence goes. Those first that are not proven: the others are many.
  --   branches here whose transaction somebody has acknowledged at its home: it would now be called aborted.
  for v_other in
    select 'audit' as step, e.home as asked, array_agg(e.transaction_id) as ids, min(e.recorded_at) as since,
           'branches that committed here could not be compared with their home' as problem
      from (select e.* from once.evidence e
             where e.recorded_at < clock_timestamp() - v_patience
               and not exists (select from once.loss l
                                where l.transaction_id = e.transaction_id and l.kind = 'lost decision')
               and not exists (select from once.heuristic f
                                where f.transaction_id = e.transaction_id
                                  and f.decided is distinct from 'committed')
             limit v_page) e
     group by e.home
    union all
    select 'prove', p.id, array_agg(g.transaction_id), min(g.decided_at),
           'decisions made here could not be compared with this participant'
      from (select g.* from once.global_transaction g
             where g.confirmed_at is null and g.decided_at < clock_timestamp() - v_patience
             order by g.proven_at nulls first, g.decided_at limit v_page) g
     cross join lateral unnest(g.database_ids) p (id) group by p.id
    union all
    select 'acknowledge', b.home, array_agg(b.transaction_id), null,
           'branches in doubt here could not be compared with their home'
      from once.branch b where b.ours group by b.home
  loop
    begin
      select a.* into v_answer from once.read_messages(once.carry(jsonb_build_object(
        'step', v_other.step, 'asking', v_self, 'asked', v_other.asked, 'ids', v_other.ids)::text)) a;
    exception when others then
      return query select 'not compared', null::uuid, null::text, v_other.asked, v_other.since,
             format('%s %s: %s', cardinality(v_other.ids), v_other.problem, sqlerrm),
             'reach it: select once.add_peer(''server''); or from outside: npx pgonce recover';
      continue;
    end;
    if v_other.step = 'audit' then
      return query select 'evidence without home row', e.transaction_id, e.participant, e.home, e.recorded_at,
             'this branch committed, its home has no decision: it lost it (a failover, a restored backup)',
             v_to_do
        from once.evidence e where e.transaction_id = any (v_answer.missing);
    elsif v_other.step = 'prove' then
      return query select case when i.lost then 'home row without evidence' else 'decided, not finished' end,
             g.transaction_id, p.name, v_self, g.decided_at,
             case when i.lost
                  then 'committed here, and the participant has neither the prepared branch nor evidence: '
                       'it lost it (a failover, a restored backup, a manual ROLLBACK PREPARED)'
                  else 'decided to commit here, and still prepared at the participant' end,
             case when i.lost then v_to_do
                  else 'run recovery there: select once.recover() or select once.resolve() \gexec' end
        from (select u.id, u.id = any (v_answer.missing) as lost from unnest(v_answer.ids) u (id)
               where u.id <> all (v_answer.evident)) i
        join once.global_transaction g on g.transaction_id = i.id and g.confirmed_at is null
       cross join lateral unnest(g.participants, g.database_ids) p (name, id)
       where p.id = v_other.asked
         and not exists (select from once.loss l
                          where l.transaction_id = i.id and l.participant = p.name
                            and l.kind = 'lost branch');
    else
      return query
      select 'branch of an acknowledged transaction', b.transaction_id, b.participant, b.home, b.prepared_at,
             'prepared here, while its transaction was acknowledged as lost at its home: it came back '
             'from a backup or a standby. Recovery would roll it back',
             'read once.intervention at the home: what was repaired there by hand must not be done twice; '
             'then finish it by hand'
        from once.branch b where b.ours and b.transaction_id = any (v_answer.ids);
    end if;
  end loop;

  return query select 'branch without an owner', b.transaction_id, b.participant, b.home, b.prepared_at,
         'prepared by a role that was dropped: nothing proves any more that it is ours, so recovery leaves '
         'it, with its locks',
         format('at its home: select once.gid_outcome(%1$L); then here, as a superuser: '
                'commit prepared %1$L, or rollback', b.gid)
    from once.branch b where b.owner is null and b.transaction_id is not null;
end $$;
comment on function once.audit() is
  'What does not add up: losses, forced branches, evidence without decision or the reverse; and what to do.';
call once.allow('recover', 'audit');
--! EndIncluded operator/audit.sql
--! Included operator/health.sql
-- One row a check, for people and for alarms (pgonce metrics). A check that looks at something that is not in
-- use is ok and has no value. Names are those of Prometheus metrics, less the prefix, with the unit last.
create view once.health as
with prepared as materialized (
  select p.gid, p.database = current_database() as here, clock_timestamp() - p.prepared as age,
         age(p.transaction) as xid_age
    from pg_catalog.pg_prepared_xacts p
), branch as materialized (
  select b.gid, b.age, b.ours from once.branch b
), stranger as materialized (
  select p.gid, p.age from prepared p
   where p.here and not exists (select from branch b where b.gid = p.gid and b.ours)
), decision as materialized (
  select g.transaction_id, g.decided_at from once.global_transaction g
   where g.proven_at is null order by g.decided_at limit 10000
), unfinished as (
  -- A branch of ours that is prepared anywhere in this cluster, though it was decided here.
  select d.decided_at from once.decode_gids(array(select p.gid from prepared p where p.gid like 'once:%')) g
    join decision d on d.transaction_id = g.transaction_id
   where g.home = (select i.id from once.database i)
), finding (name, value, warn, critical, hint) as (
  select 'row_security_tables', count(*)::double precision, 1::double precision, 1::double precision,
         'rows of schema once are hidden from applications: '
         'alter table once.<table> disable row level security'
    from pg_catalog.pg_class c where c.relnamespace = 'once'::regnamespace and c.relrowsecurity
  union all select 'unsafe_settings', count(*), 1, null,
         'a crash can lose commits, or corrupt data: set fsync, full_page_writes and synchronous_commit on'
    from unnest(array['fsync', 'full_page_writes', 'synchronous_commit']) s where current_setting(s) = 'off'
  union all select 'in_doubt', count(*), null, null, null from branch b where b.ours
  union all select 'oldest_in_doubt_seconds', extract(epoch from max(b.age)), 30, 300,
         'select * from once.in_doubt order by prepared_at; select once.resolve() \gexec'
    from branch b where b.ours
  union all select 'prepared_slots_used_ratio',
         count(*) / nullif(current_setting('max_prepared_transactions')::double precision, 0), 0.7, 0.9,
         'select * from once.in_doubt; '
         'more slots: alter system set max_prepared_transactions = ..., then restart'
    from prepared
  union all select 'prepared_xid_age', max(p.xid_age),
         least(10e6, current_setting('autovacuum_freeze_max_age')::double precision * 0.5),
         current_setting('autovacuum_freeze_max_age')::double precision * 0.75,
         'select * from once.in_doubt order by xid_age desc' from prepared p where p.here
  union all select 'elsewhere_xid_age', max(p.xid_age),
         least(10e6, current_setting('autovacuum_freeze_max_age')::double precision * 0.5),
         current_setting('autovacuum_freeze_max_age')::double precision * 0.75,
         'select * from once.in_doubt_elsewhere order by xid_age desc; finish them in their own database'
    from prepared p where not p.here
  union all select 'foreign_prepared', count(*), null, null, null from stranger
  union all select 'foreign_with_our_prefix', count(*), 1, null,
         'they begin like ours and are not, so they are left alone: '
         'select gid, owner from once.in_doubt where not ours'
    from stranger s where s.gid like 'once:%'
  union all select 'foreign_oldest_seconds', extract(epoch from max(s.age)), 300, 3600,
         'select gid, manager, age, locks from once.in_doubt where not ours; '
         'ask their manager, pgonce leaves them alone'
    from stranger s
  union all select 'decided_unfinished_seconds',
         extract(epoch from clock_timestamp() - min(u.decided_at)), 30, 300,
         'decided here, but still prepared in another database of this cluster: run recovery there'
    from unfinished u
  union all select 'missing_evidence_seconds',
         extract(epoch from clock_timestamp() - min(d.decided_at)), 60, 600,
         'a decision is not proven: does recovery run, and reach every participant? '
         'select * from once.audit()'
    from decision d
  union all select 'unacknowledged_losses', count(*), 1, 1,
         'one side committed, the other did not: select * from once.audit(); repair, '
         'then select once.acknowledge(''<transaction>'', ''<why>'')'
    from once.loss h where h.acknowledged_at is null
  union all select 'unacknowledged_heuristics', count(*), 1, null,
         'select * from once.heuristics where acknowledged_at is null; '
         'then select once.acknowledge(''<transaction>'', ''<why>'')'
    from once.heuristic f where f.acknowledged_at is null
  union all select 'last_recovery_seconds',
         case when exists (select from once.global_transaction) or exists (select from once.evidence)
                   or exists (select from branch b where b.ours)
              then extract(epoch from clock_timestamp() - coalesce(r.recovered_at, i.created_at)) end,
         60, 600,
         'nobody recovers: pgonce recover --watch, once.recovery.start() or select once.recover() by pg_cron'
    from once.recovery r, once.database i
  union all select 'ledger_bytes', pg_total_relation_size('once.message')
         + pg_total_relation_size('once.producer')
         + pg_total_relation_size('once.claimed_ahead'), null, null, null
  union all select 'horizon_lag_seconds',
         extract(epoch from max(now() - s.retention - greatest(s.horizon, i.created_at - s.retention))),
         172800, 604800,
         'keys are known for longer than their scope''s retention: '
         'pgonce expire, or select * from once.expire()'
    from once.scope s, once.database i where s.retention is not null
  union all select 'expiry_age_seconds',
         case when exists (select from once.scope s where s.horizon is not null)
              then extract(epoch from clock_timestamp() - greatest(
                     e.finished_on::timestamp at time zone 'UTC', i.created_at)) end, 259200, 864000,
         'keys past their horizon are not deleted: '
         'pgonce expire, or select * from once.expire() until no row says more'
    from once.expiry e, once.database i
  union all select 'expiry_waits_seconds',
         case when e.waits_for <> '{}' then extract(epoch from clock_timestamp() - e.begun_at) end,
         86400, 604800,
         'keys past their horizon cannot be deleted: '
         'select * from once.expire() names the transactions that are in the way'
    from once.expiry e
  union all select 'expired_claims_per_day', coalesce(sum(e.claims), 0), 1, null,
         'messages came later than their scope remembers and were not processed: '
         'select * from once.expired_claims; '
         'for longer from now on: select once.set_retention(''scope'', ''90 days'')'
    from once.expired_claim e where e.answered_at > now() - interval '1 day'
  union all select 'producer_gaps_ratio', max(p.gaps::double precision / nullif(p.max_gaps, 0)), 0.8, 1,
         'select * from once.producers order by gaps desc; '
         'deliver what is missing, or once.set_watermark(...)'
    from once.producer p
  union all select 'producers_near_gap_limit', count(*), 1, null,
         'select * from once.producers order by gaps desc; '
         'one that begins at 1 wants start_at, and ids with holes the key ledger'
    from once.producer p where p.gaps >= p.max_gaps * 0.5 and p.gaps > 0
  union all select 'position_lag_messages', sum(l.lag)::double precision, null, null, null from once.lag l
  union all select 'position_stalled_seconds',
         extract(epoch from max(l.idle) filter (where l.lag > 0)), 60, 600,
         'select * from once.lag where lag > 0 order by idle desc; is the consumer running?' from once.lag l
  union all select 'positions_past_end', count(*) filter (where l.end_position < l."position"), 1, null,
         'select * from once.lag where end_position < "position"; is it the right topic?' from once.lag l
)
select f.name,
       case when f.value >= f.critical then 'critical'
            when f.value >= f.warn then 'warn' else 'ok' end as status,
       f.value, f.warn, f.critical,
       case when f.value >= f.warn or f.value >= f.critical then f.hint end as hint
  from finding f;
comment on view once.health is
  'One row a check: name, ok, warn or critical, value (null: nothing to look at), thresholds, what to type.';
call once.allow('recover, monitor', 'health', 'select');
--! EndIncluded operator/health.sql
--! Included role/grant_kind.sql
-- Internal: grants what once.privilege has for a kind of role.
create function once.grant_kind(kind text, role text) returns void
language plpgsql volatile set search_path = '' as $$
declare v_statement text;
begin
  if not exists (select from pg_catalog.pg_roles r where r.rolname = grant_kind.role) then
    raise exception 'no role named %', coalesce(quote_literal(grant_kind.role), 'null')
      using errcode = 'ONARG', detail = 'Expected the name of an existing role, without quotes.',
      hint = format('create role %I login', coalesce(grant_kind.role, 'shop'));
  end if;
  execute format('grant usage on schema once to %I', grant_kind.role);
  for v_statement in
    select format('grant %s on %s %s to %I', p.privileges,
                  case p.privileges when 'execute' then 'routine' else 'table' end,
                  string_agg(format('once.%I', p.object), ', '), grant_kind.role)
      from once.privilege p
     where p.kind = grant_kind.kind group by p.privileges
  loop
    execute v_statement;
  end loop;
end $$;
comment on function once.grant_kind(text, text) is
  'Internal: grants a role what once.privilege has for app, recover, monitor or operator.';
call once.allow('owner', 'grant_kind');
--! EndIncluded role/grant_kind.sql
--! Included role/grant_app.sql
-- What an application needs. It can add keys, never take one back, and cannot touch anybody's decisions; with
-- counters of producers and positions it must be trusted, since it updates them.
create function once.grant_app(role text) returns void
language sql volatile set search_path = '' as $$ select once.grant_kind('app', grant_app.role) $$;
comment on function once.grant_app(text) is
  'Lets a role claim, move positions and take part in global transactions: select once.grant_app(''shop'').';
call once.allow('owner', 'grant_app');
--! EndIncluded role/grant_app.sql
--! Included role/grant_recover.sql
-- What a recoverer needs. It can finish branches only of roles that it is a member of (Postgres's rule), so:
-- grant shop to recoverer. Make it NOINHERIT, or from 16 on grant WITH INHERIT FALSE: then it has the
-- application's rights only where it takes on the role to finish a branch.
create function once.grant_recover(role text) returns void
language sql volatile set search_path = '' as $$ select once.grant_kind('recover', grant_recover.role) $$;
comment on function once.grant_recover(text) is
  'Lets a role recover, purge, audit and expire keys: select once.grant_recover(''recoverer'').';
call once.allow('owner', 'grant_recover');
--! EndIncluded role/grant_recover.sql
--! Included role/grant_monitor.sql
-- What a dashboard needs: to look, at all but payload hashes and results. The queries of other roles'
-- sessions show in once.blocked to members of pg_read_all_stats only.
create function once.grant_monitor(role text) returns void
language sql volatile set search_path = '' as $$ select once.grant_kind('monitor', grant_monitor.role) $$;
comment on function once.grant_monitor(text) is
  'Lets a role look at ledgers, positions, branches and losses: select once.grant_monitor(''grafana'').';
call once.allow('owner', 'grant_monitor');
--! EndIncluded role/grant_monitor.sql
--! Included role/grant_operator.sql
-- What the person on call needs: what a recoverer and a monitor may, and to overrule. When and by whom is
-- filled in by the tables. Grant it, as a recoverer, the roles whose branches it is to finish.
create function once.grant_operator(role text) returns void language sql volatile set search_path = '' as $$
  select once.grant_kind(k, grant_operator.role) from unnest(array['recover', 'monitor', 'operator']) k
$$;
comment on function once.grant_operator(text) is
  'Lets a role look, recover, force outcomes and acknowledge losses: select once.grant_operator(''oncall'').';
call once.allow('owner', 'grant_operator');
--! EndIncluded role/grant_operator.sql
--! EndIncluded schema.sql
