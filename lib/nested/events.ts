/** Events on their way to a guest, in words: interruption information of VMX, EVENTINJ and EXITINTINFO of SVM. */

const exceptions: Readonly<Record<number, string>> = {
  0: '#DE',
  1: '#DB',
  2: 'NMI',
  3: '#BP',
  4: '#OF',
  5: '#BR',
  6: '#UD',
  7: '#NM',
  8: '#DF',
  10: '#TS',
  11: '#NP',
  12: '#SS',
  13: '#GP',
  14: '#PF',
  16: '#MF',
  17: '#AC',
  18: '#MC',
  19: '#XM',
  20: '#VE',
  21: '#CP',
  28: '#HV',
  29: '#VC',
  30: '#SX',
}

export const PAGE_FAULT = 14

/** `#PF`; the number for a vector without a name (Intel SDM vol. 3, table 7-1; AMD APM vol. 2, section 8.2). */
export function exceptionName(vector: number): string {
  return exceptions[vector] ?? `exception ${vector}`
}

/** A page fault's error code (Intel SDM vol. 3, section 5.7; AMD APM vol. 2, section 8.4.2). */
export function pageFaultText(code: bigint): string {
  const has = (bit: number) => ((code >> BigInt(bit)) & 1n) !== 0n
  const words = [
    has(4) ? 'instruction fetch' : has(1) ? 'write' : 'read',
    has(2) ? 'by user' : 'by supervisor',
    has(0) ? 'of a present page' : 'of a page that is not present',
  ]
  if (has(3)) words.push('with reserved bits set')
  if (has(5)) words.push('against its protection key')
  if (has(6)) words.push('as shadow stack')
  return words.join(' ')
}

/** What an exception's error code says: words for a page fault, the number for others. */
export function errorCodeText(vector: number, code: bigint): string {
  return vector === PAGE_FAULT ? pageFaultText(code) : `error code 0x${code.toString(16)}`
}

const vmxTypes = [
  'external interrupt',
  'reserved type',
  'NMI',
  'hardware exception',
  'software interrupt',
  'privileged software exception',
  'software exception',
  'other event',
]

/** VM-entry or VM-exit interruption information, or IDT-vectoring information (Intel SDM vol. 3, section 25.8.3 and 25.9.2). */
export function interruptionText(info: bigint, errorCode: bigint): string {
  if (((info >> 31n) & 1n) === 0n) return 'none'
  const vector = Number(info & 0xffn)
  const type = Number((info >> 8n) & 7n)
  const code = (info & (1n << 11n)) !== 0n ? errorCode : undefined
  return eventText(vmxTypes[type]!, vector, type === 3 || type === 5 || type === 6, type === 2, code)
}

const svmTypes: Readonly<Record<number, string>> = { 0: 'interrupt', 2: 'NMI', 3: 'exception', 4: 'software interrupt' }

/** EVENTINJ or EXITINTINFO (AMD APM vol. 2, sections 15.20 and 15.7.2). */
export function eventInjText(event: bigint): string {
  if (((event >> 31n) & 1n) === 0n) return 'none'
  const vector = Number(event & 0xffn)
  const type = Number((event >> 8n) & 7n)
  const code = (event & (1n << 11n)) !== 0n ? event >> 32n : undefined
  return eventText(svmTypes[type] ?? `reserved type ${type}`, vector, type === 3, type === 2, code)
}

function eventText(
  type: string,
  vector: number,
  isException: boolean,
  isNmi: boolean,
  code: bigint | undefined,
): string {
  const what = isNmi ? '' : isException ? ` ${exceptionName(vector)}` : ` 0x${vector.toString(16)}`
  return `${type}${what}${code === undefined ? '' : `, ${errorCodeText(vector, code)}`}`
}
