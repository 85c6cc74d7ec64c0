import type { HostCheck, HostReport, KvmParameter, LibvirtCpu } from '../index.js'

/** The report as text for people: a line for each check, then the verdict, then what to type. */
export function formatReport(report: HostReport, { verbose = false } = {}): string {
  const { checks, parameters } = report
  const width = Math.max(...checks.map(({ title }) => title.length))
  const lines = checks.flatMap(found => checkLines(found, width, report.commands))
  const more = verbose ? ['', 'Parameters', ...parameterLines(parameters)] : []
  return `${['Host', ...lines, ...more, '', ...verdictLines(report)].join('\n')}\n`
}

function checkLines(
  { status, title, detail, remedy }: HostCheck,
  width: number,
  commands: readonly string[],
): string[] {
  // What the verdict says at the end is not said twice.
  const here = remedy.filter(line => !commands.includes(line))
  return [
    `  ${status.padEnd(7)}  ${title.padEnd(width)}  ${detail}`,
    ...(status === 'pass' || status === 'info' ? [] : here.map(line => `${' '.repeat(width + 13)}> ${line}`)),
  ]
}

function verdictLines({ way, extension, reason, commands, deep }: HostReport): string[] {
  if (way === 'nested-here' && deep?.failed) {
    const report = 'KVM offers it, but an L2 did not come through: see dmesg, and try another kernel.'
    return [`Nested virtualization does not work here (${extension}).`, `  ${deep.failed.problem}.`, '', report]
  }
  const lab = '  nested-kvm lab -- <command>'
  switch (way) {
    case 'nested-here':
      return [`Nested virtualization works here (${extension}).`, `  ${reason}.`, '', 'Try it:', '  nested-kvm demo']
    case 'enable': {
      const typed = commands.map(command => `  ${command}`)
      const until = 'Until then, the lab works anywhere:'
      return ['Nested virtualization can be switched on here.', `  ${reason}.`, '', 'As root:', ...typed, until, lab]
    }
    case 'lab': {
      const text = 'The lab emulates a host that nests, and runs a command in it:'
      return ['Nested virtualization needs the lab here.', `  ${reason}.`, '', text, lab]
    }
  }
}

const bearings = { needed: 'needed', speed: 'speed', guest: 'guest', none: '-' } as const

function parameterLines(parameters: readonly KvmParameter[]): string[] {
  if (parameters.length === 0) return ['  none']
  const name = ({ module, name, value }: KvmParameter) => `${module}.${name}=${value ?? '?'}`
  const width = Math.max(...parameters.map(parameter => name(parameter).length))
  return parameters.map(parameter => {
    const { nesting, meaning } = parameter
    const bearing = nesting ? bearings[nesting] : '?'
    return `  ${name(parameter).padEnd(width)}  ${bearing.padEnd(6)}  ${meaning ?? 'not known here'}`
  })
}

/** The elements with what each is for, as an XML document's content: comments and elements, nothing else. */
export function formatLibvirt(cpus: readonly LibvirtCpu[]): string {
  const head =
    '<!-- virsh edit DOMAIN: in <domain>, in place of its <cpu>, one of these; then shut it down and start it. -->'
  return `${[head, ...cpus.map(({ purpose, xml }) => `\n<!-- ${purpose} -->\n${xml}`)].join('\n')}\n`
}
