import test from 'ava'
import { identifier, literal } from '../../src/connection/quote.ts'
import { connect, emptyDatabase } from '../support/database.ts'

test('A literal is its text, under either setting of standard_conforming_strings', async (t) => {
  const { url } = await emptyDatabase(t)
  const sql = connect(t, url)
  for (const setting of ['on', 'off']) {
    await sql.unsafe(`set standard_conforming_strings = ${setting}; set escape_string_warning = off`)
    for (const text of ["it's", "\\'; drop table x; --", 'a\\', '\\\\n', 'ü€😀', '$1', '']) {
      const [row] = await sql.unsafe(`select ${literal(text)} as text`)
      t.is(row?.text, text)
    }
  }
})

test('An identifier is its name, keywords and quotes included', async (t) => {
  const { url } = await emptyDatabase(t)
  const sql = connect(t, url)
  for (const name of ['app', 'user', 'Current_User', 'say "once"', 'a\\', 'ü€']) {
    const [row] = await sql.unsafe(`select 1 as ${identifier(name)}`)
    t.deepEqual(Object.keys(row ?? {}), [name])
  }
})
