/** Texts and names in SQL, where no parameter can go. */

/** Right under either setting of `standard_conforming_strings`. */
export function literal(text: string): string {
  const quoted = `'${text.replaceAll("'", "''")}'`
  return text.includes('\\') ? `e${quoted.replaceAll('\\', '\\\\')}` : quoted
}

/** Always in quotes: the list of keywords grows with each version of Postgres. */
export function identifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/** An array as Postgres reads it. */
export function arrayLiteral(values: readonly (string | null)[]): string {
  const words = values.map((value) => (value === null ? 'null' : `"${value.replace(/["\\]/g, '\\$&')}"`))
  return `{${words.join(',')}}`
}
