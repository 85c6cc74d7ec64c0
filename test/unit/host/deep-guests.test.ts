import { expect, it } from 'vitest'
import { at, svmL1, svmL2, VMX_EXITED, vmxL1, vmxL2 } from '../../../lib/host/deep/guests.js'
import { assemble } from '../../guests/assemble.js'

it.each([
  ['L1 with svm', svmL1, at.l1],
  ['L1 with vmx', vmxL1, at.l1],
  ['L2 with svm', svmL2, at.l2],
  ['L2 with vmx', vmxL2, at.l2],
])('%s is what its source assembles to', (_, { source, code }, origin) => {
  expect(Buffer.from(code).toString('hex')).toBe(Buffer.from(assemble(`.code64\n${source}`, origin)).toString('hex'))
})

it('the host RIP of the VMCS is that of the label', () => {
  const bytes = assemble(`.code64\n${vmxL1.source}\n.balign 8\n.quad exited`, at.l1)
  expect(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(bytes.length - 8, true)).toBe(
    BigInt(at.l1 + VMX_EXITED),
  )
})
