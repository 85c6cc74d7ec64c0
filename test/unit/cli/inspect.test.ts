import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, expect, it, vi } from 'vitest'
import { inspectCommand } from '../../../lib/cli/inspect.js'
import { escapeHtml, pageOf } from '../../../lib/cli/inspect-html.js'
import { formatView } from '../../../lib/cli/inspect-text.js'
import { printable, viewOf, viewOfDifference } from '../../../lib/cli/inspect-view.js'
import { diffInspections, inspectSnapshot, type Snapshot } from '../../../lib/index.js'
import { ram, ramWithTables, saved, vcpu } from '../machine/saved.js'
import { svmGuestMode, vmxGuestMode } from '../nested/states.js'
import { PAGE, scratch } from '../snapshot/machines.js'

afterEach(() => {
  process.exitCode = 0
})

/** Runs the command in this process; gives its standard output. */
async function run(...args: string[]): Promise<string> {
  const chunks: string[] = []
  const write = vi.spyOn(process.stdout, 'write').mockImplementation(chunk => {
    chunks.push(String(chunk))
    return true
  })
  try {
    await inspectCommand()
      .exitOverride()
      .configureOutput({ writeErr: () => {} })
      .parseAsync(args, { from: 'user' })
  } finally {
    write.mockRestore()
  }
  return chunks.join('')
}

