/**
 * The messages of Postgres's protocol, version 3, in both directions: where each begins and ends, what it is
 * called, and the little of their contents that a proxy needs.
 *
 * @see https://www.postgresql.org/docs/current/protocol-message-formats.html
 */

export type Direction = 'client' | 'server'

/** What a client says, by its first byte. */
const clientMessages = {
  B: 'Bind',
  C: 'Close',
  D: 'Describe',
  E: 'Execute',
  F: 'FunctionCall',
  H: 'Flush',
  P: 'Parse',
  Q: 'Query',
  S: 'Sync',
  X: 'Terminate',
  c: 'CopyDone',
  d: 'CopyData',
  f: 'CopyFail',
  p: 'PasswordMessage',
} as const

/** What a server says, by its first byte. */
const serverMessages = {
  '1': 'ParseComplete',
  '2': 'BindComplete',
  '3': 'CloseComplete',
  A: 'NotificationResponse',
  C: 'CommandComplete',
  D: 'DataRow',
  E: 'ErrorResponse',
  G: 'CopyInResponse',
  H: 'CopyOutResponse',
  I: 'EmptyQueryResponse',
  K: 'BackendKeyData',
  N: 'NoticeResponse',
  R: 'Authentication',
  S: 'ParameterStatus',
  T: 'RowDescription',
  V: 'FunctionCallResponse',
  W: 'CopyBothResponse',
  Z: 'ReadyForQuery',
  c: 'CopyDone',
  d: 'CopyData',
  n: 'NoData',
  s: 'PortalSuspended',
  t: 'ParameterDescription',
  v: 'NegotiateProtocolVersion',
} as const

/** Those that have no first byte: what a connection begins with, and the one byte that answers to SSLRequest. */
const startCodes: ReadonlyMap<number, MessageName> = new Map([
  [80877102, 'CancelRequest'],
  [80877103, 'SSLRequest'],
  [80877104, 'GSSENCRequest'],
])

export type MessageName =
  | (typeof clientMessages)[keyof typeof clientMessages]
  | (typeof serverMessages)[keyof typeof serverMessages]
  | 'CancelRequest'
  | 'SSLRequest'
  | 'GSSENCRequest'
  | 'StartupMessage'
  | 'EncryptionResponse'
  /** Bytes of an encrypted connection, of which nothing is known. */
  | 'Opaque'
  /** A type that this proxy does not know. */
  | 'Unknown'

export interface Message {
  readonly direction: Direction
  readonly name: MessageName
  /** All of it, as it was sent. */
  readonly bytes: Buffer
  /**
   * The statement that a client's message is about; that a server's message answers. Of several in one text, the
   * whole text.
   */
  readonly statement: string | undefined
  /** The tag of a CommandComplete. */
  readonly tag: string | undefined
}

/** One connection's messages. */
export interface Conversation {
  /** Takes in a chunk; gives the messages that are complete with it. */
  read(direction: Direction, chunk: Buffer): Message[]
  /** The backend's process and the secret for cancelling; undefined before they were told. */
  readonly backend: { readonly pid: number; readonly secret: Buffer } | undefined
}

/** What the server has not answered yet. */
interface Request {
  readonly name: MessageName
  readonly statement: string | undefined
}

/** What is known of a connection so far. */
interface State {
  readonly unread: Record<Direction, Buffer>
  readonly statements: Map<string, string>
  readonly portals: Map<string, string | undefined>
  readonly requests: Request[]
  started: boolean
  encrypting: number
  opaque: boolean
  backend: Conversation['backend']
}

/** @param options `blind`: nothing is looked at, and all that passes is opaque */
export function conversation({ blind = false } = {}): Conversation {
  const state: State = {
    unread: { client: Buffer.alloc(0), server: Buffer.alloc(0) },
    statements: new Map(),
    portals: new Map(),
    requests: [],
    started: false,
    encrypting: 0,
    opaque: blind,
    backend: undefined,
  }
  const { unread } = state
  return {
    read(direction, chunk) {
      let rest = unread[direction].length === 0 ? chunk : Buffer.concat([unread[direction], chunk])
      const messages: Message[] = []
      for (;;) {
        const message = next(state, direction, rest)
        if (message === undefined) break
        messages.push(message)
        rest = rest.subarray(message.bytes.length)
      }
      unread[direction] = rest
      return messages
    },
    get backend() {
      return state.backend
    },
  }
}

const unknown = { statement: undefined, tag: undefined }

