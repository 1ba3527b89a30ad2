-- One side committed, the other did not, which no protocol can repair. Kept until acknowledged.
create table once.loss (
  transaction_id uuid not null, participant text not null, home uuid not null,
  kind text not null check (kind in ('lost decision', 'lost branch')),
  found_at timestamptz not null default now(), found_by name not null default session_user,
  acknowledged_at timestamptz, primary key (transaction_id, participant, kind)
);
comment on table once.loss is
  'Found by the audit. lost branch: the home committed, the participant did not; lost decision: the reverse.';
call once.allow('recover', 'loss', 'select, insert');
call once.allow('monitor', 'loss', 'select');
call once.allow('operator', 'loss', 'update (acknowledged_at)');
