-- A recoverer looks several times a second; this writes every few seconds, without a flush.
create function once.stamp_recovery(recoverer text, audited boolean default false) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform once.check_name('recoverer', stamp_recovery.recoverer);
  if not exists (select from once.recovery r
                  where r.recovered_at < clock_timestamp() - interval '5 seconds' or r.recovered_at is null
                     or stamp_recovery.audited) then
    return;
  end if;
  if pg_current_xact_id_if_assigned() is null then
    perform set_config('synchronous_commit', 'off', true);
  end if;
  update once.recovery r set recovered_at = clock_timestamp(), recovered_by = stamp_recovery.recoverer,
         audited_at = case when stamp_recovery.audited then clock_timestamp() else r.audited_at end
   where r.singleton and r.ctid = any (array(select u.ctid from once.recovery u for update skip locked));
end $$;
comment on function once.stamp_recovery(text, boolean) is
  'Recoverer: notes in once.recovery that it looked after this database; writes every 5 seconds at most.';
call once.allow('recover', 'stamp_recovery');
