/**
 * What a test imports as `vitest` where it runs bundled (scripts/bundle-tests.mjs): vitest's own suites, expectations and spies, without
 * its server, workers and transforms.
 */
import {
  ASYMMETRIC_MATCHERS_OBJECT,
  chai,
  customMatchers,
  type ExpectStatic,
  GLOBAL_EXPECT,
  getState,
  JestAsymmetricMatchers,
  JestChaiExpect,
  JestExtend,
  setState,
} from '@vitest/expect'
import { spyOn } from '@vitest/spy'

export { afterAll, afterEach, beforeAll, beforeEach, describe, it, onTestFinished, test } from '@vitest/runner'

chai.use(JestExtend)
chai.use(JestChaiExpect)
chai.use(JestAsymmetricMatchers)

/** As vitest puts it together (`createExpect`), less what needs its workers: snapshots, polls, counts of assertions. */
export const expect = ((value: unknown, message?: string) => chai.expect(value, message)) as ExpectStatic
const globals = globalThis as unknown as Record<symbol | string, object>
Object.assign(expect, chai.expect, globals[ASYMMETRIC_MATCHERS_OBJECT])
globals[GLOBAL_EXPECT] = expect
setState({ ...getState(expect), assertionCalls: 0 }, expect)
expect.extend = matchers =>
  (chai.expect as unknown as { extend(to: object, matchers: object): void }).extend(expect, matchers)
expect.extend(customMatchers)

export const vi = { spyOn }
