import { closeSync, linkSync, mkdirSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** When a process started, in clock ticks since boot; tells a process from a later one with the same id. */
function startTime(pid) {
  try {
    // proc(5): field 22, counted after the command name, which may itself hold spaces and brackets.
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  } catch {
    return undefined
  }
}

/** True when the process that the lock names is still there. */
function isHeld(content) {
  const [pid, started] = content.trim().split(' ')
  return Boolean(started) && startTime(pid) === started
}

function tryLock(path) {
  // Written whole under another name first, so that nobody reads a lock without its owner.
  const mine = `${path}.${process.pid}`
  const file = openSync(mine, 'w')
  writeSync(file, `${process.pid} ${startTime(process.pid)}`)
  closeSync(file)
  try {
    linkSync(mine, path)
    return true
  } catch (error) {
    if (error.code !== 'EEXIST') throw error
    return false
  } finally {
    rmSync(mine, { force: true })
  }
}

/**
 * Runs `work` while holding the lock file `path`. A lock whose process has gone is taken over; `onWait` is called once
 * when another process holds it.
 */
export async function withLock(path, onWait, work) {
  mkdirSync(dirname(path), { recursive: true })
  for (let waited = false; !tryLock(path); waited = true) {
    let content
    try {
      content = readFileSync(path, 'utf8')
    } catch {
      continue
    }
    if (!isHeld(content)) {
      rmSync(path, { force: true })
      continue
    }
    if (!waited) onWait()
    await sleep(200)
  }
  const release = () => rmSync(path, { force: true })
  process.on('exit', release)
  try {
    return await work()
  } finally {
    release()
    process.off('exit', release)
  }
}
