import { expect, it } from 'vitest'
import { formatLibvirt } from '../../../lib/cli/doctor-text.js'
import { libvirtCpus } from '../../../lib/host/libvirt.js'

it('gives the CPU as it is, and the model that requires the extension', () => {
  expect(libvirtCpus('svm').map(({ xml }) => xml)).toEqual([
    "<cpu mode='host-passthrough' check='none' migratable='off'/>",
    "<cpu mode='host-model' check='partial'>\n  <feature policy='require' name='svm'/>\n</cpu>",
  ])
  expect(libvirtCpus('vmx')[1]!.xml).toContain("name='vmx'")
})

it('gives both extensions where neither is known', () => {
  const text = libvirtCpus(null).map(({ xml }) => xml)
  expect(text).toHaveLength(3)
  expect(text[1]).toContain("'vmx'")
  expect(text[2]).toContain("'svm'")
})

it('prints comments and elements, each closed, and nothing else', () => {
  const text = formatLibvirt(libvirtCpus(null))
  expect(text).toContain('virsh edit')
  const comments = text.match(/<!--.*?-->/gs)!
  // XML 1.0, 2.5: no "--" in a comment.
  for (const comment of comments) expect(comment.slice(4, -3)).not.toContain('--')
  const open: string[] = []
  const rest = text
    .replaceAll(/<!--.*?-->/gs, '')
    .replaceAll(/<(\/?)(\w+)((?: \w+='[^'<&]*')*)(\/?)>/g, (_, end, name, __, empty) => {
      if (end) expect(open.pop()).toBe(name)
      else if (!empty) open.push(name)
      return ''
    })
  expect(open).toEqual([])
  expect(rest.trim()).toBe('')
})
