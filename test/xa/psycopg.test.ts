/** Branches that psycopg prepared are finished from here, and the other way round. */
import { execFileSync, spawn } from 'node:child_process'
import { text } from 'node:stream/consumers'
import test from 'ava'
import { XA_OK } from '../../src/xa/index.ts'
import { freshXid, resource, throwsXa, work, xaDatabase } from './support.ts'

/** Debian's own: its psycopg (python3-psycopg2) is for no other. */
const python = '/usr/bin/python3'

function missing(): string | undefined {
  try {
    execFileSync(python, ['-c', 'import psycopg2'], { stdio: 'ignore' })
    return undefined
  } catch {
    return `${python} has no psycopg2: apt-get install python3-psycopg2`
  }
}

const reason = missing()
if (reason !== undefined) console.warn(`Tests against psycopg are skipped: ${reason}`)
const testPsycopg = reason === undefined ? test : test.skip

const prelude = `
import json, sys, psycopg2
connection = psycopg2.connect(sys.argv[1])
given = json.load(sys.stdin)
def branch(xid, id):
    connection.tpc_begin(xid)
    with connection.cursor() as cursor:
        cursor.execute('insert into effect values (%s)', (id,))
    connection.tpc_prepare()
    connection.reset()
def recovered():
    return [xid for xid in connection.tpc_recover() if xid.database == connection.info.dbname]
def show(value):
    print(json.dumps(value))
`

/** Runs a piece of Python with a connection; what it shows last is the result. */
async function psycopg(url: string, piece: string, given: unknown = null): Promise<unknown> {
  const child = spawn(python, ['-c', prelude + piece, url], { stdio: ['pipe', 'pipe', 'pipe'] })
  child.stdin.end(JSON.stringify(given))
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve))
  const [output, errors, status] = await Promise.all([text(child.stdout), text(child.stderr), ended])
  if (status !== 0) throw new Error(`Python ended with ${status}:\n${errors}`)
  const last = output.trimEnd().split('\n').at(-1)
  return last ? JSON.parse(last) : undefined
}

const decoded = ({ formatId, gtrid, bqual }: { formatId: number; gtrid: Uint8Array; bqual: Uint8Array }) => ({
  formatId,
  gtrid: Buffer.from(gtrid).toString(),
  bqual: Buffer.from(bqual).toString(),
})

testPsycopg(
  'Branches that psycopg prepared are recovered with their xids, committed and rolled back',
  async (t) => {
    const database = await xaDatabase(t)
    const xa = resource(t, database.url)
    const unique = crypto.randomUUID()
    const xids = [
      { formatId: 1, gtrid: unique, bqual: 'billing' },
      { formatId: 2147483647, gtrid: unique.padEnd(64, '~'), bqual: `_='"\\`.padEnd(64, '?') },
      { formatId: 0, gtrid: unique, bqual: '' },
    ]
    await psycopg(
      database.url,
      `
for id, xid in enumerate(given):
    branch(connection.xid(xid['formatId'], xid['gtrid'], xid['bqual']), id)
`,
      xids,
    )
    const found = await xa.recover()
    t.deepEqual(
      found.map((xid) => ('formatId' in xid ? decoded(xid) : xid)),
      xids,
    )
    const [first, second, third] = xids as [(typeof xids)[0], (typeof xids)[0], (typeof xids)[0]]
    t.is(await xa.commit(first), XA_OK)
    t.is(await xa.commit(second), XA_OK)
    t.is(await xa.rollback(third), XA_OK)
    t.deepEqual(await database.effects(), [0, 1])
    t.deepEqual(await psycopg(database.url, 'show(len(recovered()))'), 0)
  },
)

testPsycopg(
  'Branches prepared here are recovered by psycopg with their xids, committed and rolled back',
  async (t) => {
    const database = await xaDatabase(t)
    const xa = resource(t, database.url)
    const unique = crypto.randomUUID()
    const xids = [
      { formatId: 131077, gtrid: unique, bqual: '' },
      { formatId: 2147483647, gtrid: unique.padEnd(64, '~'), bqual: `_='"\\`.padEnd(64, '?') },
      { formatId: 0, gtrid: unique, bqual: 'x' },
    ]
    for (const [id, xid] of xids.entries()) {
      await work(xa, xid, id)
      await xa.prepare(xid)
    }
    const seen = await psycopg(
      database.url,
      `
found = sorted(recovered(), key=lambda xid: xid.prepared)
show([{'formatId': xid.format_id, 'gtrid': xid.gtrid, 'bqual': xid.bqual} for xid in found])
for xid in found[:2]:
    connection.tpc_commit(xid)
connection.tpc_rollback(connection.xid(found[2].format_id, found[2].gtrid, found[2].bqual))
`,
    )
    t.deepEqual(seen, xids)
    t.deepEqual(await database.effects(), [0, 1])
    for (const xid of xids) await throwsXa(t, xa.commit(xid), 'XAER_NOTA')
  },
)

testPsycopg('Xids that psycopg cannot write are raw to it, and it finishes them all the same', async (t) => {
  const database = await xaDatabase(t)
  const xa = resource(t, database.url)
  const xids = [
    { ...freshXid(), gtrid: `Ünïcode ${crypto.randomUUID()}` },
    { ...freshXid(), gtrid: crypto.getRandomValues(new Uint8Array(64)), bqual: new Uint8Array(64) },
    { ...freshXid(), formatId: -2 },
  ]
  for (const [id, xid] of xids.entries()) {
    await work(xa, xid, id)
    await xa.prepare(xid)
  }
  const formats = await psycopg(
    database.url,
    `
found = recovered()
for xid in found:
    connection.tpc_commit(xid)
show([xid.format_id for xid in found])
`,
  )
  t.deepEqual(formats, [null, null, null])
  t.deepEqual(await database.effects(), [0, 1, 2])
})

testPsycopg('A gid that is no xid to psycopg is raw here, and is finished all the same', async (t) => {
  const database = await xaDatabase(t)
  const xa = resource(t, database.url)
  const gid = `plain text ${crypto.randomUUID()}`
  await psycopg(database.url, 'branch(given, 1)', gid)
  const [found] = await xa.recover()
  t.like(found, { gid })
  t.false(found !== undefined && 'formatId' in found)
  t.is(await xa.commit({ gid }), XA_OK)
  t.deepEqual(await database.effects(), [1])
})
