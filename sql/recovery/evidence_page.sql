-- The audit's page of evidence (participant): every branch that committed here and is not purged.
create function once.evidence_page(
  batch_size integer default 1000, after_id uuid default '00000000-0000-0000-0000-000000000000'
) returns table (transaction_id uuid, home uuid, participant text)
language plpgsql volatile set search_path = '' as $$
begin
  if evidence_page.batch_size < 0 then
    raise exception 'bad batch_size: %', evidence_page.batch_size using errcode = 'ONARG',
      detail = 'Expected a number of at least 0, or null for all.', hint = 'Leave it out for 1000.';
  end if;
  perform once.assert_primary();
  return query select e.transaction_id, e.home, e.participant from once.evidence e
   where e.transaction_id > evidence_page.after_id order by e.transaction_id limit evidence_page.batch_size;
end $$;
comment on function once.evidence_page(integer, uuid) is
  'Participant: a page of the evidence in this database, by transaction id.';
call once.allow('recover', 'evidence_page');
