import test from 'ava'
import { fileContext, type TestContext } from './database.ts'

/** What all tests of a file share: made before the first, removed after the last. */
export function shared<T>(make: (file: TestContext) => Promise<T>): () => T {
  const file = fileContext(test.after.always)
  let made: { readonly value: T } | undefined
  test.before(async () => {
    made = { value: await make(file) }
  })
  return () => {
    if (!made) throw new Error('What tests share is there once they run')
    return made.value
  }
}
