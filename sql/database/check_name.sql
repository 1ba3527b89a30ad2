-- Names are keys of B-tree indexes, whose entries cannot exceed 2.7 kB, so: 1 to 200 characters.
create function once.check_name(what text, value text) returns void
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  if check_name.value is null or length(check_name.value) not between 1 and 200 then
    raise exception 'bad %: %', check_name.what,
        case when check_name.value is null then 'null' else quote_literal(left(check_name.value, 40)) end
      using errcode = 'ONARG',
      detail = format('Expected 1 to 200 characters, got %s.',
                      coalesce(length(check_name.value)::text, 'null')),
      hint = 'Use a short stable name; for long or secret ids use the key ledger, which keeps a digest.';
  end if;
end $$;
comment on function once.check_name(text, text) is
  'Internal: raises ONARG unless a name has 1 to 200 characters.';
call once.allow('app, recover', 'check_name');
