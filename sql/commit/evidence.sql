-- What a branch leaves behind, inserted in the branch's own transaction: it exists exactly if the branch
-- committed. "Prepared transaction does not exist" proves nothing; this does.
create table once.evidence (
  transaction_id uuid primary key, home uuid not null, participant text not null,
  recorded_at timestamptz not null default clock_timestamp()
);
comment on table once.evidence is
  'Participant: one row a committed branch, until the home has confirmed the transaction.';
call once.allow('app', 'evidence', 'select, insert (transaction_id, home, participant)');
call once.allow('recover', 'evidence', 'select, delete');
call once.allow('monitor', 'evidence', 'select');
