-- The type of names in tables that every message updates. A domain checks what is assigned; a CHECK of the
-- table would be evaluated at every update of any column, and some cost as much as the update itself.
create domain once.name as text check (length(value) between 1 and 200);
comment on domain once.name is 'A name of 1 to 200 characters; see once.check_name.';
revoke all on domain once.name from public;
