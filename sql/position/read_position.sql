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
