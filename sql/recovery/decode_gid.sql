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
