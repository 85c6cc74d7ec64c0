import { ConfigError } from '../../errors.js'
import { VMX_FEATURE_NAMES } from '../../nested/vmx-features.js'
import { CPU_FLAG_DEPENDENTS, CPU_FLAGS } from './cpu-flags.js'
import type { CpuModel } from './cpu-models/cpu-model.js'
import { CPU_MODELS, findCpuModel } from './cpu-models/models.js'
import { FEATURE_NAMES, featureNamed, nearestName } from './cpu-names.js'

/** Which CPU the guest is to have: the host's or a model's, with flags demanded and flags withheld. */
export interface CpuSpec {
  /** As the user wrote it, for messages. */
  readonly text: string
  readonly model: 'host' | CpuModel
  /** Flags, and VMX capabilities (`vmx-ept`). */
  readonly demanded: readonly string[]
  readonly withheld: readonly string[]
  /** Whether what this host cannot give is an error (`enforce`), or is left out with a warning (`check`). */
  readonly missing: 'enforce' | 'check'
  /** Width of physical addresses; default: the host's for `host`, else 40 or, where the host has less, that. */
  readonly physBits?: number
  /** The brand string. */
  readonly brand?: string
}

/**
 * Reads a CPU specification: a model, then flags and settings: `host`, `host,+vmx,-avx512f`, `EPYC,+svm,check`, `kvm64,phys-bits=42`. Flags
 * have the names of Linux's /proc/cpuinfo, or QEMU's. `+` demands a flag, `-` withholds it with all that depends on it; `flag=on` and
 * `flag=off` are the same. What vmx offers to the guest is switched like flags, by QEMU's names: `-vmx-ept`, `vmx-vpid=off`; a model of
 * Intel has its own set of that, `qemu64` the host's. What svm offers are flags: `-npt`, `nrip-save=off`. Settings: `enforce` (what the
 * host lacks is an error; the default), `check` (it is a warning), `phys-bits`, `model-id`.
 *
 * @throws {ConfigError} `cpu`: an unknown model, flag or setting, a bad value, or what contradicts itself
 */
export function parseCpuSpec(text: string): CpuSpec {
  const [name = '', ...items] = text.split(',').map(part => part.trim())
  const model: CpuSpec['model'] | undefined = name === 'host' ? name : findCpuModel(name)
  if (!model) throw noModel(text, name)
  const flags = new Map<string, boolean>()
  const settings = new Map<string, string>()
  for (const item of items) {
    const setting = settingOf(text, item)
    if (setting) {
      setOnce(text, settings, ...setting)
      continue
    }
    const [flag, wanted] = flagOf(text, item)
    if ((flags.get(flag) ?? wanted) !== wanted) {
      throw new ConfigError('cpu', text, `${flag} is both demanded and withheld`, 'leave one of the two out')
    }
    flags.set(flag, wanted)
  }
  const which = (wanted: boolean) => [...flags].filter(([, is]) => is === wanted).map(([flag]) => flag)
  const spec = { text, model, demanded: which(true), withheld: which(false), ...valuesOf(text, settings) }
  checkVendor(spec)
  return spec
}

/**
 * Flags that only one maker's processors have: what is told in leaves and bits that the other leaves reserved (Intel SDM vol. 2A, CPUID;
 * AMD APM vol. 3, appendix E).
 */
export const VENDOR_FLAGS: ReadonlyMap<string, 'GenuineIntel' | 'AuthenticAMD'> = new Map([
  ...names('vmx smx sgx sgx_lc hle rtm mpx intel_pt tsxldtrk amx_tile amx_int8 amx_bf16').map(
    flag => [flag, 'GenuineIntel'] as const,
  ),
  ...names(
    'svm sse4a misalignsse xop fma4 tbm lwp skinit cmp_legacy extapic cr8_legacy osvw ibs topoext perfctr_core ' +
      'mmxext fxsr_opt 3dnow 3dnowext',
  ).map(flag => [flag, 'AuthenticAMD'] as const),
  ...[...CPU_FLAGS]
    .filter(([, places]) => places.every(({ leaf }) => leaf === 0x8000000a || leaf > 0x80000008))
    .map(([flag]) => [flag, 'AuthenticAMD'] as const),
  ...[...VMX_FEATURE_NAMES].map(name => [name, 'GenuineIntel'] as const),
])

/** The extension that a feature is one of; undefined: it is of none. */
export function extensionWith(feature: string): 'vmx' | 'svm' | undefined {
  if (VMX_FEATURE_NAMES.has(feature)) return 'vmx'
  return CPU_FLAG_DEPENDENTS.get('svm')!.includes(feature) ? 'svm' : undefined
}

function names(text: string): string[] {
  return text.split(' ')
}

function checkVendor({ text, model, demanded, withheld }: Pick<CpuSpec, 'text' | 'model' | 'demanded' | 'withheld'>) {
  if (model === 'host' || model.vendor === 'generic') return
  // Whoever withholds a part of the other extension means this one's.
  const parts = withheld.filter(flag => extensionWith(flag) !== undefined)
  for (const flag of [...demanded, ...parts]) {
    const vendor: string = VENDOR_FLAGS.get(flag) ?? model.vendor
    if (vendor === model.vendor) continue
    const problem = `${model.name} is a model of ${model.vendor}, and ${flag} is only on processors of ${vendor}`
    const twin = TWINS.get(flag)
    const own = demanded.includes(flag) ? `+${flag}` : `-${flag}`
    throw new ConfigError('cpu', text, problem, twin ? `ask for ${own[0]}${twin}` : `leave out ${own}`)
  }
}

