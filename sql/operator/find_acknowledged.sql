-- The audit's question to a home: which of these transactions did somebody acknowledge?
create function once.find_acknowledged(transaction_ids uuid[]) returns setof uuid
language plpgsql volatile set search_path = '' as $$
begin
  perform once.assert_primary();
  return query select i.id from unnest(find_acknowledged.transaction_ids) i (id)
   where exists (select from once.intervention v
                  where v.action = 'acknowledge' and v.subject ->> 'transaction_id' = i.id::text);
end $$;
comment on function once.find_acknowledged(uuid[]) is
  'Home: those of the given transactions that somebody has acknowledged (once.acknowledge).';
call once.allow('recover', 'find_acknowledged');
