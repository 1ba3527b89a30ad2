export type { Direction, Message, MessageName } from './protocol.ts'
export { type Proxy, type ProxyOptions, startProxy } from './proxy.ts'
export type { Action, Hit, InjectedRule, Rule, When } from './rules.ts'