/** What the other maker has for it. */
const TWINS: ReadonlyMap<string, string> = new Map(
  [
    ['vmx', 'svm'],
    ['vmx-ept', 'npt'],
  ].flatMap(([intel, amd]) => [
    [intel!, amd!],
    [amd!, intel!],
  ]),
)

function noModel(text: string, name: string): ConfigError {
  const known = ['host', ...CPU_MODELS.map(model => model.name)]
  const near = nearestName(name, known)
  const advice = `the models are ${known.join(', ')}`
  const remedy = near ? `did you mean ${near}? ${advice}` : advice
  return new ConfigError('cpu', text, `there is no CPU model ${JSON.stringify(name.slice(0, 64))}`, remedy)
}

const SETTINGS = ['enforce', 'check', 'phys-bits', 'model-id'] as const
type Setting = (typeof SETTINGS)[number]

/** The setting that an item is, with its value; undefined: it is a flag. */
function settingOf(text: string, item: string): [Setting, string] | undefined {
  const [, key = '', value = 'on'] = /^([^=]*)(?:=(.*))?$/s.exec(item) ?? []
  const setting = SETTINGS.find(name => name === key)
  if (setting) return [setting, value]
  if (!item.includes('=') || featureNamed(key)) return undefined
  const near = nearestName(key, SETTINGS)
  const known = `the settings are ${SETTINGS.join(', ')}; flags are written +flag or -flag`
  const problem = `there is no setting ${JSON.stringify(key.slice(0, 64))}`
  throw new ConfigError('cpu', text, problem, near ? `did you mean ${near}? ${known}` : known)
}

function setOnce(text: string, settings: Map<string, string>, key: Setting, value: string): void {
  if ((settings.get(key) ?? value) !== value) {
    throw new ConfigError('cpu', text, `${key} is given twice, and differently`, 'leave one of the two out')
  }
  settings.set(key, value)
}

function flagOf(text: string, item: string): [flag: string, wanted: boolean] {
  const [, sign, signed = '', plain = '', value] = /^(?:([+-])(.*)|([^=]*)=(.*))$/s.exec(item) ?? []
  if (sign === undefined && value === undefined) {
    const near = nearestName(item, SETTINGS)
    const remedy = near ? `did you mean ${near}? a flag is written +${item} or -${item}` : `write +${item} or -${item}`
    throw new ConfigError('cpu', text, `${JSON.stringify(item)} has no sign`, remedy)
  }
  if (value !== undefined && value !== 'on' && value !== 'off') {
    throw new ConfigError('cpu', text, `${plain} is a flag, and cannot be ${JSON.stringify(value)}`, 'give on or off')
  }
  const name = sign ? signed : plain
  const flag = featureNamed(name)
  if (flag) return [flag, sign === '+' || value === 'on']
  const near = nearestName(name, FEATURE_NAMES)
  const vmx = /^vmx[-_]/i.test(name)
  const known = vmx
    ? 'what vmx offers has the names of QEMU, as `nested-kvm cpu show host` lists them'
    : 'the flags have the names that /proc/cpuinfo shows'
  const problem = `there is no CPU flag ${JSON.stringify(name.slice(0, 64))}`
  throw new ConfigError('cpu', text, problem, near ? `did you mean ${near}? ${known}` : known)
}

function valuesOf(
  text: string,
  settings: ReadonlyMap<string, string>,
): Omit<CpuSpec, 'text' | 'model' | 'demanded' | 'withheld'> {
  const onOff = (key: Setting) => {
    const value = settings.get(key)
    if (value === undefined || value === 'on' || value === 'off') return value
    throw new ConfigError('cpu', text, `${key} cannot be ${JSON.stringify(value)}`, 'give on or off')
  }
  const [enforce, check] = [onOff('enforce'), onOff('check')]
  if ((enforce === 'on' && check === 'on') || (check === 'off' && enforce === 'off')) {
    const problem = 'what the host lacks is either an error (enforce) or a warning (check)'
    throw new ConfigError('cpu', text, problem, 'give one of enforce and check')
  }
  const bits = settings.get('phys-bits')
  // 32 is the least that 64-bit processors have; 52 is what page tables have room for.
  if (bits !== undefined && !(/^\d{2}$/.test(bits) && Number(bits) >= 32 && Number(bits) <= 52)) {
    throw new ConfigError('cpu', text, `phys-bits cannot be ${JSON.stringify(bits)}`, 'give a number from 32 to 52')
  }
  const brand = settings.get('model-id')
  if (brand !== undefined && !/^[\x20-\x7e]{1,47}$/.test(brand)) {
    throw new ConfigError('cpu', text, 'model-id is no brand string', 'give 1 to 47 characters of ASCII')
  }
  return {
    missing: check === 'on' || enforce === 'off' ? 'check' : 'enforce',
    ...(bits !== undefined && { physBits: Number(bits) }),
    ...(brand !== undefined && { brand }),
  }
}
