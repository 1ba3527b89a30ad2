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
