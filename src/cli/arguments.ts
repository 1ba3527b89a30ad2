/** What options of commands are made of. */
import { InvalidArgumentError } from 'commander'

/** Reads an option that is a whole number. */
export function wholeNumber(least: number, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (/^\d+$/.test(text) && value >= least && value <= most) return value
    const range = most === Number.MAX_SAFE_INTEGER ? 'on' : `to ${most}`
    throw new InvalidArgumentError(`Expected a whole number from ${least} ${range}.`)
  }
}

/** Reads an option that may be given several times. */
export function several(text: string, before: readonly string[] = []): readonly string[] {
  return [...before, text]
}
