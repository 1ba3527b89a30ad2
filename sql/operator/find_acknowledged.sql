-- The audit's question to a home: which of these transactions did somebody forget by hand?
create function once.find_acknowledged(transaction_ids uuid[]) returns setof uuid
language plpgsql volatile
set search_path = ''
as $$
begin
  perform once.check_primary();
  return query
  select i.id
    from unnest(find_acknowledged.transaction_ids) i (id)
   where exists (select from once.intervention v
                  where v.action = 'forget' and v.subject ->> 'transaction_id' = i.id::text);
end
$$;

comment on function once.find_acknowledged(uuid[]) is
  'Home: those of the given transactions that somebody has forgotten by hand (once.forget).';
revoke all on function once.find_acknowledged(uuid[]) from public;
