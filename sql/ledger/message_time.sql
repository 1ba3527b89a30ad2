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
