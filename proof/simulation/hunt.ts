/** `node hunt.ts <seeds> [<from>]`: runs schedules until the first violation, and says as JSON after how many it came. */
import { runSeeds } from './run.ts'

const [, , seeds = '50000', from = '1'] = process.argv
const totals = await runSeeds(Number(from), Number(seeds), ({ failed }) => failed === 0)
const [failure] = totals.failures
console.log(
  JSON.stringify({
    after: failure === undefined ? undefined : totals.schedules,
    invariant: failure?.violations[0]?.invariant,
    seed: failure?.seed,
  }),
)
process.exit(0)
