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
