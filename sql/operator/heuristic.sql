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
