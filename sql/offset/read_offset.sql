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
