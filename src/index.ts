export {
  type Jsonified,
  type Pgonce,
  type PgonceOptions,
  type Processed,
  type ProcessedBatch,
  type ProcessedKeys,
  type ProcessOptions,
  pgonce,
  type Transactions,
} from './client.ts'
export type { DatabaseTarget } from './database/open.ts'
export {
  AbortedError,
  DatabaseError,
  FencedError,
  HandlerError,
  InvalidInputError,
  LimitError,
  OffsetError,
  OutcomeUnknownError,
  PayloadMismatchError,
  PgonceError,
  type PgonceErrorOptions,
  SequenceGapError,
} from './errors.ts'
export type {
  Claim,
  ClaimStatus,
  KeyClaim,
  Keyed,
  KeyedBatch,
  KeyedMessage,
  Message,
  PayloadCheck,
  SequencedBatch,
  SequencedMessage,
} from './ledger.ts'
export { type MigrateOptions, type MigrateResult, type MigrationStep, migrate } from './migrate.ts'
export { migrationSql } from './migration-sql.ts'
export type { OffsetMove, OffsetState, Partition, Position, TakenPartition } from './offset.ts'
export { type Step, type StepEvent, steps } from './transaction/channels.ts'
export type { TransactionOptions, TransactionResult } from './transaction/coordinator.ts'
export type { Outcome } from './transaction/outcome.ts'
export type { Recovery, RunningRecovery, StartOptions, SweepOptions } from './transaction/recovery.ts'
export type { Loss, RecoveryReport, UnfinishedBranch } from './transaction/report.ts'