/** The message that a chunk begins with; undefined if it is not complete. */
function next(state: State, direction: Direction, chunk: Buffer): Message | undefined {
  if (chunk.length === 0) return undefined
  if (state.opaque) return { direction, name: 'Opaque', bytes: chunk, ...unknown }
  if (direction === 'client' && !state.started) return first(state, chunk)
  if (direction === 'server' && state.encrypting > 0 && chunk[0] !== 0x45) {
    state.encrypting -= 1
    if (chunk[0] !== 0x4e) state.opaque = true
    return { direction, name: 'EncryptionResponse', bytes: chunk.subarray(0, 1), ...unknown }
  }
  if (chunk.length < 5) return undefined
  const end = chunk.readInt32BE(1) + 1
  if (chunk.length < end) return undefined
  const type = String.fromCharCode(chunk[0] as number)
  const bytes = chunk.subarray(0, end)
  const body = chunk.subarray(5, end)
  if (direction === 'client') {
    const name = nameOf(clientMessages, type)
    const statement = follow(state, name, body)
    if (/^(Query|Parse|Bind|Describe|Execute|Close|Sync|FunctionCall)$/.test(name))
      state.requests.push({
        name,
        statement: statement ?? (name === 'Sync' ? state.requests.at(-1)?.statement : undefined),
      })
    return { direction, name, bytes, statement, tag: undefined }
  }
  const name = nameOf(serverMessages, type)
  if (name === 'BackendKeyData')
    state.backend = { pid: body.readInt32BE(0), secret: Buffer.from(body.subarray(4)) }
  const tag = name === 'CommandComplete' ? stringAt(body, 0) : undefined
  return { direction, name, bytes, statement: answered(state.requests, name), tag }
}

/** What a client begins with has no first byte. */
function first(state: State, chunk: Buffer): Message | undefined {
  if (chunk.length < 8) return undefined
  const length = chunk.readInt32BE(0)
  if (chunk.length < length) return undefined
  const name: MessageName = startCodes.get(chunk.readInt32BE(4)) ?? 'StartupMessage'
  if (name === 'StartupMessage') state.started = true
  if (name === 'SSLRequest' || name === 'GSSENCRequest') state.encrypting += 1
  return { direction: 'client', name, bytes: chunk.subarray(0, length), ...unknown }
}

/** What a message of the client is about. */
function follow({ statements, portals }: State, name: MessageName, body: Buffer): string | undefined {
  switch (name) {
    case 'Query':
      return stringAt(body, 0)
    case 'Parse': {
      const statement = stringAt(body, 0)
      const text = stringAt(body, Buffer.byteLength(statement) + 1)
      statements.set(statement, text)
      return text
    }
    case 'Bind': {
      const portal = stringAt(body, 0)
      const text = statements.get(stringAt(body, Buffer.byteLength(portal) + 1))
      portals.set(portal, text)
      return text
    }
    case 'Execute':
      return portals.get(stringAt(body, 0))
    case 'Describe':
    case 'Close': {
      const what = stringAt(body, 1)
      return body[0] === 0x53 ? statements.get(what) : portals.get(what)
    }
    default:
      return undefined
  }
}

/** Which requests a message of the server is the end of. */
const ends: Partial<Record<MessageName, readonly MessageName[]>> = {
  ParseComplete: ['Parse'],
  BindComplete: ['Bind'],
  CloseComplete: ['Close'],
  RowDescription: ['Describe'],
  NoData: ['Describe'],
  CommandComplete: ['Execute'],
  EmptyQueryResponse: ['Execute'],
  PortalSuspended: ['Execute'],
}

/** Which statement a message of the server answers; it may be the last one that does. */
function answered(requests: Request[], name: MessageName): string | undefined {
  const [head] = requests
  if (name === 'ReadyForQuery') {
    // After an error everything up to Sync is passed over.
    for (;;) {
      const request = requests.shift()
      if (request === undefined || /^(Sync|Query|FunctionCall)$/.test(request.name))
        return request?.statement ?? head?.statement
    }
  }
  if (head && ends[name]?.includes(head.name)) requests.shift()
  return head?.statement
}

/** Asks the server to cancel what a backend runs; sent on a connection of its own. */
export function cancelRequest({ pid, secret }: NonNullable<Conversation['backend']>): Buffer {
  const request = Buffer.alloc(12)
  request.writeInt32BE(12 + secret.length, 0)
  request.writeInt32BE(80877102, 4)
  request.writeInt32BE(pid, 8)
  return Buffer.concat([request, secret])
}

function nameOf(names: Readonly<Record<string, MessageName>>, type: string): MessageName {
  return names[type] ?? 'Unknown'
}

function stringAt(body: Buffer, start: number): string {
  const end = body.indexOf(0, start)
  return body.toString('utf8', start, end < 0 ? body.length : end)
}
