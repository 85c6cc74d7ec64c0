import type { Extension } from './modules.js'

/** A part of a libvirt domain, to be pasted. */
export interface LibvirtCpu {
  /** What it does, in a sentence. */
  readonly purpose: string
  /** The `<cpu>` element. */
  readonly xml: string
}

/**
 * The `<cpu>` elements of a libvirt domain that let its guest nest (libvirt: formatdomain, "CPU model and topology"): the host's CPU as it is,
 * and a model that requires the extension, which can be migrated. Without an extension there is one of those for each.
 */
export function libvirtCpus(extension: Extension | null): LibvirtCpu[] {
  const passthrough = {
    purpose: "the host's CPU as it is, with all that it has; for a machine that stays on this host",
    xml: "<cpu mode='host-passthrough' check='none' migratable='off'/>",
  }
  const required = (name: Extension): LibvirtCpu => ({
    purpose: `the host's CPU by libvirt's model of it, and ${name}: without it the machine does not start`,
    xml: `<cpu mode='host-model' check='partial'>\n  <feature policy='require' name='${name}'/>\n</cpu>`,
  })
  const names: readonly Extension[] = extension ? [extension] : ['vmx', 'svm']
  return [passthrough, ...names.map(required)]
}
