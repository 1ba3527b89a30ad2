import { inspect } from 'node:util'
import test from 'ava'
import { checkUrl, describeTarget } from '../../src/connection/url.ts'
import { InvalidInputError, pgonce } from '../../src/index.ts'

test('A password in a URL is never shown, however the URL is mistyped', (t) => {
  for (const [url, shown] of [
    ['postgres://u:secret@h:5432/db', 'postgres://u:…@h:5432/db'],
    [
      'postgres://u:secret@h1:1,h2:2/db?application_name=a@b',
      'postgres://u:…@h1:1,h2:2/db?application_name=a@b',
    ],
    ['postgres://u:secr@et@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:secret@[::1]:5432/db', 'postgres://u:…@[::1]:5432/db'],
    ['postgres://h/db?user=u&password=p@secret&x=y', 'postgres://h/db?user=u&password=…&x=y'],
    ['postgres://u@h:5432/db', 'postgres://u@h:5432/db'],
    ['postgres://h1:1,h2:2/db', 'postgres://h1:1,h2:2/db'],
    ['postgres:///db', 'postgres:///db'],
  ] as const) {
    t.is(describeTarget(url), shown)
    t.is(checkUrl(url), url)
  }
  for (const [url, shown] of [
    ['postgres://u:se/secret@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:1/secret@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:1?secret@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:se#secret@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:se@secret/x@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:secret%@h/db', 'postgres://u:…@h/db'],
    ['postgres://u:a@secret@h1,h2/db', 'postgres://u:…@h1,h2/db'],
    ['postgres://us/er:secret@h/db', 'postgres://us/er:…@h/db'],
    ['postgres://u:secret/db', 'postgres://u:…/db'],
    ['postgres:/u:secret@h/db', 'postgres:/u:…@h/db'],
    ['postgresql+driver://u:secret@h/db', 'postgresql+driver://u:…@h/db'],
    ['jdbc:postgresql://h/db?user=u&password=secret', 'jdbc:postgresql://h/db?user=u&password=…'],
    ['u:secret@h/db', 'u:…@h/db'],
    ["host=h password='a secret' dbname=db", 'host=h password=… dbname=db'],
    ['"postgres://u:secret@h/db"', '"postgres://u:…@h/db"'],
  ] as const) {
    t.is(describeTarget(url), shown)
    const error = t.throws(
      () => pgonce({ databases: { a: url } }),
      { instanceOf: InvalidInputError, code: 'ONARG' },
      url,
    )
    t.notRegex(inspect(error, { depth: 9 }), /secret/)
  }
  const error = t.throws(() => pgonce({ databases: { a: 'postgres://u:se/cret@h/db' } }))
  t.regex((error as InvalidInputError).hint ?? '', /Percent-encode the password: \/ is %2F/)
})
