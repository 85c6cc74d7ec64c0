/** What is the same in every page of `inspect --html`: its style, and the script of its filter. */

export const STYLE = `
:root { color-scheme: light dark; --back: #fff; --fore: #1b1f24; --soft: #59636e; --line: #d8dee4; --panel: #f6f8fa;
  --link: #0858b8; --old: #a40e26; --old-back: #ffebe9; --new: #116329; --new-back: #dafbe1; --mark: #fffbe0; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --fore: #e6edf3; --soft: #9aa4af; --line: #30363d;
  --panel: #161b22; --link: #6cb6ff; --old: #ffa198; --old-back: #3c1618; --new: #7ee787; --new-back: #12361f; --mark: #2b2611; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 84rem; padding: 1rem 1.5rem 4rem; background: var(--back); color: var(--fore);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5em; line-height: 1.3; margin: .5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.25em; margin: 2em 0 .5rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 0 1rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
.bar { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center;
  padding: .6rem 0; background: var(--back); border-bottom: 1px solid var(--line) }
.bar input[type=search] { flex: 1 1 16rem; min-width: 8rem; padding: .4rem .6rem; font: inherit; color: inherit;
  background: var(--panel); border: 1px solid var(--line); border-radius: 6px }
.bar button { font: inherit; color: inherit; padding: .35rem .7rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; cursor: pointer }
.bar label { white-space: nowrap }
.bar output { color: var(--soft); min-width: 9rem }
:focus-visible { outline: 2px solid var(--link); outline-offset: 1px }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; overflow: hidden }
summary { padding: .4rem .8rem; background: var(--panel); font-weight: 600; cursor: pointer; scroll-margin-top: 5rem }
summary small { font-weight: 400; color: var(--soft); margin-left: .5rem }
table { width: 100%; border-collapse: collapse; table-layout: fixed }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; font-weight: 400 }
thead th { color: var(--soft); font-size: .9em; padding-top: .15rem; padding-bottom: .15rem }
td.value { font-family: ui-monospace, monospace; font-size: .9em }
td.meaning { color: var(--soft) }
.name { width: 28% } .one { width: 26% } .two { width: 52% }
.compare .name { width: 24% } .compare .one { width: 24% }
tr.diff > * { background: var(--mark) }
del { color: var(--old); background: var(--old-back); text-decoration: line-through; text-decoration-thickness: 1px }
td.value del { text-decoration: none }
ins { color: var(--new); background: var(--new-back); text-decoration: none; font-weight: 600 }
.tag { display: inline-block; margin-left: .5rem; padding: 0 .4rem; border: 1px solid currentColor; border-radius: 1rem;
  font-size: .8em; color: var(--soft) }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
[hidden] { display: none !important }
@media (max-width: 45rem) { body { padding: .5rem .7rem 3rem } table, tbody, tr, th, td { display: block; width: auto !important }
  thead { display: none } th, td { padding: .1rem .6rem; border: 0 } tr { padding: .3rem 0; border-top: 1px solid var(--line) }
  tr th { font-weight: 600 } td:empty { display: none } }
@media print { .bar { display: none } body { max-width: none; padding: 0; font-size: 10px } h2 { break-after: avoid }
  details { border: 0 } details::details-content { content-visibility: visible; display: block } tr { break-inside: avoid } }
`

/** Filters rows by the words in the box, in any order; folds sections; opens all of them on paper. */
export const SCRIPT = `
'use strict'
const $ = id => document.getElementById(id)
const [bar, box, only, count] = ['bar', 'filter', 'only', 'count'].map($)
const blocks = [...document.querySelectorAll('details')].map(details => {
  const group = details.parentElement
  const around = group.querySelector('h2').textContent + ' ' + details.querySelector('summary').textContent
  const rows = [...details.querySelectorAll('tbody tr')].map(row => ({
    row, text: (row.textContent + ' ' + row.dataset.name + ' ' + around).toLowerCase(), changed: 'changed' in row.dataset }))
  return { details, group, rows, open: details.open }
})
const total = blocks.reduce((sum, { rows }) => sum + rows.length, 0)
let filtered = false
function apply() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean)
  const filtering = words.length > 0 || (only !== null && only.checked)
  if (filtering && !filtered) for (const block of blocks) block.open = block.details.open
  let shown = 0
  const groups = new Map()
  for (const block of blocks) {
    let here = 0
    for (const { row, text, changed } of block.rows) {
      const fits = (!only || !only.checked || changed) && words.every(word => text.includes(word))
      row.hidden = !fits
      if (fits) here++
    }
    shown += here
    block.details.hidden = here === 0
    groups.set(block.group, (groups.get(block.group) || 0) + here)
    if (filtering) block.details.open = here > 0
    else if (filtered) block.details.open = block.open
  }
  for (const [group, here] of groups) group.hidden = here === 0
  filtered = filtering
  count.textContent = filtering ? shown + ' of ' + total + ' fields' : total + ' fields'
}
const fold = open => { for (const { details } of blocks) details.open = open }
box.addEventListener('input', apply)
if (only) only.addEventListener('change', apply)
$('open').addEventListener('click', () => fold(true))
$('close').addEventListener('click', () => fold(false))
document.addEventListener('keydown', event => {
  if (event.key === '/' && document.activeElement !== box && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault()
    box.focus()
    box.select()
  } else if (event.key === 'Escape' && document.activeElement === box) {
    box.value = ''
    apply()
  }
})
let before
addEventListener('beforeprint', () => {
  before = blocks.map(({ details }) => details.open)
  fold(true)
})
addEventListener('afterprint', () => {
  if (before) blocks.forEach(({ details }, i) => { details.open = before[i] })
})
bar.hidden = false
apply()
`
