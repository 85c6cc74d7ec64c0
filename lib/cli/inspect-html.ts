import { createHash } from 'node:crypto'
import { SCRIPT, STYLE } from './inspect-page.js'
import { type Block, printable, type Row, showValue, type View } from './inspect-view.js'

/**
 * The view as one page that needs nothing from elsewhere. What comes from the snapshot is hostile: all of it is escaped, and the
 * page's policy allows no script and no style but these two, and no connection to anywhere.
 */
export function pageOf({ title, facts, groups, comparison }: View): string {
  const policy = `default-src 'none'; script-src '${hash(SCRIPT)}'; style-src '${hash(STYLE)}'; base-uri 'none'; form-action 'none'`
  const only = comparison ? '<label><input type="checkbox" id="only"> Only what changed</label>' : ''
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>${escapeHtml(title)}</title>
<style>${STYLE}</style>
</head>
<body${comparison ? ' class="compare"' : ''}>
<h1>${escapeHtml(title)}</h1>
<dl>${facts.map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd>`).join('\n')}</dl>
<div class="bar" id="bar" hidden>
<label for="filter" class="sr">Filter</label>
<input type="search" id="filter" placeholder="Filter: words in any order ( / )" autocomplete="off" spellcheck="false">
${only}
<button type="button" id="open">Open all</button>
<button type="button" id="close">Close all</button>
<output id="count" for="filter"></output>
</div>
<main>
${groups.map(({ title, blocks }) => `<section>\n<h2>${escapeHtml(title)}</h2>\n${blocks.map(block => blockOf(block, comparison)).join('\n')}\n</section>`).join('\n')}
</main>
<script>${SCRIPT}</script>
</body>
</html>
`
}

/** For text and for attributes in double quotes. */
export function escapeHtml(text: string): string {
  const names: Readonly<Record<string, string>> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
    "'": '&#39;',
  }
  return printable(text).replace(/[&<>"']/g, character => names[character]!)
}

function blockOf({ title, rows, aside, plain }: Block, compared: boolean): string {
  const comparison = compared && !plain
  const changed = rows.filter(({ change }) => change).length
  const count = `${rows.length} ${rows.length === 1 ? 'field' : 'fields'}${changed > 0 ? `, ${changed} changed` : ''}`
  const open = compared ? changed > 0 : !aside
  const head = comparison
    ? '<th class="name">Field</th><th class="one">Before</th><th class="one">After</th><th>Meaning</th>'
    : '<th class="name">Field</th><th class="one">Value</th><th>Meaning</th>'
  return `<details${open ? ' open' : ''}>
<summary>${escapeHtml(title)} <small>${count}</small></summary>
<table>
<thead><tr>${head}</tr></thead>
<tbody>
${rows.map(row => rowOf(row, comparison)).join('\n')}
</tbody>
</table>
</details>`
}

function rowOf(row: Row, comparison: boolean): string {
  const { name, label, value, meaning, change, before, beforeMeaning } = row
  const tag = change && change !== 'changed' ? `<span class="tag">${change}</span>` : ''
  const cells: string[] = []
  if (!comparison || !change || (before === undefined && change === 'changed')) {
    // A text that needs no words of its own may have their room.
    const wide = meaning === undefined && typeof value === 'string'
    const span = (comparison ? 2 : 1) + (wide ? 1 : 0)
    cells.push(`<td class="value"${span > 1 ? ` colspan="${span}"` : ''}>${escapeHtml(showValue(value))}</td>`)
    if (!wide) cells.push(`<td class="meaning">${escapeHtml(meaning ?? '')}</td>`)
  } else {
    cells.push(`<td class="value">${before === undefined ? '' : `<del>${escapeHtml(showValue(before))}</del>`}</td>`)
    cells.push(`<td class="value">${change === 'removed' ? '' : `<ins>${escapeHtml(showValue(value))}</ins>`}</td>`)
    const same = meaning === beforeMeaning || beforeMeaning === undefined
    const then = same ? '' : `<del>${escapeHtml(beforeMeaning)}</del> `
    cells.push(
      `<td class="meaning">${then}${meaning === undefined || change === 'removed' ? '' : same ? escapeHtml(meaning) : `<ins>${escapeHtml(meaning)}</ins>`}</td>`,
    )
  }
  const marks = change ? ` data-changed${comparison ? ' class="diff"' : ''}` : ''
  return `<tr data-name="${escapeHtml(name)}"${marks}><th class="name" scope="row">${escapeHtml(label)}${tag}</th>${cells.join('')}</tr>`
}

function hash(text: string): string {
  return `sha256-${createHash('sha256').update(text).digest('base64')}`
}
