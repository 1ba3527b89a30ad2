/**
 * Xids, and the gids under which Postgres keeps their branches: `<format id>_<base64 gtrid>_<base64 bqual>`, as
 * pgjdbc and psycopg write them, so that what one of them prepares another can finish.
 *
 * @see X/Open C193, section 4.2 (transaction identification)
 * @see https://github.com/pgjdbc/pgjdbc/blob/master/pgjdbc/src/main/java/org/postgresql/xa/RecoveredXid.java
 * @see https://github.com/psycopg/psycopg2/blob/master/psycopg/xid_type.c
 */
import { show } from '../check.ts'
import { XaError } from './errors.ts'

/** The name of a branch, as transaction managers give it. */
export interface Xid {
  /**
   * Which manager's format the rest is in: 0 to 2147483647. Java also has negative ones, which psycopg cannot
   * read; -1 is XA's null xid and refused.
   */
  readonly formatId: number
  /** The global transaction: 1 to 64 bytes. */
  readonly gtrid: Uint8Array
  /** The branch in it: 0 to 64 bytes. */
  readonly bqual: Uint8Array
}

/** The name of a prepared transaction that is no {@link Xid}: it can be finished and nothing else. */
export interface RawXid {
  /** As in `pg_prepared_xacts`. */
  readonly gid: string
}

/** An xid as callers may write it: text stands for its UTF-8 bytes. */
export interface XidInput {
  readonly formatId: number
  readonly gtrid: Uint8Array | string
  readonly bqual: Uint8Array | string
}

/** Postgres takes no longer ones. Two parts of 64 bytes need 189. */
const maxGidBytes = 199

/**
 * The gid of an xid.
 *
 * @throws XaError `XAER_INVAL` if it is none
 */
export function formatXid(xid: XidInput): string {
  if (typeof xid !== 'object' || xid === null) refuse('xid', xid, 'an xid')
  const { formatId } = xid
  if (!Number.isInteger(formatId) || formatId < -0x80000000 || formatId > 0x7fffffff)
    refuse('formatId', formatId, 'a 32-bit integer')
  if (formatId === -1) refuse('formatId', formatId, 'another number than -1, which is the null xid')
  return `${formatId}_${base64('gtrid', xid.gtrid, 1)}_${base64('bqual', xid.bqual, 0)}`
}

/**
 * The xid of a gid; if it is in no manager's format, the gid itself.
 *
 * A gid counts as an xid only if that xid is written exactly so. Decoders are lenient about padding, line
 * breaks, leading zeros; but an xid that is written in another way than it was read names another transaction.
 *
 * @throws XaError `XAER_INVAL` if it is no string
 */
export function parseXid(gid: string): Xid | RawXid {
  if (typeof gid !== 'string') refuse('gid', gid, 'a string as in pg_prepared_xacts')
  const [, formatId, gtrid, bqual] = /^(-?\d{1,10})_([A-Za-z0-9+/=]+)_([A-Za-z0-9+/=]*)$/.exec(gid) ?? []
  if (formatId === undefined || gtrid === undefined || bqual === undefined) return { gid }
  const bytes = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))
  const xid = { formatId: Number(formatId), gtrid: bytes(gtrid), bqual: bytes(bqual) }
  try {
    return formatXid(xid) === gid ? xid : { gid }
  } catch {
    return { gid }
  }
}

/**
 * The gid by which to finish a branch: that of an xid, or a raw one. Branches of pgonce itself are refused:
 * their outcome is decided at their home, and nobody else may.
 */
export function gidOf(xid: XidInput | RawXid): string {
  if (typeof xid !== 'object' || xid === null || !('gid' in xid)) return formatXid(xid)
  const { gid } = xid
  if (typeof gid !== 'string' || gid.includes('\0') || !gid.isWellFormed())
    refuse('gid', gid, 'a string as in pg_prepared_xacts')
  if (Buffer.byteLength(gid) > maxGidBytes) refuse('gid', gid, `at most ${maxGidBytes} bytes long`)
  if (ownGid.test(gid)) {
    throw new XaError('XAER_INVAL', `${show(gid)} is a branch of a transaction of pgonce itself`, {
      detail: 'Its outcome is decided at its home; a transaction manager has no say in it.',
      hint: 'Run pgonce recover',
    })
  }
  return gid
}

/** A gid of `src/commit/gid.ts`, of whatever version, here and in SQL. */
const ownGid = /^once:[0-9]+:/
export const isOwnGidSql = `gid ~ '${ownGid.source}'`

function base64(what: string, value: unknown, least: number): string {
  if (typeof value === 'string' && !value.isWellFormed())
    refuse(what, value, 'well-formed text: half a surrogate pair has no bytes')
  if (typeof value !== 'string' && !(value instanceof Uint8Array)) refuse(what, value, 'bytes or text')
  const buffer = Buffer.from(value as string)
  if (buffer.length < least || buffer.length > 64)
    refuse(what, `${buffer.length} bytes`, `${least} to 64 bytes`)
  return buffer.toString('base64')
}

function refuse(what: string, value: unknown, expected: string): never {
  throw new XaError('XAER_INVAL', `Expected \`${what}\` to be ${expected}, got ${show(value)}`, {
    hint: 'For example: { formatId: 1, gtrid: "order-17", bqual: "billing" }',
  })
}
