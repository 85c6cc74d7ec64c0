import { constants } from 'node:os'
import { KvmError } from '../errors.js'
import { addon, type NativeKvm } from './binding.js'
import { cap } from './capabilities.js'
import { type CpuidEntry, KVM_API_VERSION, kvm_msr_list, type Msr } from './structs.js'
import { decodeCpuid, emptyCpuid, readMsrs } from './tables.js'
import { Vm } from './vm.js'

/**
 * The KVM subsystem of this host: an open `/dev/kvm` (KVM API, "System ioctls").
 *
 * ```ts
 * using kvm = Kvm.open()
 * using vm = kvm.createVm()
 * ```
 */
export class Kvm {
  readonly #native: NativeKvm
  readonly apiVersion: number

  private constructor(native: NativeKvm, apiVersion: number) {
    this.#native = native
    this.apiVersion = apiVersion
  }

  /**
   * Opens KVM. KVM_GET_API_VERSION must give 12, the only version since Linux 2.6.22.
   * @throws {KvmError} there is no such device, it may not be opened, or it speaks another version
   */
  static open(path = '/dev/kvm'): Kvm {
    const native = new addon.Kvm(path)
    try {
      const version = native.getApiVersion()
      if (version !== KVM_API_VERSION) {
        const remedy = `${path} speaks version ${version} of the KVM API, this program ${KVM_API_VERSION}: run a kernel since 2.6.22`
        throw new KvmError('KVM_GET_API_VERSION', constants.errno.ENOTSUP, remedy)
      }
      return new Kvm(native, version)
    } catch (error) {
      native.close()
      if (error instanceof KvmError && error.code === 'ENOTTY') {
        throw new KvmError('KVM_GET_API_VERSION', error.errno, `${path} is not a KVM device`)
      }
      throw error
    }
  }

  /** KVM_CHECK_EXTENSION (KVM API 4.4): 0 where there is no such capability, else 1 or what the capability defines. */
  checkExtension(capability: number): number {
    return this.#native.checkExtension(capability)
  }

  /** KVM_GET_VCPU_MMAP_SIZE (KVM API 4.5): bytes of a vCPU's shared mapping. */
  get vcpuMmapSize(): number {
    return this.#native.getVcpuMmapSize()
  }

  /** KVM_GET_SUPPORTED_CPUID (KVM API 4.46, KVM_CAP_EXT_CPUID): what a vCPU of this host can have. */
  supportedCpuid(): CpuidEntry[] {
    return this.#cpuid(bytes => this.#native.getSupportedCpuid(bytes))
  }

  /** KVM_GET_EMULATED_CPUID (KVM API 4.88, KVM_CAP_EXT_EMUL_CPUID): features that KVM emulates, slowly. */
  emulatedCpuid(): CpuidEntry[] {
    return this.#cpuid(bytes => this.#native.getEmulatedCpuid(bytes))
  }

  /** KVM_GET_MSR_INDEX_LIST (KVM API 4.3): the MSRs that make up a vCPU's state on this host. */
  msrIndices(): number[] {
    return this.#indices(bytes => this.#native.getMsrIndexList(bytes))
  }

  /** KVM_GET_MSR_FEATURE_INDEX_LIST (KVM API 4.3, KVM_CAP_GET_MSR_FEATURES): MSRs that tell features of this host. */
  featureMsrIndices(): number[] {
    if (!this.checkExtension(cap.GET_MSR_FEATURES)) return []
    return this.#indices(bytes => this.#native.getMsrFeatureIndexList(bytes))
  }

  /**
   * KVM_GET_MSRS on the system descriptor (KVM API 4.18, KVM_CAP_GET_MSR_FEATURES): values of feature MSRs, in the order
   * asked for.
   * @throws {KvmError} this host does not give one of them; the message names it
   */
  getFeatureMsrs(indices: readonly number[]): Msr[] {
    return readMsrs(indices, bytes => this.#native.getMsrs(bytes))
  }

  /** KVM_CREATE_VM (KVM API 4.2). `type` is 0 on x86 but for protected VMs. */
  createVm(type = 0): Vm {
    return new Vm(this.#native.createVm(type))
  }

  /** Closes the descriptor. VMs made from it live on. */
  close(): void {
    this.#native.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #cpuid(call: (bytes: Uint8Array) => unknown): CpuidEntry[] {
    for (let entries = 128; ; entries *= 2) {
      const bytes = emptyCpuid(entries)
      // No kernel has nearly as many: then the error is the answer.
      if (entries > 4096) call(bytes)
      else if (!fits(() => call(bytes))) continue
      return decodeCpuid(bytes)
    }
  }

  #indices(call: (bytes: Uint8Array) => unknown): number[] {
    const count = new Uint8Array(kvm_msr_list.size)
    if (fits(() => call(count))) return []
    // Too small, so the kernel wrote how many there are.
    const nmsrs = new DataView(count.buffer).getUint32(0, true)
    const bytes = kvm_msr_list.encode({ nmsrs, indices: new Array<number>(nmsrs).fill(0) })
    call(bytes)
    return kvm_msr_list.decode(bytes).indices
  }
}

/** False where the kernel says that the list is longer than the buffer. */
function fits(call: () => unknown): boolean {
  try {
    call()
    return true
  } catch (error) {
    if (error instanceof KvmError && error.code === 'E2BIG') return false
    throw error
  }
}
