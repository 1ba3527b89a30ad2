import test from 'ava'
import { printable, sayAge, table } from '../../src/cli/output.ts'

test('a table aligns its columns, whatever the cells contain', (t) => {
  t.is(
    table(
      ['name', 'found'],
      [{ cells: ['a', 'x'] }, { cells: ['äöü', 'yy'], notes: ['→ type this'] }],
      false,
    ),
    'NAME  FOUND\na     x\näöü   yy\n    → type this',
  )
})

test('a table wraps and cuts nothing: ids and lines to type survive copying', (t) => {
  const [note, id] = [`→ ${'type '.repeat(60)}it`, 'x'.repeat(300)]
  const rows = [{ cells: ['orders', `a copy of ${id}`], notes: [note] }]
  t.deepEqual(table(['name', 'found'], rows, false).split('\n').slice(1), [
    `orders  a copy of ${id}`,
    `    ${note}`,
  ])
})

test('colors do not disturb the alignment', (t) => {
  const rows = [{ cells: [{ text: 'critical', style: 'red' as const }, 'a'] }, { cells: ['ok', 'b'] }]
  const colored = table(['status', 'found'], rows, true)
  t.true(colored.includes('\u001b[31mcritical\u001b[39m  a'))
  t.regex(colored, /\nok {8}b/)
})

test('what others chose cannot steer the terminal', (t) => {
  t.is(printable('once:\u001b[2K\rok\u202e'), 'once:\\u001b[2K\\u000dok\\u202e')
  const text = table(['gid'], [{ cells: ['a\nb'], notes: ['c\u0007'] }], false)
  t.is(text, 'GID\na\\u000ab\n    c\\u0007')
})

test('ages are said in a unit of which there are at least two', (t) => {
  t.deepEqual([0.4, 59, 119, 120, 7200, 200_000].map(sayAge), ['0 s', '59 s', '119 s', '2 min', '2 h', '2 d'])
})
