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
