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
export { type Step, type StepEvent, steps } from './commit/channels.ts'
export type { TransactionResult } from './commit/coordinator.ts'
export type { Outcome } from './commit/outcome.ts'
export type { DatabaseTarget } from './connection/target.ts'
export { type MigrateResult, type MigrationStep, migrate } from './database/migrate.ts'
export { migrationSql } from './database/migration.ts'
export {
  AbortedError,
  DatabaseError,
  FencedError,
  HandlerError,
  InvalidInputError,
  LimitError,
  OutcomeUnknownError,
  PayloadMismatchError,
  PgonceError,
  type PgonceErrorOptions,
  PositionError,
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
} from './ledger/claim.ts'
export type { MigrateOptions, RunOptions, StartOptions, TransactionOptions } from './options.ts'
export type { Partition, Position, PositionMove, PositionState, TakenPartition } from './position/position.ts'
export type { Recovery, RunningRecovery } from './recovery/recovery.ts'
export type { Loss, RecoveryReport, UnfinishedBranch } from './recovery/report.ts'
