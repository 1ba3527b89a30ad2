-- The type of names in tables that are updated with every message. A domain checks what is assigned; a CHECK
-- of the table would be read from the catalog and evaluated at every update, of whatever column, and some of
-- those cost as much as the update itself.
create domain once.name as text check (length(value) between 1 and 200);

comment on domain once.name is 'A name of 1 to 200 characters; see once.check_name.';
revoke all on domain once.name from public;
