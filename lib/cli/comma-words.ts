/** Splits the value of an option at commas; a doubled one stands for itself. */
export function splitWords(value: string): string[] {
  const words = ['']
  for (const [part] of value.matchAll(/,,|,|[^,]+/g)) {
    if (part === ',') words.push('')
    else words[words.length - 1] += part === ',,' ? ',' : part
  }
  return words
}
