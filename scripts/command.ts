/** The command lines of this repository's own tools: a mistake in one ends with a line that says so, and exit status 2. */
import { Command, InvalidArgumentError } from 'commander'

export { several, wholeNumber } from '../src/cli/arguments.ts'

/** @param name of the npm script */
export function tool(name: string, description: string): Command {
  return new Command(`npm run ${name} --`)
    .description(description)
    .allowExcessArguments(false)
    .showHelpAfterError('(add --help for what there is)')
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : misused))
}

const misused = 2

/** For what only shows after the options were read. */
export function refuse(message: string): never {
  console.error(message)
  process.exit(misused)
}

/** Reads an option that is a number. */
export function number(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (text.trim() !== '' && Number.isFinite(value) && value >= least) return value
    throw new InvalidArgumentError(`Expected a number from ${least} on.`)
  }
}

/** Reads a list of known words, separated by commas, or `all`. */
export function oneOrMore<T extends string>(known: readonly T[]): (text: string) => readonly T[] {
  return (text) => {
    if (text === 'all') return known
    const words = text.split(',') as T[]
    const unknown = words.find((word) => !known.includes(word))
    if (unknown === undefined) return words
    throw new InvalidArgumentError(`There are: all, ${known.join(', ')}.`)
  }
}
