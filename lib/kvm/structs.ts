/** The structs and constants of the kernel's KVM interface, each written down once. */
export * from './constants.js'
export type { Infer, Struct } from './layout.js'
export * from './structs-run.js'
export * from './structs-vcpu.js'
export * from './structs-vm.js'
