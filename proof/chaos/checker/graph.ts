/**
 * The dependency graph of transactions, and its cycles.
 *
 *     ww   the second wrote the version that follows the first's
 *     wr   the second read the version that the first wrote
 *     rw   the first read a version, and the second wrote the one that follows it
 *
 * @see Adya: Weak Consistency, 1999; Kingsbury, Alvaro: Elle, 2020, section 4
 */

/** Bits, so that sets of them are numbers. */
export const ww = 1
export const wr = 2
export const rw = 4

export interface Edge {
  readonly from: number
  readonly to: number
  readonly kind: typeof ww | typeof wr | typeof rw
  /** Which version of which key says so. */
  readonly key: number
}

/** Edges by their origin, in flat arrays: histories are long. */
export interface Graph {
  readonly size: number
  readonly edges: readonly Edge[]
  /** The edges out of `n` are `order[start[n]]` up to, without, `order[start[n + 1]]`. */
  readonly start: Int32Array
  readonly order: Int32Array
}

export function graphOf(size: number, edges: readonly Edge[]): Graph {
  const start = new Int32Array(size + 1)
  for (const { from } of edges) start[from + 1] = (start[from + 1] as number) + 1
  for (let n = 0; n < size; n += 1) start[n + 1] = (start[n + 1] as number) + (start[n] as number)
  const next = start.slice()
  const order = new Int32Array(edges.length)
  edges.forEach(({ from }, index) => {
    const at = next[from] as number
    order[at] = index
    next[from] = at + 1
  })
  return { size, edges, start, order }
}

export interface Components {
  /** Which component a node is in. A component that another depends on has the larger number. */
  readonly of: Int32Array
  /** The nodes of each component that has more than one. */
  readonly cyclic: readonly (readonly number[])[]
}

/**
 * Strongly connected components over the edges of some kinds: Tarjan's algorithm, without recursion.
 *
 * @see Tarjan: Depth-first search and linear graph algorithms, 1972
 */
export function components({ size, edges, start, order }: Graph, kinds: number): Components {
  const of = new Int32Array(size).fill(-1)
  const reached = new Int32Array(size).fill(-1)
  const low = new Int32Array(size)
  const cursor = start.slice(0, size)
  const path: number[] = []
  const stack: number[] = []
  const cyclic: number[][] = []
  let clock = 0
  let component = 0

  const enter = (node: number) => {
    reached[node] = clock
    low[node] = clock
    clock += 1
    path.push(node)
    stack.push(node)
  }
  for (let root = 0; root < size; root += 1) {
    if (reached[root] !== -1) continue
    enter(root)
    while (path.length > 0) {
      const node = path.at(-1) as number
      const at = cursor[node] as number
      if (at < (start[node + 1] as number)) {
        cursor[node] = at + 1
        const { to, kind } = edges[order[at] as number] as Edge
        if ((kind & kinds) === 0) continue
        if (reached[to] === -1) enter(to)
        else if (of[to] === -1) low[node] = Math.min(low[node] as number, reached[to] as number)
        continue
      }
      path.pop()
      const parent = path.at(-1)
      if (parent !== undefined) low[parent] = Math.min(low[parent] as number, low[node] as number)
      if (low[node] !== reached[node]) continue
      const members: number[] = []
      for (;;) {
        const member = stack.pop() as number
        of[member] = component
        members.push(member)
        if (member === node) break
      }
      if (members.length > 1) cyclic.push(members)
      component += 1
    }
  }
  return { of, cyclic }
}

/** Limits a search, by what it looks at. */
export interface Budget {
  left: number
}

/**
 * The shortest way from one node to another over edges of some kinds that stay where `inside` says. With
 * `apart` no two edges of kind rw follow each other, nor stand at either end.
 */
export function findPath(
  { edges, start, order }: Graph,
  from: number,
  to: number,
  kinds: number,
  { inside, apart = false, budget }: { inside: (node: number) => boolean; apart?: boolean; budget?: Budget },
): Edge[] | undefined {
  // A state is a node and whether an rw edge led there.
  const came = new Map<number, { readonly edge: Edge; readonly before: number }>()
  const first = from * 2 + (apart ? 1 : 0)
  const seen = new Set([first])
  const queue = [first]
  for (let head = 0; head < queue.length; head += 1) {
    const state = queue[head] as number
    const node = state >> 1
    for (let at = start[node] as number; at < (start[node + 1] as number); at += 1) {
      const edge = edges[order[at] as number] as Edge
      if (budget) {
        if (budget.left <= 0) return undefined
        budget.left -= 1
      }
      if ((edge.kind & kinds) === 0 || !inside(edge.to)) continue
      const isRw = edge.kind === rw
      if (apart && isRw && (state & 1) === 1) continue
      const next = edge.to * 2 + (apart && isRw ? 1 : 0)
      if (edge.to === to && !(apart && isRw)) {
        const path = [edge]
        for (let back = state; back !== first; ) {
          const step = came.get(back) as { edge: Edge; before: number }
          path.push(step.edge)
          back = step.before
        }
        return path.reverse()
      }
      if (seen.has(next)) continue
      seen.add(next)
      came.set(next, { edge, before: state })
      queue.push(next)
    }
  }
  return undefined
}
