-- How many gaps a producer may have: operators change it in the table. A domain: see once.name.
create domain once.gap_limit as integer check (value between 0 and 100000);
comment on domain once.gap_limit is 'A number of gaps, 0 to 100000; see once.producer.';
revoke all on domain once.gap_limit from public;
