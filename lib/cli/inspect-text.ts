import { printable, type Row, showValue, type View } from './inspect-view.js'

/** Columns of a label; longer ones push their value. */
const LABEL = 38
const INDENT = '    '

/** The view for a terminal of `width` columns: what is 0 or none is left out, and of a comparison all that is the same. */
export function formatView({ title, facts, groups, comparison }: View, width = 120): string {
  const names = Math.max(...facts.map(([name]) => name.length))
  const lines = [
    printable(title),
    ...facts.flatMap(([name, value]) => wrap(`  ${name.padEnd(names)}  `, printable(value), width)),
  ]
  for (const group of groups) {
    const blocks = group.blocks.flatMap(({ title, rows }) => {
      const shown = rows.filter(row => (comparison ? row.change : !isNothing(row)))
      return shown.length > 0 ? [`  ${printable(title)}`, ...shown.flatMap(row => formatRow(row, width))] : []
    })
    if (blocks.length > 0) lines.push('', printable(group.title), ...blocks)
    else if (comparison) lines.push('', printable(group.title), '  the same')
  }
  if (!comparison)
    lines.push('', ...wrap('', 'Fields that are 0 or none are left out; --json and --html have them all.', width))
  return `${lines.join('\n')}\n`
}

function isNothing({ value, meaning }: Row): boolean {
  const none = meaning === undefined || ['none', 'not present', 'unusable'].includes(meaning)
  return (value === 0n && none) || value === 'none' || value === 'no'
}

function formatRow({ label, value, meaning, change, before, beforeMeaning }: Row, width: number): string[] {
  const start = `${INDENT}${printable(label).padEnd(LABEL)}  `
  const now = describe(value, meaning)
  if (!change || (change === 'changed' && before === undefined)) return wrap(start, now, width)
  if (change === 'added') return wrap(start, `(not there) -> ${now}`, width)
  const then = describe(before!, beforeMeaning)
  return wrap(start, change === 'removed' ? `${then} -> (not there)` : `${then} -> ${now}`, width)
}

function describe(value: Row['value'], meaning: string | undefined): string {
  return meaning === undefined ? showValue(value) : `${showValue(value)}  ${printable(meaning)}`
}

/** A text behind `start`, broken between words where it would leave the terminal. */
function wrap(start: string, text: string, width: number): string[] {
  // Where the start leaves no room, the text stands below it.
  const below = width - start.length < 30 && start.length + text.length > width
  const indent = below ? ' '.repeat(INDENT.length + 4) : ' '.repeat(start.length)
  const room = Math.max(20, width - indent.length)
  const lines: string[] = []
  let rest = text
  while (rest.length > room) {
    const space = rest.lastIndexOf(' ', room)
    const end = space > 0 ? space : room
    lines.push(rest.slice(0, end))
    rest = rest.slice(end).trimStart()
  }
  lines.push(rest)
  const first = below ? [start.trimEnd()] : []
  return [...first, ...lines.map((line, i) => `${i === 0 && !below ? start : indent}${line}`.trimEnd())]
}
