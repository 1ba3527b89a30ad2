/**
 * URLs of databases: what can be read of them, and what must not be shown.
 */
import { show } from '../check.ts'
import { InvalidInputError } from '../errors.ts'

/** What to call a target in a message: never with the password. */
export function describeTarget(target: unknown): string {
  return typeof target === 'string' || target instanceof URL
    ? withoutPassword(String(target))
    : 'the given database'
}

/**
 * Refuses here what the driver could not read when it connects, or would read as something else: a "/" in a
 * password ends the host there, and what follows becomes the database's name, which is no secret.
 *
 * @throws InvalidInputError `ONARG`
 */
export function checkUrl(url: string): string {
  if (!/^postgres(ql)?:\/\//.test(url)) {
    const expected = 'a URL such as postgres://user@host:5432/database'
    throw new InvalidInputError('ONARG', `Expected ${expected}, got ${show(describeTarget(url))}`)
  }
  if (isReadable(url)) return url
  throw new InvalidInputError('ONARG', `This URL cannot be read: ${show(describeTarget(url))}`, {
    hint: 'Percent-encode the password: / is %2F, @ is %40, # is %23, ? is %3F, % is %25, : is %3A',
  })
}

/** The name of the database in a URL that can be read; empty if it has none, and a default is taken. */
export function databaseIn(url: string): string {
  return /^\/([^?#]*)/.exec(partsOf(url).rest)?.[1] ?? ''
}

/** The host and port of a URL as it says them; what it leaves to defaults, as they are taken. */
export function hostIn(url: string): string {
  return partsOf(url).host || process.env.PGHOST || 'localhost'
}

/** As postgres.js reads it (3.4.9): of several hosts, separated by commas, only the first is part of a URL. */
function isReadable(url: string): boolean {
  const { login, host, rest } = partsOf(url)
  if (isMisplaced(rest) || (host.includes(',') && login.includes('@'))) return false
  const [first = ''] = host.split(',')
  const parsed = URL.parse(`${url.slice(0, url.indexOf('://') + 3)}${login}${login && '@'}${first}${rest}`)
  if (parsed === null) return false
  try {
    for (const part of [parsed.username, parsed.password, host]) decodeURIComponent(part)
    return true
  } catch {
    return false
  }
}

/** The parts of a URL that has a scheme: what stands before the last "@" of its authority, and after it. */
function partsOf(url: string): { login: string; host: string; rest: string } {
  const [, authority = '', rest = ''] = /^.*?:\/\/([^/?#]*)(.*)$/s.exec(url) ?? []
  const at = authority.lastIndexOf('@')
  return { login: authority.slice(0, Math.max(at, 0)), host: authority.slice(at + 1), rest }
}

/** Whether an "@" follows where only a path may, or the name of an option: what is before it is a login. */
function isMisplaced(rest: string): boolean {
  return /^(\/[^?#]*|[?#][^=]*)@/.test(rest)
}

/** Whatever it is that was given for a URL: what might be a password must not be shown. */
function withoutPassword(text: string): string {
  const scheme = /^\W*[A-Za-z][\w+.-]*:\/+/.exec(text)?.[0] ?? ''
  const { login, host, rest } = partsOf(text)
  const at =
    scheme.endsWith('://') && !isMisplaced(rest)
      ? // A port is a number; else it is a password whose host was forgotten.
        login === '' && !isPort(host)
        ? text.length - rest.length
        : scheme.length + login.length
      : text.lastIndexOf('@')
  const end = Math.max(at, scheme.length)
  const before = text.slice(scheme.length, end)
  const colon = before.indexOf(':')
  const shown = colon < 0 ? before : `${before.slice(0, colon)}:…`
  return `${scheme}${shown}${text.slice(end)}`.replace(
    /(pass(?:word|wd|phrase)?\s*=\s*)('[^']*'|[^&'\s][^&\s]*)/gi,
    '$1…',
  )
}

function isPort(host: string): boolean {
  return host.split(',').every((one) => /^(\[[^\]]*\]|[^:]*)(:\d*)?$/.test(one))
}
