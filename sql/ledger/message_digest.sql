-- The identity of a key: no text contains a zero byte, so (scope, key) cannot be cut in two ways.
create function once.message_digest(scope text, key text) returns uuid
language sql immutable strict parallel safe
set search_path = ''
as $$
  select encode(substring(sha256(
           convert_to(message_digest.scope, 'UTF8') || decode('00', 'hex') || convert_to(message_digest.key, 'UTF8')
         ) for 16), 'hex')::uuid
$$;

comment on function once.message_digest(text, text) is
  'The first 16 bytes of SHA-256 over scope, a zero byte and key: how the ledger remembers a key.';
call once.allow('app', 'message_digest');
