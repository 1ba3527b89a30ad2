/** What a schema consists of, as text that can be compared: two databases are alike if their texts are equal. */
import { readFile } from 'node:fs/promises'
import type postgres from 'postgres'

/**
 * One line an object of schema `once`: relations, columns, constraints, indexes, views, functions, types,
 * sequences, triggers, policies, default privileges, each with owner, comment and privileges. Object ids do
 * not appear.
 */
export async function catalog(sql: postgres.Sql): Promise<string[]> {
  const rows = await sql.begin(async (trx) => {
    // Otherwise names in printed definitions are qualified or not, depending on the session.
    await trx`set local search_path = ''`
    return await trx<{ line: string }[]>`
      with once as (
        select n.oid, n.nspacl, n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'once'
      ), relation as (
        select c.* from pg_catalog.pg_class c join once o on o.oid = c.relnamespace
      ), object (kind, name, definition, comment, acl, owner) as (
        select 'schema', 'once', null, pg_catalog.obj_description(o.oid, 'pg_namespace'), o.nspacl, o.nspowner
          from once o
        union all
        select 'relation', c.relname,
               pg_catalog.concat_ws(' ', c.relkind, c.relpersistence, c.relreplident, c.reloptions::text,
                 case when c.relrowsecurity then 'row security' end,
                 case when c.relforcerowsecurity then 'forced' end,
                 pg_catalog.pg_get_partkeydef(c.oid),
                 pg_catalog.pg_get_expr(c.relpartbound, c.oid),
                 (select pg_catalog.string_agg('of ' || i.inhparent::pg_catalog.regclass, ', ' order by i.inhseqno)
                    from pg_catalog.pg_inherits i where i.inhrelid = c.oid),
                 case when c.relkind in ('v', 'm') then pg_catalog.pg_get_viewdef(c.oid) end,
                 case when c.relkind in ('i', 'I') then pg_catalog.pg_get_indexdef(c.oid) end),
               pg_catalog.obj_description(c.oid, 'pg_class'), c.relacl, c.relowner
          from relation c
        union all
        select 'column', c.relname || '.' || pg_catalog.lpad(a.attnum::text, 3, '0'),
               pg_catalog.concat_ws(' ', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
                 case when a.attnotnull then 'not null' end, 'identity=' || a.attidentity::text,
                 'generated=' || a.attgenerated::text, 'storage=' || a.attstorage::text, 'compression=' || a.attcompression::text,
                 'default ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid),
                 'collate ' || nullif(a.attcollation, t.typcollation)::pg_catalog.regcollation,
                 a.attoptions::text, case when a.attisdropped then 'dropped' end),
               pg_catalog.col_description(c.oid, a.attnum), a.attacl, null
          from relation c
          join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0
          left join pg_catalog.pg_type t on t.oid = a.atttypid
          left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        union all
        select 'constraint', coalesce(c.relname, t.typname) || '.' || k.conname,
               pg_catalog.pg_get_constraintdef(k.oid) || ' validated=' || k.convalidated,
               pg_catalog.obj_description(k.oid, 'pg_constraint'), null, null
          from pg_catalog.pg_constraint k
          join once o on o.oid = k.connamespace
          left join pg_catalog.pg_class c on c.oid = k.conrelid
          left join pg_catalog.pg_type t on t.oid = k.contypid
         where k.conrelid = 0 or k.conrelid in (select oid from relation)
        union all
        select 'function', p.oid::pg_catalog.regprocedure::text,
               case when p.prokind in ('f', 'p') then pg_catalog.pg_get_functiondef(p.oid) else p.prokind::text end,
               pg_catalog.obj_description(p.oid, 'pg_proc'), p.proacl, p.proowner
          from pg_catalog.pg_proc p join once o on o.oid = p.pronamespace
        union all
        select 'type', t.typname,
               pg_catalog.concat_ws(' ', t.typtype, case when t.typnotnull then 'not null' end, t.typdefault,
                 case when t.typbasetype <> 0 then pg_catalog.format_type(t.typbasetype, t.typtypmod) end,
                 (select pg_catalog.string_agg(e.enumlabel, ',' order by e.enumsortorder)
                    from pg_catalog.pg_enum e where e.enumtypid = t.oid)),
               pg_catalog.obj_description(t.oid, 'pg_type'), t.typacl, t.typowner
          from pg_catalog.pg_type t join once o on o.oid = t.typnamespace
         where t.typtype in ('d', 'e', 'r') or (t.typtype = 'c' and t.typrelid in (select oid from relation where relkind = 'c'))
        union all
        select 'sequence', c.relname,
               pg_catalog.concat_ws(' ', pg_catalog.format_type(s.seqtypid, null), s.seqstart, s.seqincrement, s.seqmin,
                 s.seqmax, s.seqcache, s.seqcycle,
                 (select 'owned by ' || d.refobjid::pg_catalog.regclass || '.' || d.refobjsubid
                    from pg_catalog.pg_depend d
                   where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid
                     and d.refclassid = d.classid and d.deptype in ('a', 'i'))),
               null, null, null
          from relation c join pg_catalog.pg_sequence s on s.seqrelid = c.oid
        union all
        select 'trigger', c.relname || '.' || g.tgname, pg_catalog.pg_get_triggerdef(g.oid) || ' ' || g.tgenabled::text,
               pg_catalog.obj_description(g.oid, 'pg_trigger'), null, null
          from relation c join pg_catalog.pg_trigger g on g.tgrelid = c.oid and not g.tgisinternal
        union all
        select 'rule', c.relname || '.' || r.rulename, pg_catalog.pg_get_ruledef(r.oid),
               pg_catalog.obj_description(r.oid, 'pg_rewrite'), null, null
          from relation c join pg_catalog.pg_rewrite r on r.ev_class = c.oid and r.rulename <> '_RETURN'
        union all
        select 'policy', c.relname || '.' || y.polname,
               pg_catalog.concat_ws(' ', y.polcmd, y.polpermissive, y.polroles::pg_catalog.regrole[]::text,
                 pg_catalog.pg_get_expr(y.polqual, y.polrelid), pg_catalog.pg_get_expr(y.polwithcheck, y.polrelid)),
               pg_catalog.obj_description(y.oid, 'pg_policy'), null, null
          from relation c join pg_catalog.pg_policy y on y.polrelid = c.oid
        union all
        select 'default privileges', pg_catalog.concat_ws(' ', a.defaclobjtype, a.defaclrole::pg_catalog.regrole),
               null, null, a.defaclacl, null
          from pg_catalog.pg_default_acl a join once o on o.oid = a.defaclnamespace
        union all
        select 'statistics', s.stxname, pg_catalog.pg_get_statisticsobjdef(s.oid),
               pg_catalog.obj_description(s.oid, 'pg_statistic_ext'), null, s.stxowner
          from pg_catalog.pg_statistic_ext s join once o on o.oid = s.stxnamespace
      )
      select pg_catalog.concat_ws(' | ', kind, name, definition, 'comment ' || comment,
               'acl ' || (select pg_catalog.string_agg(a::text, ',' order by a::text) from pg_catalog.unnest(acl) a),
               'owner ' || owner::pg_catalog.regrole) as line
        from object`
  })
  return rows.map(({ line }) => line).sort()
}

/** The text of `sql/`, put together by its manifest alone: independent of what was committed, and of the tool. */
export async function schemaSource(file = 'schema.sql'): Promise<string> {
  const text = await readFile(new URL(`../../sql/${file}`, import.meta.url), 'utf8')
  const parts = await Promise.all(
    text.split('\n').map((line) => {
      const included = /^--!include (\S+\.sql)$/.exec(line)?.[1]
      return included === undefined ? line : schemaSource(included)
    }),
  )
  return parts.join('\n')
}
