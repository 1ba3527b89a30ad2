/** The end of a branch that is prepared, by whoever knows what its home decided: its coordinator, or recovery. */
import type { Link } from '../connection/link.ts'
import { environment } from '../environment.ts'
import { codeOf } from '../errors.ts'
import type { Statement } from '../statements.ts'

/**
 * Runs COMMIT PREPARED or ROLLBACK PREPARED; false if the branch is gone: somebody else has finished it, or it was
 * lost. That proves nothing; evidence does.
 */
export async function finishPrepared(link: Link, statement: Statement<void>): Promise<boolean> {
  for (;;) {
    try {
      await link.send(statement)
      return true
    } catch (error) {
      if (codeOf(error) === '42704') return false
      // Somebody else is finishing it right now, or PREPARE still waits for a standby.
      if (codeOf(error) !== '55000') throw error
      await environment.sleep(20)
    }
  }
}
