export type { Direction, Message, MessageName } from './protocol.ts'
export {
  type Action,
  type Hit,
  type InjectedRule,
  type Proxy,
  type ProxyOptions,
  type Rule,
  startProxy,
  type When,
} from './proxy.ts'
