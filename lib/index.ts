/** nested-kvm: KVM for Node, with nested virtualization as its subject. */

export type { HostFeatures } from './arch/x86_64/compatibility.js'
export {
  type CpuBaseline,
  type CpuDifference,
  type CpuFacts,
  cpuBaseline,
  diffCpus,
  factsOfHost,
  factsOfModel,
  missingOf,
} from './arch/x86_64/cpu-compare.js'
export { CPU_DUMP_SCHEMA, type CpuDump, type DumpedLeaf, dumpCpu, parseCpuDump } from './arch/x86_64/cpu-dump.js'
export type { CpuidRegister, FlagLocation } from './arch/x86_64/cpu-flags.js'
export { type CpuHost, cpuHost } from './arch/x86_64/cpu-host.js'
export type { CpuModel, ModelCache } from './arch/x86_64/cpu-models/cpu-model.js'
export { CPU_MODELS, findCpuModel } from './arch/x86_64/cpu-models/models.js'
export { type CpuSpec, extensionWith, parseCpuSpec } from './arch/x86_64/cpu-spec.js'
export type { CpuidDraft } from './arch/x86_64/cpuid.js'
export { type CpuidProblem, checkCpuid, type Invariant } from './arch/x86_64/cpuid-check.js'
export { CpuidTable } from './arch/x86_64/cpuid-table.js'
export { type CpuidOptions, type MachineCpu, machineCpu } from './arch/x86_64/machine-cpu.js'
export type { ClockMode } from './arch/x86_64/vm-state.js'
export { giveVmxMsrs, type VmxCpu } from './arch/x86_64/vmx-cpu.js'
export { buildInitramfs, type InitramfsEntry, writeInitramfs } from './boot/initramfs.js'
export { programFiles } from './boot/program-files.js'
export { BOOT_WAYS, type BootOptions, type BootWay, type ModuleOptions } from './config/boot-options.js'
export type { DiskConfig, DiskOptions } from './config/disks.js'
export type { ConsoleKind, HugePages, MachineConfig, MachineOptions, TripleFault } from './config/machine-config.js'
export type { NetConfig, NetOptions, PortForward, TapOptions, UserNetOptions } from './config/nets.js'
export type { VsockConfig, VsockOptions } from './config/vsock.js'
export type { PanicEvent } from './devices/pvpanic.js'
export { ConfigError, GuestError, KvmError, NestedStateError, SnapshotError, TimeoutError } from './errors.js'
export type { CheckStatus, HostCheck } from './host/checks/check.js'
export {
  DEEP_STEPS,
  type DeepDiagnosis,
  type DeepOptions,
  type DeepStep,
  diagnoseDeeply,
} from './host/deep/probe.js'
export type { HostDiagnosis, HostFacts, Way } from './host/diagnose.js'
export { diagnoseHost, examineHost, examineHostDeeply } from './host/host.js'
export type { OuterHypervisor } from './host/hypervisor.js'
export { type LibvirtCpu, libvirtCpus } from './host/libvirt.js'
export { applyHostNesting, type NestingResult, planHostNesting } from './host/nesting.js'
export type { NestingOptions, NestingPlan, NestingStep } from './host/nesting-plan.js'
export type { Bearing, KvmParameter } from './host/parameters.js'
export { HOST_REPORT_SCHEMA, type HostReport } from './host/report.js'
export type { KvmUser } from './host/users.js'
export { type CapabilityName, cap } from './kvm/capabilities.js'
export { EventFd } from './kvm/event-fd.js'
export type { HypercallExit, InternalErrorExit, IoExit, MmioExit, MsrExit, VcpuExit } from './kvm/exit.js'
export type { GuestRegion, GuestRegionOptions } from './kvm/guest-region.js'
export { type CpuidRegisters, hostCpuid, hypervisorSignature } from './kvm/host-cpuid.js'
export { Kvm } from './kvm/kvm.js'
export { StatusWords } from './kvm/status-words.js'
export * from './kvm/structs.js'
export type { Vcpu } from './kvm/vcpu.js'
export { type ExitHandler, VcpuThread, type VcpuThreadState } from './kvm/vcpu-thread.js'
export type { CoalescedZone, IoeventfdOptions, Msi, Vm } from './kvm/vm.js'
export { type AssetKind, type Assets, ensureAssets, setUpLab } from './lab/assets.js'
export { Lab, type LabOptions, type LabResult, runInLab } from './lab/lab.js'
export { type KernelModule, ModuleTree } from './lab/modules.js'
export { LAST_COUNT, MARK, NEXT_INITRD, NEXT_KERNEL, QUICK_CMDLINE, writeTowerImage } from './lab/tower-image.js'
export { Checkpoint } from './machine/checkpoint.js'
export type { Console, ExpectMatch, ExpectOptions } from './machine/console.js'
export type { SnapshotOptions } from './machine/history.js'
export {
  forL2Section,
  type Inspection,
  inspectSnapshot,
  type L2Walk,
  stateSection,
  type VcpuInspection,
  walkL2,
} from './machine/inspect.js'
export { diffInspections, type InspectionDifference, type VcpuDifference } from './machine/inspect-diff.js'
export { Machine } from './machine/machine.js'
export type { GuestPanic, GuestReset, MachineEnd, MachineState } from './machine/machine-events.js'
export type { RestoreOptions } from './machine/restore.js'
export type { Vsock, VsockConnectOptions, VsockListener } from './machine/vsock.js'
export { GuestAddressError, GuestMemory, type MemoryRegion } from './memory/guest-memory.js'
export {
  type DescribedField,
  describeNested,
  type LevelState,
  type NestedContext,
  type NestedDescription,
  type NestedPaging,
  type Section,
} from './nested/describe.js'
export { type ChangedField, diffNested, toJson } from './nested/diff.js'
export { checkNestedState, type NestedVcpu } from './nested/rules.js'
export {
  decodeNestedState,
  encodeNestedState,
  type NestedState,
  type SvmNestedState,
  type VmxNestedState,
} from './nested/state.js'
export { decodeVmcb12, encodeVmcb12, type Vmcb12 } from './nested/vmcb12.js'
export { decodeVmcs12, encodeVmcs12, type Vmcs12 } from './nested/vmcs12.js'
export { VMX_DEPENDENCIES, type VmxDependency } from './nested/vmx-dependents.js'
export { VMX_FEATURES, type VmxFeatureWord } from './nested/vmx-features.js'
export { vmxFeaturesOf } from './nested/vmx-switch.js'
export { type L1Memory, type Walk, type WalkStep, walkEpt, walkNpt } from './nested/walk.js'
export type { PlacedExtent, PlacedRegion } from './snapshot/chain.js'
export { compareMemory, type MemoryDifference, type PageRun } from './snapshot/compare-memory.js'
export type {
  Blobs,
  Extent,
  Json,
  MachineState as SavedMachine,
  MemorySource,
  SavedVcpu,
} from './snapshot/format.js'
export type { ProgressOptions } from './snapshot/memory-file.js'
export { readSnapshot, type Snapshot } from './snapshot/read.js'
export { type SnapshotContents, type SnapshotInfo, writeSnapshot } from './snapshot/save.js'
export { SnapshotMemory } from './snapshot/snapshot-memory.js'
export { squashSnapshot } from './snapshot/squash.js'
export { verifySnapshot } from './snapshot/verify.js'
