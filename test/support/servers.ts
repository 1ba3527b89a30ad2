/** Where the runner puts the superuser URLs of the two shared servers. */
export const serverVariables = { a: 'PGONCE_TEST_SERVER_A', b: 'PGONCE_TEST_SERVER_B' } as const

export type ServerName = keyof typeof serverVariables

/** The URL of a database on a shared server. The servers are two clusters: `a` and `b`. */
export function serverUrl(server: ServerName = 'a', database = 'postgres', user = 'postgres'): string {
  const text = process.env[serverVariables[server]]
  if (!text) throw new Error('There are no shared test servers: start the tests with `npm test`.')
  const url = new URL(text)
  url.username = encodeURIComponent(user)
  url.pathname = `/${encodeURIComponent(database)}`
  return url.href
}
