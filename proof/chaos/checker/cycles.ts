/**
 * Cycles of the dependency graph by the names that Adya gave them.
 *
 *     G0            only ww: two transactions, each of which wrote over the other
 *     G1c           ww and wr: each saw what the other did
 *     G-single      one rw: somebody saw a part of what another did (read skew; a lost update is one, too)
 *     G-nonadjacent several rw, no two in a row: what snapshot isolation forbids besides
 *     G2-item       several rw, two in a row somewhere: write skew
 *     unsearched    there are cycles, and so many ways that the search for a worse one was given up
 */
import { type Budget, components, type Edge, findPath, type Graph, rw, wr, ww } from './graph.ts'

export type CycleName = 'G0' | 'G1c' | 'G-single' | 'G-nonadjacent' | 'G2-item' | 'unsearched'

export interface Cycle {
  readonly name: CycleName
  readonly edges: readonly Edge[]
}

/** Edges looked at in all searches for one name: where nothing is wrong, each search ends soon. */
const enough = 50_000_000

/** At most one of each name for each strongly connected component. */
export function* dataCycles(graph: Graph): Generator<Cycle> {
  const { of, cyclic } = components(graph, ww)
  for (const members of cyclic) {
    const [node] = members as [number]
    const edges = findPath(graph, node, node, ww, { inside: within(of, of[node] as number) })
    if (edges) yield { name: 'G0', edges }
  }
  const both = components(graph, ww | wr)
  for (const members of both.cyclic) {
    const inside = within(both.of, both.of[members[0] as number] as number)
    for (const edge of edgesOf(graph, members, wr)) {
      if (!inside(edge.to)) continue
      const way = findPath(graph, edge.to, edge.from, ww | wr, { inside })
      if (!way) continue
      yield { name: 'G1c', edges: [edge, ...way] }
      break
    }
  }
}

/** Cycles with rw edges: the worst of each strongly connected component. */
export function* antiDependencyCycles(graph: Graph): Generator<Cycle> {
  const all = components(graph, ww | wr | rw)
  const data = components(graph, ww | wr)
  for (const members of all.cyclic) {
    const inside = within(all.of, all.of[members[0] as number] as number)
    // Tarjan numbers components against the direction of their edges: a way from v to u leads down.
    const toward = (goal: number) => {
      const end = data.of[goal] as number
      return (node: number) => inside(node) && (data.of[node] as number) >= end
    }
    const searches = {
      'G-single': (edge: Edge, budget: Budget) =>
        findPath(graph, edge.to, edge.from, ww | wr, { inside: toward(edge.from), budget }),
      'G-nonadjacent': (edge: Edge, budget: Budget) =>
        findPath(graph, edge.to, edge.from, ww | wr | rw, { inside, apart: true, budget }),
      'G2-item': (edge: Edge, budget: Budget) =>
        findPath(graph, edge.to, edge.from, ww | wr | rw, { inside, budget }),
    } as const
    for (const name of ['G-single', 'G-nonadjacent', 'G2-item'] as const) {
      const budget = { left: enough }
      let edges: Edge[] | undefined
      for (const edge of edgesOf(graph, members, rw)) {
        const way = inside(edge.to) ? searches[name](edge, budget) : undefined
        if (way) edges = [edge, ...way]
        if (way || budget.left <= 0) break
      }
      if (edges) yield { name, edges }
      else if (budget.left <= 0) yield { name: 'unsearched', edges: [] }
      else continue
      break
    }
  }
}

function* edgesOf({ edges, start, order }: Graph, members: readonly number[], kind: number): Generator<Edge> {
  for (const node of members)
    for (let at = start[node] as number; at < (start[node + 1] as number); at += 1) {
      const edge = edges[order[at] as number] as Edge
      if (edge.kind === kind) yield edge
    }
}

function within(of: Int32Array, component: number): (node: number) => boolean {
  return (node) => of[node] === component
}