/** The text of a page as a browser shows it: tags gone, entities resolved. */
function shownText(page: string): string {
  const names: Record<string, string> = { lt: '<', gt: '>', quot: '"', '#39': "'", amp: '&' }
  return page
    .replace(/<(style|script)>[\s\S]*?<\/\1>/g, '')
    .replace(/<[^>]*>/g, '\n')
    .replace(/&(lt|gt|quot|#39|amp);/g, (_, name: string) => names[name]!)
}

const attack = `</td></script><script>alert(1)</script><img src=x onerror="alert('2')">&amp;\u202e\x1b[2J\0`

it('tells of a machine in L2 as text', async () => {
  const snapshot = await saved({
    vcpus: [vcpu({ nested: vmxGuestMode({ exitReason: 12n }) })],
    memory: ramWithTables('EPT'),
  })
  const text = await run(snapshot.directory, '--walk', '0x400123')
  for (const line of [
    /^vCPU 0: in L2 \(vmx, VMCS12 at 0x2000\)$/m,
    /L2 RIP +0x1234$/m,
    /L1 RIP +0x100000$/m,
    /L1 paging +4-level$/m,
    /EPT pointer +0x601e {2}4 levels at 0x6000, WB$/m,
    /Last VM exit to L1 +HLT$/m,
    /TSC offset to L1's +-4294967296$/m,
    /MSRs read without an exit +0x0-0x1fff/,
    /Secondary processor-based VM-execution controls {2}0xa2 {2}enable EPT, enable VPID, unrestricted guest/,
    /Level 2 entry at 0x9010 +0x2000b7 {2}page, WB, read, write, execute/,
    /L1's physical address +0x200123 {2}2 MiB page: read, write, execute, WB$/m,
    /IA32_LSTAR \(0xc0000082\) +0xffffffff81000000$/m,
  ]) {
    expect(text).toMatch(line)
  }
  // What is nothing is left out.
  expect(text).not.toMatch(/Guest DR7 +0x0|RAX/)
  expect(
    formatView(viewOf(inspectSnapshot(snapshot)), 80)
      .split('\n')
      .every(line => line.length <= 80),
  ).toBe(true)
})

it('tells the same as JSON', async () => {
  const { directory } = await saved({
    vcpus: [vcpu(), vcpu({ nested: svmGuestMode() })],
    memory: ramWithTables('NPT'),
  })
  const { ok, vcpus, walk } = JSON.parse(await run(directory, '--json', '--walk', '4194595', '--vcpu', '1'))
  expect(ok).toBe(true)
  expect(vcpus).toMatchObject([
    {
      id: 1,
      doing: 'in L2 (svm, VMCB12 at 0x10000)',
      l2: { rip: '0x1234' },
      nested: { mode: 'L2', tscOffset: '0x1234' },
    },
  ])
  expect(walk).toMatchObject({
    outcome: 'mapped',
    physical: '0x200123',
    content: Buffer.from('what L2 has here').toString('hex'),
  })
})

async function twoSnapshots(): Promise<[Snapshot, Snapshot]> {
  const memory = ram()
  const before = await saved({ vcpus: [vcpu({ nested: svmGuestMode() })], memory, devices: { gone: 1 } })
  memory.fill(0, 7 * PAGE, 2 * PAGE)
  const nested = svmGuestMode({ exitCode: 0x78n })
  const more = {
    KVM_GET_MSRS: Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0, 0x82, 0, 0, 0xc0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0),
  }
  return [before, await saved({ vcpus: [vcpu({ rip: 0x99n, nested }, more)], memory, devices: { come: 2 } })]
}

it('tells what changed between two snapshots, and nothing else', async () => {
  const [before, after] = await twoSnapshots()
  const text = await run('--diff', before.directory, after.directory)
  for (const line of [
    /General registers\n +RIP +0x1234 -> 0x99\n/,
    /EXITCODE +0x0 {2}CR0_READ -> 0x78 {2}HLT$/m,
    /IA32_LSTAR \(0xc0000082\) +0xffffffff81000000 -> 0x9$/m,
    /IA32_MTRR_PHYSMASK1 \(0x203\) +0x800 -> \(not there\)$/m,
    /come +\(not there\) -> 2$/m,
    /gone +1 -> \(not there\)$/m,
    /Pages that differ +2 {2}8 KiB$/m,
    /0x7000-0x8fff +2 pages$/m,
  ]) {
    expect(text).toMatch(line)
  }
  expect(text).not.toMatch(/RSP|CR4|Nested paging/)
  const json = JSON.parse(await run('--diff', before.directory, after.directory, '--json'))
  expect(json).toMatchObject({ ok: true, before: { id: before.id }, after: { id: after.id } })
  expect(json.memory).toEqual({ pages: 2, runs: 1, first: [{ address: 0x7000, pages: 2 }] })
  expect(json.vcpus[0].changed).toContainEqual({
    section: 'General registers',
    name: 'rip',
    label: 'RIP',
    before: '0x1234',
    after: '0x99',
  })
  const same = await run('--diff', before.directory, before.directory)
  expect(same.match(/^ {2}the same$/gm)).toHaveLength(3)
})

it('the page has every field of the view, and allows nothing but itself', async () => {
  const snapshot = await saved({ vcpus: [vcpu({ nested: vmxGuestMode() }), vcpu({ nested: svmGuestMode() })] })
  const view = viewOf(inspectSnapshot(snapshot))
  const page = pageOf(view)
  const text = shownText(page)
  const rows = view.groups.flatMap(({ blocks }) => blocks.flatMap(({ rows }) => rows))
  expect(rows.length).toBeGreaterThan(400)
  expect(page.match(/<tr data-name=/g)).toHaveLength(rows.length)
  for (const { label, meaning } of rows) {
    expect(text).toContain(label)
    if (meaning !== undefined) expect(text).toContain(meaning)
  }
  const [, policy] = /<meta http-equiv="Content-Security-Policy" content="([^"]*)">/.exec(page)!
  for (const tag of ['script', 'style']) {
    const contents = [...page.matchAll(new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`, 'g'))]
    expect(contents).toHaveLength(1)
    const hash = createHash('sha256').update(contents[0]![1]!).digest('base64')
    expect(policy).toContain(`${tag}-src 'sha256-${hash}'`)
  }
  expect(policy).toMatch(/^default-src 'none';/)
  // Nothing from elsewhere, nothing that a policy would have to allow.
  expect(page).not.toMatch(/\s(src|href|style|on[a-z]+)=|@import|url\(/)
  expect(() => new Function(/<script>([\s\S]*?)<\/script>/.exec(page)![1]!)).not.toThrow()
})

it('the page of a comparison marks what changed', async () => {
  const [a, b] = (await twoSnapshots()).map(snapshot => inspectSnapshot(snapshot)) as [Snapshot & never, never]
  const memory = { pages: 2, runs: 1, first: [{ address: 0x7000, pages: 2 }] }
  const page = pageOf(viewOfDifference(a, b, diffInspections(a, b), memory))
  const rows = [...page.matchAll(/<tr data-name="([^"]*)"( data-changed[^>]*)?>(.*)<\/tr>/g)]
  const row = (name: string) => rows.findLast(([, found]) => found === name)!
  expect(row('rip')[2]).toBe(' data-changed class="diff"')
  expect(row('rip')[3]).toContain('<del>0x1234</del></td><td class="value"><ins>0x99</ins>')
  expect(row('exitCode')[3]).toContain('<del>CR0_READ</del> <ins>HLT</ins>')
  expect(row('rsp')[2]).toBe(undefined)
  expect(row('come')[3]).toMatch(/<span class="tag">added<\/span>.*<ins>2<\/ins>/)
  expect(row('gone')[3]).toMatch(/<span class="tag">removed<\/span>.*<del>1<\/del>/)
  expect(row('pages')[2]).toBe(' data-changed')
  expect(page).toContain('<input type="checkbox" id="only">')
})

it('what is hostile in a snapshot does nothing in the page nor in the terminal', async () => {
  const snapshot = await saved({ config: { memory: 1, cmdline: attack }, devices: { [attack]: attack } })
  const inspection = inspectSnapshot(snapshot)
  const clean = pageOf(viewOf(inspectSnapshot(await saved({ config: { memory: 1, cmdline: '' }, devices: { a: '' } }))))
  const page = pageOf(viewOf(inspection))
  const tags = (text: string) => [...text.matchAll(/<[a-z]+/g)].map(([tag]) => tag)
  expect(tags(page)).toEqual(tags(clean))
  expect(shownText(page)).toContain(printable(attack))
  const text = formatView(viewOf(inspection))
  for (const shown of [page, text])
    expect([...'\0\x1b\u202e'].filter(character => shown.includes(character))).toEqual([])
  expect(text).toContain('\\u{1b}[2J\\u{0}')
  expect(escapeHtml('<a href="x" title=\'y\'>&</a>')).toBe(
    '&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;&lt;/a&gt;',
  )
})

it('a manifest with very much in it is cut, not shown whole', async () => {
  const devices = {
    many: Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`d${i}`, i])),
    long: 'x'.repeat(100_000),
  }
  const page = pageOf(viewOf(inspectSnapshot(await saved({ devices }))))
  expect(page.length).toBeLessThan(500_000)
})

it('writes the page whole, or says why not', async () => {
  const { directory } = await saved()
  const place = scratch()
  const file = join(place, 'page.html')
  writeFileSync(file, 'old')
  expect(await run(directory, '--html', file)).toBe(`wrote ${file}\n`)
  expect(readFileSync(file, 'utf8')).toMatch(/^<!DOCTYPE html>[\s\S]*<\/html>\n$/)
  expect(readdirSync(place)).toEqual(['page.html'])
  await expect(run(directory, '--html', join(place, 'none', 'page.html'))).rejects.toThrow(
    /html: .*ENOENT.*give another file/,
  )
})

it('what cannot be is refused with a reason', async () => {
  const { directory } = await saved()
  await expect(run(directory, directory)).rejects.toThrow('compare two with --diff')
  await expect(run('--diff', directory)).rejects.toThrow('--diff needs two snapshots')
  await expect(run(directory, '--vcpu', '3')).rejects.toThrow('give one of 0')
  await expect(run(directory, '--walk', '0x')).rejects.toThrow('An address is needed')
  await expect(run(directory, '--walk', '0x1000')).rejects.toThrow('no vCPU of this snapshot runs in L2')
  await expect(run(scratch())).rejects.toThrow('it is no snapshot')
})
