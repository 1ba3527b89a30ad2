/** The XA verbs over one database, for transaction managers other than ours. See docs/xa.md. */
export * from './codes.ts'
export { XaError, type XaErrorName } from './errors.ts'
export type { RecoveredXid } from './prepared.ts'
export { type XaOptions, type XaResource, xaResource } from './resource.ts'
export { formatXid, parseXid, type RawXid, type Xid, type XidInput } from './xid.ts'
