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
