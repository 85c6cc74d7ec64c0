/** The MSR that tells which attacks a processor withstands, and how (Intel SDM vol. 4, table 2-2). */
export const ARCH_CAPABILITIES = 0x10a

/** Its bits by QEMU's names. */
export const ARCH_CAPABILITY_NAMES: Readonly<Record<number, string>> = {
  0: 'rdctl-no',
  1: 'ibrs-all',
  2: 'rsba',
  3: 'skip-l1dfl-vmentry',
  4: 'ssb-no',
  5: 'mds-no',
  6: 'pschange-mc-no',
  7: 'tsx-ctrl',
  8: 'taa-no',
  13: 'sbdr-ssdp-no',
  14: 'fbsdp-no',
  15: 'psdp-no',
  17: 'fb-clear',
  19: 'rrsba',
  20: 'bhi-no',
  24: 'pbrsb-no',
  26: 'gds-no',
  27: 'rfds-no',
  28: 'rfds-clear',
}

/** The MSR's value with these bits. */
export function archCapabilities(names: readonly string[]): bigint {
  return Object.entries(ARCH_CAPABILITY_NAMES)
    .filter(([, name]) => names.includes(name))
    .reduce((value, [bit]) => value | (1n << BigInt(bit)), 0n)
}
