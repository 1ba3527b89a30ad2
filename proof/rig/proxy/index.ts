export type { Direction, Message, MessageName } from './protocol.ts'
export { type Piece, type Proxy, type ProxyOptions, startProxy } from './proxy.ts'
export type { Action, Hit, InjectedRule, Rule, When } from './rules.ts'
export { type Count, type CountingProxies, startCountingProxies } from './trips.ts'
