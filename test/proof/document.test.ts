/** What docs/proof.md says of seeded bugs is what there is. That each is caught, those say that run them. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { mutants as chaosMutants } from '../../proof/chaos/mutants.ts'
import { checks } from '../../proof/model/checks.ts'
import { mutants as simulationMutants } from '../../proof/simulation/mutants.ts'
import { root } from '../support/documents.ts'

const markdown = await readFile(join(root, 'docs/proof.md'), 'utf8')
const [model = [], simulation = [], chaos = [], ...others] =
  markdown
    .match(/^\| mutant \|.*\n(?:\|.*\n)+/gm)
    ?.map((table) => table.trim().split('\n').slice(2).map(cellsOf)) ?? []

function cellsOf(row: string): string[] {
  return row
    .split('|')
    .slice(1, -1)
    .map((cell) => cell.trim().replace(/^`(.*)`$/, '$1'))
}

const namesOf = (table: readonly string[][]) => table.map(([name]) => name)

test('The mutants of the model are those it has, each with its bug and the property that it breaks', (t) => {
  const mutants = checks.filter(({ kind }) => kind === 'mutant')
  t.deepEqual(
    model,
    mutants.map(({ name, what, expected }) => [name, what, expected.replace('refuted: ', '')]),
  )
})

test('The mutants of the simulation are those it has', (t) => {
  t.deepEqual(
    namesOf(simulation),
    simulationMutants.map(({ name }) => name),
  )
})

test('The mutants of the chaos run are those it has', (t) => {
  t.deepEqual(
    namesOf(chaos),
    chaosMutants.map(({ name }) => name),
  )
})

test('No mutants are told of besides, and their numbers are right', (t) => {
  t.deepEqual(others, [])
  const numbers = [...markdown.matchAll(/(model|simulation|chaos) \d+ of (\d+)/g)].map(([, of, n]) => [
    of,
    Number(n),
  ])
  t.deepEqual(numbers, [
    ['model', model.length],
    ['simulation', simulation.length],
    ['chaos', chaos.length],
  ])
})
