/** Rings of a trial, after which it is decided whether patience pays. */
const TRIAL = 4
/** Chains that a ring of a trial must find, on average. */
const WORTHWHILE = 4
/** Rings until the next trial: at first, and after many that were in vain. */
const [WAIT_MIN, WAIT_MAX] = [8, 1024]

/**
 * Decides whether a driver's ring wakes this JS thread at once, or when the guest has given up its processor.
 *
 * Where the host has fewer processors than there is to run, a thread that wakes up takes that of the very vCPU that rang: a driver with much
 * to do is served one chain at a time, each at two switches of threads and an interrupt. A patient thread finds all that the driver has to say.
 * But a driver that waits for what it asked for gets it later, by a turn of the scheduler's, where the guest has other work
 * meanwhile. So patience is tried now and then, and kept while rings find many chains. Where a processor is free it makes no difference.
 */
export class WakeUps {
  readonly #setPatient: (patient: boolean) => void
  #patient = false
  /** Rings until the next decision. */
  #left = WAIT_MIN
  /** Chains found since the last. */
  #found = 0
  #wait = WAIT_MIN

  constructor(setPatient: (patient: boolean) => void) {
    this.#setPatient = setPatient
  }

  /** A driver rang, and so many chains were waiting. */
  rang(chains: number): void {
    this.#found += chains
    if (--this.#left > 0) return
    if (!this.#patient) {
      this.#begin(true, TRIAL)
    } else if (this.#found >= TRIAL * WORTHWHILE) {
      this.#wait = WAIT_MIN
      this.#begin(true, TRIAL)
    } else {
      this.#begin(false, this.#wait)
      this.#wait = Math.min(2 * this.#wait, WAIT_MAX)
    }
  }

  /** For now nobody rings. */
  rest(): void {
    this.#wait = WAIT_MIN
    this.#begin(false, WAIT_MIN)
  }

  #begin(patient: boolean, rings: number): void {
    if (patient !== this.#patient) this.#setPatient(patient)
    this.#patient = patient
    this.#left = rings
    this.#found = 0
  }
}
