-- Takes a gid apart, ours or another manager's: the only place in SQL that knows gid formats. (Ours is built
-- in src/transaction/gid.ts.) A format tells who made it, as far as anybody can tell from a name: it proves
-- nothing, since whoever may connect chooses his gids freely. Sources of the others' formats:
--   XA       <format id>_<gtrid>_<bqual>, base64: RecoveredXid of pgjdbc, Xid of psycopg; who manages the
--            transaction shows in the format id at most (Flink 201, Narayana 131077, Bitronix 'Btnx')
--   Citus    citus_<group>_<pid>_<transaction>_<connection>, before 8.0 without the last
--   logical replication (two_phase = true)  pg_gid_<subscription>_<remote xid>
--   SQLAlchemy  _sa_<128 bits, hex>;  Npgsql  <guid>/<pid>;  PgDog  __pgdog_2pc_[<instance>_]<number>_<shard>
create function once.decode_gid(
  gid text,
  out manager text,
  out global_id text,
  out participant text,
  out transaction_id uuid,
  out home uuid,
  out home_xid text
)
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
  v_uuid constant text := '________-____-____-____-____________';
  v_part text[];
  v_gtrid bytea;
  v_bqual bytea;
begin
  decode_gid.manager := 'unknown';
  if decode_gid.gid like 'once:%' then
    v_part := string_to_array(decode_gid.gid, ':');
    -- Without a regular expression, whose captures would take 0.1 ms a gid.
    if cardinality(v_part) = 6 and v_part[2] = '1'
       and v_part[3] like v_uuid and translate(v_part[3], '0123456789abcdef', '') = '----'
       and v_part[4] like v_uuid and translate(v_part[4], '0123456789abcdef', '') = '----'
       and length(v_part[5]) between 1 and 19 and translate(v_part[5], '0123456789', '') = ''
       and length(v_part[6]) between 1 and 63 and v_part[6] !~ '[^A-Za-z0-9._-]' then
      decode_gid.manager := 'pgonce';
      decode_gid.home := v_part[3];
      decode_gid.transaction_id := v_part[4];
      decode_gid.home_xid := v_part[5];
      decode_gid.participant := v_part[6];
      decode_gid.global_id := v_part[4];
    end if;
    return;
  end if;

  v_part := regexp_match(decode_gid.gid, '^(-?[0-9]{1,10})_((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4}))_((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)$');
  if v_part is not null then
    v_gtrid := pg_catalog.decode(v_part[2], 'base64');
    v_bqual := pg_catalog.decode(v_part[3], 'base64');
    decode_gid.manager := case v_part[1]
        when '201' then 'flink (pgjdbc)'
        when '131077' then 'narayana (pgjdbc)'
        when '1114926712' then 'bitronix (pgjdbc)'
        else 'pgjdbc or psycopg' end;
    -- Flink: job id (16 bytes), subtask (4), checkpoint; the oldest versions have no job id.
    if v_part[1] = '201' and length(v_gtrid) = 28 then
      decode_gid.global_id := format('job %s subtask %s checkpoint %s', encode(substr(v_gtrid, 1, 16), 'hex'),
        ('x' || encode(substr(v_gtrid, 17, 4), 'hex'))::bit(32)::integer,
        ('x' || encode(substr(v_gtrid, 21, 8), 'hex'))::bit(64)::bigint);
    else
      -- Bytes that are plain ASCII as such, all others in hex.
      decode_gid.global_id := format('%s:%s', v_part[1], case when encode(v_gtrid, 'escape') ~ '^[ -~]*$'
        and position('\' in encode(v_gtrid, 'escape')) = 0 then encode(v_gtrid, 'escape') else encode(v_gtrid, 'hex') end);
    end if;
    decode_gid.participant := case when encode(v_bqual, 'escape') ~ '^[ -~]*$'
      and position('\' in encode(v_bqual, 'escape')) = 0 then encode(v_bqual, 'escape') else encode(v_bqual, 'hex') end;
    return;
  end if;

  v_part := regexp_match(decode_gid.gid, '^citus_([0-9]+)_([0-9]+)_([0-9]+)(?:_([0-9]+))?$');
  if v_part is not null then
    decode_gid.manager := 'citus';
    decode_gid.global_id := format('group %s pid %s transaction %s', v_part[1], v_part[2], v_part[3]);
    decode_gid.participant := 'connection ' || v_part[4];
    return;
  end if;
  v_part := regexp_match(decode_gid.gid, '^pg_gid_([0-9]+)_([0-9]+)$');
  if v_part is not null then
    decode_gid.manager := 'logical replication';
    decode_gid.global_id := 'remote xid ' || v_part[2];
    decode_gid.participant := 'subscription ' || v_part[1];
    return;
  end if;
  v_part := regexp_match(decode_gid.gid, '^_sa_([0-9a-f]{32,33})$');
  if v_part is not null then
    decode_gid.manager := 'sqlalchemy';
    decode_gid.global_id := v_part[1];
    return;
  end if;
  v_part := regexp_match(decode_gid.gid, '^__pgdog_2pc_(.+)_([0-9]+)$');
  if v_part is not null then
    decode_gid.manager := 'pgdog';
    decode_gid.global_id := v_part[1];
    decode_gid.participant := 'shard ' || v_part[2];
    return;
  end if;
  v_part := regexp_match(decode_gid.gid, '^([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})/([0-9]+)$');
  if v_part is not null then
    decode_gid.manager := 'npgsql';
    decode_gid.global_id := v_part[1];
    decode_gid.participant := 'pid ' || v_part[2];
  end if;
end
$$;

comment on function once.decode_gid(text) is
  'Takes a gid apart: manager (pgonce, pgjdbc or psycopg, flink, citus, … or unknown), global id, participant, and for ours the home.';
revoke all on function once.decode_gid(text) from public;
